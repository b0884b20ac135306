#include "runtime/agent/agent_file.h"

#include <doctest/doctest.h>

#include "runtime/base/limits.h"

using namespace mainstay;

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
    const std::pair<std::string, std::string> rows[] = {
        {head + "[[permissions]]\neffect=\"ask\"\n", "permissions"},
        {head + "[budget]\nusd_per_session=1.0\n", "budget.usd_per_session"},
        {head + "[budget]\non_breach=\"ask\"\n", "budget.on_breach"},
        {head + "[[memory]]\nname=\"x\"\n", "memory"},
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
    for (const auto* text : {"name=\"m\"\nfallback=[\"x\"]\n", "name=\"m\"\ndevice=\"neuron_core_sim\"\n",
                             "name=\"m\"\nthreads=2\n", "name=\"m\"\npath=\"x\"\n", "name=\"m\"\nprecision=\"bf16\"\n",
                             "name=\"m\"\nbase_url=\"http://x\"\napi_key={file=\"x\"}\n"})
        CHECK(model_error_of(text).code == ErrorCode::not_yet);
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
