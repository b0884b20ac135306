// Agents, models and settings from any bytes, as TOML and as JSON. What is accepted must read back to itself: its
// canonical JSON is what the journal keeps and what the version is the digest of.
#include <cstdint>
#include <string_view>

#include "runtime/agent/agent_file.h"
#include "runtime/agent/catalogue.h"
#include "runtime/agent/settings.h"
#include "tests/fuzz/require.h"

using namespace mainstay;

namespace {

template <class Ptr>
void read_back(const Result<Ptr>& parsed, Result<Ptr> (*parse)(std::string_view, Syntax, std::string_view)) {
    if (!parsed) return require(!parsed.error().message.empty());
    const auto again = parse((*parsed)->canonical_json, Syntax::json, {});
    require(again.ok());
    require((*again)->canonical_json == (*parsed)->canonical_json);
    require((*again)->version == (*parsed)->version);
    require(difference(again->get(), **parsed).empty());
    (void)difference(static_cast<decltype(again->get())>(nullptr), **parsed);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    for (const Syntax syntax : {Syntax::toml, Syntax::json}) {
        read_back(parse_agent(text, syntax, "fuzz"), parse_agent);
        read_back(parse_model(text, syntax, "fuzz"), parse_model);
    }
    const auto settings = parse_settings(text, "fuzz", "", {}, {});
    if (settings) require(parse_settings(print_effective(*settings), "printed", "", {}, {}).ok());
    (void)decode_entity(text).ok();
    return 0;
}
