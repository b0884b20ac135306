#include "gateway/conversations.h"

#include "gateway/error_table.h"
#include "gateway/input_items.h"
#include "gateway/item_list.h"
#include "gateway/item_object.h"
#include "gateway/json_writer.h"
#include "gateway/request_json.h"
#include "gateway/turn_request.h"
#include "runtime/base/digest.h"

namespace mainstay {
namespace {

Error not_found(std::string_view id) {
    return {ErrorCode::session_not_found, "Conversation '" + quoted_back(id) + "' was not found.", {}};
}

Answer conversation_answer(const Result<SessionInfo>& result) {
    if (!result) return error_answer(result.error());
    Answer answer;
    JsonWriter writer(answer.body);
    writer.raw("{\"id\":").id(result->id).raw(",\"object\":\"conversation\",\"created_at\":");
    writer.number(result->created_at / 1000).raw(",\"metadata\":");
    writer.raw(result->metadata.empty() ? "{}" : std::string_view(result->metadata)).raw("}");
    return answer;
}

/// Refuses every field that is not among `known`.
void check_fields(FieldReader& fields, const boost::json::object& object,
                  std::initializer_list<std::string_view> known) {
    for (const auto& pair : object) {
        const std::string_view key(pair.key().data(), pair.key().size());
        if (std::find(known.begin(), known.end(), key) != known.end()) continue;
        const auto shown = quoted_back(key);
        fields.fail(Error{ErrorCode::unknown_field, "Unknown field '" + shown + "'.", shown});
    }
}

/// The session of a path, or the 404 that was sent.
std::optional<SessionId> session_of(const PathParams& params, const Reply& reply) {
    const auto id = parse_session_id(params[0]);
    if (!id) reply.send(error_answer(not_found(params[0])));
    return id;
}

}  // namespace

Conversations::Conversations(Bridge& bridge, Routes& routes) : bridge_(bridge) {
    const auto bind = [this](auto method) {
        return [this, method](const HttpRequest& request, const PathParams& params, const Reply& reply) {
            (this->*method)(request, params, reply);
        };
    };
    routes.add(HttpMethod::post, "/v1/conversations",
               [this](const HttpRequest& request, const PathParams&, const Reply& reply) { create(request, reply); });
    routes.add(HttpMethod::get, "/v1/conversations/*", bind(&Conversations::read));
    routes.add(HttpMethod::post, "/v1/conversations/*", bind(&Conversations::update));
    routes.add(HttpMethod::del, "/v1/conversations/*", bind(&Conversations::remove));
    routes.add(HttpMethod::get, "/v1/conversations/*/items", bind(&Conversations::list_items));
    routes.add(HttpMethod::post, "/v1/conversations/*/items", bind(&Conversations::add_items));
    routes.add(HttpMethod::get, "/v1/conversations/*/items/*", bind(&Conversations::read_item));
    routes.add(HttpMethod::del, "/v1/conversations/*/items/*",
               [](const HttpRequest&, const PathParams&, const Reply& reply) {
                   reply.send(error_answer(ErrorCode::not_yet,
                                           "Deleting a single item is not supported yet: history is append-only."));
               });
}

void Conversations::create(const HttpRequest& request, const Reply& reply) {
    if (auto ok = check_idempotency_key(request.idempotency_key); !ok) {
        reply.send(error_answer(ok.error()));
        return;
    }
    JsonBody document;
    if (auto ok = document.parse(request.body.empty() ? "{}" : request.body); !ok) {
        reply.send(error_answer(ok.error()));
        return;
    }
    FieldReader fields(document.object(), "");
    check_fields(fields, document.object(), {"items", "metadata"});
    (void)fields.array("items");
    auto items = read_input_items(fields, "items");
    auto metadata = read_metadata(fields);
    if (fields.failed()) {
        reply.send(error_answer(fields.take_error()));
        return;
    }
    uint64_t digest = 0;
    if (!request.idempotency_key.empty()) {
        std::string canonical;
        append_json(canonical, document.object(), true);
        digest = digest64(canonical);
    }
    bridge_.create_session(
        request.principal, std::move(metadata), std::move(items), std::string(request.idempotency_key), digest,
        reply.then<SessionInfo>([](Result<SessionInfo> result) { return conversation_answer(result); }));
}

void Conversations::read(const HttpRequest& request, const PathParams& params, const Reply& reply) {
    if (const auto id = session_of(params, reply))
        bridge_.read_session(request.principal, *id, reply.then<SessionInfo>([](Result<SessionInfo> result) {
            return conversation_answer(result);
        }));
}

void Conversations::update(const HttpRequest& request, const PathParams& params, const Reply& reply) {
    const auto id = session_of(params, reply);
    if (!id) return;
    JsonBody document;
    if (auto ok = document.parse(request.body); !ok) {
        reply.send(error_answer(ok.error()));
        return;
    }
    FieldReader fields(document.object(), "");
    check_fields(fields, document.object(), {"metadata"});
    if (fields.find("metadata") == nullptr) fields.fail(ErrorCode::invalid_request, "is required", "metadata");
    auto metadata = read_metadata(fields);
    if (fields.failed()) {
        reply.send(error_answer(fields.take_error()));
        return;
    }
    bridge_.set_metadata(
        request.principal, *id, std::move(metadata),
        reply.then<SessionInfo>([](Result<SessionInfo> result) { return conversation_answer(result); }));
}

void Conversations::remove(const HttpRequest& request, const PathParams& params, const Reply& reply) {
    const auto id = session_of(params, reply);
    if (!id) return;
    bridge_.delete_session(request.principal, *id, reply.then<SessionInfo>([id = *id](Result<SessionInfo> result) {
        if (!result) return error_answer(result.error());
        Answer answer;
        JsonWriter(answer.body).raw("{\"id\":").id(id).raw(",\"object\":\"conversation.deleted\",\"deleted\":true}");
        return answer;
    }));
}

void Conversations::list_items(const HttpRequest& request, const PathParams& params, const Reply& reply) {
    const auto id = session_of(params, reply);
    if (!id) return;
    auto page = read_page(request.query, false);
    if (!page) {
        reply.send(error_answer(page.error()));
        return;
    }
    bridge_.list_items(request.principal, *id, *page, reply.then<ItemPage>([](Result<ItemPage> result) {
        return result ? item_list_answer(*result) : error_answer(result.error());
    }));
}

void Conversations::add_items(const HttpRequest& request, const PathParams& params, const Reply& reply) {
    const auto id = session_of(params, reply);
    if (!id) return;
    JsonBody document;
    if (auto ok = document.parse(request.body); !ok) {
        reply.send(error_answer(ok.error()));
        return;
    }
    FieldReader fields(document.object(), "");
    check_fields(fields, document.object(), {"items"});
    (void)fields.array("items");
    auto items = read_input_items(fields, "items");
    if (!fields.failed() && items.empty()) fields.fail(ErrorCode::invalid_request, "is required", "items");
    if (fields.failed()) {
        reply.send(error_answer(fields.take_error()));
        return;
    }
    bridge_.add_items(request.principal, *id, std::move(items), reply.then<ItemPage>([](Result<ItemPage> result) {
        return result ? item_list_answer(*result) : error_answer(result.error());
    }));
}

void Conversations::read_item(const HttpRequest& request, const PathParams& params, const Reply& reply) {
    const auto id = session_of(params, reply);
    if (!id) return;
    const auto item = parse_item_id(params[1]);
    if (!item) {
        reply.send(error_answer(ErrorCode::item_not_found, "Item '" + quoted_back(params[1]) + "' was not found."));
        return;
    }
    bridge_.read_item(request.principal, *id, *item, reply.then<ItemEntry>([](Result<ItemEntry> result) {
        if (!result) return error_answer(result.error());
        Answer answer;
        append_item(answer.body, *result->item, result->id);
        return answer;
    }));
}

}  // namespace mainstay
