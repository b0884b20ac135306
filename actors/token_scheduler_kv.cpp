// KV blocks of a model that go to other nodes or come from there.
#include <caf/send.hpp>

#include "actors/token_scheduler.h"
#include "runtime/inference/kv_block.h"

namespace mainstay {

const char* to_string(KvOutcome outcome) {
    switch (outcome) {
        case KvOutcome::taken: return "taken";
        case KvOutcome::known: return "known";
        case KvOutcome::no_model: return "no_model";
        case KvOutcome::other_kernel: return "other_kernel";
        case KvOutcome::no_room: return "no_room";
        case KvOutcome::damaged: return "damaged";
        case KvOutcome::gone: return "gone";
        case KvOutcome::unreachable: return "unreachable";
        case KvOutcome::beyond_bounds: return "beyond_bounds";
    }
    return "?";
}

// --- to another node -------------------------------------------------------------------------------------------------

void TokenScheduler::list_kv(ListKv& list) {
    KvHoldings out;
    if (scheduler_ && kv_caps_.kv_export && !stopping_) {
        out.model_hash = kv_caps_.model_hash;
        out.kv_format = kv_caps_.kv_format;
        out.block_tokens = kv_caps_.block_tokens;
        out.block_bytes = kv_caps_.block_bytes;
        out.blocks = scheduler_->holdings(list.wanted, list.bytes_max / kv_caps_.block_bytes);
    }
    list.done(std::move(out));
}

/// From the host's memory at once; from a device with its next work, in front of its step; else from the disk.
void TokenScheduler::export_kv(ExportKv& wanted) {
    const uint64_t no = ++export_no_;
    Export& one = exports_[no];
    one.done = std::move(wanted.done);
    one.missing = 1;  // for this function: nothing is answered before all were looked for
    auto read = std::make_shared<ReadBlocks>();
    for (const KvHash& hash : wanted.hashes) {
        const size_t at = one.blocks.size();
        const auto held = host_.find(hash);
        one.blocks.push_back({hash, held == host_.end() ? nullptr : held->second});
        if (held != host_.end()) continue;
        const bool under_way = awaited_.contains(hash);
        if (!under_way && !(scheduler_ && scheduler_->export_block(hash))) {
            if (!kv_tier_) continue;
            read->hashes.push_back(hash);
        }
        awaited_[hash].emplace_back(no, at);
        ++one.missing;
    }
    if (!read->hashes.empty()) self_->send(kv_tier_, std::move(read));
    if (--one.missing == 0) {
        Export ready = std::move(one);
        exports_.erase(no);
        ready.done(std::move(ready.blocks));
    }
    advance();
}

void TokenScheduler::settle_export(const KvHash& hash, const BytesPtr& bytes) {
    const auto found = awaited_.find(hash);
    if (found == awaited_.end()) return;
    const auto places = std::move(found->second);
    awaited_.erase(found);
    for (const auto& [no, at] : places) {
        const auto one = exports_.find(no);
        if (one == exports_.end()) continue;
        one->second.blocks[at].bytes = bytes;
        if (--one->second.missing > 0) continue;
        Export ready = std::move(one->second);
        exports_.erase(one);
        ready.done(std::move(ready.blocks));
    }
}

/// A device or the disk's tier is gone: what was awaited of it does not come, and the rest is not worth telling apart.
void TokenScheduler::give_up_exports() {
    while (!awaited_.empty()) settle_export(KvHash(awaited_.begin()->first), nullptr);
    if (stores_ == 0)
        for (const auto& told : std::exchange(taken_, {})) told();
}

void TokenScheduler::read_from_disk(const KvRead& read) {
    for (const BlockExported& block : read.blocks) settle_export(block.hash, block.bytes);
}

void TokenScheduler::count_kv(const CountKv& count) {
    transfer_.sent_bytes += count.more.sent_bytes;
    for (size_t i = 0; i < kv_outcomes; ++i) transfer_.blocks[i] += count.more.blocks[i];
    arm_count();
}

// --- from another node -----------------------------------------------------------------------------------------------

/// Nothing is taken that a device of this model would not import as this very block: the bytes are checked here, and by
/// the device again.
KvOutcome TokenScheduler::take_block(const TakeKv& take, size_t at, bool& to_disk) {
    const BlockName& name = take.blocks[at];
    if (scheduler_->claim(name)) return KvOutcome::known;
    if (!scheduler_->has_tier_room()) return KvOutcome::no_room;
    if (take.bytes.empty()) return KvOutcome::taken;
    const std::string& bytes = take.bytes[at];
    auto tokens = open_kv_block(bytes, kv_block_identity(kv_caps_.model_hash, kv_caps_.kv_format),
                                kv_caps_.block_tokens, kv_caps_.block_bytes - kv_block_header_bytes);
    if (!tokens.ok() || *tokens != name.tokens) return KvOutcome::damaged;
    const BlockTaken taken = scheduler_->accept(name);
    if (taken == BlockTaken::known) return KvOutcome::known;
    if (taken == BlockTaken::no_room) return KvOutcome::no_room;
    host_[name.hash] = std::make_shared<const std::string>(bytes);
    to_disk |= taken == BlockTaken::disk;
    ++transfer_.received_blocks;
    transfer_.received_bytes += bytes.size();
    return KvOutcome::taken;
}

void TokenScheduler::take_kv(TakeKv& take) {
    std::vector<KvOutcome> outcomes(take.blocks.size(), KvOutcome::no_model);
    if (!scheduler_ || stopping_) return take.done(std::move(outcomes));
    bool to_disk = false;
    const bool ours = take.model_hash == kv_caps_.model_hash && take.kv_format == kv_caps_.kv_format &&
                      take.block_tokens == kv_caps_.block_tokens && kv_caps_.kv_export &&
                      kv_caps_.block_bytes > kv_block_header_bytes;
    for (size_t i = 0; i < outcomes.size(); ++i)
        outcomes[i] = ours ? take_block(take, i, to_disk) : KvOutcome::other_kernel;
    advance();
    if (!to_disk || stores_ == 0) return take.done(std::move(outcomes));
    // The sender goes on when this is told: what waits for the disk is never more than was under way.
    taken_.push_back([done = std::make_shared<ReplyTo<std::vector<KvOutcome>>>(std::move(take.done)),
                      outcomes = std::move(outcomes)] { (*done)(outcomes); });
}

}  // namespace mainstay
