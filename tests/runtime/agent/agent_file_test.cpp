#include "runtime/agent/agent_file.h"

#include <doctest/doctest.h>

#include "runtime/base/limits.h"

using namespace mainstay;
using namespace mainstay::limits;

namespace {

constexpr std::string_view full_toml = R"(name = "refunds"
model = "qwen"
instructions = """
Refund politely.
Never twice."""
temperature = 0.5
top_p = 1
max_output_tokens = 500

[context]
truncation = "disabled"
compact_at = 0

[[tools]]
type = "mcp"
server_label = "files"
command = ["npx", "-y", "server-filesystem", "data"]
env = { LANG = "C", A = "1" }
allowed_tools = ["read", "write"]
effects = { read = "read", write = "idempotent", wipe = "once" }
instance = "session"
timeout = "90s"

[[tools]]
type = "builtin"
names = ["memory", "clock"]

[retry]
max_attempts = 7
backoff = "500ms..2m"

[budget]
tokens_per_turn = 20000
steps_per_turn = 12
)";

constexpr std::string_view full_json = R"({"budget":{"steps_per_turn":12,"tokens_per_turn":20000},
"retry":{"backoff":"500ms..120000ms","max_attempts":7},
"tools":[{"type":"mcp","timeout":90000,"instance":"session","server_label":"files",
  "command":["npx","-y","server-filesystem","data"],"env":{"A":"1","LANG":"C"},"allowed_tools":["read","write"],
  "effects":{"wipe":"once","write":"idempotent","read":"read"}},{"names":["memory","clock"],"type":"builtin"}],
"context":{"truncation":"disabled","compact_at":0.0},"max_output_tokens":500,"top_p":1.0,"temperature":5e-1,
"instructions":"Refund politely.\nNever twice.","model":"qwen","name":"refunds"})";

Error error_of(std::string_view text, Syntax syntax = Syntax::toml, std::string_view source = "a.toml") {
    const auto parsed = parse_agent(text, syntax, source);
    REQUIRE_FALSE(parsed.ok());
    return parsed.error();
}

Error model_error_of(std::string_view text) {
    const auto parsed = parse_model(text, Syntax::toml, "m.toml");
    REQUIRE_FALSE(parsed.ok());
    return parsed.error();
}

const std::string head = "name = \"a\"\nmodel = \"m\"\n";

}  // namespace

TEST_CASE("agent file: every key arrives") {
    const auto parsed = parse_agent(full_toml, Syntax::toml, "refunds.toml");
    REQUIRE_MESSAGE(parsed.ok(), parsed.error().message);
    const AgentSpec& agent = **parsed;
    CHECK(agent.name == "refunds");
    CHECK(agent.model == "qwen");
    CHECK(agent.instructions == "Refund politely.\nNever twice.");
    CHECK_FALSE(agent.truncate_history);
    CHECK(agent.temperature == 0.5);
    CHECK(agent.top_p == 1.0);
    CHECK(agent.max_output_tokens == 500);
    CHECK(agent.retry.max_attempts == 7);
    CHECK(agent.retry.backoff_min_ms == 500);
    CHECK(agent.retry.backoff_max_ms == 120'000);
    CHECK(agent.tokens_per_turn == 20'000);
    CHECK(agent.steps_per_turn == 12);
    REQUIRE(agent.tools.size() == 2);
    const auto& mcp = agent.tools[0];
    CHECK(mcp.type == ToolsetType::mcp);
    CHECK(mcp.server_label == "files");
    CHECK(mcp.command == std::vector<std::string>{"npx", "-y", "server-filesystem", "data"});
    CHECK(mcp.env == std::map<std::string, std::string>{{"A", "1"}, {"LANG", "C"}});
    CHECK(mcp.allowed_tools == std::vector<std::string>{"read", "write"});
    CHECK(mcp.effects.at("read") == EffectClass::read);
    CHECK(mcp.effects.at("write") == EffectClass::idempotent);
    CHECK(mcp.effects.at("wipe") == EffectClass::once);
    CHECK(mcp.per_session);
    CHECK(mcp.timeout_ms == 90'000);
    CHECK(agent.tools[1].names == std::vector<std::string>{"memory", "clock"});
    CHECK(agent.version == version_of(agent.canonical_json));
}

TEST_CASE("agent file: TOML and JSON that mean the same are the same version") {
    const auto toml = parse_agent(full_toml, Syntax::toml, "a.toml");
    const auto json = parse_agent(full_json, Syntax::json);
    REQUIRE_MESSAGE(toml.ok(), toml.error().message);
    REQUIRE_MESSAGE(json.ok(), json.error().message);
    CHECK((*toml)->canonical_json == (*json)->canonical_json);
    CHECK((*toml)->version == (*json)->version);
}

TEST_CASE("agent file: canonical JSON reads back to itself and leaves defaults out") {
    const auto full = parse_agent(full_toml, Syntax::toml);
    const auto again = parse_agent((*full)->canonical_json, Syntax::json);
    REQUIRE_MESSAGE(again.ok(), again.error().message);
    CHECK((*again)->canonical_json == (*full)->canonical_json);
    const auto small = parse_agent(head + "[retry]\nmax_attempts = 5\nbackoff = \"1000ms..60s\"\n", Syntax::toml);
    CHECK((*small)->canonical_json == R"({"model":"m","name":"a"})");
    // The version is part of the format: events name it for ever. (BLAKE2b-128 of the text, first 8 bytes.)
    CHECK((*small)->version == 0x420eb964d2811a1cull);
}

TEST_CASE("agent file: a number is read to its last bit, in both syntaxes") {
    // Seventeen digits that a reader which scales by powers of ten gets wrong in the last place.
    for (const std::string number : {"1.577777777777777777777777777777777777777777777777777777777712",
                                     "1.5777777777777777", "0.1", "1.9999999999999998", "5e-324"}) {
        CAPTURE(number);
        const auto toml = parse_agent(head + "temperature = " + number + "\n", Syntax::toml);
        REQUIRE_MESSAGE(toml.ok(), toml.error().message);
        const auto json = parse_agent(R"({"name":"a","model":"m","temperature":)" + number + "}", Syntax::json);
        REQUIRE_MESSAGE(json.ok(), json.error().message);
        CHECK((*json)->canonical_json == (*toml)->canonical_json);
        const auto again = parse_agent((*toml)->canonical_json, Syntax::json);
        REQUIRE_MESSAGE(again.ok(), again.error().message);
        CHECK((*again)->canonical_json == (*toml)->canonical_json);
    }
}

TEST_CASE("agent file: an unknown key is refused with its place") {
    CHECK(error_of(head + "\n\nmodle = \"x\"\n").message ==
          "a.toml:5: modle: unknown key (known here: budget, context, instructions, lead, max_output_tokens, members, "
          "memory, model, name, permissions, retry, supervision, teams, temperature, tools, top_p, workflows)");
    CHECK(error_of(head + "modle = \"x\"\n").code == ErrorCode::unknown_field);
    CHECK(error_of(head + "[retry]\nmax = 1\n").message.starts_with("a.toml:4: retry.max: unknown key"));
    CHECK(error_of(head + "[[tools]]\ntype=\"builtin\"\nnames=[\"echo\"]\n[[tools]]\ntype=\"mcp\"\n"
                          "server_label=\"x\"\ncommand=[\"x\"]\nnames=[\"y\"]\n")
              .message.starts_with("a.toml:10: tools[1].names: unknown key"));
    const auto json = error_of(R"({"name":"a","model":"m","retry":{"max":1}})", Syntax::json, "");
    CHECK(json.code == ErrorCode::unknown_field);
    CHECK(json.param == "retry.max");
    CHECK(json.message.starts_with("retry.max: unknown key"));
}

TEST_CASE("agent file: a reserved word that is not built is refused by name") {
    const std::string mcp = head + "[[tools]]\ntype=\"mcp\"\nserver_label=\"x\"\ncommand=[\"x\"]\n";
    const std::string memory = head + "[[tools]]\ntype=\"builtin\"\nnames=[\"memory\"]\n[[memory]]\nname=\"x\"\n";
    const std::pair<std::string, std::string> rows[] = {
        {head + "[[permissions]]\neffect=\"ask\"\n", "permissions"},
        {head + "[budget]\nusd_per_session=1.0\n", "budget.usd_per_session"},
        {head + "[budget]\non_breach=\"ask\"\n", "budget.on_breach"},
        {memory + "scope=\"agent\"\n", "memory[0].scope"},
        {memory + "scope=\"tenant\"\n", "memory[0].scope"},
        {memory + "max_size=\"8KB\"\n", "memory[0].max_size"},
        {memory + "scope=\"user\"\nwrite=\"cas\"\n", "memory[0].write"},
        {memory + "scope=\"user\"\nretain=\"90d\"\n", "memory[0].retain"},
        {memory + "[[memory]]\nname=\"y\"\n", "memory"},
        {mcp + "sandbox={}\n", "tools[0].sandbox"},
        {mcp + "server_url=\"http://x\"\n", "tools[0].server_url"},
        {mcp + "authorization={secret=\"x\"}\n", "tools[0].authorization"},
        {head + "[[tools]]\ntype=\"agent\"\nagent=\"legal\"\n", "tools[0].type"},
        {head + "[context]\ncompact_at=0.8\n", "context.compact_at"},
        {head + "lead=\"x\"\n", "lead"},
        {head + "[supervision]\nrestart=\"x\"\n", "supervision"},
        {head + "teams=[]\n", "teams"},
        {head + "workflows=[]\n", "workflows"},
    };
    for (const auto& [text, path] : rows) {
        CAPTURE(text);
        const auto error = error_of(text);
        CHECK(error.code == ErrorCode::not_yet);
        CHECK(error.param == path);
        CHECK(error.message.starts_with("a.toml:"));
    }
    for (const auto* text :
         {"name=\"m\"\nfallback=[\"x\"]\n", "name=\"m\"\nbase_url=\"http://x\"\napi_key={file=\"x\"}\n"})
        CHECK(model_error_of(text).code == ErrorCode::not_yet);
}

TEST_CASE("agent file: a memory is the session's own or the user's, and part of the version") {
    const std::string text = head + "[[tools]]\ntype=\"builtin\"\nnames=[\"memory\"]\n";
    const auto plain = parse_agent(text, Syntax::toml, "a.toml");
    REQUIRE_MESSAGE(plain.ok(), plain.error().message);
    CHECK_FALSE((*plain)->memory);
    const auto of_session = parse_agent(text + "[[memory]]\nname=\"notes\"\n", Syntax::toml, "a.toml");
    REQUIRE_MESSAGE(of_session.ok(), of_session.error().message);
    CHECK((*of_session)->memory->scope == MemoryScope::session);
    const auto user =
        parse_agent(text + "[[memory]]\nname=\"customer\"\nscope=\"user\"\nmax_size=\"8KB\"\n", Syntax::toml, "a.toml");
    REQUIRE_MESSAGE(user.ok(), user.error().message);
    CHECK((*user)->memory->name == "customer");
    CHECK((*user)->memory->scope == MemoryScope::user);
    CHECK((*user)->memory->bytes_max == 8192);
    CHECK((*user)->version != (*of_session)->version);
    const auto again = parse_agent((*user)->canonical_json, Syntax::json);
    REQUIRE_MESSAGE(again.ok(), again.error().message);
    CHECK((*again)->canonical_json == (*user)->canonical_json);
    CHECK((*again)->memory->bytes_max == 8192);

    const std::pair<std::string, std::string> bad[] = {
        {text + "[[memory]]\nscope=\"user\"\n", "a.toml:6: memory[0]: \"name\" is missing"},
        {text + "[[memory]]\nname=\"a b\"\n", "a.toml:7: memory[0].name: may contain"},
        {text + "[[memory]]\nname=\"c\"\nscope=\"users\"\n", "a.toml:8: memory[0].scope: "},
        {text + "[[memory]]\nname=\"c\"\nscope=\"user\"\nmax_size=\"1MB\"\n", "a.toml:9: memory[0].max_size: "},
        {text + "[[memory]]\nname=\"c\"\nscope=\"user\"\nmax_size=255\n", "a.toml:9: memory[0].max_size: "},
        {text + "[[memory]]\nname=\"c\"\nsize=1\n", "a.toml:8: memory[0].size: unknown key"},
        {head + "[[memory]]\nname=\"c\"\n", "a.toml:3: memory: is for the builtin tool \"memory\""},
    };
    for (const auto& [file, message] : bad) {
        CAPTURE(file);
        CHECK_MESSAGE(error_of(file).message.starts_with(message), error_of(file).message);
    }
}

TEST_CASE("agent file: a price list is part of the agent and of its version") {
    const std::string text = head + "[[tools]]\ntype=\"builtin\"\nnames=[\"calc\",\"price\"]\n";
    const auto agent = parse_agent(text + "prices = { Tozek = \"2.50\", pen = \"3\" }\n", Syntax::toml, "a.toml");
    REQUIRE(agent.ok());
    REQUIRE((*agent)->tools[0].prices);
    CHECK(*(*agent)->tools[0].prices == PriceList{{"pen", "3"}, {"tozek", "2.50"}});
    CHECK((*agent)->canonical_json.find(R"("prices":{"pen":"3","tozek":"2.50"})") != std::string::npos);
    const auto again = parse_agent((*agent)->canonical_json, Syntax::json, "");
    REQUIRE(again.ok());
    CHECK((*again)->version == (*agent)->version);
    const auto dearer = parse_agent(text + "prices = { Tozek = \"2.60\", pen = \"3\" }\n", Syntax::toml, "a.toml");
    REQUIRE(dearer.ok());
    CHECK((*dearer)->version != (*agent)->version);
}

TEST_CASE("agent file: wrong values are refused, naming bound and place") {
    const std::string mcp = head + "[[tools]]\ntype=\"mcp\"\nserver_label=\"x\"\ncommand=[\"x\"]\n";
    const std::string builtin = head + "[[tools]]\ntype=\"builtin\"\nnames=[\"echo\"]\n";
    const std::string price = head + "[[tools]]\ntype=\"builtin\"\nnames=[\"price\"]\n";
    const std::pair<std::string, std::string> rows[] = {
        {"", ""},
        {"name = \"a\"\n", ""},
        {"name = \"a b\"\nmodel=\"m\"\n", "name"},
        {"name = 1\nmodel=\"m\"\n", "name"},
        {"name = \"" + std::string(129, 'a') + "\"\nmodel=\"m\"\n", "name"},
        {head + "instructions = \"\\u0000\"\n", "instructions"},
        {head + "temperature = 2.1\n", "temperature"},
        {head + "temperature = nan\n", "temperature"},
        {head + "top_p = \"1\"\n", "top_p"},
        {head + "retry = 3\n", "retry"},
        {head + "[retry]\nmax_attempts = 0\n", "retry.max_attempts"},
        {head + "[retry]\nmax_attempts = 101\n", "retry.max_attempts"},
        {head + "[retry]\nmax_attempts = -1\n", "retry.max_attempts"},
        {head + "[retry]\nbackoff = \"1m..1s\"\n", "retry.backoff"},
        {head + "[retry]\nbackoff = \"0ms..1s\"\n", "retry.backoff"},
        {head + "[retry]\nbackoff = \"1s..2h\"\n", "retry.backoff"},
        {head + "[retry]\nbackoff = \"soon\"\n", "retry.backoff"},
        {head + "[retry]\nbackoff = \"..\"\n", "retry.backoff"},
        {head + "[budget]\nsteps_per_turn = 0\n", "budget.steps_per_turn"},
        {head + "[budget]\nsteps_per_turn = 1025\n", "budget.steps_per_turn"},
        {head + "[context]\ntruncation = \"some\"\n", "context.truncation"},
        {head + "[[tools]]\n", "tools[0]"},
        {head + "[[tools]]\ntype=\"none\"\n", "tools[0].type"},
        {head + "[[tools]]\ntype=\"builtin\"\n", "tools[0].names"},
        {head + "[[tools]]\ntype=\"builtin\"\nnames=[\"shell\"]\n", "tools[0].names"},
        {head + "[[tools]]\ntype=\"mcp\"\ncommand=[\"x\"]\n", "tools[0]"},
        {head + "[[tools]]\ntype=\"mcp\"\nserver_label=\"x\"\n", "tools[0]"},
        {head + "[[tools]]\ntype=\"mcp\"\nserver_label=\"builtin\"\ncommand=[\"x\"]\n", "tools[0].server_label"},
        {mcp + "timeout = \"2h\"\n", "tools[0].timeout"},
        {mcp + "timeout = 0\n", "tools[0].timeout"},
        {mcp + "instance = \"node\"\n", "tools[0].instance"},
        {mcp + "effects = { x = \"maybe\" }\n", "tools[0].effects.x"},
        {mcp + "env = { \"A=B\" = \"x\" }\n", "tools[0].env"},
        {mcp + "env = { A = 1 }\n", "tools[0].env.A"},
        {mcp + "[[tools]]\ntype=\"mcp\"\nserver_label=\"x\"\ncommand=[\"y\"]\n", "tools[1].server_label"},
        {builtin + "[[tools]]\ntype=\"builtin\"\nnames=[\"clock\"]\n", "tools[1]"},
        {builtin + "prices = { apple = \"1\" }\n", "tools[0].prices"},
        {price + "prices = { apple = \"1e3\" }\n", "tools[0].prices"},
        {price + "prices = { apple = \"\" }\n", "tools[0].prices"},
        {price + "prices = { apple = \"1.\" }\n", "tools[0].prices"},
        {price + "prices = { apple = \"-1\" }\n", "tools[0].prices"},
        {price + "prices = { apple = \"12345678901234567\" }\n", "tools[0].prices"},
        {price + "prices = { \"\" = \"1\" }\n", "tools[0].prices"},
        {price + "prices = { apple = 1 }\n", "tools[0].prices.apple"},
    };
    for (const auto& [text, path] : rows) {
        CAPTURE(text);
        const auto error = error_of(text);
        CHECK(error.param == path);
        CHECK((error.code == ErrorCode::invalid_request || error.code == ErrorCode::unsupported_value));
    }
    std::string many = head;
    for (size_t i = 0; i <= limits::toolsets_max; ++i)
        many += "[[tools]]\ntype=\"mcp\"\nserver_label=\"s" + std::to_string(i) + "\"\ncommand=[\"x\"]\n";
    CHECK(error_of(many).param == "tools");
}

TEST_CASE("agent file: malformed text is an error with its line, never a crash") {
    CHECK(error_of("name = \n").message.starts_with("a.toml:1: malformed TOML"));
    CHECK(error_of(head + "name = \"b\"\n").message.starts_with("a.toml:3: malformed TOML"));
    for (const auto* text : {"[!]", "[[!]]", "[", "[[", "[a", "a.!=1", "[a.]", "a = {!}", "\"", "= 1", "[ ]"})
        CHECK(error_of(text).message.find("malformed TOML") != std::string::npos);
    CHECK(error_of("\xff").code == ErrorCode::invalid_utf8);
    CHECK(error_of("x = \"\xed\xa0\x80\"").code == ErrorCode::invalid_utf8);
    CHECK(error_of(std::string(limits::agent_file_bytes_max + 1, ' ')).code == ErrorCode::body_too_large);
    CHECK(error_of("{", Syntax::json, "").code == ErrorCode::malformed_json);
    CHECK(error_of("{} x", Syntax::json, "").code == ErrorCode::malformed_json);
    CHECK(error_of("[]", Syntax::json, "").code == ErrorCode::invalid_request);
    CHECK(error_of(R"({"name":"a","name":"b"})", Syntax::json, "").message == "the key \"name\" stands twice");
    CHECK(error_of(std::string(100'000, '['), Syntax::json, "").code == ErrorCode::json_too_deep);
    CHECK(error_of(R"({"name":"a","model":"m","instructions":1e999})", Syntax::json, "").code ==
          ErrorCode::invalid_request);
}

TEST_CASE("agent file: a letter beyond ASCII is welcome in texts and comments and a named error elsewhere") {
    auto utf8 = [](uint32_t c) {
        std::string out;
        if (c < 0x800) {
            out += static_cast<char>(0xc0 | c >> 6);
        } else {
            out += static_cast<char>(0xe0 | c >> 12);
            out += static_cast<char>(0x80 | (c >> 6 & 0x3f));
        }
        return out + static_cast<char>(0x80 | (c & 0x3f));
    };
    // toml++ has no answer of its own for most of these: U+00A1 to U+0499, U+2C5E to U+3057, U+FB26 to U+FEFE.
    size_t refused = 0, letters = 0;
    for (uint32_t c = 0xa1; c <= 0xfeff; c += c % 0x3fa < 4 ? 1 : 13) {
        if (c >= 0xd800 && c < 0xe000) continue;
        ++letters;
        const std::string letter = utf8(c);
        CHECK_MESSAGE(
            error_of(head + "# " + letter + "\ninstructions = \"" + letter + "\" # " + letter + "\nx = 1").param == "x",
            c);
        for (const std::string& text : {letter + " = 1", "a" + letter + " = 1", "a = " + letter, "a = 1" + letter,
                                        "[" + letter + "]", "a = [" + letter + "]"})
            if (error_of(text).message.find("malformed TOML") != std::string::npos) ++refused;
    }
    CHECK(refused > letters * 5);  // white space of Unicode is none of these, and some of it toml++ lets pass
}

TEST_CASE("agent file: a key as deep as the file is long is refused before anything recurses") {
    std::string deep = "a";
    for (int i = 0; i < 100'000; ++i) deep += ".a";
    CHECK(error_of(deep + " = 1\n").code == ErrorCode::json_too_deep);
    CHECK(error_of("[" + deep + "]\n").code == ErrorCode::json_too_deep);
    CHECK(error_of(head + "x = { " + deep + " = 1 }\n").message.starts_with("a.toml:3: "));
    CHECK_FALSE(parse_agent("x = " + std::string(100'000, '['), Syntax::toml).ok());
    // Dots in texts and comments are no segments.
    const auto fine = parse_agent(head +
                                      "# a.b.c.d.e.f.g.h.i.j.k.l\ninstructions = \"\"\"...............\n\\\"..........."
                                      "'\"\"........\"\"\"\"\n[retry]\nbackoff = '1s..2s'\n",
                                  Syntax::toml);
    REQUIRE_MESSAGE(fine.ok(), fine.error().message);
    CHECK((*fine)->instructions.ends_with("\""));
}

TEST_CASE("model file: an upstream, with its defaults") {
    const auto parsed = parse_model(
        "name = \"Qwen/Qwen3:8b\"\nbase_url = \"http://a/v1\"\napi_key = { env = \"K\" }\n"
        "price = { input = 0.2, cached = 0.02, output = 0.8 }\n",
        Syntax::toml, "m.toml");
    REQUIRE_MESSAGE(parsed.ok(), parsed.error().message);
    const ModelSpec& model = **parsed;
    CHECK(model.device == "openai");
    CHECK(model.base_url == std::vector<std::string>{"http://a/v1"});
    CHECK(model.upstream_model == "Qwen/Qwen3:8b");
    CHECK(model.api_key_env == "K");
    CHECK(model.context_window == 32768);
    CHECK(model.price_cached == 0.02);
    const auto again = parse_model(model.canonical_json, Syntax::json);
    REQUIRE_MESSAGE(again.ok(), again.error().message);
    CHECK((*again)->canonical_json == model.canonical_json);
}

TEST_CASE("model file: a script, step by step") {
    const auto parsed = parse_model(
        "name = \"s\"\ndevice = \"scripted\"\n[[script]]\ntext_bytes = 400\n"
        "call_tool = \"builtin/echo\"\ncall_arguments = '{\"text\":\"{input}\"}'\n"
        "[[script]]\ntext = \"You said {input}\"\nfail_class = \"overloaded\"\n"
        "fail_times = 2\ndelay_ms = 15\n",
        Syntax::toml, "m.toml");
    REQUIRE_MESSAGE(parsed.ok(), parsed.error().message);
    REQUIRE((*parsed)->script.size() == 2);
    CHECK((*parsed)->script[0].text_bytes == 400);
    CHECK((*parsed)->script[0].call_tool == "builtin/echo");
    CHECK((*parsed)->script[0].call_arguments == "{\"text\":\"{input}\"}");
    CHECK((*parsed)->script[1].text == "You said {input}");
    CHECK((*parsed)->script[1].fail_class == "overloaded");
    CHECK((*parsed)->script[1].fail_times == 2);
    CHECK((*parsed)->script[1].delay_ms == 15);
    CHECK(parse_model((*parsed)->canonical_json, Syntax::json).value()->version == (*parsed)->version);
}

TEST_CASE("model file: wrong values are refused") {
    const std::pair<std::string, std::string> rows[] = {
        {"name=\"m\"\n", "base_url"},
        {"name=\"m\"\nbase_url=\"ftp://x\"\n", "base_url"},
        {"name=\"m\"\nbase_url=\"http://user:pw@x\"\n", "base_url"},
        {"name=\"m\"\nbase_url=[]\n", "base_url"},
        {"name=\"m\"\nbase_url=\"http://x\"\napi_key=\"sk-123\"\n", "api_key"},
        {"name=\"m\"\nbase_url=\"http://x\"\napi_key={}\n", "api_key.env"},
        {"name=\"m\"\nbase_url=\"http://x\"\ncontext_window=0\n", "context_window"},
        {"name=\"m\"\nbase_url=\"http://x\"\nprice={input=-1}\n", "price.input"},
        {"name=\"m\"\nbase_url=\"http://x\"\n[[script]]\ntext=\"x\"\n", "script"},
        {"name=\"m\"\ndevice=\"scripted\"\n", "script"},
        {"name=\"m\"\ndevice=\"scripted\"\nbase_url=\"http://x\"\n[[script]]\ntext=\"x\"\n", "base_url"},
        {"name=\"m\"\ndevice=\"scripted\"\n[[script]]\ntext=\"x\"\ntext_bytes=1\n", "script[0].text_bytes"},
        {"name=\"m\"\ndevice=\"scripted\"\n[[script]]\nfail_class=\"bad\"\n", "script[0].fail_class"},
        {"name=\"m\"\ndevice=\"gpu\"\n", "device"},
    };
    for (const auto& [text, path] : rows) {
        CAPTURE(text);
        const auto error = model_error_of(text);
        CHECK(error.param.starts_with(path));
        CHECK(error.message.find("sk-123") == std::string::npos);
    }
}

TEST_CASE("model file: a device of our own, every key") {
    const std::string_view toml = R"(name = "tiny"
device = "neuron_core_sim"
path = "tiny/files"
precision = "f32"
devices = 3
threads = 2
hardware = "trn1"
busy_watts = 412.5
strict = true
context_window = 768
chat_template = "chatml"
price = { output = 1 }
[kv]
block_tokens = 32
device = "96MB"
host = 1536
disk = "3GB"
[batch]
sequences = 8
tokens = 64
running = 1
)";
    const auto parsed = parse_model(toml, Syntax::toml, "m.toml");
    REQUIRE_MESSAGE(parsed.ok(), parsed.error().message);
    const ModelSpec& model = **parsed;
    CHECK(model.device == "neuron_core_sim");
    CHECK(model.context_window == 768);
    DeviceSpec own;
    own.path = "tiny/files";
    own.precision = "f32";
    own.devices = 3;
    own.threads = 2;
    own.hardware = "trn1";
    own.busy_watts = 412.5;
    own.strict = true;
    own.chat_template = "chatml";
    own.block_tokens = 32;
    own.kv_device_bytes = 96 << 20;
    own.kv_host_bytes = 1536;
    own.kv_disk_bytes = 3ull << 30;
    own.rows_max = 8;
    own.tokens_max = 64;
    own.running_max = 1;
    CHECK(model.own == own);
    CHECK(model.canonical_json ==
          R"({"batch":{"running":1,"sequences":8,"tokens":64},"busy_watts":412.5,"chat_template":"chatml",)"
          R"("context_window":768,"device":"neuron_core_sim","devices":3,"hardware":"trn1",)"
          R"("kv":{"block_tokens":32,"device":"96MB","disk":"3GB","host":"1536B"},"name":"tiny","path":"tiny/files",)"
          R"("precision":"f32","price":{"output":1},"strict":true,"threads":2})");
    const auto again = parse_model(model.canonical_json, Syntax::json);
    REQUIRE_MESSAGE(again.ok(), again.error().message);
    CHECK((*again)->own == own);
    CHECK((*again)->version == model.version);
    CHECK(difference(&model, **again).empty());
}

TEST_CASE("model file: a device of our own, defaults are left out and mean the same when they are written") {
    const std::string head_of_model = "name=\"m\"\ndevice=\"neuron_core_sim\"\npath=\"m\"\n";
    const auto small = parse_model(head_of_model, Syntax::toml);
    REQUIRE_MESSAGE(small.ok(), small.error().message);
    CHECK((*small)->canonical_json == R"({"device":"neuron_core_sim","name":"m","path":"m"})");
    const auto written = parse_model(
        head_of_model +
            "precision=\"bf16\"\ndevices=1\nthreads=0\nhardware=\"trn2\"\nstrict=false\nchat_template=\"\"\n"
            "context_window=32768\n[kv]\nblock_tokens=16\ndevice=\"64MB\"\nhost=\"256MB\"\ndisk=\"1GB\"\n"
            "[batch]\nsequences=32\ntokens=256\nrunning=0\n",
        Syntax::toml);
    REQUIRE_MESSAGE(written.ok(), written.error().message);
    CHECK((*written)->own == (*small)->own);
    CHECK((*written)->version == (*small)->version);
    const DeviceSpec& own = (*small)->own;
    CHECK(own.kv_device_bytes == kv_device_bytes_default);
    CHECK(own.kv_host_bytes == kv_host_bytes_default);
    CHECK(own.kv_disk_bytes == kv_disk_bytes_default);

    // No tier: said, and kept through the journal.
    const auto bare = parse_model(head_of_model + "[kv]\nhost=0\ndisk=\"0B\"\n", Syntax::toml);
    REQUIRE_MESSAGE(bare.ok(), bare.error().message);
    const auto again = parse_model((*bare)->canonical_json, Syntax::json).value();
    CHECK(again->own.kv_host_bytes == 0);
    CHECK(again->own.kv_disk_bytes == 0);
    CHECK(difference(small->get(), *again) == "+ kv.disk = \"0B\"\n+ kv.host = \"0B\"\n");
}

TEST_CASE("model file: nrt has its own keys, and leaves to the compiled graphs what they decide") {
    const auto parsed = parse_model(
        "name=\"m\"\ndevice=\"nrt\"\npath=\"/opt/models/m\"\ndevices=2\nlibrary=\"/opt/neuron/libnrt.so.1\"\n"
        "visible_cores=\"0-1,4\"\nchat_template=\"llama-3\"\n[kv]\nhost=\"1GB\"\ndisk=0\n[batch]\nrunning=4\n",
        Syntax::toml, "m.toml");
    REQUIRE_MESSAGE(parsed.ok(), parsed.error().message);
    DeviceSpec own;
    own.path = "/opt/models/m";
    own.devices = 2;
    own.library = "/opt/neuron/libnrt.so.1";
    own.visible_cores = "0-1,4";
    own.chat_template = "llama-3";
    own.kv_host_bytes = 1ull << 30;
    own.running_max = 4;
    CHECK((*parsed)->own == own);
    const auto again = parse_model((*parsed)->canonical_json, Syntax::json);
    REQUIRE_MESSAGE(again.ok(), again.error().message);
    CHECK((*again)->own == own);
    const auto small = parse_model("name=\"m\"\ndevice=\"nrt\"\npath=\"m\"\n", Syntax::toml);
    REQUIRE_MESSAGE(small.ok(), small.error().message);
    CHECK((*small)->canonical_json == R"({"device":"nrt","name":"m","path":"m"})");
}

TEST_CASE("model file: wrong keys and values of a device of our own are refused at their place") {
    const std::string sim = "name=\"m\"\ndevice=\"neuron_core_sim\"\npath=\"m\"\n";
    const std::string nrt = "name=\"m\"\ndevice=\"nrt\"\npath=\"m\"\n";
    const std::string upstream = "name=\"m\"\nbase_url=\"http://x\"\n\n";
    const std::string scripted = "name=\"m\"\ndevice=\"scripted\"\n\n";
    struct Row {
        std::string text, path, words;
        int line = 4;
    };
    const std::string not_sim = "is no key of device \"neuron_core_sim\"";
    const std::string not_nrt = "is no key of device \"nrt\"; it belongs to neuron_core_sim";
    const std::string not_openai = "is no key of device \"openai\"; it belongs to ";
    const std::string not_scripted = "is no key of device \"scripted\"; it belongs to ";
    const Row rows[] = {
        {"name=\"m\"\ndevice=\"neuron_core_sim\"\n", "", "\"path\" is missing", 0},
        {"name=\"m\"\ndevice=\"neuron_core_sim\"\npath=\"\"\n", "path", "must not be empty", 3},
        {"name=\"m\"\ndevice=\"neuron_core_sim\"\npath=3\n", "path", "must be text", 3},
        {"name=\"m\"\ndevice=\"neuron_core_sim\"\npath=\"" + std::string(8193, 'x') + "\"\n", "path", "8192 bytes", 3},
        {sim + "precision=\"f16\"", "precision", "\"bf16\", \"f32\""},
        {sim + "devices=0", "devices", "between 1 and 64"},
        {sim + "devices=65", "devices", "between 1 and 64"},
        {sim + "threads=257", "threads", "between 0 and 256"},
        {sim + "hardware=\"h100\"", "hardware", "\"inf2\", \"trn1\", \"trn2\", \"trn3\", \"none\""},
        {sim + "busy_watts=0", "busy_watts", "out of range"},
        {sim + "busy_watts=100001", "busy_watts", "out of range"},
        {sim + "busy_watts=5\nhardware=\"none\"", "busy_watts", "hardware is \"none\""},
        {sim + "strict=1", "strict", "must be"},
        {sim + "context_window=0", "context_window", "between 1 and"},
        {sim + "kv=1", "kv", "must be a table"},
        {sim + "kv={block_tokens=8}", "kv.block_tokens", "between 16 and 128"},
        {sim + "kv={block_tokens=144}", "kv.block_tokens", "between 16 and 128"},
        {sim + "kv={block_tokens=24}", "kv.block_tokens", "multiple of 16"},
        {sim + "kv={device=0}", "kv.device", "between 1 and"},
        {sim + "kv={device=\"0MB\"}", "kv.device", "between 1B and 2TB"},
        {sim + "kv={host=\"3TB\"}", "kv.host", "between 0B and 2TB"},
        {sim + "kv={disk=\"3TB\"}", "kv.disk", "between 0B and 2TB"},
        {sim + "kv={disk=\"1 GB\"}", "kv.disk", "must be a size such as"},
        {sim + "kv={disk=true}", "kv.disk", "must be text"},
        {sim + "kv={ssd=1}", "kv.ssd", "unknown key (known here: block_tokens, device, disk, host)"},
        {sim + "batch={sequences=0}", "batch.sequences", "between 1 and 1024"},
        {sim + "batch={sequences=1025}", "batch.sequences", "between 1 and 1024"},
        {sim + "batch={tokens=8193}", "batch.tokens", "between 1 and 8192"},
        {sim + "batch={tokens=31}", "batch.tokens", "32 sequences"},
        {sim + "batch={sequences=300}", "batch.sequences", "300 sequences"},
        {sim + "batch={running=1025}", "batch.running", "between 0 and 1024"},
        {sim + "batch={rows=1}", "batch.rows", "unknown key (known here: running, sequences, tokens)"},
        {sim + "colour=1", "colour", "unknown key"},
        {sim + "base_url=\"http://x\"", "base_url", not_sim + "; it belongs to openai and scripted"},
        {sim + "upstream_model=\"x\"", "upstream_model", not_sim},
        {sim + "api_key={env=\"K\"}", "api_key", not_sim},
        {sim + "script=[{text=\"x\"}]", "script", not_sim},
        {sim + "library=\"x\"", "library", not_sim + "; it belongs to nrt"},
        {sim + "visible_cores=\"0\"", "visible_cores", not_sim + "; it belongs to nrt"},
        {nrt + "precision=\"bf16\"", "precision", not_nrt},
        {nrt + "threads=1", "threads", not_nrt},
        {nrt + "hardware=\"trn2\"", "hardware", not_nrt},
        {nrt + "busy_watts=500", "busy_watts", not_nrt},
        {nrt + "strict=true", "strict", not_nrt},
        {nrt + "kv={block_tokens=16}", "kv.block_tokens", not_nrt},
        {nrt + "kv={device=\"1GB\"}", "kv.device", not_nrt},
        {nrt + "batch={sequences=1}", "batch.sequences", not_nrt},
        {nrt + "batch={tokens=1}", "batch.tokens", not_nrt},
        {nrt + "script=[{text=\"x\"}]", "script", "it belongs to openai and scripted"},
        {nrt + "visible_cores=\"0-\"", "visible_cores", "must be cores"},
        {nrt + "visible_cores=\"-1\"", "visible_cores", "must be cores"},
        {nrt + "visible_cores=\"0-1-2\"", "visible_cores", "must be cores"},
        {nrt + "visible_cores=\"0 1\"", "visible_cores", "must be cores"},
        {nrt + "visible_cores=\"12345\"", "visible_cores", "must be cores"},
        {upstream + "path=\"m\"", "path", not_openai + "neuron_core_sim and nrt"},
        {upstream + "precision=\"f32\"", "precision", not_openai + "neuron_core_sim"},
        {upstream + "devices=1", "devices", not_openai},
        {upstream + "threads=1", "threads", not_openai},
        {upstream + "hardware=\"trn2\"", "hardware", not_openai},
        {upstream + "busy_watts=1", "busy_watts", not_openai},
        {upstream + "strict=true", "strict", not_openai},
        {upstream + "chat_template=\"chatml\"", "chat_template", not_openai},
        {upstream + "library=\"x\"", "library", not_openai + "nrt"},
        {upstream + "visible_cores=\"0\"", "visible_cores", not_openai},
        {upstream + "kv={}", "kv", not_openai},
        {upstream + "batch={}", "batch", not_openai},
        {scripted + "path=\"m\"", "path", not_scripted},
        {scripted + "kv={}", "kv", not_scripted},
    };
    for (const auto& row : rows) {
        CAPTURE(row.text);
        const auto error = model_error_of(row.text + "\n");
        CHECK(error.param == row.path);
        CHECK_MESSAGE(error.message.find(row.words) != std::string::npos, error.message);
        const std::string line = row.line != 0 ? ":" + std::to_string(row.line) : "";  // the whole file has none
        CHECK_MESSAGE(error.message.starts_with("m.toml" + line + ": "), error.message);
    }
}

TEST_CASE("agent file: the difference names what changes, and nothing else") {
    const auto before = parse_agent(head + "instructions=\"old\"\n[retry]\nmax_attempts=3\n", Syntax::toml).value();
    const auto now = parse_agent(head + "instructions=\"new\"\ntemperature=0.5\n", Syntax::toml).value();
    CHECK(difference(before.get(), *now) ==
          "~ instructions = \"old\" -> \"new\"\n- retry.max_attempts = 3\n+ temperature = 0.5\n");
    CHECK(difference(before.get(), *before).empty());
    CHECK(difference(static_cast<const AgentSpec*>(nullptr), *before) ==
          "+ instructions = \"old\"\n+ model = \"m\"\n+ name = \"a\"\n+ retry.max_attempts = 3\n");
    const auto longer = parse_agent(head + "instructions=\"" + std::string(5000, 'x') + "\"\n", Syntax::toml).value();
    CHECK(difference(before.get(), *longer).size() < 1000);
}
