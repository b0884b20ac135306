#include "runtime/inference/scripted_device.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cstring>

#include "runtime/base/digest.h"
#include "runtime/base/limits.h"
#include "runtime/base/random.h"
#include "runtime/base/utf8.h"
#include "runtime/inference/chat_request.h"
#include "runtime/inference/model_error.h"

namespace mainstay {

namespace {

constexpr size_t stream_pieces = 4;
// Input tokens are counted over this many of the newest settled turns: a walk over the whole window would cost more
// the longer a session is, and would be most of what a benchmark of the runtime measures.
constexpr size_t counted_turns = 1;
constexpr size_t scripts_max = 64;

// --- prose --------------------------------------------------------------------------------------------------------

constexpr std::string_view words[] = {
    "the",      "of",      "and",      "to",       "a",       "in",         "that",     "is",       "was",
    "it",       "for",     "with",     "as",       "on",      "be",         "at",       "by",       "this",
    "not",      "are",     "but",      "from",     "or",      "have",       "an",       "they",     "which",
    "one",      "you",     "were",     "all",      "her",     "she",        "there",    "would",    "their",
    "we",       "him",     "been",     "has",      "when",    "who",        "will",     "no",       "more",
    "if",       "out",     "so",       "up",       "said",    "what",       "its",      "about",    "than",
    "into",     "them",    "can",      "only",     "other",   "time",       "new",      "some",     "could",
    "these",    "two",     "may",      "first",    "then",    "do",         "any",      "like",     "my",
    "now",      "over",    "such",     "our",      "man",     "me",         "even",     "most",     "made",
    "after",    "also",    "well",     "did",      "many",    "before",     "must",     "years",    "through",
    "where",    "much",    "your",     "way",      "down",    "should",     "because",  "long",     "each",
    "just",     "state",   "those",    "people",   "too",     "very",       "make",     "world",    "still",
    "own",      "see",     "work",     "between",  "both",    "under",      "never",    "day",      "same",
    "another",  "know",    "while",    "last",     "might",   "great",      "old",      "year",     "off",
    "come",     "since",   "against",  "go",       "came",    "right",      "used",     "take",     "three",
    "river",    "harbour", "letter",   "window",   "market",  "garden",     "winter",   "summer",   "morning",
    "evening",  "captain", "teacher",  "engineer", "journal", "account",    "history",  "question", "answer",
    "problem",  "reason",  "measure",  "balance",  "promise", "message",    "station",  "village",  "mountain",
    "customer", "order",   "payment",  "delivery", "refund",  "receipt",    "address",  "number",   "figure",
    "table",    "paper",   "machine",  "water",    "light",   "sound",      "colour",   "weather",  "journey",
    "quietly",  "slowly",  "clearly",  "perhaps",  "almost",  "together",   "however",  "although", "therefore",
    "written",  "carried", "followed", "returned", "decided", "remembered", "expected", "prepared", "explained",
    "small",    "large",   "early",    "late",     "simple",  "careful",    "honest",   "patient",  "certain",
};

constexpr size_t prose_bytes = 256 * 1024;

/// Made once: words drawn with falling frequency, in sentences of five to sixteen.
const std::string& prose() {
    static const std::string text = [] {
        SeededRandom random(20'000);
        std::string out;
        out.reserve(prose_bytes + 64);
        while (out.size() < prose_bytes) {
            const uint64_t length = 5 + random.below(12);
            for (uint64_t i = 0; i < length; ++i) {
                // The smaller of two draws favours the front of the list, where the short frequent words are.
                const uint64_t pick = std::min(random.below(std::size(words)), random.below(std::size(words)));
                const size_t at = out.size();
                out += words[pick];
                if (i == 0) out[at] = static_cast<char>(out[at] - 'a' + 'A');
                if (i + 1 == length) {
                    out += random.below(8) == 0 ? "? " : ". ";
                } else {
                    out += random.below(10) == 0 ? ", " : " ";
                }
            }
        }
        out.resize(prose_bytes);
        return out;
    }();
    return text;
}

uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// --- templates ----------------------------------------------------------------------------------------------------

/// A text with placeholders, split once when the script is compiled.
struct Template {
    enum class Kind : uint8_t { literal, input, first_input, tool, prose };
    struct Piece {
        Kind kind;
        std::string text;  // literal
        uint32_t bytes;    // prose
    };
    std::vector<Piece> pieces;

    bool uses(Kind kind) const {
        return std::any_of(pieces.begin(), pieces.end(), [kind](const Piece& piece) { return piece.kind == kind; });
    }
};

/// `{input}`, `{first_input}`, `{tool}` and `{prose:N}` are placeholders; any other brace is text, so JSON needs no
/// escaping.
std::optional<Template::Piece> parse_placeholder(std::string_view inside) {
    if (inside == "input") return Template::Piece{Template::Kind::input, {}, 0};
    if (inside == "first_input") return Template::Piece{Template::Kind::first_input, {}, 0};
    if (inside == "tool") return Template::Piece{Template::Kind::tool, {}, 0};
    constexpr std::string_view prefix = "prose:";
    if (!inside.starts_with(prefix)) return std::nullopt;
    inside.remove_prefix(prefix.size());
    uint32_t bytes = 0;
    const auto [end, error] = std::from_chars(inside.data(), inside.data() + inside.size(), bytes);
    if (error != std::errc{} || end != inside.data() + inside.size()) return std::nullopt;
    return Template::Piece{Template::Kind::prose, {}, bytes};
}

Template parse_template(std::string_view text) {
    Template out;
    std::string literal;
    const auto flush = [&] {
        if (!literal.empty()) out.pieces.push_back({Template::Kind::literal, std::exchange(literal, {}), 0});
    };
    while (!text.empty()) {
        const size_t open = text.find('{');
        literal += text.substr(0, open);
        if (open == std::string_view::npos) break;
        text.remove_prefix(open);
        const size_t close = text.find('}');
        const auto piece =
            close == std::string_view::npos ? std::nullopt : parse_placeholder(text.substr(1, close - 1));
        if (!piece) {
            literal += '{';
            text.remove_prefix(1);
            continue;
        }
        flush();
        out.pieces.push_back(*piece);
        text.remove_prefix(close + 1);
    }
    flush();
    return out;
}

/// The inside of a JSON string: what may stand between quotes.
void append_json_inside(std::string& out, std::string_view text) {
    std::string quoted;
    append_json_string(quoted, text);
    out.append(quoted, 1, quoted.size() - 2);
}

// --- what the prompt holds ------------------------------------------------------------------------------------------

bool is_user_message(const Item& item) { return item.kind == ItemKind::message && item.role == Role::user; }

bool is_answered_call(const Item& item) {
    return item.kind == ItemKind::tool_call || item.kind == ItemKind::function_call_output;
}

std::string whole_text(const Item& item) {
    std::string out = item.text;
    for (const auto& part : item.more_parts) {
        out += '\n';
        out += part;
    }
    return out;
}

const Item* last_user_message(const PromptItems& prompt) {
    for (auto item = prompt.open.rbegin(); item != prompt.open.rend(); ++item)
        if (is_user_message(**item)) return item->get();
    for (auto turn = prompt.settled.rbegin(); turn != prompt.settled.rend(); ++turn)
        for (auto item = (*turn)->rbegin(); item != (*turn)->rend(); ++item)
            if (is_user_message(**item)) return item->get();
    return nullptr;
}

const Item* first_user_message(const PromptItems& prompt) {
    for (const auto& turn : prompt.settled)
        for (const auto& item : *turn)
            if (is_user_message(*item)) return item.get();
    for (const auto& item : prompt.open)
        if (is_user_message(*item)) return item.get();
    return nullptr;
}

const Item* last_tool_call(const PromptItems& prompt) {
    for (auto item = prompt.open.rbegin(); item != prompt.open.rend(); ++item)
        if (is_answered_call(**item)) return item->get();
    return nullptr;
}

uint32_t tokens_of(size_t bytes) { return static_cast<uint32_t>((bytes + 3) / 4); }

uint32_t input_tokens(const ModelRequest& request) {
    size_t bytes = request.instructions.size();
    const auto& settled = request.prompt.settled;
    for (size_t i = settled.size() - std::min(settled.size(), counted_turns); i < settled.size(); ++i)
        for (const auto& item : *settled[i]) bytes += item->bytes();
    for (const auto& item : request.prompt.open) bytes += item->bytes();
    return tokens_of(bytes);
}

/// Of everything that the model is shown: for a script that fails where that is too much.
uint32_t prompt_tokens(const ModelRequest& request) {
    size_t bytes = request.instructions.size();
    for (const auto& turn : request.prompt.settled)
        for (const auto& item : *turn) bytes += item->bytes();
    for (const auto& item : request.prompt.open) bytes += item->bytes();
    return tokens_of(bytes);
}

/// What the step fails with, as its script wants; nothing: it does not.
std::optional<ModelError> failure_of(ErrorClass error_class, const ModelRequest& request) {
    const uint32_t tokens = error_class == ErrorClass::context_overflow ? prompt_tokens(request) : 0;
    const uint32_t limit = request.model->context_window;
    if (error_class == ErrorClass::context_overflow && tokens <= limit) return std::nullopt;
    ModelError error = make_model_error(error_class, "the script fails attempt " + std::to_string(request.attempt) +
                                                         " of step " + std::to_string(request.step));
    if (tokens != 0) {
        error.context_tokens = tokens;
        error.context_limit = limit;
    }
    return error;
}

}  // namespace

void append_prose(std::string& out, size_t bytes, uint64_t seed) {
    if (bytes == 0) return;
    const std::string& source = prose();
    size_t at = mix(seed) % prose_bytes;
    const size_t space = source.find(' ', at);  // begin with a whole word
    at = space == std::string::npos || space + 1 == prose_bytes ? 0 : space + 1;
    const size_t start = out.size();
    out.reserve(start + bytes);
    for (size_t left = bytes; left > 0; at = 0) {
        const size_t piece = std::min(left, prose_bytes - at);
        out.append(source, at, piece);
        left -= piece;
    }
    out.back() = '.';
}

// --- the device -----------------------------------------------------------------------------------------------------

struct ScriptedDevice::Script {
    struct Step {
        uint32_t text_bytes;
        Template text;
        std::string when;
        std::string server, tool;
        Template arguments;
        std::optional<ErrorClass> fail_class;
        uint32_t fail_times;
        uint32_t delay_ms;
    };
    ModelPtr model;
    std::vector<Step> steps;
    bool has_when = false;

    explicit Script(ModelPtr spec) : model(std::move(spec)) {
        for (const auto& step : model->script) {
            const size_t slash = step.call_tool.rfind('/');
            const bool qualified = slash != std::string::npos;
            steps.push_back({step.text_bytes, parse_template(step.text), step.when,
                             qualified ? step.call_tool.substr(0, slash) : std::string(),
                             qualified ? step.call_tool.substr(slash + 1) : step.call_tool,
                             parse_template(step.call_arguments), parse_error_class(step.fail_class), step.fail_times,
                             step.delay_ms});
            has_when = has_when || !step.when.empty();
        }
    }

    /// Step `n` of the turn among those whose `when` holds, the last repeated; null where none holds.
    const Step* pick(const ModelRequest& request) const {
        if (!has_when) return steps.empty() ? nullptr : &steps[std::min<size_t>(request.step, steps.size() - 1)];
        const Item* message = last_user_message(request.prompt);
        const std::string input = message ? whole_text(*message) : std::string();
        const Step* picked = nullptr;
        uint32_t left = request.step;
        for (const auto& step : steps) {
            if (!step.when.empty() && input.find(step.when) == std::string::npos) continue;
            picked = &step;
            if (left-- == 0) break;
        }
        return picked;
    }
};

struct ScriptedDevice::Answer {
    std::optional<ModelError> error;
    ModelResult result;
};

struct ScriptedDevice::Job {
    uint64_t request_id = 0;
    std::shared_ptr<ModelSink> sink;
    Answer answer;
    size_t pieces = 1;     // ways into which the delay is divided
    size_t piece = 0;      // sent so far
    uint64_t step_ns = 0;  // between pieces
    Instant due;
    std::atomic<bool> cancelled{false};
};

namespace {

std::string fill(const Template& parts, const ModelRequest& request, uint64_t seed, bool json) {
    std::string out;
    const auto put = [&](const Item* item, bool error_too) {
        if (!item) return;
        const std::string text = error_too && item->text.empty() ? item->error : whole_text(*item);
        if (json) {
            append_json_inside(out, text);
        } else {
            out += text;
        }
    };
    for (const auto& piece : parts.pieces) {
        switch (piece.kind) {
            case Template::Kind::literal: out += piece.text; break;
            case Template::Kind::input: put(last_user_message(request.prompt), false); break;
            case Template::Kind::first_input: put(first_user_message(request.prompt), false); break;
            case Template::Kind::tool: put(last_tool_call(request.prompt), true); break;
            case Template::Kind::prose: append_prose(out, piece.bytes, seed); break;
        }
    }
    return out;
}

std::string call_id_of(uint64_t seed) {
    constexpr char digits[] = "0123456789abcdef";
    std::string out = "call_0000000000000000";
    for (size_t i = out.size(); seed != 0; seed >>= 4) out[--i] = digits[seed & 15];
    return out;
}

void deliver_piece(ModelSink& sink, uint64_t request_id, const std::string& text, size_t piece, size_t pieces) {
    // Pieces end at character borders, so that each delta is valid UTF-8 by itself.
    const auto border = [&](size_t i) { return utf8_floor(text, text.size() * i / pieces); };
    const size_t from = border(piece), to = border(piece + 1);
    if (to > from) sink.delta(request_id, text.substr(from, to - from));
}

}  // namespace

ScriptedDevice::ScriptedDevice() { prose(); }

ScriptedDevice::~ScriptedDevice() {
    {
        std::lock_guard lock(timer_lock_);
        stopping_ = true;
        for (auto& [id, job] : jobs_) job->cancelled = true;
    }
    timer_wake_.notify_all();
    if (timer_.joinable()) timer_.join();
}

Result<void> ScriptedDevice::check(const ModelSpec& model) {
    const auto refuse = [&](size_t i, const std::string& what) {
        return Error{ErrorCode::unsupported_value,
                     "model " + model.name + ", script step " + std::to_string(i) + ": " + what, "script"};
    };
    if (model.script.empty())
        return Error{ErrorCode::unsupported_value, "model " + model.name + ": a scripted device needs [[script]] steps",
                     "script"};
    for (size_t i = 0; i < model.script.size(); ++i) {
        const auto& step = model.script[i];
        if (!step.fail_class.empty() && !parse_error_class(step.fail_class))
            return refuse(i, "fail_class \"" + step.fail_class + "\" is no error class");
        if (step.text_bytes != 0 && !step.text.empty()) return refuse(i, "text and text_bytes exclude each other");
        size_t bytes = step.text_bytes;
        for (const auto* source : {&step.text, &step.call_arguments})
            for (const auto& piece : parse_template(*source).pieces)
                bytes += piece.kind == Template::Kind::prose ? piece.bytes : piece.text.size();
        if (bytes > limits::model_text_bytes_max) return refuse(i, "longer than model_text_bytes_max");
    }
    return {};
}

std::shared_ptr<const ScriptedDevice::Script> ScriptedDevice::script_of(const ModelPtr& model) {
    {
        std::shared_lock lock(scripts_lock_);
        const auto found = scripts_.find(model.get());
        if (found != scripts_.end()) return found->second;
    }
    auto script = std::make_shared<const Script>(model);
    std::unique_lock lock(scripts_lock_);
    if (scripts_.size() >= scripts_max) scripts_.clear();  // specs come and go by `apply`; compiling again is cheap
    scripts_.emplace(model.get(), script);
    return script;
}

void ScriptedDevice::submit(ModelRequest request, std::shared_ptr<ModelSink> sink) {
    const auto script = script_of(request.model);
    const Script::Step* step = script->pick(request);
    if (!step) {
        sink->failed(request.request_id,
                     make_model_error(ErrorClass::invalid, "no step of the script fits the last user message"));
        return;
    }

    // The key is stable over attempts and restarts, so a repeated step says the same.
    const uint64_t seed =
        mix((request.idempotency_key.empty() ? request.request_id : xxh64(request.idempotency_key)) + request.step + 1);
    Answer answer;
    if (step->fail_class && request.attempt < step->fail_times) answer.error = failure_of(*step->fail_class, request);
    if (!answer.error) {
        ModelResult& result = answer.result;
        result.model = request.model->upstream_model.empty() ? request.model->name : request.model->upstream_model;
        if (step->text_bytes > 0) {
            append_prose(result.text, step->text_bytes, seed);
        } else {
            result.text = fill(step->text, request, seed, false);
        }
        result.text.resize(utf8_floor(result.text, limits::model_text_bytes_max));
        result.finish_reason = "stop";
        size_t output_bytes = result.text.size();
        if (!step->tool.empty()) {
            result.calls.push_back({call_id_of(seed), offered_name(request.tools, step->server, step->tool),
                                    fill(step->arguments, request, seed, true)});
            result.finish_reason = "tool_calls";
            output_bytes += result.calls.front().arguments.size();
        }
        if (request.max_output_tokens != 0 && output_bytes > size_t{request.max_output_tokens} * 4) {
            result.text.resize(utf8_floor(result.text, size_t{request.max_output_tokens} * 4));
            output_bytes = result.text.size();
            result.calls.clear();  // a call that was cut off is none
            result.finish_reason = "length";
        }
        result.usage.input_tokens = input_tokens(request);
        result.usage.output_tokens = tokens_of(output_bytes);
        result.usage.simulated = true;
    }

    if (step->delay_ms == 0) {
        if (answer.error) {
            sink->failed(request.request_id, std::move(*answer.error));
            return;
        }
        if (request.stream)
            for (size_t i = 0; i < stream_pieces; ++i)
                deliver_piece(*sink, request.request_id, answer.result.text, i, stream_pieces);
        sink->done(request.request_id, std::move(answer.result));
        return;
    }

    auto job = std::make_shared<Job>();
    job->request_id = request.request_id;
    job->sink = std::move(sink);
    uint64_t delay_ms = step->delay_ms;
    if (request.deadline != 0) {
        const TimeMs now = SystemClock().now_ms();
        const uint64_t left = request.deadline > now ? request.deadline - now : 0;
        if (left < delay_ms) {
            delay_ms = left;
            answer.error = make_model_error(ErrorClass::timeout, "the deadline of the step passed");
        }
    }
    // A streamed answer comes in pieces over the whole delay, as a slow model's would.
    job->pieces = request.stream && !answer.error ? stream_pieces : 1;
    job->step_ns = delay_ms * 1'000'000 / job->pieces;
    job->answer = std::move(answer);
    job->due = std::chrono::steady_clock::now() + std::chrono::nanoseconds(job->step_ns);
    {
        std::lock_guard lock(timer_lock_);
        INVARIANT(jobs_.emplace(job->request_id, job).second, "request ids are unique in the process");
        due_.emplace(job->due, job);
        start_timer_locked();
    }
    timer_wake_.notify_one();
}

void ScriptedDevice::cancel(uint64_t request_id) {
    std::lock_guard lock(timer_lock_);
    const auto found = jobs_.find(request_id);
    if (found == jobs_.end()) return;
    found->second->cancelled = true;
    const auto [first, last] = due_.equal_range(found->second->due);
    for (auto at = first; at != last; ++at) {
        if (at->second != found->second) continue;
        due_.erase(at);
        break;
    }
    jobs_.erase(found);
}

void ScriptedDevice::start_timer_locked() {
    if (!timer_.joinable()) timer_ = std::thread([this] { run_timer(); });
}

void ScriptedDevice::run_timer() {
    std::unique_lock lock(timer_lock_);
    while (!stopping_) {
        if (due_.empty()) {
            timer_wake_.wait(lock);
            continue;
        }
        const auto first = due_.begin();
        if (std::chrono::steady_clock::now() < first->first) {
            timer_wake_.wait_until(lock, Instant(first->first));
            continue;
        }
        const auto job = first->second;
        due_.erase(first);
        const size_t piece = job->piece++;
        const bool last = job->piece == job->pieces;
        if (!last) {
            job->due += std::chrono::nanoseconds(job->step_ns);
            due_.emplace(job->due, job);
        }
        // The sink may submit the next step from here, so it is called without the lock.
        lock.unlock();
        if (!job->cancelled) {
            if (job->answer.error) {
                job->sink->failed(job->request_id, *job->answer.error);
            } else {
                if (job->pieces > 1)
                    deliver_piece(*job->sink, job->request_id, job->answer.result.text, piece, job->pieces);
                if (last && !job->cancelled) job->sink->done(job->request_id, std::move(job->answer.result));
            }
        }
        lock.lock();
        if (last) jobs_.erase(job->request_id);  // only now: cancel() reaches the job until its last call has begun
    }
}

}  // namespace mainstay
