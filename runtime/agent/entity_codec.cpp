// Entities as they stand in the journal and in LMDB: schema/entity.capnp, packed. Cap'n Proto's exceptions end here.
#include <capnp/message.h>
#include <capnp/serialize-packed.h>
#include <kj/io.h>

#include "runtime/agent/catalogue.h"
#include "runtime/base/limits.h"
#include "schema/entity.capnp.h"

namespace mainstay {
namespace {

kj::StringPtr pointer(const std::string& text) { return {text.data(), text.size()}; }

std::string copy(capnp::Text::Reader text) { return {text.begin(), text.size()}; }

EntityRecord read(kj::BufferedInputStream& stream) {
    capnp::ReaderOptions options;
    options.traversalLimitInWords = limits::record_bytes_max / sizeof(capnp::word);
    options.nestingLimit = 8;
    capnp::PackedMessageReader message(stream, options);
    const auto entity = message.getRoot<wire::Entity>();
    EntityRecord record;
    record.kind = copy(entity.getKind());
    record.name = copy(entity.getName());
    record.version = entity.getVersion();
    record.body = copy(entity.getBody());
    record.at = entity.getAt();
    record.principal = copy(entity.getPrincipal());
    record.removed = entity.getRemoved();
    return record;
}

}  // namespace

std::string encode_entity(const EntityRecord& record) {
    capnp::MallocMessageBuilder message;
    auto entity = message.initRoot<wire::Entity>();
    entity.setKind(pointer(record.kind));
    entity.setName(pointer(record.name));
    entity.setVersion(record.version);
    entity.setBody(pointer(record.body));
    entity.setAt(record.at);
    entity.setPrincipal(pointer(record.principal));
    entity.setRemoved(record.removed);
    kj::VectorOutputStream out;
    capnp::writePackedMessage(out, message);
    const auto bytes = out.getArray();
    return {reinterpret_cast<const char*>(bytes.begin()), bytes.size()};
}

Result<EntityRecord> decode_entity(std::string_view bytes) {
    try {
        kj::ArrayInputStream stream(
            kj::ArrayPtr<const kj::byte>(reinterpret_cast<const kj::byte*>(bytes.data()), bytes.size()));
        return read(stream);
    } catch (const kj::Exception& problem) {
        return {ErrorCode::state_damaged, std::string("an entity cannot be read: ") + problem.getDescription().cStr()};
    } catch (const std::exception& problem) {
        return {ErrorCode::state_damaged, std::string("an entity cannot be read: ") + problem.what()};
    }
}

std::string encode_agent_entity(const AgentSpec& agent, TimeMs at, std::string_view principal) {
    return encode_entity({"agent", agent.name, agent.version, agent.canonical_json, at, std::string(principal), false});
}

std::string encode_model_entity(const ModelSpec& model, TimeMs at, std::string_view principal) {
    return encode_entity({"model", model.name, model.version, model.canonical_json, at, std::string(principal), false});
}

}  // namespace mainstay
