// Events to packed Cap'n Proto and back. Fields that have their default stay unset: a default is zero on the wire and
// packing removes zeros. Every enumerator that is read is range-checked, because these bytes may be anybody's.

#include "runtime/base/limits.h"
#include "runtime/session/wire.h"

namespace mainstay {
namespace {

// The numbers of the enumerators are the format.
#define SAME(wire_name, own) static_assert(static_cast<uint16_t>(wire::wire_name) == static_cast<uint16_t>(own))
SAME(Role::USER, Role::user);
SAME(Role::ASSISTANT, Role::assistant);
SAME(Role::SYSTEM, Role::system);
SAME(Role::DEVELOPER, Role::developer);
SAME(ItemKind::MESSAGE, ItemKind::message);
SAME(ItemKind::FUNCTION_CALL, ItemKind::function_call);
SAME(ItemKind::FUNCTION_CALL_OUTPUT, ItemKind::function_call_output);
SAME(ItemKind::TOOL_CALL, ItemKind::tool_call);
SAME(ItemKind::COMPACTION, ItemKind::compaction);
SAME(ItemKind::APPROVAL_REQUEST, ItemKind::approval_request);
SAME(ItemKind::APPROVAL_RESPONSE, ItemKind::approval_response);
SAME(ItemStatus::IN_PROGRESS, ItemStatus::in_progress);
SAME(ItemStatus::COMPLETED, ItemStatus::completed);
SAME(ItemStatus::INCOMPLETE, ItemStatus::incomplete);
SAME(ItemStatus::FAILED, ItemStatus::failed);
SAME(ItemStatus::UNKNOWN, ItemStatus::unknown);
SAME(EffectClass::READ, EffectClass::read);
SAME(EffectClass::IDEMPOTENT, EffectClass::idempotent);
SAME(EffectClass::ONCE, EffectClass::once);
SAME(ErrorClass::TRANSIENT, ErrorClass::transient);
SAME(ErrorClass::RATE_LIMITED, ErrorClass::rate_limited);
SAME(ErrorClass::OVERLOADED, ErrorClass::overloaded);
SAME(ErrorClass::INVALID, ErrorClass::invalid);
SAME(ErrorClass::AUTH, ErrorClass::auth);
SAME(ErrorClass::CONTEXT_OVERFLOW, ErrorClass::context_overflow);
SAME(ErrorClass::CONTENT_FILTER, ErrorClass::content_filter);
SAME(ErrorClass::PROTOCOL, ErrorClass::protocol);
SAME(ErrorClass::TIMEOUT, ErrorClass::timeout);
SAME(ErrorClass::LOST, ErrorClass::lost);
SAME(TurnStatus::QUEUED, TurnStatus::queued);
SAME(TurnStatus::IN_PROGRESS, TurnStatus::in_progress);
SAME(TurnStatus::COMPLETED, TurnStatus::completed);
SAME(TurnStatus::FAILED, TurnStatus::failed);
SAME(TurnStatus::INCOMPLETE, TurnStatus::incomplete);
SAME(TurnStatus::CANCELLED, TurnStatus::cancelled);
SAME(WaitKind::TIMER, WaitKind::timer);
SAME(WaitKind::APPROVAL, WaitKind::approval);
SAME(WaitKind::SIGNAL, WaitKind::signal);
SAME(WaitKind::CHILD, WaitKind::child);
SAME(WaitOutcome::FIRED, WaitOutcome::fired);
SAME(WaitOutcome::APPROVED, WaitOutcome::approved);
SAME(WaitOutcome::DENIED, WaitOutcome::denied);
SAME(WaitOutcome::SIGNALLED, WaitOutcome::signalled);
SAME(WaitOutcome::EXPIRED, WaitOutcome::expired);
SAME(WaitOutcome::CANCELLED, WaitOutcome::cancelled);
SAME(Resolution::DONE, Resolution::done);
SAME(Resolution::FAILED, Resolution::failed);
SAME(Resolution::RETRY, Resolution::retry);
#undef SAME

using wire::as_data;
using wire::as_text;
using wire::checked;
using wire::Malformed;
using wire::take;
using wire::text_of;

ItemStatus own(wire::ItemStatus v) { return checked(v, ItemStatus::unknown); }
EffectClass own(wire::EffectClass v) { return checked(v, EffectClass::once); }
ErrorClass own(wire::ErrorClass v) { return checked(v, ErrorClass::lost); }
TurnStatus own(wire::TurnStatus v) { return checked(v, TurnStatus::cancelled); }
WaitKind own(wire::WaitKind v) { return checked(v, WaitKind::child); }
WaitOutcome own(wire::WaitOutcome v) { return checked(v, WaitOutcome::cancelled); }
Resolution own(wire::Resolution v) { return checked(v, Resolution::retry); }

// --- writing ------------------------------------------------------------------------------------------------------

// Sets a text field unless it is empty.
#define PUT_TEXT(builder, Field, value)                             \
    do {                                                            \
        if (!(value).empty()) (builder).set##Field(as_text(value)); \
    } while (false)

template <class Builder>
void write_items(Builder out, const std::vector<ItemPtr>& items) {
    if (items.empty()) return;
    auto list = out.initItems(static_cast<uint32_t>(items.size()));
    for (uint32_t i = 0; i < list.size(); ++i) wire::write(list[i], *items[i]);
}

void write(wire::Event::Builder out, const SessionCreated& e) {
    auto to = out.initCreated();
    to.setTenant(e.tenant.value);
    PUT_TEXT(to, Principal, e.principal);
    if (e.parent.valid()) {
        to.setParentFamily(e.parent.family.value);
        to.setParentSession(as_data(wire::session_bytes(e.parent)));
        to.setParentTurn(e.parent_turn.value);
    }
    PUT_TEXT(to, Metadata, e.metadata);
    to.setEphemeral(e.ephemeral);
    to.setConversation(e.conversation);
}

void write(wire::Event::Builder out, const InputAccepted& e) {
    auto to = out.initInputAccepted();
    write_items(to, e.items);
    PUT_TEXT(to, Agent, e.agent);
    to.setAgentVersion(e.agent_version);
    PUT_TEXT(to, Principal2, e.principal);
    if (e.key) to.setKeyHash(capnp::Data::Reader(e.key->data(), e.key->size()));
    to.setRequestDigest(e.request_digest);
    auto turn_limits = to.initLimits();
    turn_limits.setSteps(e.limits.steps);
    turn_limits.setTokens(e.limits.tokens);
    turn_limits.setDurationMs(e.limits.duration_ms);
    PUT_TEXT(to, Options, e.options);
}

void write(wire::Event::Builder out, const ModelStepSettled& e) {
    auto to = out.initModelStepSettled();
    to.setStep(e.step);
    write_items(to, e.items);
    if (!(e.usage == Usage{})) wire::write(to.initUsage(), e.usage);
    PUT_TEXT(to, Model, e.model);
    PUT_TEXT(to, FinishReason, e.finish_reason);
    if (!e.token_ids.empty()) to.setTokenIds(as_data(e.token_ids));
    if (!e.tokenizer_hash.empty()) to.setTokenizerHash(as_data(e.tokenizer_hash));
    to.setTemplateVersion(e.template_version);
}

void write(wire::Event::Builder out, const ToolIntent& e) {
    auto to = out.initToolIntent();
    to.setCall(e.call);
    to.setEffect(static_cast<wire::EffectClass>(e.effect));
    to.setTimeoutMs(e.timeout_ms);
}

void write(wire::Event::Builder out, const ToolReceipt& e) {
    auto to = out.initToolReceipt();
    to.setCall(e.call);
    to.setStatus(static_cast<wire::ItemStatus>(e.status));
    PUT_TEXT(to, Output, e.output);
    PUT_TEXT(to, Error, e.error);
    to.setDurationMicros(e.duration_micros);
}

void write(wire::Event::Builder out, const StepFailed& e) {
    auto to = out.initStepFailed();
    to.setStep(e.step);
    to.setIsTool(e.is_tool);
    to.setClass(static_cast<wire::ErrorClass>(e.error_class));
    PUT_TEXT(to, Code, e.code);
    PUT_TEXT(to, Message, e.message);
    PUT_TEXT(to, PartialText, e.partial_text);
}

void write(wire::Event::Builder out, const RetryScheduled& e) {
    auto to = out.initRetryScheduled();
    to.setStep(e.step);
    to.setIsTool(e.is_tool);
    to.setAt(e.at);
    to.setAttempt(e.attempt);
    PUT_TEXT(to, Reason, e.reason);
}

void write(wire::Event::Builder out, const TurnSettled& e) {
    auto to = out.initTurnSettled();
    to.setStatus(static_cast<wire::TurnStatus>(e.status));
    PUT_TEXT(to, Code, e.code);
    PUT_TEXT(to, Message, e.message);
}

void write(wire::Event::Builder out, const CancelRequested& e) {
    auto to = out.initCancelRequested();
    PUT_TEXT(to, Principal3, e.principal);
    PUT_TEXT(to, Reason2, e.reason);
}

void write(wire::Event::Builder out, const WaitOpened& e) {
    auto to = out.initWaitOpened();
    to.setWait(e.wait);
    to.setKind(static_cast<wire::WaitKind>(e.kind));
    to.setDue(e.due);
    to.setCall(e.call);
    PUT_TEXT(to, Subject, e.subject);
}

void write(wire::Event::Builder out, const WaitResolved& e) {
    auto to = out.initWaitResolved();
    to.setWait(e.wait);
    to.setOutcome(static_cast<wire::WaitOutcome>(e.outcome));
    PUT_TEXT(to, Payload, e.payload);
    PUT_TEXT(to, Principal4, e.principal);
}

void write(wire::Event::Builder out, const Decision& e) {
    auto to = out.initDecision();
    PUT_TEXT(to, Code2, e.code);
    PUT_TEXT(to, Subject2, e.subject);
    PUT_TEXT(to, Reason3, e.reason);
}

void write(wire::Event::Builder out, const MemorySet& e) {
    auto to = out.initMemorySet();
    PUT_TEXT(to, Key, e.key);
    PUT_TEXT(to, Value, e.value);
    to.setRemoved(e.removed);
}

void write(wire::Event::Builder out, const UnknownResolved& e) {
    auto to = out.initUnknownResolved();
    to.setCall(e.call);
    to.setHow(static_cast<wire::Resolution>(e.how));
    PUT_TEXT(to, Output, e.output);
    PUT_TEXT(to, Principal5, e.principal);
}

void write(wire::Event::Builder out, const ItemsAdded& e) {
    auto to = out.initItemsAdded();
    write_items(to, e.items);
    PUT_TEXT(to, Principal6, e.principal);
}

void write(wire::Event::Builder out, const MetadataSet& e) { out.setMetadataSet(as_text(e.metadata)); }
void write(wire::Event::Builder out, const SessionDeleted& e) { out.setDeleted(as_text(e.principal)); }
void write(wire::Event::Builder out, const StreamReserved& e) { out.setStreamReserved(e.below); }

void write(wire::Event::Builder out, const Compacted& e) {
    auto to = out.initCompacted();
    to.setUpToTurn(e.up_to.value);
    PUT_TEXT(to, Summary, e.summary);
}

void write(wire::Event::Builder out, const Forked& e) {
    auto to = out.initForked();
    to.setChildFamily(e.child.family.value);
    to.setChildSession(as_data(wire::session_bytes(e.child)));
    to.setAtTurn(e.at.value);
}

void write(wire::Event::Builder out, const StepProgress& e) {
    auto to = out.initStepProgress();
    to.setStep3(e.step);
    to.setTokenIds3(as_data(token_bytes(e.tokens.ids)));
    to.setTokenizerHash3(capnp::Data::Reader(e.tokens.tokenizer.data(), e.tokens.tokenizer.size()));
    to.setTemplateVersion3(e.tokens.template_version);
}

// --- reading ------------------------------------------------------------------------------------------------------

std::vector<ItemPtr> read(capnp::List<wire::Item>::Reader in, size_t& room) {
    std::vector<ItemPtr> items;
    take(room, in.size());
    items.reserve(std::min<size_t>(in.size(), 64));
    for (auto item : in) items.push_back(wire::read_item(item, room));
    return items;
}

SessionCreated read(wire::Event::Created::Reader in) {
    SessionCreated e;
    e.tenant = TenantId{in.getTenant()};
    e.principal = text_of(in.getPrincipal());
    e.parent = wire::session_of(in.getParentFamily(), in.getParentSession());
    if (e.parent.valid()) e.parent_turn = TurnNo{in.getParentTurn()};
    e.metadata = text_of(in.getMetadata());
    e.ephemeral = in.getEphemeral();
    e.conversation = in.getConversation();
    return e;
}

InputAccepted read(wire::Event::InputAccepted::Reader in, size_t& room) {
    InputAccepted e;
    e.items = read(in.getItems(), room);
    e.agent = text_of(in.getAgent());
    e.agent_version = in.getAgentVersion();
    e.principal = text_of(in.getPrincipal2());
    if (auto hash = in.getKeyHash(); hash.size() != 0) {
        if (hash.size() != std::tuple_size_v<KeyHash>) throw Malformed{"a key hash has 16 bytes"};
        std::copy(hash.begin(), hash.end(), e.key.emplace().begin());
    }
    e.request_digest = in.getRequestDigest();
    e.limits = TurnLimits{in.getLimits().getSteps(), in.getLimits().getTokens(), in.getLimits().getDurationMs()};
    e.options = text_of(in.getOptions());
    return e;
}

void check_token_bytes(size_t bytes) {
    if (bytes % 4 != 0) throw Malformed{"token ids have 4 bytes each"};
    if (bytes / 4 > limits::step_tokens_max) throw Malformed{"more token ids than a step keeps"};
}

ModelStepSettled read(wire::Event::ModelStepSettled::Reader in, size_t& room) {
    ModelStepSettled e;
    e.step = in.getStep();
    e.items = read(in.getItems(), room);
    if (in.hasUsage()) e.usage = wire::read(in.getUsage());
    e.model = text_of(in.getModel());
    e.finish_reason = text_of(in.getFinishReason());
    if (in.hasTokenIds()) e.token_ids = wire::bytes_of(in.getTokenIds());
    if (in.hasTokenizerHash()) e.tokenizer_hash = wire::bytes_of(in.getTokenizerHash());
    check_token_bytes(e.token_ids.size());
    if (e.tokenizer_hash.size() > limits::tokenizer_hash_bytes_max) throw Malformed{"a tokenizer hash of that length"};
    e.template_version = in.getTemplateVersion();
    return e;
}

StepProgress read(wire::Event::StepProgress::Reader in) {
    StepProgress e;
    e.step = in.getStep3();
    const auto ids = in.getTokenIds3();
    check_token_bytes(ids.size());
    e.tokens.ids = token_ids(wire::bytes_of(ids));
    const auto hash = in.getTokenizerHash3();
    if (hash.size() != e.tokens.tokenizer.size()) throw Malformed{"a tokenizer hash of that length"};
    std::copy(hash.begin(), hash.end(), e.tokens.tokenizer.begin());
    e.tokens.template_version = in.getTemplateVersion3();
    return e;
}

Event read(wire::Event::Reader in, size_t& room) {
    switch (in.which()) {
        case wire::Event::CREATED: return read(in.getCreated());
        case wire::Event::INPUT_ACCEPTED: return read(in.getInputAccepted(), room);
        case wire::Event::MODEL_STEP_SETTLED: return read(in.getModelStepSettled(), room);
        case wire::Event::TOOL_INTENT: {
            auto e = in.getToolIntent();
            return ToolIntent{e.getCall(), own(e.getEffect()), e.getTimeoutMs()};
        }
        case wire::Event::TOOL_RECEIPT: {
            auto e = in.getToolReceipt();
            return ToolReceipt{e.getCall(), own(e.getStatus()), text_of(e.getOutput()), text_of(e.getError()),
                               e.getDurationMicros()};
        }
        case wire::Event::STEP_FAILED: {
            auto e = in.getStepFailed();
            return StepFailed{e.getStep(),          e.getIsTool(),           own(e.getClass()),
                              text_of(e.getCode()), text_of(e.getMessage()), text_of(e.getPartialText())};
        }
        case wire::Event::RETRY_SCHEDULED: {
            auto e = in.getRetryScheduled();
            return RetryScheduled{e.getStep(), e.getIsTool(), e.getAt(), e.getAttempt(), text_of(e.getReason())};
        }
        case wire::Event::TURN_SETTLED: {
            auto e = in.getTurnSettled();
            return TurnSettled{own(e.getStatus()), text_of(e.getCode()), text_of(e.getMessage())};
        }
        case wire::Event::CANCEL_REQUESTED: {
            auto e = in.getCancelRequested();
            return CancelRequested{text_of(e.getPrincipal3()), text_of(e.getReason2())};
        }
        case wire::Event::WAIT_OPENED: {
            auto e = in.getWaitOpened();
            return WaitOpened{e.getWait(), own(e.getKind()), e.getDue(), e.getCall(), text_of(e.getSubject())};
        }
        case wire::Event::WAIT_RESOLVED: {
            auto e = in.getWaitResolved();
            return WaitResolved{e.getWait(), own(e.getOutcome()), text_of(e.getPayload()), text_of(e.getPrincipal4())};
        }
        case wire::Event::DECISION: {
            auto e = in.getDecision();
            return Decision{text_of(e.getCode2()), text_of(e.getSubject2()), text_of(e.getReason3())};
        }
        case wire::Event::MEMORY_SET: {
            auto e = in.getMemorySet();
            return MemorySet{text_of(e.getKey()), text_of(e.getValue()), e.getRemoved()};
        }
        case wire::Event::UNKNOWN_RESOLVED: {
            auto e = in.getUnknownResolved();
            return UnknownResolved{e.getCall(), own(e.getHow()), text_of(e.getOutput()), text_of(e.getPrincipal5())};
        }
        case wire::Event::ITEMS_ADDED: {
            auto e = in.getItemsAdded();
            return ItemsAdded{read(e.getItems(), room), text_of(e.getPrincipal6())};
        }
        case wire::Event::METADATA_SET: return MetadataSet{text_of(in.getMetadataSet())};
        case wire::Event::DELETED: return SessionDeleted{text_of(in.getDeleted())};
        case wire::Event::STREAM_RESERVED: return StreamReserved{in.getStreamReserved()};
        case wire::Event::COMPACTED: {
            auto e = in.getCompacted();
            return Compacted{TurnNo{e.getUpToTurn()}, text_of(e.getSummary())};
        }
        case wire::Event::FORKED: {
            auto e = in.getForked();
            return Forked{wire::session_of(e.getChildFamily(), e.getChildSession()), TurnNo{e.getAtTurn()}};
        }
        case wire::Event::STEP_PROGRESS: return read(in.getStepProgress());
    }
    throw Malformed{"an event of a kind that this version does not know"};
}

}  // namespace

std::string encode(const EventBatch& batch) {
    return wire::pack_message([&](capnp::MessageBuilder& message) {
        auto out = message.initRoot<wire::EventBatch>();
        out.setAt(batch.at);
        out.setTurn(batch.turn.value);
        auto list = out.initEvents(static_cast<uint32_t>(batch.events.size()));
        for (uint32_t i = 0; i < list.size(); ++i)
            std::visit([to = list[i]](const auto& event) { write(to, event); }, batch.events[i]);
    });
}

Result<EventBatch> decode_batch(std::string_view bytes) {
    EventBatch batch;
    auto error = wire::unpack_message(bytes, [&](capnp::MessageReader& message) {
        auto in = message.getRoot<wire::EventBatch>();
        batch.at = in.getAt();
        batch.turn = TurnNo{in.getTurn()};
        size_t room = limits::batch_elements_max;
        auto list = in.getEvents();
        take(room, list.size());
        batch.events.reserve(std::min<size_t>(list.size(), 64));
        for (auto event : list) batch.events.push_back(read(event, room));
        if (batch.events.empty()) throw Malformed{"a batch without events"};
    });
    if (error) return Error{ErrorCode::journal_damaged, std::move(*error), {}};
    return batch;
}

}  // namespace mainstay
