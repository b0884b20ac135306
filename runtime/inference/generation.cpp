#include "runtime/inference/generation.h"

#include <algorithm>
#include <cstring>

#include "runtime/base/digest.h"
#include "runtime/inference/model_error.h"

namespace mainstay {
namespace {

ModelError invalid(const Error& error) {
    ModelError out = make_model_error(ErrorClass::invalid, error.message);
    out.code = error.code;
    return out;
}

/// Why a sequence failed, as the session's retry policy reads it.
ModelError failure_of(const SequenceEnded& ended) {
    switch (ended.code) {
        case ErrorCode::context_overflow: return make_model_error(ErrorClass::context_overflow, ended.message);
        case ErrorCode::model_protocol_error: return make_model_error(ErrorClass::protocol, ended.message);
        case ErrorCode::turn_deadline_exceeded: return make_model_error(ErrorClass::timeout, ended.message);
        case ErrorCode::internal: return make_model_error(ErrorClass::invalid, ended.message);
        default: return make_model_error(ErrorClass::transient, ended.message);
    }
}

Result<std::shared_ptr<const ToolGrammar>> grammar_of(const ModelRequest& request, const GenerationModel& model,
                                                      const GenerationOptions& options) {
    const bool offered = request.tools && !request.tools->empty();
    if (options.tool_choice.use == ToolUse::required) {
        if (!offered)
            return {ErrorCode::invalid_request, "tool_choice requires a call, and no tool is offered", "tool_choice"};
        return ToolGrammar::for_calls(model.chat_template, model.vocabulary, request.tools, options.tool_choice.only,
                                      options.parallel_calls);
    }
    // With tools on offer the step may be a call instead of the JSON text, and one grammar cannot say both.
    if (options.json && (!offered || options.tool_choice.use == ToolUse::none))
        return ToolGrammar::for_json(model.chat_template, model.vocabulary, options.schema);
    return std::shared_ptr<const ToolGrammar>();
}

uint64_t microseconds(double seconds) { return seconds > 0 ? uint64_t(seconds * 1e6 + 0.5) : 0; }

}  // namespace

std::variant<Generation, ModelError> Generation::begin(const ModelRequest& request, const GenerationModel& model,
                                                       TimeMs now_wall, TimeUs now) {
    auto options = read_generation_options(request);
    if (!options.ok()) return invalid(options.error());
    auto grammar = grammar_of(request, model, *options);
    if (!grammar.ok()) return invalid(grammar.error());
    auto stops = StopSequences::make(std::move(options->stops));
    if (!stops.ok()) return invalid(stops.error());
    auto prompt = model.chat_template->prompt_tokens(request);
    if (!prompt.ok()) return invalid(prompt.error());

    const uint32_t asked = options->new_tokens_max ? options->new_tokens_max : limits::new_tokens_default;
    const uint32_t kept_free = std::min(asked, std::max(1u, model.context_max / 4));
    const uint32_t limit = model.context_max - std::min(kept_free, model.context_max - 1);
    if (prompt->tokens.size() > limit) {
        ModelError error = make_model_error(
            ErrorClass::context_overflow, "the prompt has " + std::to_string(prompt->tokens.size()) + " tokens, and " +
                                              std::to_string(limit) + " of the context's " +
                                              std::to_string(model.context_max) + " are for it");
        error.context_tokens = uint32_t(prompt->tokens.size());
        error.context_limit = limit;
        return error;
    }

    Generation made;
    made.template_ = model.chat_template;
    made.model_name_ = request.model->name;
    const KeyHash named = key_hash("model step", request.idempotency_key + "#" + std::to_string(request.attempt));
    uint64_t drawn = 0;
    std::memcpy(&drawn, named.data(), sizeof drawn);
    const std::string prefix = to_hex(std::string_view(reinterpret_cast<const char*>(named.data()) + sizeof drawn, 6));
    const bool tools = request.tools && !request.tools->empty() && options->tool_choice.use != ToolUse::none;
    const auto begin_reading = [&] {
        made.reader_ = std::make_unique<ReplyReader>(model.chat_template, tools, prefix, *stops);
        if (*grammar) made.cursor_ = std::make_unique<GrammarCursor>(*grammar);
    };
    begin_reading();

    TokenRequest& out = made.request_;
    out.sequence = request.request_id;
    out.session = request.session;
    out.root = request.root;
    out.max_new_tokens = std::min<uint32_t>(asked, model.context_max - uint32_t(prompt->tokens.size()));
    out.tokens = std::move(prompt->tokens);
    out.definition_tokens = prompt->definition;
    out.stop_tokens = model.stops;
    out.sampling = options->sampling;
    out.seed = options->seed.value_or(drawn);
    out.masked = made.masked();
    out.priority = options->priority;
    if (request.deadline > 0) {
        // What cannot begin in time is refused before anything is computed for it.
        out.first_token_within_us = 1000 * (request.deadline > now_wall ? request.deadline - now_wall : 0) + 1;
        out.deadline = now + out.first_token_within_us;
    }
    if (request.resume && !made.resume(*request.resume)) begin_reading();
    return made;
}

bool Generation::resume(const StepTokens& tokens) {
    const auto own = template_->step_tokens({});
    if (tokens.tokenizer != own->tokenizer || tokens.template_version != own->template_version) return false;
    if (tokens.ids.size() >= request_.max_new_tokens) return false;
    std::string text;
    for (const TokenId id : tokens.ids) {
        if (cursor_ && !cursor_->advance(id)) return false;
        text += reader_->push(id);
        if (reader_->ended()) return false;
    }
    resumed_text_ = std::move(text);
    taken_.assign(tokens.ids.begin(), tokens.ids.end());
    resumed_ = taken_.size();
    request_.tokens.insert(request_.tokens.end(), taken_.begin(), taken_.end());
    request_.max_new_tokens -= uint32_t(resumed_);
    return true;
}

StepTokens Generation::so_far() const { return *template_->step_tokens(taken_); }

std::string Generation::take(TokenId token) {
    taken_.push_back(token);
    if (cursor_) cursor_->advance(token);
    std::string text = reader_->push(token);
    stopped_ = reader_->ended() && !template_->is_stop(token);
    return text;
}

std::variant<ModelResult, ModelError> Generation::finish(const SequenceEnded& ended, bool simulated,
                                                         std::string& tail) {
    if (ended.end == SequenceEnd::failed || ended.end == SequenceEnd::deadline || ended.end == SequenceEnd::cancelled)
        return failure_of(ended);
    // A stop token that config.json names and the template does not know has ended the answer all the same.
    if (ended.end == SequenceEnd::stop_token && !reader_->ended()) reader_->push(template_->stops().front());
    auto outcome = reader_->finish(tail);
    if (auto* result = std::get_if<ModelResult>(&outcome)) {
        const SequenceUsage& used = ended.usage;
        std::vector<TokenId> said(taken_.begin(), taken_.begin() + ptrdiff_t(resumed_));
        said.insert(said.end(), ended.generated.begin(), ended.generated.end());
        if (!template_->says(*result, said)) result->tokens = template_->step_tokens(std::move(said));
        result->model = model_name_;
        // What was said before a pause is the step's output, though it was computed, or found, as input.
        result->usage.input_tokens = used.prompt_tokens - uint32_t(resumed_);
        result->usage.cached_tokens =
            std::min(used.cached_device + used.cached_host + used.cached_disk, result->usage.input_tokens);
        result->usage.output_tokens = used.generated_tokens + uint32_t(resumed_);
        result->usage.device_micros = microseconds(used.device_s);
        result->usage.micro_joules = microseconds(used.joules);
        result->usage.simulated = simulated;
    }
    return outcome;
}

ModelError to_model_error(const Refusal& refusal) {
    ErrorClass error_class = ErrorClass::overloaded;
    if (refusal.code == ErrorCode::context_overflow) error_class = ErrorClass::context_overflow;
    if (refusal.code == ErrorCode::invalid_request) error_class = ErrorClass::invalid;
    if (refusal.code == ErrorCode::model_unavailable) error_class = ErrorClass::transient;
    ModelError error = make_model_error(error_class, refusal.reason, uint32_t(refusal.retry_after_us / 1000));
    error.code = refusal.code;
    return error;
}

}  // namespace mainstay
