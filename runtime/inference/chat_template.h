#pragma once
// How a model is shown a conversation, and how what it wrote is read. Hugging Face keeps templates as programs (Jinja);
// here they are a named set, written out, chosen by name or recognised from tokenizer_config.json:
//
//   mainstay-tiny   the shipped small model: no instructions, no list of tools, calls after a mark of their own
//   chatml          Qwen 2 and 2.5, Hermes: <|im_start|>role, tools and calls as JSON in <tools> and <tool_call>
//   llama-3         Llama 3.1 to 3.3: header marks, a call is a JSON object with "name" and "parameters"
//
// The marks of a template come from token ids, so no text of a user, tool or upstream can open another speaker's part.
// A rendering only grows: that of a longer conversation begins with that of the shorter one, token by token, and then
// with what the model sampled. Where its text would not be tokenized as it was sampled, the step's tokens are kept in
// the history (Item::tokens) and stand here in the place of the text. docs/MODELS.md describes the templates.
//
// Immutable: any thread. A ReplyReader has one owner.

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "runtime/inference/chat_messages.h"
#include "runtime/inference/sampler.h"
#include "runtime/inference/text_device.h"
#include "runtime/inference/tokenizer.h"

namespace mainstay {

enum class TemplateKind : uint8_t { mainstay_tiny, chatml, llama3 };

struct PromptTokens {
    std::vector<TokenId> tokens;
    /// Of these, leading: what is the same in every conversation with the agent, that is, begin mark, instructions and
    /// tools. A message of the conversation that a template merges with these leaves the begin mark only.
    uint32_t definition = 0;
};

class ChatTemplate {
  public:
    /// A part of a rendering that is tokenized by itself: a mark, text, or what was sampled.
    struct Piece {
        bool is_mark = false;
        TokenId mark = 0;
        std::string text;                   // of a mark: how it is written, for people; of sampled tokens: their text
        std::vector<TokenId> sampled = {};  // these as they are
        friend bool operator==(const Piece&, const Piece&) = default;
    };

    /// Fails with model_not_loadable for a name that is not in the list above, and where the tokenizer lacks a mark.
    static Result<std::shared_ptr<const ChatTemplate>> make(std::string_view name,
                                                            std::shared_ptr<const Tokenizer> tokenizer);
    /// From the key chat_template of tokenizer_config.json: a name, or a program that uses the marks of one.
    static Result<std::shared_ptr<const ChatTemplate>> recognise(std::string_view tokenizer_config_json,
                                                                 std::shared_ptr<const Tokenizer> tokenizer);

    TemplateKind kind() const { return kind_; }
    std::string_view name() const;
    const std::shared_ptr<const Tokenizer>& tokenizer() const { return tokenizer_; }
    const KeyHash& tokenizer_digest() const { return tokenizer_->digest(); }
    /// Which template, in which revision: of 100 * kind + revision. A change of what render() writes is a revision.
    uint32_t template_version() const;

    /// The conversation up to where the assistant speaks. `tools` may be null. Fails with invalid_request where the
    /// parameters of a tool are no JSON object.
    Result<std::vector<Piece>> render(const std::vector<ChatMessage>& messages, const ToolDefinitions& tools) const;
    std::vector<TokenId> encode(const std::vector<Piece>& pieces) const;
    /// Both, from a request.
    Result<std::vector<TokenId>> prompt(const ModelRequest& request) const;
    Result<PromptTokens> prompt_tokens(const ModelRequest& request) const;

    /// Whether a prompt that shows `reply` by its text has exactly `sampled` in its place (an end mark that is missing
    /// behind them counts as there). If not, the tokens belong into ModelResult::tokens.
    bool says(const ModelResult& reply, std::span<const TokenId> sampled) const;
    /// Those tokens as history keeps them.
    std::shared_ptr<const StepTokens> step_tokens(std::vector<TokenId> sampled) const;

    /// Tokens that end the assistant's part. Not empty.
    const std::vector<TokenId>& stops() const { return stops_; }
    bool is_stop(TokenId token) const;

    /// Around a call's name and arguments, for a grammar that writes them: open, name, middle, arguments, close. The
    /// open part begins with `call_mark` where there is one.
    struct CallSyntax {
        std::optional<TokenId> mark;
        std::string open, middle, close;  // {"name": "  |  ", "arguments":  |  }
        bool spaces = true;               // JSON of this template has a space after ':' and ','
        std::string between;              // calls of one step; empty with no mark: one call a step
    };
    CallSyntax call_syntax() const;

  private:
    friend class ReplyReader;
    ChatTemplate(TemplateKind kind, std::shared_ptr<const Tokenizer> tokenizer);
    Result<void> find_marks();
    class Renderer;
    struct Rendering {
        std::vector<Piece> pieces;
        size_t definition = 0;  // leading pieces
    };
    Result<Rendering> render_all(const std::vector<ChatMessage>& messages, const ToolDefinitions& tools) const;

    TemplateKind kind_;
    std::shared_ptr<const Tokenizer> tokenizer_;
    std::vector<TokenId> stops_;
    // mainstay-tiny: begin, user, assistant, tool, end, call. chatml: start, end. llama-3: begin, start, header end,
    // end.
    TokenId begin_ = 0, start_ = 0, header_end_ = 0, end_ = 0, user_ = 0, assistant_ = 0, tool_ = 0, call_ = 0;
    std::optional<TokenId> python_tag_;
};

/// What the model writes, token by token: text to show, calls to make.
class ReplyReader {
  public:
    /// `call_prefix` makes the ids of calls ("call_<prefix>_0") unique in the conversation. Without tools, texts that
    /// look like calls are texts.
    ReplyReader(std::shared_ptr<const ChatTemplate> chat_template, bool tools_offered, std::string call_prefix,
                StopSequences stops = {});

    /// Text that may be shown now; all of them joined are the text of the result.
    std::string push(TokenId token);
    /// A stop token or stop text came: what is pushed from now on is ignored.
    bool ended() const { return ended_; }
    /// The outcome, once. `tail` is text that was held back and belongs to the result. What should be a call and is
    /// none is an error of class protocol; a call that the bound on tokens cut off is dropped, with finish_reason
    /// "length".
    std::variant<ModelResult, ModelError> finish(std::string& tail);

  private:
    std::string show(std::string_view text);
    std::string take_text(std::string_view text);
    std::string take_chatml(std::string_view text);
    void close_call();
    bool add_call(std::string_view json);
    bool add_calls(std::string_view json);

    std::shared_ptr<const ChatTemplate> template_;
    bool tools_;
    std::string prefix_;
    StopSequences stops_;
    TextStream stream_;
    bool ended_ = false;
    bool in_call_ = false;                 // what comes belongs to call_text_
    bool undecided_ = true;                // llama-3: nothing but white space came yet
    std::string call_text_;                // of the call that is being written
    std::string held_;                     // chatml: white space, or what may begin <tool_call>
    size_t searched_ = 0, tags_seen_ = 0;  // chatml: of held_, for the end of a call
    std::string problem_;
    ModelResult result_;
};

}  // namespace mainstay
