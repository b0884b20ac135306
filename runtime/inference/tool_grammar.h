#pragma once
// Which tokens may come next when a model must call a tool, or must write JSON of a schema: an automaton over bytes,
// run over every token of the vocabulary at each step. Masks change what is possible, never the order among what is, so
// a model that would have been right says the same with and without.
//
// Of JSON Schema these keywords bind: type (also a list), properties, required, items, minItems, maxItems, enum, const,
// additionalProperties = false (the default wherever properties are named). Others do not bind: what is written may
// break them, and whoever receives it checks. An object of more than grammar_properties_max properties, and what lies
// deeper than grammar_depth_max, is held to JSON alone, or ends there. An exponent has at most two digits. White space:
// one space after ':' and ',' where the template of the model has it, none elsewhere.
//
// GrammarVocabulary and ToolGrammar are immutable: any thread. A GrammarCursor has one owner.

#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/inference/chat_template.h"

namespace mainstay {

/// The tokens of a vocabulary in the order of their bytes. Made once for a model.
class GrammarVocabulary {
  public:
    /// `vocabulary`: rows of the model's head, at least tokenizer.size().
    GrammarVocabulary(std::shared_ptr<const Tokenizer> tokenizer, size_t vocabulary);

    const Tokenizer& tokenizer() const { return *tokenizer_; }
    size_t words() const { return (vocabulary_ + 63) / 64; }

  private:
    friend class GrammarCursor;
    std::shared_ptr<const Tokenizer> tokenizer_;
    size_t vocabulary_;
    std::vector<TokenId> order_;           // without special and empty tokens
    std::vector<uint16_t> shared_before_;  // bytes that a token has in common with the one before it
};

class ToolGrammar {
  public:
    /// Calls of `tools`, of `only` where it names one; several in one step where `parallel`. Fails with
    /// invalid_request: no tools, a name that is not offered, parameters that are no JSON object or larger than the
    /// bounds.
    static Result<std::shared_ptr<const ToolGrammar>> for_calls(std::shared_ptr<const ChatTemplate> chat_template,
                                                                std::shared_ptr<const GrammarVocabulary> vocabulary,
                                                                const ToolDefinitions& tools,
                                                                std::string_view only = {}, bool parallel = false);
    /// One JSON value of a schema; any object where `schema` is empty.
    static Result<std::shared_ptr<const ToolGrammar>> for_json(std::shared_ptr<const ChatTemplate> chat_template,
                                                               std::shared_ptr<const GrammarVocabulary> vocabulary,
                                                               std::string_view schema);

  private:
    friend class GrammarCursor;
    friend class GrammarCompiler;
    struct Property {
        std::string key;  // as it is written between the quotes
        uint32_t node = 0;
    };
    /// What a value may be. Node 0: anything.
    struct Node {
        uint8_t types = 0;
        std::vector<Property> properties;  // by key
        uint64_t required = 0;             // bits by position in `properties`
        bool free = true;                  // an object of any keys
        uint32_t items = 0;
        uint32_t items_min = 0, items_max = UINT32_MAX;
        std::vector<std::string> choices;  // enum: texts, sorted; then nothing else binds
    };
    /// One tool: what opens its call, and its arguments.
    struct Call {
        std::string open;
        uint32_t arguments = 0;
    };
    /// A place within one value.
    struct Frame {
        uint32_t node = 0;
        uint8_t phase = 0;
        uint8_t a = 0, b = 0, c = 0;         // small counters of the phase
        uint32_t low = 0, high = 0, at = 0;  // candidates, bytes matched, elements
        uint64_t used = 0;                   // properties
    };
    struct State {
        uint8_t stage = 0;
        uint32_t low = 0, high = 0, at = 0;
        std::vector<Frame> frames;
    };

    bool step(State& state, unsigned char byte) const;
    bool step_calls(State& state, unsigned char byte) const;
    /// `ended`: the value was whole before this byte, which is not its own; `closed`: with it.
    enum class Taken : uint8_t { no, yes, ended, closed };
    Taken step_value(State& state, unsigned char byte) const;
    Taken begin_value(State& state, Frame& frame, unsigned char byte) const;
    Taken step_choice(Frame& frame, unsigned char byte) const;
    Taken step_object(State& state, unsigned char byte) const;
    Taken step_array(State& state, unsigned char byte) const;
    bool push_value(State& state, uint32_t node, unsigned char byte) const;
    bool value_complete(const State& state) const;
    static std::string key_of(const State& state);

    std::shared_ptr<const ChatTemplate> template_;
    std::shared_ptr<const GrammarVocabulary> vocabulary_;
    std::vector<Node> nodes_;
    std::vector<Call> calls_;  // by what opens them; empty: one JSON value of node `root_`
    uint32_t root_ = 0;
    std::string close_, between_;
    std::optional<TokenId> mark_;
    bool parallel_ = false, spaces_ = true;
};

class GrammarCursor {
  public:
    explicit GrammarCursor(std::shared_ptr<const ToolGrammar> grammar);

    /// The mask of a step's row: bit t of word t / 64 set where token t may come. Never without a bit, as long as every
    /// byte that the grammar needs is a token. Valid until the next call.
    const std::vector<uint64_t>& allowed();
    /// False, and nothing changes, for a token that may not come.
    bool advance(TokenId token);
    /// What was written may end here.
    bool complete() const;
    /// A stop token was taken.
    bool finished() const { return finished_; }

  private:
    std::vector<uint64_t> compute() const;

    std::shared_ptr<const ToolGrammar> grammar_;
    ToolGrammar::State state_;
    bool finished_ = false;
    std::unordered_map<std::string, std::vector<uint64_t>> masks_;  // by state: the inside of a text is one state
};

}  // namespace mainstay
