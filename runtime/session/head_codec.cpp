// Heads: a session at a turn boundary plus the raw batches of its open turns.

#include <algorithm>

#include "runtime/session/session.h"
#include "runtime/session/wire.h"

namespace mainstay {
namespace {

constexpr uint32_t head_format = 1;

template <class Set>
void put_text(const std::string& text, Set set) {
    if (!text.empty()) set(wire::as_text(text));
}

}  // namespace

std::string Session::encode_head() const {
    INVARIANT(keep_history_ || open_.empty(), "a session without history knows no batches");
    std::vector<const OpenBatch*> open;
    for (const TurnProgress& progress : open_)
        for (const OpenBatch& batch : progress.batches) open.push_back(&batch);
    std::sort(open.begin(), open.end(),
              [](const OpenBatch* a, const OpenBatch* b) { return a->first_sequence < b->first_sequence; });
    std::vector<std::string> bytes;
    std::vector<RawBatch> raw;
    bytes.reserve(open.size());
    for (const OpenBatch* batch : open) {
        bytes.push_back(encode(batch->batch));
        raw.push_back(RawBatch{batch->first_sequence, bytes.back()});
    }
    return encode_head(raw);
}

std::string Session::encode_head(const std::vector<RawBatch>& open_batches) const {
    return wire::pack_message([&](capnp::MessageBuilder& message) {
        auto out = message.initRoot<wire::Head>();
        out.setTenant(key_.tenant.value);
        out.setSequence(sequence_.value);
        out.setDeleted(deleted_);
        out.setChildren(children_);
        const bool fork = created_.parent.valid() && (!deleted_ || children_ != 0);
        if (fork) {
            out.setParentFamily(created_.parent.family.value);
            out.setParentSession(wire::as_data(wire::session_bytes(created_.parent)));
            out.setParentTurn(created_.parent_turn.value);
            out.setTurnBase(turn_base_.value);
        }
        if (deleted_) return;  // a tombstone says no more, and the way to the parent only for forks that read past it
        out.setCreatedAt(created_at_);
        out.setUpdatedAt(now_);
        put_text(created_.principal, [&](auto text) { out.setPrincipal(text); });
        put_text(created_.metadata, [&](auto text) { out.setMetadata(text); });
        out.setEphemeral(created_.ephemeral);
        out.setConversation(created_.conversation);
        out.setTurnsSettled(turns_settled_);
        out.setItemsSettled(items_settled_);
        if (!(usage_ == Usage{})) wire::write(out.initUsage(), usage_);
        if (!memory_.empty()) {
            std::vector<const std::pair<const std::string, std::string>*> entries;  // sorted: equal states, equal bytes
            for (const auto& entry : memory_) entries.push_back(&entry);
            std::sort(entries.begin(), entries.end(), [](auto* a, auto* b) { return a->first < b->first; });
            auto list = out.initMemory(static_cast<uint32_t>(entries.size()));
            for (uint32_t i = 0; i < list.size(); ++i) {
                list[i].setKey(wire::as_text(entries[i]->first));
                list[i].setValue(wire::as_text(entries[i]->second));
            }
        }
        if (!open_batches.empty()) {
            auto list = out.initOpenBatches(static_cast<uint32_t>(open_batches.size()));
            for (uint32_t i = 0; i < list.size(); ++i) {
                list[i].setFirstSequence(open_batches[i].first_sequence.value);
                list[i].setBytes(wire::as_data(open_batches[i].bytes));
            }
        }
        out.setCompactedTo(compacted_to_.value);
        put_text(summary_, [&](auto text) { out.setSummary(text); });
        put_text(agent_, [&](auto text) { out.setAgent(text); });
        out.setStreamReserved(stream_reserved_);
        out.setWakeAt(wake_at());
        out.setKeepUntil(keep_until_);
        out.setNoted(noted_);
    });
}

Result<Session> Session::decode_head(SessionKey key, std::string_view bytes) {
    return decode_head(key, bytes, nullptr);
}

Result<Session> Session::decode_head(SessionKey key, std::string_view bytes, std::vector<OpenBatchBytes>* open) {
    Session session(key);
    std::vector<OpenBatchBytes> batches;
    auto error = wire::unpack_message(bytes, [&](capnp::MessageReader& message) {
        auto in = message.getRoot<wire::Head>();
        if (in.getFormat() != head_format) throw wire::Malformed{"a head of another format"};
        if (in.getTenant() != key.tenant.value) throw wire::Malformed{"a head of another tenant"};
        session.sequence_ = Sequence{in.getSequence()};
        if (session.sequence_.value == 0) return;  // nothing has happened yet
        session.deleted_ = in.getDeleted();
        session.exists_ = !session.deleted_;
        session.children_ = in.getChildren();
        session.created_.tenant = key.tenant;
        if (!session.deleted_ || session.children_ != 0)
            session.created_.parent = wire::session_of(in.getParentFamily(), in.getParentSession());
        if (session.created_.parent.valid())
            session.turn_base_ = session.created_.parent_turn = TurnNo{in.getParentTurn()};
        if (in.getTurnBase() != session.turn_base_.value && !session.deleted_)
            throw wire::Malformed{"the turns of the head do not begin where its parent's end"};
        if (session.deleted_) return;  // as it is written: a tombstone says no more
        session.created_at_ = in.getCreatedAt();
        session.now_ = in.getUpdatedAt();
        session.created_.principal = wire::text_of(in.getPrincipal());
        session.created_.metadata = wire::text_of(in.getMetadata());
        session.created_.ephemeral = in.getEphemeral();
        session.created_.conversation = in.getConversation();
        session.turns_settled_ = in.getTurnsSettled();
        session.items_settled_ = in.getItemsSettled();
        if (in.hasUsage()) session.usage_ = wire::read(in.getUsage());
        for (auto entry : in.getMemory())
            session.memory_[wire::text_of(entry.getKey())] = wire::text_of(entry.getValue());
        session.compacted_to_ = TurnNo{in.getCompactedTo()};
        session.summary_ = wire::text_of(in.getSummary());
        session.agent_ = wire::text_of(in.getAgent());
        session.stream_reserved_ = in.getStreamReserved();
        session.keep_until_ = in.getKeepUntil();
        session.noted_ = in.getNoted();
        for (auto batch : in.getOpenBatches())
            batches.push_back(OpenBatchBytes{Sequence{batch.getFirstSequence()}, wire::bytes_of(batch.getBytes())});
    });
    auto damaged = [](std::string what) { return Error{ErrorCode::state_damaged, std::move(what), {}}; };
    if (error) return damaged(std::move(*error));
    session.last_turn_ = session.turn_base_;
    Sequence reached;  // open batches are written in the order of the journal, once each
    for (const OpenBatchBytes& raw : batches) {
        auto batch = decode_batch(raw.bytes);
        if (!batch) return damaged("an open batch: " + batch.error().message);
        if (raw.first_sequence <= reached || raw.first_sequence > session.sequence_ ||
            session.sequence_.value - raw.first_sequence.value < batch->events.size() - 1 || batch->at > session.now_ ||
            batch->turn.value == 0 || !session.apply_batch(*batch, raw.first_sequence, true))
            return damaged("an open batch does not fit its head");
        reached = Sequence{raw.first_sequence.value + batch->events.size() - 1};
    }
    const uint64_t last = uint64_t{session.turn_base_.value} + session.turns_settled_ + session.open_.size();
    if (last > UINT32_MAX || session.last_turn_.value > last || session.compacted_to_.value > last)
        return damaged("the turns of the head do not add up");
    session.last_turn_ = TurnNo{static_cast<uint32_t>(last)};
    session.start_next();
    if (open) *open = std::move(batches);
    return session;
}

}  // namespace mainstay
