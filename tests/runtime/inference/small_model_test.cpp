// The small model's tokenizer and template against the Python that it was trained with, and the model itself on our own
// kernels.
#include <doctest/doctest.h>

#include <boost/json.hpp>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "runtime/inference/chat_template.h"
#include "runtime/inference/neuron_core_sim.h"

using namespace mainstay;
namespace json = boost::json;

namespace {

/// Both can be others: weights in training, sessions of a fresh seed (tools/train_model/evaluate.py --fixture).
std::string setting(const char* name, const char* otherwise) {
    const char* value = std::getenv(name);
    return value ? value : otherwise;
}
const std::string folder = setting("MAINSTAY_SMALL_MODEL", MAINSTAY_SOURCE_DIR "/config/models/mainstay_tiny");
const std::string sessions_file =
    setting("MAINSTAY_SESSIONS", MAINSTAY_SOURCE_DIR "/tests/golden/inference/sessions.jsonl");

std::string file(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    REQUIRE_MESSAGE(in, path);
    std::ostringstream text;
    text << in.rdbuf();
    return text.str();
}

std::vector<ChatMessage> messages_of(const json::array& messages) {
    std::vector<ChatMessage> made;
    for (const auto& entry : messages) {
        const auto& message = entry.as_object();
        ChatMessage said;
        const std::string_view role = message.at("role").as_string();
        said.speaker = role == "user"        ? ChatMessage::Speaker::user
                       : role == "assistant" ? ChatMessage::Speaker::assistant
                                             : ChatMessage::Speaker::tool;
        if (const auto* text = message.if_contains("content")) said.text = text->as_string();
        if (const auto* calls = message.if_contains("tool_calls"))
            for (const auto& call : calls->as_array())
                said.calls.push_back(
                    {std::string(call.at("name").as_string()), std::string(call.at("arguments").as_string())});
        made.push_back(std::move(said));
    }
    return made;
}

/// One conversation on a device that holds no other.
class Conversation {
  public:
    explicit Conversation(Device& device) : device_(device) {
        for (BlockId block = 1; block < static_cast<BlockId>(device.caps().block_count); ++block)
            table_.push_back(block);
    }

    /// Computes `tokens` and gives the token that follows.
    TokenId feed(std::span<const TokenId> tokens) {
        TokenId next = 0;
        while (!tokens.empty()) {
            const auto part = tokens.first(std::min<size_t>(tokens.size(), device_.caps().tokens_max));
            tokens = tokens.subspan(part.size());
            StepRow row;
            row.tokens.assign(part.begin(), part.end());
            row.position = position_;
            row.block_table = table_;
            row.want_token = tokens.empty();
            position_ += static_cast<uint32_t>(part.size());
            Step step;
            step.rows.push_back(std::move(row));
            auto result = device_.run(step);
            REQUIRE_MESSAGE(result.ok(), (result.ok() ? "" : result.error().message));
            if (tokens.empty()) next = *result->rows[0].token;
        }
        return next;
    }

  private:
    Device& device_;
    std::vector<BlockId> table_;
    uint32_t position_ = 0;
};

}  // namespace

TEST_CASE("small model: sessions have the tokens that it was trained on, and its replies are read back") {
    const auto tokenizer = Tokenizer::load(folder);
    REQUIRE_MESSAGE(tokenizer.ok(), (tokenizer.ok() ? "" : tokenizer.error().message));
    const auto how = ChatTemplate::recognise(file(folder + "/tokenizer_config.json"), *tokenizer);
    REQUIRE(how.ok());
    CHECK((*how)->kind() == TemplateKind::mainstay_tiny);
    const TokenId assistant = *(*tokenizer)->find_added("<|assistant|>"), end = *(*tokenizer)->find_added("<|end|>");

    std::istringstream lines(file(sessions_file));
    int sessions = 0, with_tokens = 0, replies = 0;
    for (std::string line; std::getline(lines, line); ++sessions) {
        const auto session = json::parse(line).as_object();
        const auto messages = messages_of(session.at("messages").as_array());
        const auto pieces = (*how)->render(messages, nullptr);
        REQUIRE(pieces.ok());
        auto tokens = (*how)->encode(*pieces);
        REQUIRE(tokens.back() == assistant);  // where the model would go on
        if (const auto* expected = session.if_contains("tokens")) {
            auto shown = tokens;
            shown.pop_back();
            CHECK(shown == json::value_to<std::vector<TokenId>>(*expected));
            ++with_tokens;
        }
        // Each part of the assistant, as if the model wrote it now.
        size_t reply = 0;
        for (size_t at = 0; at + 1 < tokens.size(); ++at) {
            if (tokens[at] != assistant) continue;
            while (messages[reply].speaker != ChatMessage::Speaker::assistant) ++reply;
            ReplyReader reader(*how, true, "t");
            while (!reader.ended()) reader.push(tokens[++at]);
            CHECK(tokens[at] == end);
            std::string tail;
            const auto outcome = reader.finish(tail);
            REQUIRE(std::holds_alternative<ModelResult>(outcome));
            const auto& result = std::get<ModelResult>(outcome);
            CHECK(result.text == messages[reply].text);
            REQUIRE(result.calls.size() == messages[reply].calls.size());
            for (size_t i = 0; i < result.calls.size(); ++i) {
                CHECK(result.calls[i].name == messages[reply].calls[i].name);
                CHECK(result.calls[i].arguments == messages[reply].calls[i].arguments);
            }
            ++reply;
            ++replies;
        }
    }
    CHECK(sessions == 250);
    CHECK(with_tokens == 40);
    CHECK(replies > 800);
}

TEST_CASE("small model: on our own kernels it gets whole sessions right, without a grammar") {
    const auto tokenizer = *Tokenizer::load(folder);
    const auto how = *ChatTemplate::recognise(file(folder + "/tokenizer_config.json"), tokenizer);
    const TokenId assistant = *tokenizer->find_added("<|assistant|>"), end = *tokenizer->find_added("<|end|>");
    for (const Precision precision : {Precision::bf16, Precision::f32}) {
        NeuronCoreSimOptions options;
        options.threads = 1;
        options.block_count = 64;
        const auto device = open_neuron_core_sim(folder, precision, options);
        REQUIRE_MESSAGE(device.ok(), (device.ok() ? "" : device.error().message));
        REQUIRE(tokenizer->check_vocabulary((*device)->caps().vocabulary).ok());
        int sessions = 0, right = 0;
        std::istringstream lines(file(sessions_file));
        for (std::string line; std::getline(lines, line); ++sessions) {
            const auto session = json::parse(line).as_object();
            auto expected = how->encode(*how->render(messages_of(session.at("messages").as_array()), nullptr));
            expected.pop_back();
            Conversation conversation(**device);
            bool good = true;
            // Runs of the others' tokens are given, the assistant's are generated; after a mistake all is lost.
            for (size_t at = 0; at < expected.size() && good;) {
                size_t mark = at;
                while (mark < expected.size() && expected[mark] != assistant) ++mark;
                if (mark == expected.size()) break;
                TokenId next = conversation.feed(std::span(expected).subspan(at, mark + 1 - at));
                for (at = mark + 1;; ++at) {
                    good = next == expected[at];
                    if (!good) break;
                    // The end mark is computed too: it stands before what the others say next.
                    next = conversation.feed(std::span(&expected[at], 1));
                    if (expected[at] != end) continue;
                    ++at;
                    break;
                }
            }
            right += good;
        }
        MESSAGE(std::string(precision == Precision::bf16 ? "bf16" : "f32") << ": " << right << " of " << sessions);
        CHECK(right >= sessions * 940 / 1000);
    }
}
