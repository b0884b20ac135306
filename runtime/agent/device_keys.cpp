#include "runtime/agent/device_keys.h"

#include <algorithm>
#include <array>

#include "runtime/agent/units.h"
#include "runtime/base/limits.h"

namespace mainstay {
namespace {

using namespace limits;

constexpr uint64_t tier_bytes_max = kv_disk_map_bytes_max / 2;  // the tier on disk maps twice what it holds
constexpr size_t core_list_bytes_max = 256;
constexpr uint32_t block_tokens_granule =
    16;  // kv_tile_tokens of runtime/inference/kernels.h, which this room does not see

struct DeviceKey {
    std::string_view table, key;  // table empty: the model's own
    bool sim, nrt, elsewhere;     // elsewhere: openai and scripted
};

// What compiled graphs decide is no key of nrt: whoever compiles a model says it there.
constexpr DeviceKey device_keys[] = {
    {"", "path", true, true, false},
    {"", "precision", true, false, false},
    {"", "devices", true, true, false},
    {"", "threads", true, false, false},
    {"", "hardware", true, false, false},
    {"", "busy_watts", true, false, false},
    {"", "strict", true, false, false},
    {"", "chat_template", true, true, false},
    {"", "library", false, true, false},
    {"", "visible_cores", false, true, false},
    {"", "kv", true, true, false},
    {"kv", "block_tokens", true, false, false},
    {"kv", "device", true, false, false},
    {"", "batch", true, true, false},
    {"batch", "sequences", true, false, false},
    {"batch", "tokens", true, false, false},
    {"", "base_url", false, false, true},
    {"", "upstream_model", false, false, true},
    {"", "api_key", false, false, true},
    {"", "script", false, false, true},
};

bool belongs(const DeviceKey& key, std::string_view device) {
    return device == "neuron_core_sim" ? key.sim : device == "nrt" ? key.nrt : key.elsewhere;
}

std::string devices_of(const DeviceKey& key) {
    if (key.elsewhere) return "openai and scripted";
    return key.sim && key.nrt ? "neuron_core_sim and nrt" : key.sim ? "neuron_core_sim" : "nrt";
}

void refuse_foreign_keys(TableReader& reader, std::string_view table, std::string_view device) {
    for (const auto& key : device_keys)
        if (key.table == table && reader.node().find(key.key) && !belongs(key, device))
            reader.refuse(ErrorCode::invalid_request, key.key,
                          "is no key of device \"" + std::string(device) + "\"; it belongs to " + devices_of(key));
}

/// As the Neuron runtime takes them: "0", "0-3", "0,2,4-5".
bool is_core_list(std::string_view text) {
    size_t digits = 0;
    bool range = false;
    for (const char c : text) {
        if (c >= '0' && c <= '9') {
            if (++digits > 4) return false;
            continue;
        }
        if (digits == 0 || (c == '-' && range) || (c != '-' && c != ',')) return false;
        range = c == '-';
        digits = 0;
    }
    return digits != 0;
}

void read_kv(TableReader& root, Problem& problem, std::string_view device, DeviceSpec& spec) {
    const Node* node = root.table("kv");
    if (!node) return;
    TableReader kv(*node, "kv", problem);
    refuse_foreign_keys(kv, "kv", device);
    if (device != "nrt") {
        spec.block_tokens = static_cast<uint32_t>(
            kv.number("block_tokens", spec.block_tokens, block_tokens_granule, device_block_tokens_max));
        if (spec.block_tokens % block_tokens_granule != 0)
            kv.refuse(ErrorCode::invalid_request, "block_tokens",
                      "must be a multiple of " + std::to_string(block_tokens_granule));
        spec.kv_device_bytes = kv.size_bytes("device", spec.kv_device_bytes, 1, tier_bytes_max);
    }
    spec.kv_host_bytes = kv.size_bytes("host", spec.kv_host_bytes, 0, tier_bytes_max);
    spec.kv_disk_bytes = kv.size_bytes("disk", spec.kv_disk_bytes, 0, tier_bytes_max);
    kv.finish();
}

void read_batch(TableReader& root, Problem& problem, std::string_view device, DeviceSpec& spec) {
    const Node* node = root.table("batch");
    if (!node) return;
    TableReader batch(*node, "batch", problem);
    refuse_foreign_keys(batch, "batch", device);
    if (device != "nrt") {
        spec.rows_max = static_cast<uint32_t>(batch.number("sequences", spec.rows_max, 1, device_rows_max));
        spec.tokens_max = static_cast<uint32_t>(batch.number("tokens", spec.tokens_max, 1, device_tokens_max));
        if (spec.tokens_max < spec.rows_max)
            batch.refuse(ErrorCode::invalid_request, batch.has("tokens") ? "tokens" : "sequences",
                         "a step of " + std::to_string(spec.rows_max) + " sequences has at least as many tokens, not " +
                             std::to_string(spec.tokens_max));
    }
    spec.running_max = static_cast<uint32_t>(batch.number("running", spec.running_max, 0, device_rows_max));
    batch.finish();
}

void read_simulated(TableReader& root, DeviceSpec& spec) {
    constexpr std::array<std::string_view, 2> precisions{"bf16", "f32"};
    constexpr std::array<std::string_view, 5> hardware{"inf2", "trn1", "trn2", "trn3", "none"};
    spec.precision = precisions[root.choice("precision", {precisions.begin(), precisions.end()}, 0)];
    spec.threads = static_cast<uint32_t>(root.number("threads", spec.threads, 0, device_threads_max));
    spec.hardware = hardware[root.choice("hardware", {hardware.begin(), hardware.end()}, 2)];
    spec.busy_watts = root.real("busy_watts", 1, 1e5).value_or(0);
    if (spec.busy_watts != 0 && spec.hardware == "none")
        root.refuse(ErrorCode::invalid_request, "busy_watts", "is of a hardware, and hardware is \"none\"");
    spec.strict = root.flag("strict", spec.strict);
}

void read_neuron_runtime(TableReader& root, DeviceSpec& spec) {
    spec.library = root.text("library", agent_text_bytes_max);
    spec.visible_cores = root.text("visible_cores", core_list_bytes_max);
    if (!spec.visible_cores.empty() && !is_core_list(spec.visible_cores))
        root.refuse(ErrorCode::invalid_request, "visible_cores", "must be cores such as \"0-3\" or \"0,2\"");
}

}  // namespace

bool is_own_device(std::string_view device) { return device == "neuron_core_sim" || device == "nrt"; }

DeviceSpec default_device_spec(std::string_view device) {
    DeviceSpec spec;
    if (!is_own_device(device)) return spec;
    spec.kv_host_bytes = kv_host_bytes_default;
    spec.kv_disk_bytes = kv_disk_bytes_default;
    if (device == "nrt") return spec;
    spec.kv_device_bytes = kv_device_bytes_default;
    spec.block_tokens = 16;
    spec.rows_max = 32;
    spec.tokens_max = 256;
    return spec;
}

void refuse_foreign_keys(TableReader& root, std::string_view device) { refuse_foreign_keys(root, "", device); }

DeviceSpec read_device_keys(TableReader& root, Problem& problem, std::string_view device) {
    DeviceSpec spec = default_device_spec(device);
    if (!root.has("path"))
        root.refuse(ErrorCode::invalid_request, {}, "\"path\" is missing: the folder of the model's files");
    spec.path = root.text("path", agent_text_bytes_max, 1);
    spec.devices = static_cast<uint32_t>(root.number("devices", spec.devices, 1, devices_per_model_max));
    spec.chat_template = root.text("chat_template", agent_name_bytes_max);
    if (device == "nrt")
        read_neuron_runtime(root, spec);
    else
        read_simulated(root, spec);
    read_kv(root, problem, device, spec);
    read_batch(root, problem, device, spec);
    return spec;
}

void put_device_keys(CanonicalObject& out, const DeviceSpec& spec, std::string_view device) {
    const DeviceSpec defaults = default_device_spec(device);
    CanonicalObject kv, batch;
    const auto number = [](CanonicalObject& to, std::string_view key, uint64_t value, uint64_t otherwise) {
        if (value != otherwise) to.put_number(key, value);
    };
    const auto text = [&](std::string_view key, const std::string& value, const std::string& otherwise) {
        if (value != otherwise) out.put_text(key, value);
    };
    const auto size = [&](std::string_view key, uint64_t value, uint64_t otherwise) {
        if (value != otherwise) kv.put_text(key, format_size_bytes(value));
    };
    text("path", spec.path, defaults.path);
    text("precision", spec.precision, defaults.precision);
    text("hardware", spec.hardware, defaults.hardware);
    text("chat_template", spec.chat_template, defaults.chat_template);
    text("library", spec.library, defaults.library);
    text("visible_cores", spec.visible_cores, defaults.visible_cores);
    number(out, "devices", spec.devices, defaults.devices);
    number(out, "threads", spec.threads, defaults.threads);
    if (spec.busy_watts != 0) out.put_real("busy_watts", spec.busy_watts);
    if (spec.strict) out.put_flag("strict", true);
    number(kv, "block_tokens", spec.block_tokens, defaults.block_tokens);
    size("device", spec.kv_device_bytes, defaults.kv_device_bytes);
    size("host", spec.kv_host_bytes, defaults.kv_host_bytes);
    size("disk", spec.kv_disk_bytes, defaults.kv_disk_bytes);
    number(batch, "sequences", spec.rows_max, defaults.rows_max);
    number(batch, "tokens", spec.tokens_max, defaults.tokens_max);
    number(batch, "running", spec.running_max, defaults.running_max);
    if (!kv.empty()) out.put_object("kv", kv);
    if (!batch.empty()) out.put_object("batch", batch);
}

}  // namespace mainstay
