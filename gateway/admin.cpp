#include "gateway/admin.h"

#include "runtime/base/version.h"

#include <charconv>

#include "gateway/error_table.h"
#include "gateway/item_list.h"
#include "gateway/json_writer.h"
#include "gateway/request_json.h"
#include "gateway/response_object.h"
#include "runtime/base/limits.h"

namespace mainstay {
namespace {

void append_model(JsonWriter& writer, std::string_view name) {
    // Models have no date of their own; OpenAI's clients want the field.
    writer.raw("{\"id\":").string(name).raw(",\"object\":\"model\",\"created\":0,\"owned_by\":\"mainstay\"}");
}

void append_agent(JsonWriter& writer, const AgentSpec& agent) {
    writer.raw("{\"object\":\"agent\",\"name\":").string(agent.name).raw(",\"version\":\"");
    char digits[16];
    const auto end = std::to_chars(digits, digits + sizeof digits, agent.version, 16).ptr;
    writer.raw(std::string(16 - static_cast<size_t>(end - digits), '0')).raw({digits, end});
    writer.raw("\",\"model\":").string(agent.model).raw(",\"spec\":");
    writer.raw(agent.canonical_json.empty() ? "null" : std::string_view(agent.canonical_json)).raw("}");
}

void append_session(JsonWriter& writer, const SessionInfo& info) {
    writer.raw("{\"object\":\"session\",\"id\":").id(info.id);
    writer.raw(",\"created_at\":").number(info.created_at / 1000);
    writer.raw(",\"updated_at\":").number(info.updated_at / 1000);
    writer.raw(",\"state\":").string(info.state).raw(",\"agent\":").string_or_null(info.agent);
    writer.raw(",\"principal\":").string(info.principal).raw(",\"turns\":").number(uint64_t{info.turns});
    writer.raw(",\"items\":").number(info.items).raw(",\"conversation\":").boolean(info.conversation);
    writer.raw(",\"active\":").boolean(info.active);
    writer.raw(",\"usage\":{\"input_tokens\":").number(uint64_t{info.usage.input_tokens});
    writer.raw(",\"cached_tokens\":").number(uint64_t{info.usage.cached_tokens});
    writer.raw(",\"output_tokens\":").number(uint64_t{info.usage.output_tokens});
    writer.raw(",\"reasoning_tokens\":").number(uint64_t{info.usage.reasoning_tokens});
    writer.raw(",\"device_micros\":").number(info.usage.device_micros);
    writer.raw(",\"micro_joules\":").number(info.usage.micro_joules);
    writer.raw(",\"simulated\":").boolean(info.usage.simulated);
    writer.raw("},\"metadata\":");
    writer.raw(info.metadata.empty() ? "{}" : std::string_view(info.metadata)).raw("}");
}

std::optional<SessionId> session_of(const PathParams& params, const Reply& reply) {
    const auto id = parse_session_id(params[0]);
    if (!id)
        reply.send(
            error_answer(ErrorCode::session_not_found, "Session '" + quoted_back(params[0]) + "' was not found."));
    return id;
}

/// The media type without its parameters.
std::string_view media_type(std::string_view content_type) {
    auto type = content_type.substr(0, content_type.find(';'));
    while (!type.empty() && type.back() == ' ') type.remove_suffix(1);
    return type;
}

Answer json_answer(std::string body) {
    Answer answer;
    answer.body = std::move(body);
    return answer;
}

}  // namespace

Admin::Admin(Bridge& bridge, Routes& routes) : bridge_(bridge) {
    const auto plain = [this](void (Admin::*method)(const HttpRequest&, const Reply&)) {
        return [this, method](const HttpRequest& request, const PathParams&, const Reply& reply) {
            (this->*method)(request, reply);
        };
    };
    const auto with_params = [this](void (Admin::*method)(const HttpRequest&, const PathParams&, const Reply&)) {
        return [this, method](const HttpRequest& request, const PathParams& params, const Reply& reply) {
            (this->*method)(request, params, reply);
        };
    };
    routes.add(HttpMethod::get, "/v1/models", plain(&Admin::list_models));
    routes.add(HttpMethod::get, "/v1/models/*", with_params(&Admin::read_model));
    routes.add(HttpMethod::get, "/v1/agents", plain(&Admin::list_agents));
    routes.add(HttpMethod::post, "/v1/agents", plain(&Admin::apply_agent));
    routes.add(HttpMethod::get, "/v1/agents/*", with_params(&Admin::read_agent));
    routes.add(HttpMethod::get, "/v1/sessions", plain(&Admin::list_sessions));
    routes.add(HttpMethod::get, "/v1/sessions/*", with_params(&Admin::read_session));
    routes.add(HttpMethod::del, "/v1/sessions/*", with_params(&Admin::delete_session));
    routes.add(HttpMethod::get, "/v1/sessions/*/events", with_params(&Admin::list_events));
    routes.add(HttpMethod::post, "/v1/sessions/*/calls/*/resolve", with_params(&Admin::resolve_call));
    routes.add(HttpMethod::get, "/healthz", [](const HttpRequest&, const PathParams&, const Reply& reply) {
        Answer answer;
        answer.content_type = "text/plain; charset=utf-8";
        answer.body = "ok\n";
        reply.send(std::move(answer));
    });
    routes.add(HttpMethod::get, "/readyz",
               [this](const HttpRequest&, const PathParams&, const Reply& reply) { ready(reply); });
    routes.add(HttpMethod::get, "/metrics", [this](const HttpRequest&, const PathParams&, const Reply& reply) {
        Answer answer;
        answer.content_type = "text/plain; version=0.0.4; charset=utf-8";
        answer.body = bridge_.metrics_text();
        reply.send(std::move(answer));
    });
    routes.add(HttpMethod::get, "/", [](const HttpRequest&, const PathParams&, const Reply& reply) {
        std::string body;
        JsonWriter(body).raw("{\"service\":\"mainstay\",\"version\":").string(build_version()).raw(",\"api\":\"/v1\"}");
        reply.send(json_answer(std::move(body)));
    });
}

void Admin::ready(const Reply& reply) {
    const auto reason = bridge_.not_ready_because();
    if (reason.empty()) {
        Answer answer;
        answer.content_type = "text/plain; charset=utf-8";
        answer.body = "ready\n";
        reply.send(std::move(answer));
        return;
    }
    // The reason is a code where the list has one ("starting", "draining", "storage_full").
    const auto* known = find_error(reason);
    auto answer = error_answer(known != nullptr ? known->code : ErrorCode::starting, "Not ready: " + reason + ".");
    answer.status = 503;
    reply.send(std::move(answer));
}

void Admin::list_models(const HttpRequest& request, const Reply& reply) {
    std::string body = "{\"object\":\"list\",\"data\":[";
    JsonWriter writer(body);
    bool first = true;
    const auto add = [&](std::string_view name) {
        if (!std::exchange(first, false)) writer.raw(",");
        append_model(writer, name);
    };
    // An agent is called like a model, so it is listed as one; its name hides a model's.
    const auto agents = bridge_.list_agents(request.principal);
    for (const auto& agent : agents) add(agent->name);
    for (const auto& model : bridge_.list_models(request.principal))
        if (std::ranges::none_of(agents, [&](const auto& agent) { return agent->name == model->name; }))
            add(model->name);
    writer.raw("]}");
    reply.send(json_answer(std::move(body)));
}

void Admin::read_model(const HttpRequest& request, const PathParams& params, const Reply& reply) {
    const auto named = [&](const auto& spec) { return spec->name == params[0]; };
    if (std::ranges::none_of(bridge_.list_agents(request.principal), named) &&
        std::ranges::none_of(bridge_.list_models(request.principal), named)) {
        reply.send(error_answer(ErrorCode::model_not_found, "There is no agent or model of this name; see /v1/models.",
                                "model"));
        return;
    }
    std::string body;
    JsonWriter writer(body);
    append_model(writer, params[0]);
    reply.send(json_answer(std::move(body)));
}

void Admin::list_agents(const HttpRequest& request, const Reply& reply) {
    std::string body = "{\"object\":\"list\",\"data\":[";
    JsonWriter writer(body);
    bool first = true;
    for (const auto& agent : bridge_.list_agents(request.principal)) {
        if (!std::exchange(first, false)) writer.raw(",");
        append_agent(writer, *agent);
    }
    writer.raw("]}");
    reply.send(json_answer(std::move(body)));
}

void Admin::read_agent(const HttpRequest& request, const PathParams& params, const Reply& reply) {
    for (const auto& agent : bridge_.list_agents(request.principal)) {
        if (agent->name != params[0]) continue;
        std::string body;
        JsonWriter writer(body);
        append_agent(writer, *agent);
        reply.send(json_answer(std::move(body)));
        return;
    }
    reply.send(error_answer(ErrorCode::model_not_found, "There is no agent of this name; see /v1/agents.", "name"));
}

void Admin::apply_agent(const HttpRequest& request, const Reply& reply) {
    const auto type = media_type(request.content_type);
    const bool is_toml = type == "application/toml" || type == "text/toml";
    if (!is_toml && type != "application/json") {
        reply.send(error_answer(ErrorCode::invalid_request,
                                "Content-Type must be application/json or application/toml.", "Content-Type"));
        return;
    }
    if (!is_valid_utf8(request.body)) {
        reply.send(error_answer(ErrorCode::invalid_utf8, "The body is not valid UTF-8."));
        return;
    }
    const auto dry_run = query_parameter(request.query, "dry_run");
    if (!dry_run.empty() && dry_run != "true" && dry_run != "false") {
        reply.send(error_answer(ErrorCode::invalid_request, "'dry_run' must be true or false.", "dry_run"));
        return;
    }
    bridge_.apply_agent(request.principal, std::string(request.body), is_toml, dry_run == "true",
                        reply.then<Bridge::Applied>([dry = dry_run == "true"](Result<Bridge::Applied> result) {
                            if (!result) return error_answer(result.error());
                            std::string body = "{\"object\":\"agent.applied\",\"dry_run\":";
                            JsonWriter writer(body);
                            writer.boolean(dry).raw(",\"changed\":").boolean(result->changed);
                            writer.raw(",\"difference\":").string(result->difference).raw(",\"agent\":");
                            if (result->agent)
                                append_agent(writer, *result->agent);
                            else
                                writer.raw("null");
                            writer.raw("}");
                            return json_answer(std::move(body));
                        }));
}

void Admin::list_sessions(const HttpRequest& request, const Reply& reply) {
    auto limit = read_limit(request.query, 20);
    if (!limit) {
        reply.send(error_answer(limit.error()));
        return;
    }
    std::optional<SessionId> after;
    if (const auto text = query_parameter(request.query, "after"); !text.empty()) {
        after = parse_session_id(text);
        if (!after) {
            reply.send(error_answer(ErrorCode::invalid_request, "'after' is not the id of a session.", "after"));
            return;
        }
    }
    // One more than asked tells whether there are more.
    bridge_.list_sessions(request.principal, after, *limit + 1,
                          reply.then<std::vector<SessionInfo>>([limit = *limit](Result<std::vector<SessionInfo>> all) {
                              if (!all) return error_answer(all.error());
                              std::string body = "{\"object\":\"list\",\"data\":[";
                              JsonWriter writer(body);
                              for (size_t i = 0; i < all->size() && i < limit; ++i) {
                                  if (i > 0) writer.raw(",");
                                  append_session(writer, (*all)[i]);
                              }
                              writer.raw("],\"has_more\":").boolean(all->size() > limit).raw("}");
                              return json_answer(std::move(body));
                          }));
}

void Admin::read_session(const HttpRequest& request, const PathParams& params, const Reply& reply) {
    if (const auto id = session_of(params, reply))
        bridge_.read_session(request.principal, *id, reply.then<SessionInfo>([](Result<SessionInfo> result) {
            if (!result) return error_answer(result.error());
            std::string body;
            JsonWriter writer(body);
            append_session(writer, *result);
            return json_answer(std::move(body));
        }));
}

void Admin::delete_session(const HttpRequest& request, const PathParams& params, const Reply& reply) {
    if (const auto id = session_of(params, reply))
        bridge_.delete_session(request.principal, *id, reply.then<SessionInfo>([id = *id](Result<SessionInfo> result) {
            if (!result) return error_answer(result.error());
            std::string body;
            JsonWriter(body).raw("{\"id\":").id(id).raw(",\"object\":\"session.deleted\",\"deleted\":true}");
            return json_answer(std::move(body));
        }));
}

void Admin::list_events(const HttpRequest& request, const PathParams& params, const Reply& reply) {
    const auto id = session_of(params, reply);
    if (!id) return;
    auto limit = read_limit(request.query, limits::list_page_max);
    uint64_t after = 0;
    const auto text = query_parameter(request.query, "after");
    const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), after);
    if (!text.empty() && (ec != std::errc() || end != text.data() + text.size()))
        limit = Result<size_t>(ErrorCode::invalid_request, "'after' must be the sequence number of an event.", "after");
    if (!limit) {
        reply.send(error_answer(limit.error()));
        return;
    }
    bridge_.list_events(
        request.principal, *id, after, *limit + 1,
        reply.then<std::vector<EventEntry>>([limit = *limit](Result<std::vector<EventEntry>> all) {
            if (!all) return error_answer(all.error());
            std::string body = "{\"object\":\"list\",\"data\":[";
            JsonWriter writer(body);
            for (size_t i = 0; i < all->size() && i < limit; ++i) {
                const auto& event = (*all)[i];
                writer.raw(i > 0 ? ",{\"sequence\":" : "{\"sequence\":").number(event.sequence);
                writer.raw(",\"at_ms\":").number(event.at).raw(",\"turn\":").number(uint64_t{event.turn.value});
                writer.raw(",\"name\":").string(event.name).raw(",\"event\":");
                writer.raw(event.json.empty() ? "null" : std::string_view(event.json)).raw("}");
            }
            writer.raw("],\"has_more\":").boolean(all->size() > limit).raw("}");
            return json_answer(std::move(body));
        }));
}

void Admin::resolve_call(const HttpRequest& request, const PathParams& params, const Reply& reply) {
    const auto id = session_of(params, reply);
    if (!id) return;
    const auto call = parse_item_id(params[1]);
    if (!call) {
        reply.send(error_answer(ErrorCode::call_not_found, "Call '" + quoted_back(params[1]) + "' was not found."));
        return;
    }
    JsonBody document;
    if (auto ok = document.parse(request.body); !ok) {
        reply.send(error_answer(ok.error()));
        return;
    }
    FieldReader fields(document.object(), "");
    const auto as = fields.required_text("as");
    Resolution how = Resolution::done;
    if (as == "failed")
        how = Resolution::failed;
    else if (as == "retry")
        how = Resolution::retry;
    else if (as != "done" && !fields.failed())
        fields.fail(ErrorCode::invalid_request, "must be done, failed or retry", "as");
    std::string result_json;
    if (const auto* result = fields.find("result")) append_json(result_json, *result);
    if (result_json.size() > limits::tool_result_bytes_max)
        fields.fail(ErrorCode::tool_result_too_large, "is larger than a tool's result may be", "result");
    for (const auto& pair : document.object()) {
        const auto key = quoted_back({pair.key().data(), pair.key().size()});
        if (key != "as" && key != "result")
            fields.fail(Error{ErrorCode::unknown_field, "Unknown field '" + key + "'.", key});
    }
    if (fields.failed()) {
        reply.send(error_answer(fields.take_error()));
        return;
    }
    bridge_.resolve_unknown(request.principal, *id, *call, how, std::move(result_json),
                            reply.then<TurnAnswer>([](Result<TurnAnswer> result) {
                                if (!result) return error_answer(result.error());
                                std::string body;
                                ResponseObject().append(body, *result);
                                return json_answer(std::move(body));
                            }));
}

}  // namespace mainstay
