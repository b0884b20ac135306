// `mainstay chat`: a conversation typed line by line, streamed as it is made. Deltas are provisional (the door says
// so); an item that a failed step left behind ends with a note, and its successor begins on a new line.
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>

#include "runtime/inference/sse_parser.h"
#include "tools/cli_commands.h"
#include "tools/cli_output.h"

namespace mainstay {
namespace {

namespace json = boost::json;

/// One turn's stream, printed.
class TurnPrinter {
  public:
    explicit TurnPrinter(CliContext& context) : context_(context) {}

    void take(const SseEvent& event) {
        json::error_code code;
        const auto data = json::parse(event.data, code);
        if (code || !data.is_object()) return;  // "[DONE]" and what later releases may add
        const std::string type = event.type != "message" ? event.type : text_at(data, "type");
        if (type == "response.output_text.delta")
            print_text(text_at(data, "delta"));
        else if (type == "response.output_item.done")
            print_item(data.as_object().if_contains("item"));
        else if (type == "response.completed" || type == "response.incomplete" || type == "response.failed")
            end(data.as_object().if_contains("response"));
        else if (type == "error")
            failure_ = describe_error(data);
    }

    /// Throws where the turn did not complete.
    void finish() {
        if (open_line_) context_.streams.out << "\n" << std::flush;
        if (!failure_.empty()) throw CliFailure{ExitStatus::failed, failure_};
        if (!ended_)
            throw CliFailure{
                ExitStatus::unavailable,
                "the stream ended before the turn did; it goes on without us: see `mainstay session show`"};
    }

  private:
    void print_text(const std::string& text) {
        if (context_.json || text.empty()) return;
        context_.streams.out << printable(text, true) << std::flush;
        open_line_ = text.back() != '\n';
    }
    void note(const std::string& text) {
        if (context_.json) return;
        if (open_line_) context_.streams.out << "\n" << std::flush;
        open_line_ = false;
        context_.streams.error << "[" << text << "]\n";
    }
    void print_item(const json::value* item);
    void end(const json::value* response);
    static std::string describe_error(const json::value& holder) {
        const std::string message = text_at(holder, "message"), code = text_at(holder, "code");
        return printable(message.empty() ? "the turn failed" : message, false) +
               (code.empty() ? "" : " (" + code + ")");
    }

    CliContext& context_;
    bool open_line_ = false, ended_ = false;
    std::string failure_;
};

void TurnPrinter::print_item(const json::value* item) {
    if (!item) return;
    const std::string type = text_at(*item, "type"), status = text_at(*item, "status");
    if (type == "mcp_call") {
        std::string outcome = text_at(*item, "error");
        outcome = outcome.empty() ? text_at(*item, "output") : "error: " + outcome;
        note("tool " + printable(text_at(*item, "server_label") + "/" + text_at(*item, "name"), false) + " " +
             shortened_to(printable(text_at(*item, "arguments"), false), 80) + " -> " +
             (status == "unknown" ? "outcome unknown, see `mainstay session resolve`"
                                  : shortened_to(printable(outcome, false), 120)));
    } else if (type == "function_call") {
        note("asks the client for " + printable(text_at(*item, "name"), false) + " " +
             shortened_to(printable(text_at(*item, "arguments"), false), 120));
    } else if (type == "message") {
        if (status == "incomplete") note("this part was broken off");
        if (open_line_ && !context_.json) context_.streams.out << "\n" << std::flush;
        open_line_ = false;
    }
}

void TurnPrinter::end(const json::value* response) {
    ended_ = true;
    if (!response) return;
    if (context_.json) print_json(context_.streams.out, *response);
    const auto* error = response->is_object() ? response->as_object().if_contains("error") : nullptr;
    if (error && error->is_object()) failure_ = describe_error(*error);
    const std::string status = text_at(*response, "status");
    if (failure_.empty() && status == "failed") failure_ = "the turn failed";
    if (status == "incomplete") {
        const auto* details = response->as_object().if_contains("incomplete_details");
        note("incomplete: " + printable(details ? text_at(*details, "reason") : "", false));
    }
}

void say(CliContext& context, const ChatOptions& options, const std::string& text) {
    json::object body;
    body["model"] = options.agent;
    body["conversation"] = options.conversation;
    body["input"] = text;
    body["stream"] = true;
    TurnPrinter printer(context);
    SseParser parser(limits::upstream_body_bytes_max);
    context.client.stream("/v1/responses", json::serialize(body), [&](std::string_view bytes) {
        if (auto fed = parser.feed(bytes, [&](SseEvent&& event) { printer.take(event); }); !fed)
            throw CliFailure{ExitStatus::failed, fed.error().message};
    });
    printer.finish();
}

}  // namespace

void chat(CliContext& context, ChatOptions options) {
    if (options.conversation.empty()) {
        options.conversation = text_at(context.client.call("POST", "/v1/conversations", "{}"), "id");
        context.streams.error << "conversation " << printable(options.conversation, false) << "\n";
    }
    if (!options.message.empty()) return say(context, options, options.message);
    std::string line;
    for (;;) {
        if (context.streams.interactive) context.streams.error << "> " << std::flush;
        if (!std::getline(context.streams.in, line)) return;
        if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
        try {
            say(context, options, line);
        } catch (const CliFailure& failure) {
            // A person can say something else; a script cannot.
            if (!context.streams.interactive || failure.status == ExitStatus::unavailable) throw;
            context.streams.error << "mainstay: " << failure.message << "\n";
        }
    }
}

}  // namespace mainstay
