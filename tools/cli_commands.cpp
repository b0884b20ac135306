#include "tools/cli_commands.h"

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>

#include "runtime/agent/settings.h"
#include "runtime/base/version.h"
#include "tools/cli_output.h"

namespace mainstay {
namespace {

namespace json = boost::json;

std::string session_path(const std::string& id) { return "/v1/sessions/" + path_segment(id); }

std::string cell(const json::value& object, std::string_view key, size_t columns = 60) {
    return shortened_to(printable(text_at(object, key), false), columns);
}

/// Follows pages until `limit` entries or the end. `next` names the query of the page after an entry.
template <class Next>
json::array fetch_pages(CliClient& client, const std::string& path, const std::string& first, size_t limit, Next next) {
    json::array all;
    std::string query = first;
    for (;;) {
        json::value page = client.call("GET", path + query);
        const auto* data = array_at(page, "data");
        if (!data) throw CliFailure{ExitStatus::failed, "the answer has no list: is this Mainstay?"};
        for (const auto& entry : *data)
            if (all.size() < limit) all.push_back(entry);
        if (data->empty() || all.size() >= limit || text_at(page, "has_more") != "true") return all;
        query = next(all.back());
    }
}

json::array fetch_events(CliClient& client, const std::string& id, uint64_t after) {
    const auto query = [](uint64_t sequence) { return "?limit=100&after=" + std::to_string(sequence); };
    return fetch_pages(client, session_path(id) + "/events", query(after), SIZE_MAX,
                       [&](const json::value& last) { return query(number_at(last, "sequence")); });
}

/// Scalars of an event as "key=value", long ones cut: whatever fields it has, but for those that its entry tells.
std::string describe_fields(const json::value& event, size_t columns) {
    if (!event.is_object()) return printable(text_of(event), false);
    std::string out;
    for (const auto& member : event.as_object()) {
        std::string value = text_of(member.value());
        if (value.empty() || value == "false" || value == "[]" || value == "{}") continue;
        const auto key = std::string_view(member.key().data(), member.key().size());
        if (key == "event" || key == "sequence" || key == "turn" || key == "at") continue;
        out += (out.empty() ? "" : " ") + std::string(key) + "=" + shortened_to(printable(value, false), columns);
    }
    return out;
}

uint64_t time_of(const json::value& entry) {
    const uint64_t at = number_at(entry, "at_ms");
    return at != 0 ? at : number_at(entry, "at");
}

const json::value& event_of(const json::value& entry) {
    static const json::value none;
    const auto* event = entry.is_object() ? entry.as_object().if_contains("event") : nullptr;
    return event ? *event : none;
}

std::vector<std::string> event_row(const json::value& entry, size_t columns) {
    return {text_at(entry, "sequence"), time_text(time_of(entry)), text_at(entry, "turn"), cell(entry, "name"),
            describe_fields(event_of(entry), columns)};
}

/// What decided the course of a session, as opposed to what was said in it.
bool is_decision(const json::value& entry) {
    const std::string name = text_at(entry, "name");
    for (const auto* told :
         {"InputAccepted", "StepFailed", "StepProgress", "RetryScheduled", "TurnSettled", "CancelRequested",
          "WaitOpened", "WaitResolved", "Decision", "UnknownResolved", "Compacted", "Forked", "SessionDeleted"})
        if (name == told) return true;
    // A tool that answered is no news; one that did not is.
    if (name != "ToolReceipt") return false;
    const std::string status = text_at(event_of(entry), "status");
    return !status.empty() && status != "completed";
}

std::string usage_text(const json::value& session) {
    const auto* usage = session.is_object() ? session.as_object().if_contains("usage") : nullptr;
    if (!usage || !usage->is_object()) return {};
    std::string out = text_at(*usage, "input_tokens") + " in, " + text_at(*usage, "output_tokens") + " out";
    if (const uint64_t cached = number_at(*usage, "cached_tokens")) out += ", " + std::to_string(cached) + " cached";
    if (text_at(*usage, "simulated") == "true") out += " (simulated)";
    return out;
}

bool confirmed(CliContext& context, const std::string& question) {
    context.streams.error << question << " [y/N] " << std::flush;
    std::string answer;
    std::getline(context.streams.in, answer);
    return answer == "y" || answer == "Y" || answer == "yes";
}

}  // namespace

// --- agents and models ------------------------------------------------------------------------------------------

void apply_agent(CliContext& context, const std::string& file, bool dry_run) {
    auto text = read_text_file(file, limits::agent_file_bytes_max);
    if (!text) throw CliFailure{ExitStatus::usage, text.error().message};
    const bool is_json = file.ends_with(".json");
    const auto answer = context.client.call("POST", std::string("/v1/agents") + (dry_run ? "?dry_run=true" : ""),
                                            std::move(*text), is_json ? "application/json" : "application/toml");
    if (context.json) return print_json(context.streams.out, answer);
    const auto* agent = answer.is_object() ? answer.as_object().if_contains("agent") : nullptr;
    const json::value& named = agent && agent->is_object() ? *agent : answer;
    context.streams.out << printable(text_at(answer, "difference"), true);
    const bool changed = text_at(answer, "changed") == "true";
    context.streams.error << "agent " << cell(named, "name") << " version " << cell(named, "version")
                          << (!changed  ? " is unchanged"
                              : dry_run ? " would change"
                                        : " applied")
                          << "\n";
}

void list_agents(CliContext& context) {
    const auto answer = context.client.call("GET", "/v1/agents");
    const auto* data = array_at(answer, "data");
    if (!data) throw CliFailure{ExitStatus::failed, "the answer has no list: is this Mainstay?"};
    if (context.json) return print_json(context.streams.out, *data);
    std::vector<std::vector<std::string>> rows;
    for (const auto& agent : *data) rows.push_back({cell(agent, "name"), cell(agent, "version"), cell(agent, "model")});
    print_table(context.streams.out, {"NAME", "VERSION", "MODEL"}, rows);
}

void show_agent(CliContext& context, const std::string& name) {
    const auto agent = context.client.call("GET", "/v1/agents/" + path_segment(name));
    if (context.json) return print_json(context.streams.out, agent);
    std::vector<std::pair<std::string, std::string>> fields = {{"name", cell(agent, "name")},
                                                               {"version", cell(agent, "version")}};
    const auto* spec = agent.is_object() ? agent.as_object().if_contains("spec") : nullptr;
    if (spec && spec->is_object())
        for (const auto& member : spec->as_object())
            if (member.key() != "name") fields.emplace_back(member.key(), printable(text_of(member.value()), false));
    print_fields(context.streams.out, fields);
}

void list_models(CliContext& context) {
    const auto answer = context.client.call("GET", "/v1/models");
    const auto* data = array_at(answer, "data");
    if (!data) throw CliFailure{ExitStatus::failed, "the answer has no list: is this Mainstay?"};
    if (context.json) return print_json(context.streams.out, *data);
    std::vector<std::vector<std::string>> rows;
    for (const auto& model : *data) rows.push_back({cell(model, "id")});
    print_table(context.streams.out, {"NAME"}, rows);
}

// --- sessions ---------------------------------------------------------------------------------------------------

void list_sessions(CliContext& context, size_t limit) {
    const std::string page = std::to_string(std::min<size_t>(limit, limits::list_page_max));
    const auto all = fetch_pages(context.client, "/v1/sessions", "?limit=" + page, limit, [&](const json::value& last) {
        return "?limit=" + page + "&after=" + path_segment(text_at(last, "id"));
    });
    if (context.json) return print_json(context.streams.out, all);
    std::vector<std::vector<std::string>> rows;
    for (const auto& session : all)
        rows.push_back({cell(session, "id"), cell(session, "state"), cell(session, "agent", 24), cell(session, "turns"),
                        time_text(number_at(session, "updated_at") * 1000, true)});
    print_table(context.streams.out, {"SESSION", "STATE", "AGENT", "TURNS", "UPDATED"}, rows);
}

void show_session(CliContext& context, const std::string& id) {
    const auto session = context.client.call("GET", session_path(id));
    if (context.json) return print_json(context.streams.out, session);
    print_fields(context.streams.out, {{"session", cell(session, "id")},
                                       {"state", cell(session, "state")},
                                       {"agent", cell(session, "agent")},
                                       {"principal", cell(session, "principal")},
                                       {"created", time_text(number_at(session, "created_at") * 1000, true)},
                                       {"updated", time_text(number_at(session, "updated_at") * 1000, true)},
                                       {"turns", cell(session, "turns")},
                                       {"items", cell(session, "items")},
                                       {"tokens", usage_text(session)},
                                       {"in memory", cell(session, "active")},
                                       {"metadata", cell(session, "metadata", 200)}});
}

void list_events(CliContext& context, const std::string& id, uint64_t after) {
    const auto events = fetch_events(context.client, id, after);
    if (context.json) return print_json(context.streams.out, events);
    std::vector<std::vector<std::string>> rows;
    for (const auto& entry : events) rows.push_back(event_row(entry, 60));
    print_table(context.streams.out, {"SEQUENCE", "AT", "TURN", "EVENT", "WHAT"}, rows);
}

void delete_session(CliContext& context, const std::string& id, bool yes) {
    if (!yes && !context.streams.interactive)
        throw CliFailure{ExitStatus::usage, "deleting asks first; without a terminal give --yes"};
    if (!yes && !confirmed(context, "Delete session " + printable(id, false) + " and all its history?"))
        throw CliFailure{ExitStatus::failed, "not deleted"};
    const auto answer = context.client.call("DELETE", session_path(id));
    if (context.json) return print_json(context.streams.out, answer);
    context.streams.error << "session " << printable(id, false) << " deleted\n";
}

void resolve_call(CliContext& context, const std::string& id, const std::string& call, const std::string& as,
                  const std::string& result) {
    json::object body;
    body["as"] = as;
    if (!result.empty()) {
        json::error_code code;
        body["result"] = json::parse(result, code);
        if (code) throw CliFailure{ExitStatus::usage, "--result is not JSON: " + code.message()};
    }
    const auto answer = context.client.call("POST", session_path(id) + "/calls/" + path_segment(call) + "/resolve",
                                            json::serialize(body));
    if (context.json) return print_json(context.streams.out, answer);
    context.streams.error << "call " << printable(call, false) << " resolved as " << as << "\n";
}

namespace {

/// Where the session's shard was placed, and why, oldest first and told as events of no turn; nothing of a node that is
/// alone, or for whoever may not see it.
json::array placements_of(CliContext& context, const std::string& id) {
    json::array out;
    const CliAnswer place = context.client.fetch("GET", session_path(id) + "/place");
    const json::value shard = place.status == 200 ? json::parse(place.body) : json::value();
    if (!shard.is_object() || !shard.get_object().contains("shard")) return out;
    const CliAnswer answer = context.client.fetch(
        "GET", "/v1/cluster/decisions?limit=100&shard=" + std::to_string(number_at(shard, "shard")));
    const json::value decisions = answer.status == 200 ? json::parse(answer.body) : json::value();
    const auto* data = array_at(decisions, "data");
    if (!data) return out;
    for (auto one = data->rbegin(); one != data->rend(); ++one)
        out.push_back(json::object{{"at_ms", number_at(*one, "at_ms")},
                                   {"turn", 0},
                                   {"name", "Placed"},
                                   {"event", json::object{{"shard", number_at(*one, "shard")},
                                                          {"what", text_at(*one, "what")},
                                                          {"why", text_at(*one, "why")}}}});
    return out;
}

}  // namespace

void explain_session(CliContext& context, const std::string& id) {
    std::vector<json::value> told;
    for (auto& entry : fetch_events(context.client, id, 0))
        if (is_decision(entry)) told.push_back(std::move(entry));
    const auto decided = static_cast<ptrdiff_t>(told.size());
    for (auto& placement : placements_of(context, id)) told.push_back(std::move(placement));
    std::inplace_merge(told.begin(), told.begin() + decided, told.end(),
                       [](const auto& a, const auto& b) { return number_at(a, "at_ms") < number_at(b, "at_ms"); });
    if (context.json) return print_json(context.streams.out, json::array(told.begin(), told.end()));
    // One header per turn. What the session decided beside its turns (turn 0) is told where it happened.
    std::string turn;
    for (const auto& entry : told) {
        const std::string now = text_at(entry, "turn");
        if (now != turn && now != "0" && !now.empty()) {
            context.streams.out << "turn " << now << "\n";
            turn = now;
        }
        context.streams.out << "  " << time_text(time_of(entry)) << "  " << cell(entry, "name") << "  "
                            << describe_fields(event_of(entry), 400) << "\n";
    }
    if (told.empty()) context.streams.error << "nothing has been decided in this session yet\n";
}

// --- the daemon -------------------------------------------------------------------------------------------------

void show_status(CliContext& context) {
    const bool alive = context.client.fetch("GET", "/healthz").status == 200;
    const CliAnswer ready = context.client.fetch("GET", "/readyz");
    const auto about = context.client.call("GET", "/");
    const std::string why = ready.status == 200 ? "yes" : "no: " + failure_of(ready).message;
    json::object out;
    out["url"] = context.client.url();
    out["version"] = text_at(about, "version");
    out["client_version"] = build_version();
    out["alive"] = alive;
    out["ready"] = ready.status == 200;
    if (ready.status != 200) out["not_ready_because"] = failure_of(ready).message;
    if (context.json)
        print_json(context.streams.out, out);
    else
        print_fields(context.streams.out, {{"url", context.client.url()},
                                           {"version", cell(out, "version")},
                                           {"alive", alive ? "yes" : "no"},
                                           {"ready", printable(why, false)}});
    if (ready.status != 200) throw CliFailure{ExitStatus::unavailable, "the daemon is not ready"};
}

}  // namespace mainstay
