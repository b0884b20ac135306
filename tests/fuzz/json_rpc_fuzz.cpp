// What a tool server may send: arbitrary bytes, cut into lines and read as JSON-RPC, then taken by a client that has
// calls and a list under way. Every call must be settled exactly once, and what we answer must be lines of JSON.
// The first byte chooses the revision; 0x01 bytes in the input let the client write, 0x02 lets time pass.

#include <boost/json/parse.hpp>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "runtime/tool/mcp_client.h"

using namespace mainstay;

namespace {

void require(bool holds) {
    if (!holds) std::abort();
}

struct Peer {
    McpClient client{1'000'000};
    uint64_t now = 0;
    size_t settled = 0;

    void take(const McpOutputs& out) {
        settled += out.settled.size();
        if (out.listed) require((out.tools != nullptr) == out.list_failure.empty());
    }
    void write() {
        std::string said;
        for (auto bytes = client.output(); !bytes.empty(); bytes = client.output()) {
            const size_t some = (bytes.size() + 1) / 2;
            said += bytes.substr(0, some);
            client.wrote(some);
        }
        require(said.empty() || said.back() == '\n');
        LineReader reader(1 << 24);
        require(reader.feed(said, [](std::string_view line) {
            boost::system::error_code problem;
            const auto value = boost::json::parse(line, problem);
            require(!problem && value.is_object());
            return true;
        }));
    }
    void receive(std::string_view bytes) {
        McpOutputs out;
        client.receive(bytes, now, out);
        take(out);
    }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    std::string_view input(reinterpret_cast<const char*>(data), size);
    static constexpr const char* versions[] = {"2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"};
    Peer peer;
    peer.write();
    if (input[0] != 'x') {
        peer.receive(R"({"jsonrpc":"2.0","id":1,"result":{"capabilities":{"tools":{}},"protocolVersion":")" +
                     std::string(versions[static_cast<uint8_t>(input[0]) % 4]) + "\"}}\n");
        require(peer.client.ready());
    }
    input.remove_prefix(1);
    constexpr size_t calls = 3;
    for (uint64_t i = 0; i < calls; ++i) {
        McpOutputs out;
        peer.client.call({i, "tool", "{}", "key", 5'000'000 + i}, 0, out);
        peer.take(out);
    }
    McpOutputs out;
    peer.client.list(9'000'000, out);
    peer.take(out);
    while (!input.empty()) {
        const size_t end = std::min(input.find_first_of("\x01\x02"), input.size());
        peer.receive(input.substr(0, end));
        if (end == input.size()) break;
        if (input[end] == 1) peer.write();
        if (input[end] == 2) {
            peer.now += 1'000'000;
            McpOutputs late;
            peer.client.expire(peer.now, late);
            peer.take(late);
        }
        input.remove_prefix(end + 1);
    }
    McpOutputs last;
    peer.client.close("closed", ErrorClass::transient, ErrorCode::tool_unavailable, size % 64, peer.now, last);
    peer.take(last);
    require(peer.settled == calls && peer.client.idle());
    return 0;
}
