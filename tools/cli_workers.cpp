// `mainstay worker`: accelerator workers, as the door tells of them. Whatever a simulated device says of seconds and
// joules is printed with that word, because a table is what people copy.
#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <cstdio>

#include "tools/cli_commands.h"
#include "tools/cli_output.h"

namespace mainstay {
namespace {

namespace json = boost::json;

std::string cell(const json::value& object, std::string_view key, size_t columns = 60) {
    return shortened_to(printable(text_at(object, key), false), columns);
}

/// A member that is an object; null where there is none.
const json::value& part(const json::value& object, std::string_view key) {
    static const json::value none;
    const auto* member = object.is_object() ? object.as_object().if_contains({key.data(), key.size()}) : nullptr;
    return member ? *member : none;
}

double real_at(const json::value& object, std::string_view key) {
    const json::value& value = part(object, key);
    return value.is_number() ? value.to_number<double>() : 0;
}

std::string of(uint64_t part, uint64_t whole) { return std::to_string(part) + "/" + std::to_string(whole); }

std::string percent(double part, double whole) {
    if (whole <= 0) return "-";
    char text[32];
    std::snprintf(text, sizeof text, "%.1f%%", 100 * part / whole);
    return text;
}

std::string decimals(double value) {
    char text[48];
    std::snprintf(text, sizeof text, "%.3f", value);
    return text;
}

/// "1.250 simulated": never the figure alone.
std::string modelled(const json::value& worker, std::string_view figure) {
    const json::value& accelerator = part(worker, "accelerator");
    std::string out = decimals(real_at(accelerator, figure));
    if (text_at(accelerator, "simulated") != "false") out += " simulated";
    if (figure == "joules") out += ", power " + cell(accelerator, "power");
    return out;
}

std::string device_of(const json::value& worker) {
    const json::value& device = part(worker, "device");
    std::string out = cell(device, "kind");
    if (const std::string hardware = cell(device, "hardware"); !hardware.empty()) out += " (" + hardware + ")";
    return out;
}

std::string padding_of(const json::value& totals) {
    const double padded = real_at(totals, "padded_tokens");
    return percent(padded, padded + real_at(totals, "tokens"));
}

/// "MODEL/INDEX", where the model's own name may have slashes.
std::string worker_path(const std::string& name) {
    const size_t slash = name.rfind('/');
    if (slash == std::string::npos || slash == 0 || slash + 1 == name.size())
        throw CliFailure{ExitStatus::usage, "a worker is named MODEL/INDEX, such as mainstay_tiny/0"};
    return "/v1/workers/" + path_segment(name.substr(0, slash)) + "/" + path_segment(name.substr(slash + 1));
}

void print_tiers(std::ostream& out, const json::value& kv) {
    std::vector<std::vector<std::string>> rows;
    uint64_t hits = 0;
    if (const auto* tiers = array_at(kv, "tiers")) {
        for (const auto& tier : *tiers) hits += number_at(tier, "hit_blocks");
        for (const auto& tier : *tiers)
            rows.push_back({cell(tier, "tier"), of(number_at(tier, "blocks"), number_at(tier, "blocks_max")),
                            percent(real_at(tier, "blocks"), real_at(tier, "blocks_max")), cell(tier, "hit_blocks"),
                            percent(real_at(tier, "hit_blocks"), double(hits))});
    }
    print_table(out, {"KV TIER", "BLOCKS", "FULL", "HITS", "OF ALL HITS"}, rows);
}

void print_worker(std::ostream& out, const json::value& worker) {
    const json::value &batch = part(worker, "batch"), &totals = part(worker, "totals"),
                      &blocks = part(worker, "kv_blocks");
    const json::value &model = part(worker, "model_figures"), &sequences = part(model, "sequences");
    const json::value &tokens = part(model, "tokens"), &kv = part(model, "kv");
    print_fields(
        out, {{"worker", cell(worker, "name")},
              {"state", cell(worker, "state")},
              {"problem", cell(worker, "problem", 200)},
              {"losses", cell(worker, "losses")},
              {"device", device_of(worker)},
              {"kernel", cell(part(worker, "device"), "kernel")},
              {"running", of(number_at(batch, "running"), number_at(batch, "rows_max")) + " rows"},
              {"steps", cell(totals, "steps")},
              {"rows per step",
               decimals(real_at(totals, "steps") > 0 ? real_at(totals, "rows") / real_at(totals, "steps") : 0)},
              {"tokens", cell(totals, "tokens") + ", and " + cell(totals, "padded_tokens") + " of padding (" +
                             padding_of(totals) + ")"},
              {"busy", decimals(real_at(totals, "busy_seconds")) + " s measured"},
              {"device seconds", modelled(worker, "seconds")},
              {"joules", modelled(worker, "joules")},
              {"KV blocks",
               cell(blocks, "total") + ", " + cell(blocks, "free") + " free, " + cell(blocks, "cached") + " cached"},
              {"model", cell(worker, "model") + ", " + cell(model, "state") + ", " + cell(model, "context_max") +
                            " tokens of context"},
              {"waiting", cell(sequences, "waiting")},
              {"sequences", cell(sequences, "submitted") + " submitted, " + cell(sequences, "ended") + " ended, " +
                                cell(sequences, "refused") + " refused, " + cell(sequences, "preempted") +
                                " preempted, " + cell(sequences, "requeued") + " requeued"},
              {"model tokens", cell(tokens, "prefilled") + " prefilled, " + cell(tokens, "cached") + " cached, " +
                                   cell(tokens, "generated") + " generated"},
              {"block", cell(kv, "block_tokens") + " tokens, " + cell(kv, "block_bytes") + " bytes"}});
    out << "\n";
    print_tiers(out, kv);
    const auto* decisions = array_at(worker, "decisions");
    if (!decisions || decisions->empty()) return;
    constexpr size_t shown = 20;
    std::vector<std::vector<std::string>> rows;
    for (size_t i = decisions->size() - std::min(shown, decisions->size()); i < decisions->size(); ++i) {
        const auto& one = (*decisions)[i];
        rows.push_back({time_text(number_at(one, "at_ms")), cell(one, "decision"), cell(one, "session"),
                        cell(one, "reason", 100)});
    }
    out << "\n";
    print_table(out, {"AT", "DECISION", "SESSION", "WHY"}, rows);
}

}  // namespace

void list_workers(CliContext& context) {
    const auto answer = context.client.call("GET", "/v1/workers");
    const auto* data = array_at(answer, "data");
    if (!data) throw CliFailure{ExitStatus::failed, "the answer has no list: is this Mainstay?"};
    if (context.json) return print_json(context.streams.out, *data);
    std::vector<std::vector<std::string>> rows;
    for (const auto& worker : *data) {
        const json::value &batch = part(worker, "batch"), &totals = part(worker, "totals");
        const json::value& blocks = part(worker, "kv_blocks");
        const uint64_t total = number_at(blocks, "total");
        rows.push_back({cell(worker, "name"), cell(worker, "state"), device_of(worker),
                        of(number_at(batch, "running"), number_at(batch, "rows_max")), cell(totals, "steps"),
                        cell(totals, "tokens"), padding_of(totals),
                        of(total - std::min(total, number_at(blocks, "free")), total), modelled(worker, "seconds"),
                        modelled(worker, "joules"), cell(worker, "losses"), cell(worker, "problem", 40)});
    }
    print_table(context.streams.out,
                {"WORKER", "STATE", "DEVICE", "RUNNING", "STEPS", "TOKENS", "PADDING", "KV BLOCKS", "DEVICE SECONDS",
                 "JOULES", "LOSSES", "PROBLEM"},
                rows);
}

void show_worker(CliContext& context, const std::string& name) {
    const auto worker = context.client.call("GET", worker_path(name));
    if (context.json) return print_json(context.streams.out, worker);
    print_worker(context.streams.out, worker);
}

void drain_worker(CliContext& context, const std::string& name, bool undo) {
    const auto worker =
        context.client.call("POST", worker_path(name) + "/drain", undo ? R"({"undo":true})" : std::string("{}"));
    if (context.json) return print_json(context.streams.out, worker);
    const uint64_t running = number_at(part(worker, "batch"), "running");
    context.streams.error << "worker " << cell(worker, "name") << " is " << cell(worker, "state");
    if (running > 0 && !undo) context.streams.error << ": " << running << " still running there";
    context.streams.error << "\n";
}

}  // namespace mainstay
