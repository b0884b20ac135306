#include "actors/model_step_message.h"

#include <algorithm>
#include <initializer_list>

#include "cluster/wire_message.h"
#include "runtime/base/limits.h"
#include "runtime/base/utf8.h"
#include "runtime/session/wire.h"
#include "schema/model_step.capnp.h"

namespace mainstay {
namespace {

constexpr uint64_t slack_words = 4096;
constexpr int nesting_max = 16;
// Elements of lists are counted, because empty ones cost the sender nothing: a window of empty turns, with the largest
// open turn there can be.
constexpr size_t elements_max = 256 * 1024;

Error refused(const char* why) { return {ErrorCode::peer_refused, std::string("a model step: ") + why, {}}; }

unsigned size_of(const std::string& text) { return static_cast<unsigned>(text.size()); }

// --- writing --------------------------------------------------------------------------------------------------------

void write(wire::StepSession::Builder to, const SessionKey& key) {
    to.setTenant(key.tenant.value);
    to.setFamily(key.session.family.value);
    to.setHigh(key.session.high);
    to.setLow(key.session.low);
}

void write(wire::StepTokenIds::Builder to, const StepTokens& tokens) {
    put_bytes(to.initTokenizer(static_cast<unsigned>(tokens.tokenizer.size())),
              {reinterpret_cast<const char*>(tokens.tokenizer.data()), tokens.tokenizer.size()});
    to.setTemplateVersion(tokens.template_version);
    auto ids = to.initIds(static_cast<unsigned>(tokens.ids.size()));
    for (unsigned i = 0; i < ids.size(); ++i) ids.set(i, tokens.ids[i]);
}

void write(capnp::List<wire::PromptItem>::Builder to, const std::vector<ItemPtr>& items) {
    for (unsigned i = 0; i < to.size(); ++i) {
        wire::write(to[i].initItem(), *items[i]);
        if (items[i]->tokens) write(to[i].initTokens(), *items[i]->tokens);
    }
}

// --- reading --------------------------------------------------------------------------------------------------------

/// What is wrong with a message, found amid reading it; only decode() catches it.
using wire::Malformed;
using wire::take;

std::string utf8(capnp::Text::Reader from) {
    std::string out = copied(from);
    if (!is_valid_utf8(out)) throw Malformed{"a text is no UTF-8"};
    return out;
}
std::string name(capnp::Text::Reader from) {
    std::string out = utf8(from);
    if (out.size() > limits::name_bytes_max) throw Malformed{"a name beyond its bound"};
    return out;
}

SessionKey read(wire::StepSession::Reader from) {
    return {TenantId{from.getTenant()}, SessionId{FamilyId{from.getFamily()}, from.getHigh(), from.getLow()}};
}

std::shared_ptr<StepTokens> read(wire::StepTokenIds::Reader from) {
    auto out = std::make_shared<StepTokens>();
    const auto tokenizer = from.getTokenizer();
    if (tokenizer.size() != out->tokenizer.size()) throw Malformed{"a tokenizer's digest has 16 bytes"};
    std::copy(tokenizer.begin(), tokenizer.end(), out->tokenizer.begin());
    out->template_version = from.getTemplateVersion();
    const auto ids = from.getIds();
    if (ids.size() > limits::step_tokens_max) throw Malformed{"more tokens than any step has"};
    out->ids.reserve(ids.size());
    for (const uint32_t id : ids) out->ids.push_back(id);
    return out;
}

/// Their texts are what the journal holds, and a prompt that is rendered there must have the same bytes as here: so
/// nobody asks whether they are UTF-8.
std::vector<ItemPtr> read(capnp::List<wire::PromptItem>::Reader from, size_t& room) {
    take(room, from.size());
    std::vector<ItemPtr> out;
    for (const auto one : from) {
        auto item = wire::read_item(one.getItem(), room);
        if (one.hasTokens()) item->tokens = read(one.getTokens());
        out.push_back(std::move(item));
    }
    return out;
}

RunRemoteStep read(wire::ModelStepCall::Run::Reader from) {
    RunRemoteStep out;
    ModelRequest& request = out.request;
    size_t room = elements_max;
    request.request_id = from.getRequest();
    out.model = name(from.getModel());
    out.model_version = from.getModelVersion();
    out.timeout_ms = from.getTimeoutMs();
    request.session = read(from.getSession());
    request.root = read(from.getRoot());
    request.instructions = utf8(from.getInstructions());
    take(room, from.getSettled().size());
    TurnRun::Turns turns;
    for (const auto turn : from.getSettled())
        turns.push_back(std::make_shared<const std::vector<ItemPtr>>(read(turn.getItems(), room)));
    request.prompt.settled = TurnRun(std::move(turns));
    request.prompt.open = read(from.getOpen(), room);
    if (from.getHasTools()) {
        take(room, from.getTools().size());
        auto tools = std::make_shared<std::vector<ToolDefinition>>();
        for (const auto tool : from.getTools())
            tools->push_back(
                {name(tool.getName()), utf8(tool.getDescription()), utf8(tool.getParameters()), tool.getStrict()});
        request.tools = std::move(tools);
    }
    request.options = utf8(from.getOptions());
    if (request.options.size() > 2 * limits::options_bytes_max) throw Malformed{"options beyond their bound"};
    request.max_output_tokens = from.getMaxOutputTokens();
    request.step = from.getStep();
    request.attempt = from.getAttempt();
    request.stream = from.getStream();
    request.idempotency_key = name(from.getIdempotencyKey());
    if (from.hasResume()) request.resume = read(from.getResume());
    return out;
}

ModelResult read(wire::ModelStepPart::Done::Reader from) {
    ModelResult out;
    out.text = utf8(from.getText());
    if (out.text.size() > limits::model_text_bytes_max) throw Malformed{"a text beyond its bound"};
    if (from.getCalls().size() > limits::tool_calls_per_step_max) throw Malformed{"more calls than a step may have"};
    for (const auto call : from.getCalls()) {
        out.calls.push_back({name(call.getCallId()), name(call.getName()), utf8(call.getArguments())});
        if (out.calls.back().arguments.size() > limits::tool_arguments_bytes_max)
            throw Malformed{"arguments beyond their bound"};
    }
    out.finish_reason = name(from.getFinishReason());
    out.model = name(from.getModel());
    out.usage = wire::read(from.getUsage());
    if (from.hasTokens()) out.tokens = read(from.getTokens());
    return out;
}

ModelError read(wire::ModelStepPart::Failed::Reader from) {
    ModelError out;
    if (static_cast<unsigned>(from.getErrorClass()) > static_cast<unsigned>(ErrorClass::lost))
        throw Malformed{"a class of errors that is none"};
    out.error_class = static_cast<ErrorClass>(from.getErrorClass());
    const auto* code = find_error(copied(from.getCode()));
    out.code = code ? code->code : ErrorCode::model_unavailable;  // of a later release
    out.message = utf8(from.getMessage());
    out.retry_after_ms = std::min(from.getRetryAfterMs(), limits::upstream_retry_after_ms_max);
    out.context_tokens = from.getContextTokens();
    out.context_limit = from.getContextLimit();
    return out;
}

Result<ModelStepCall> read(wire::ModelStepCall::Reader from) {
    if (from.isRun()) return ModelStepCall(read(from.getRun()));
    if (from.isPause()) return ModelStepCall(PauseRemoteStep{from.getPause()});
    if (from.isRest()) return ModelStepCall(RestRemoteSession{read(from.getRest())});
    return refused("this release does not know that request");
}

Result<ModelStepPart> read(wire::ModelStepPart::Reader from) {
    if (from.isDelta()) {
        StepDelta delta{utf8(from.getDelta())};
        if (delta.text.size() > limits::model_text_bytes_max) return refused("a text beyond its bound");
        return ModelStepPart(std::move(delta));
    }
    StepEnded out;
    out.load = {from.getSteps(), std::max(1u, from.getDevices())};
    if (from.isDone())
        out.outcome = read(from.getDone());
    else if (from.isFailed())
        out.outcome = read(from.getFailed());
    else if (from.isPaused())
        out.outcome = std::move(*read(from.getPaused()));
    else
        return refused("this release does not know that answer");
    return ModelStepPart(std::move(out));
}

template <class Root, class T>
Result<T> decode(std::string_view bytes) {
    return read_flat<Root, T>(bytes, slack_words, nesting_max, refused, [](auto root) -> Result<T> {
        try {
            return read(root);
        } catch (const Malformed& malformed) {
            return refused(malformed.what);
        }
    });
}

}  // namespace

std::string encode_step(const RunRemoteStep& step) {
    const ModelRequest& request = step.request;
    capnp::MallocMessageBuilder builder;
    auto to = builder.initRoot<wire::ModelStepCall>().initRun();
    to.setRequest(request.request_id);
    put_bytes(to.initModel(size_of(step.model)), step.model);
    to.setModelVersion(step.model_version);
    write(to.initSession(), request.session);
    write(to.initRoot(), request.root);
    put_bytes(to.initInstructions(size_of(request.instructions)), request.instructions);
    auto settled = to.initSettled(static_cast<unsigned>(request.prompt.settled.size()));
    for (unsigned i = 0; i < settled.size(); ++i) {
        const auto& items = *request.prompt.settled[i];
        write(settled[i].initItems(static_cast<unsigned>(items.size())), items);
    }
    write(to.initOpen(static_cast<unsigned>(request.prompt.open.size())), request.prompt.open);
    to.setHasTools(request.tools != nullptr);
    if (request.tools) {
        auto tools = to.initTools(static_cast<unsigned>(request.tools->size()));
        for (unsigned i = 0; i < tools.size(); ++i) {
            const ToolDefinition& tool = (*request.tools)[i];
            put_bytes(tools[i].initName(size_of(tool.name)), tool.name);
            put_bytes(tools[i].initDescription(size_of(tool.description)), tool.description);
            put_bytes(tools[i].initParameters(size_of(tool.parameters)), tool.parameters);
            tools[i].setStrict(tool.strict);
        }
    }
    put_bytes(to.initOptions(size_of(request.options)), request.options);
    to.setMaxOutputTokens(request.max_output_tokens);
    to.setStep(request.step);
    to.setAttempt(request.attempt);
    to.setTimeoutMs(step.timeout_ms);
    to.setStream(request.stream);
    put_bytes(to.initIdempotencyKey(size_of(request.idempotency_key)), request.idempotency_key);
    if (request.resume) write(to.initResume(), *request.resume);
    return flat_bytes(builder);
}

std::string encode_pause(const PauseRemoteStep& pause) {
    capnp::MallocMessageBuilder builder;
    builder.initRoot<wire::ModelStepCall>().setPause(pause.request_id);
    return flat_bytes(builder);
}

std::string encode_rest(const RestRemoteSession& rest) {
    capnp::MallocMessageBuilder builder;
    write(builder.initRoot<wire::ModelStepCall>().initRest(), rest.session);
    return flat_bytes(builder);
}

std::string encode_delta(std::string_view text) {
    capnp::MallocMessageBuilder builder;
    put_bytes(builder.initRoot<wire::ModelStepPart>().initDelta(static_cast<unsigned>(text.size())), text);
    return flat_bytes(builder);
}

std::string encode_ended(const StepEnded& ended) {
    capnp::MallocMessageBuilder builder;
    auto to = builder.initRoot<wire::ModelStepPart>();
    to.setSteps(ended.load.steps);
    to.setDevices(ended.load.devices);
    if (const auto* result = std::get_if<ModelResult>(&ended.outcome)) {
        auto done = to.initDone();
        put_bytes(done.initText(size_of(result->text)), result->text);
        auto calls = done.initCalls(static_cast<unsigned>(result->calls.size()));
        for (unsigned i = 0; i < calls.size(); ++i) {
            const ModelToolCall& call = result->calls[i];
            put_bytes(calls[i].initCallId(size_of(call.call_id)), call.call_id);
            put_bytes(calls[i].initName(size_of(call.name)), call.name);
            put_bytes(calls[i].initArguments(size_of(call.arguments)), call.arguments);
        }
        put_bytes(done.initFinishReason(size_of(result->finish_reason)), result->finish_reason);
        put_bytes(done.initModel(size_of(result->model)), result->model);
        wire::write(done.initUsage(), result->usage);
        if (result->tokens) write(done.initTokens(), *result->tokens);
    } else if (const auto* error = std::get_if<ModelError>(&ended.outcome)) {
        auto failed = to.initFailed();
        failed.setErrorClass(static_cast<wire::ErrorClass>(error->error_class));
        const std::string code(error_name(error->code));
        put_bytes(failed.initCode(size_of(code)), code);
        put_bytes(failed.initMessage(size_of(error->message)), error->message);
        failed.setRetryAfterMs(error->retry_after_ms);
        failed.setContextTokens(error->context_tokens);
        failed.setContextLimit(error->context_limit);
    } else {
        write(to.initPaused(), std::get<StepTokens>(ended.outcome));
    }
    return flat_bytes(builder);
}

Result<ModelStepCall> decode_step_call(std::string_view bytes) {
    return decode<wire::ModelStepCall, ModelStepCall>(bytes);
}
Result<ModelStepPart> decode_step_part(std::string_view bytes) {
    return decode<wire::ModelStepPart, ModelStepPart>(bytes);
}

}  // namespace mainstay
