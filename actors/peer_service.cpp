#include "actors/peer_service.h"

#include <spdlog/spdlog.h>

#include <caf/send.hpp>

#include "actors/messages.h"
#include "actors/tool_outcome_message.h"
#include "cluster/wire_message.h"
#include "runtime/base/utf8.h"
#include "schema/peer.capnp.h"

namespace mainstay {
namespace {

constexpr uint32_t memory_call_timeout_ms = 10'000;
constexpr uint32_t entities_timeout_ms = 10'000;
constexpr size_t entities_bytes_max = limits::link_message_bytes_max / 2;  // of one message
constexpr int nesting_max = 8;

/// Reads a message of any bytes; false where it is none, or `read` says so.
template <class Root, class Read>
bool read_message(const std::string& bytes, Read read) {
    if (bytes.size() % sizeof(capnp::word) != 0) return false;
    const auto words = aligned_words(bytes);
    capnp::ReaderOptions bounds;
    bounds.traversalLimitInWords = 8 * words.size() + 64;
    bounds.nestingLimit = nesting_max;
    try {
        capnp::FlatArrayMessageReader reader(words, bounds);
        return read(reader.getRoot<Root>());
    } catch (const kj::Exception&) {
        return false;
    }
}

ToolOutcome not_told(ToolOutcome::Kind kind, ErrorCode code, std::string message) {
    ToolOutcome outcome;
    outcome.kind = kind;
    outcome.error_class = kind == ToolOutcome::Kind::lost ? ErrorClass::lost : ErrorClass::overloaded;
    outcome.code = code;
    outcome.message = std::move(message);
    return outcome;
}

}  // namespace

void PeerService::serve(const std::string& request, std::shared_ptr<CallReply> reply) {
    const auto refuse = [&](const char* why) { reply->end(Error{ErrorCode::peer_refused, why, {}}); };
    auto run = std::make_shared<RunToolCall>();
    bool memory = false;
    const bool read = read_message<wire::PeerRequest>(request, [&](wire::PeerRequest::Reader from) {
        if (from.isEntities()) {
            for (const auto entity : from.getEntities())
                if (auto known = node_.catalogue.load_entity(copied(entity)); !known)
                    spdlog::warn("an entity of another node: {}", known.error().message);
            return true;
        }
        if (!from.isMemory()) return false;
        const auto asked = from.getMemory();
        memory = true;
        auto agent = std::make_shared<AgentSpec>();
        agent->memory.emplace();
        agent->memory->scope = MemoryScope::user;
        agent->memory->name = copied(asked.getMemory());
        agent->memory->bytes_max = asked.getBytesMax();
        ToolCall& call = run->call;
        call.tenant = TenantId{asked.getTenant()};
        call.principal = copied(asked.getPrincipal());
        call.name = copied(asked.getTool());
        call.arguments = copied(asked.getArguments());
        call.idempotency_key = copied(asked.getIdempotencyKey());
        for (const auto* field : {&agent->memory->name, &call.principal, &call.name, &call.arguments})
            if (!is_valid_utf8(*field)) return false;
        call.agent = std::move(agent);
        return true;
    });
    if (!read) return refuse("this release does not know that request");
    if (!memory) return reply->end();
    run->done = [reply](ToolOutcome outcome) {
        reply->part(encode_outcome(outcome));
        reply->end();
    };
    caf::anon_send(node_.user_memories, RunToolCallPtr(std::move(run)));
}

std::string PeerService::memory_request(const ToolCall& call) {
    const auto& spec = *call.agent->memory;
    capnp::MallocMessageBuilder builder;
    auto out = builder.initRoot<wire::PeerRequest>().initMemory();
    out.setTenant(call.tenant.value);
    out.setBytesMax(spec.bytes_max);
    put_bytes(out.initPrincipal(static_cast<unsigned>(call.principal.size())), call.principal);
    put_bytes(out.initMemory(static_cast<unsigned>(spec.name.size())), spec.name);
    put_bytes(out.initTool(static_cast<unsigned>(call.name.size())), call.name);
    put_bytes(out.initArguments(static_cast<unsigned>(call.arguments.size())), call.arguments);
    put_bytes(out.initIdempotencyKey(static_cast<unsigned>(call.idempotency_key.size())), call.idempotency_key);
    return flat_bytes(builder);
}

std::string PeerService::entities_request(const std::vector<std::string>& entities) {
    capnp::MallocMessageBuilder builder;
    auto out = builder.initRoot<wire::PeerRequest>().initEntities(static_cast<unsigned>(entities.size()));
    for (unsigned i = 0; i < entities.size(); ++i)
        put_bytes(out.init(i, static_cast<unsigned>(entities[i].size())), entities[i]);
    return flat_bytes(builder);
}

void PeerService::call_memory(const ShardPlace& place, const ToolCall& call, std::function<void(ToolOutcome)> done) {
    ask_(place.node, memory_request(call), memory_call_timeout_ms,
         [done = std::move(done)](const Result<std::string>& answer) {
             if (answer) {
                 if (auto outcome = decode_outcome(*answer)) return done(std::move(*outcome));
                 return done(not_told(ToolOutcome::Kind::lost, ErrorCode::internal,
                                      "the answer of the memory's node cannot be read"));
             }
             // Nothing was sent, or it was refused as a whole; all else may have been done.
             const Error& failure = answer.error();
             const bool surely_not = failure.code == ErrorCode::misdirected ||
                                     failure.code == ErrorCode::body_too_large ||
                                     failure.code == ErrorCode::peer_refused;
             done(not_told(surely_not ? ToolOutcome::Kind::failed : ToolOutcome::Kind::lost, failure.code,
                           failure.message));
         });
}

void PeerService::give_entities(const NodeUuid& to, const std::vector<std::string>& entities) {
    size_t from = 0;
    while (from < entities.size()) {
        size_t until = from, bytes = 0;
        while (until < entities.size() && (until == from || bytes + entities[until].size() <= entities_bytes_max))
            bytes += entities[until++].size();
        const auto at = entities.begin();
        ask_(to, entities_request({at + static_cast<ptrdiff_t>(from), at + static_cast<ptrdiff_t>(until)}),
             entities_timeout_ms, [](const Result<std::string>&) {});
        from = until;
    }
}

}  // namespace mainstay
