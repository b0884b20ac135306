// A libnrt.so.1 for machines without Neuron: the functions that runtime/inference/nrt_library.h uses, with the
// arithmetic of our own Llama behind nrt_execute. A "NEFF" is a text file that names a model folder and the shapes of
// one bucket (tests/support/nrt_stub_folder.h writes them). Keys and values live in the tensors that the caller made
// and nowhere else: each execution reads them from the input set and writes to the output set, so sets that do not
// alias, slots and tables that are wrong, and blocks that were lost show in the logits.
//
// Faults: the environment variable NEURON_STUB_FAULTS names a file with lines "FUNCTION FAULT", read at each call.
// FAULT is a status code, "hang", "abort", or for execute "nan:ROW" (that row's logits are NaN) and "nan_status:ROW"
// (and the status says so). Memory is handed out full of NaN, as nobody promises zeros.

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <vector>

#include "runtime/inference/llama.h"
#include "runtime/inference/nrt_library.h"
#include "runtime/inference/worker_threads.h"

namespace mainstay {

struct NrtTensor {
    std::vector<char> bytes;
};

namespace {

constexpr int status_invalid = 2, status_not_enough_cores = 9, status_bad_version = 10, status_uninitialized = 13,
              status_bad_input = 1002, status_numbers = 1003, status_out_of_bounds = 1006;

bool initialized = false;

using Set = std::map<std::string, NrtTensor*>;

struct Described {
    NrtUsage usage;
    int type;
    std::vector<uint32_t> shape;
};

std::string fault_of(const std::string& function) {
    const char* path = std::getenv("NEURON_STUB_FAULTS");
    if (!path) return "";
    std::ifstream file(path);
    for (std::string name, fault; file >> name >> fault;)
        if (name == function) return fault;
    return "";
}

/// The status that a control file asks for; hangs and aborts do not return.
int injected(const std::string& function) {
    const std::string fault = fault_of(function);
    if (fault == "hang") {
        std::fprintf(stderr, "stub: %s does not come back\n", function.c_str());
        for (;;) ::pause();
    }
    if (fault == "abort") {
        std::fprintf(stderr, "stub: assertion failed in %s\n", function.c_str());
        std::abort();
    }
    return fault.empty() || fault.rfind("nan", 0) == 0 ? 0 : std::atoi(fault.c_str());
}

int available() { return initialized ? nrt_success : status_uninitialized; }

std::shared_ptr<const LlamaModel> model_at(const std::string& directory) {
    static std::map<std::string, std::shared_ptr<const LlamaModel>> models;
    auto& model = models[directory];
    if (!model) {
        auto loaded = LlamaModel::load(directory, Precision::f32, uint64_t(1) << 30);
        if (loaded) model = std::move(*loaded);
    }
    return model;
}

}  // namespace

struct NrtModel {
    // As the text says.
    std::string directory, kind;
    uint32_t tokens = 0, rows = 1, context = 0, block_tokens = 0, block_count = 0;
    bool last_token = false;
    int logits_type = int(NrtType::float32);
    std::map<std::pair<int, std::string>, Described> tensors;  // by usage and name

    std::shared_ptr<const LlamaModel> model;
    std::unique_ptr<WorkerThreads> threads;
    std::unique_ptr<KvPages> pages;
    std::unique_ptr<Llama> llama;

    const LlamaConfig& config() const { return model->config(); }
    bool prefill() const { return kind == "prefill"; }

    bool parse(const std::string& text);
    void describe();
    bool prepare();
    int execute(const Set& in, Set& out);

  private:
    int gather(const Set& in);
    int check_slots();
    void move_token(const Set& set, uint32_t layer, BlockId block, uint32_t index, bool to_pages);
    int write_logits(const Set& out);

    std::vector<int32_t> tokens_in_, positions_, slots_, tables_;
    std::vector<std::vector<TokenId>> row_tokens_;
    std::vector<LlamaRow> llama_rows_;
};

namespace {

std::string kv_name(const char* kind, uint32_t layer) { return std::string(kind) + "_cache." + std::to_string(layer); }

/// Null where it is missing or of another size: a graph knows its tensors.
char* data_of(const Set& set, const std::string& name, size_t bytes) {
    const auto found = set.find(name);
    return found == set.end() || found->second->bytes.size() != bytes ? nullptr : found->second->bytes.data();
}

bool read_numbers(const Set& set, const std::string& name, size_t count, std::vector<int32_t>& out) {
    const char* data = data_of(set, name, count * sizeof(int32_t));
    if (!data) return false;
    out.resize(count);
    std::memcpy(out.data(), data, count * sizeof(int32_t));
    return true;
}

}  // namespace

bool NrtModel::parse(const std::string& text) {
    std::istringstream lines(text);
    std::string line;
    if (!std::getline(lines, line) || line != "stub-neff 1") return false;
    std::vector<std::string> changes;
    while (std::getline(lines, line)) {
        std::istringstream words(line);
        std::string key;
        words >> key;
        if (key == "model") words >> directory;
        if (key == "kind") words >> kind;
        if (key == "tokens") words >> tokens;
        if (key == "rows") words >> rows;
        if (key == "context") words >> context;
        if (key == "block_tokens") words >> block_tokens;
        if (key == "block_count") words >> block_count;
        if (key == "last_token") last_token = true;
        if (key == "logits") words >> logits_type;
        if (key == "tensor" || key == "drop") changes.push_back(line);
    }
    model = model_at(directory);
    if (!model) return false;
    describe();
    // "tensor USAGE NAME TYPE DIMENSION...", "drop USAGE NAME": graphs that do not fit their manifest.
    for (const std::string& change : changes) {
        std::istringstream words(change);
        std::string key, name;
        int usage = 0;
        words >> key >> usage >> name;
        tensors.erase({usage, name});
        if (key == "drop") continue;
        Described described{NrtUsage(usage), 0, {}};
        words >> described.type;
        for (uint32_t n; words >> n;) described.shape.push_back(n);
        tensors[{usage, name}] = described;
    }
    return true;
}

void NrtModel::describe() {
    const auto add = [&](NrtUsage usage, const std::string& name, NrtType type, std::vector<uint32_t> shape) {
        tensors[{int(usage), name}] = {usage, int(type), std::move(shape)};
    };
    for (const char* name : {"input_ids", "position_ids", "slot_mapping"})
        add(NrtUsage::input, name, NrtType::int32, {tokens});
    add(NrtUsage::input, "block_tables", NrtType::int32, {rows, context / block_tokens});
    if (last_token) add(NrtUsage::input, "last_token", NrtType::int32, {1});
    for (uint32_t layer = 0; layer < config().num_hidden_layers; ++layer)
        for (const char* kind_of : {"k", "v"})
            for (const NrtUsage usage : {NrtUsage::input, NrtUsage::output})
                add(usage, kv_name(kind_of, layer) + (usage == NrtUsage::output ? ".out" : ""), NrtType::float32,
                    {block_count, block_tokens, config().num_key_value_heads, config().head_dim});
    add(NrtUsage::output, "logits", NrtType(logits_type),
        {prefill() && !last_token ? tokens : rows, config().vocab_size});
}

bool NrtModel::prepare() {
    threads = std::make_unique<WorkerThreads>(1);
    auto made = KvPages::create({config().num_hidden_layers, config().num_key_value_heads, config().head_dim,
                                 block_tokens, block_count, Precision::f32},
                                "stub");
    if (!made) return false;
    pages = std::move(*made);
    llama = std::make_unique<Llama>(*model, best_kernels(), *threads, *pages, LlamaSizes{rows, tokens, context});
    return true;
}

/// Keys and values of one token between a tensor [block][token][head][dimension] and the pages of the arithmetic.
void NrtModel::move_token(const Set& set, uint32_t layer, BlockId block, uint32_t index, bool to_pages) {
    const KvShape& shape = pages->shape();
    const size_t heads = shape.heads, dim = shape.head_dim;
    const size_t bytes = size_t(block_count) * block_tokens * heads * dim * 4;
    const std::string end = to_pages ? "" : ".out";
    char* keys = data_of(set, kv_name("k", layer) + end, bytes);
    char* values = data_of(set, kv_name("v", layer) + end, bytes);
    std::vector<float> key(dim), value(dim);
    for (uint32_t head = 0; head < heads; ++head) {
        const size_t at = (((size_t(block) * block_tokens + index) * heads + head) * dim) * 4;
        if (to_pages) {
            std::memcpy(key.data(), keys + at, dim * 4);
            std::memcpy(value.data(), values + at, dim * 4);
            pages->write(int64_t(block) * block_tokens + index, layer, head, key.data(), value.data(), best_kernels());
            continue;
        }
        const uint8_t* from = pages->data() + size_t(block) * shape.block_bytes();
        const uint8_t* tile = from + pages->key_offset(layer, head) + size_t(index / kv_tile_tokens) * 16 * dim * 4;
        for (size_t d = 0; d < dim; ++d) std::memcpy(&key[d], tile + (d * 16 + index % 16) * 4, 4);
        std::memcpy(value.data(), from + pages->value_offset(layer, head) + size_t(index) * shape.padded_dim() * 4,
                    dim * 4);
        std::memcpy(keys + at, key.data(), dim * 4);
        std::memcpy(values + at, value.data(), dim * 4);
    }
}

/// Every slot is where its row's table has the position; a graph would write elsewhere without a word.
int NrtModel::check_slots() {
    const uint32_t table = context / block_tokens;
    for (uint32_t t = 0; t < tokens; ++t) {
        if (slots_[t] == -1) continue;
        const int32_t position = positions_[t];
        if (position < 0 || uint32_t(position) >= context) return status_out_of_bounds;
        const int32_t block = tables_[(prefill() ? 0 : t) * table + uint32_t(position) / block_tokens];
        if (block <= 0 || uint32_t(block) >= block_count) return status_out_of_bounds;
        if (slots_[t] != block * int32_t(block_tokens) + position % int32_t(block_tokens)) return status_out_of_bounds;
        if (tokens_in_[t] < 0 || uint32_t(tokens_in_[t]) >= config().vocab_size) return status_out_of_bounds;
    }
    return nrt_success;
}

/// Rows from the inputs, and what they attend to from the tensors.
int NrtModel::gather(const Set& in) {
    const uint32_t table = context / block_tokens;
    if (!read_numbers(in, "input_ids", tokens, tokens_in_) || !read_numbers(in, "position_ids", tokens, positions_) ||
        !read_numbers(in, "slot_mapping", tokens, slots_) ||
        !read_numbers(in, "block_tables", size_t(rows) * table, tables_))
        return status_bad_input;
    if (const int status = check_slots(); status != nrt_success) return status;
    row_tokens_.assign(rows, {});
    llama_rows_.clear();
    for (uint32_t r = 0; r < rows; ++r) {
        const uint32_t first = prefill() ? 0 : r, most = prefill() ? tokens : 1;
        for (uint32_t t = first; t < first + most && slots_[t] != -1; ++t)
            row_tokens_[r].push_back(TokenId(tokens_in_[t]));
        if (row_tokens_[r].empty()) continue;
        for (int32_t position = 0; position < positions_[first]; ++position) {
            const int32_t block = tables_[r * table + uint32_t(position) / block_tokens];
            if (block <= 0 || uint32_t(block) >= block_count) return status_out_of_bounds;
            for (uint32_t layer = 0; layer < config().num_hidden_layers; ++layer)
                move_token(in, layer, block, uint32_t(position) % block_tokens, true);
        }
        llama_rows_.push_back(
            {row_tokens_[r], uint32_t(positions_[first]), tables_.data() + size_t(r) * table, true, true});
    }
    if (last_token) {
        std::vector<int32_t> last;
        if (!read_numbers(in, "last_token", 1, last) || last[0] + 1 != int32_t(row_tokens_[0].size()))
            return status_bad_input;
    }
    return nrt_success;
}

int NrtModel::write_logits(const Set& out) {
    const size_t width = config().vocab_size, size = nrt_type_bytes(logits_type);
    const size_t lines = prefill() && !last_token ? tokens : rows;
    char* to = data_of(out, "logits", lines * width * size);
    if (!to) return status_bad_input;
    std::memset(to, 0xff, lines * width * size);
    const std::string fault = fault_of("execute");
    const size_t bad = fault.find(':') == std::string::npos ? SIZE_MAX : size_t(std::atoi(&fault[fault.find(':') + 1]));
    for (size_t r = 0; r < llama_rows_.size(); ++r) {
        const std::span<float> logits = llama->logits(uint32_t(r));
        if (r == bad) logits[width / 2] = std::numeric_limits<float>::quiet_NaN();
        char* line = to + (prefill() && !last_token ? llama_rows_[r].tokens.size() - 1 : r) * width * size;
        if (size == 4) std::memcpy(line, logits.data(), width * 4);
        for (size_t i = 0; size == 2 && i < width; ++i) {
            const uint16_t narrow = bf16_of(logits[i]);
            std::memcpy(line + i * 2, &narrow, 2);
        }
    }
    return fault.rfind("nan_status", 0) == 0 ? status_numbers : nrt_success;
}

int NrtModel::execute(const Set& in, Set& out) {
    for (const auto& [key, described] : tensors) {
        size_t bytes = nrt_type_bytes(described.type);
        for (const uint32_t n : described.shape) bytes *= n;
        if (!data_of(described.usage == NrtUsage::input ? in : out, key.second, bytes)) return status_invalid;
    }
    if (const int status = gather(in); status != nrt_success) return status;
    if (llama_rows_.empty()) return nrt_success;
    llama->forward(llama_rows_);
    for (const LlamaRow& row : llama_rows_)
        for (uint32_t i = 0; i < row.tokens.size(); ++i)
            for (uint32_t layer = 0; layer < config().num_hidden_layers; ++layer)
                move_token(out, layer, row.block_table[(row.position + i) / block_tokens],
                           (row.position + i) % block_tokens, false);
    return write_logits(out);
}

}  // namespace mainstay

using namespace mainstay;

#define NRT_EXPORT extern "C" __attribute__((visibility("default")))
// Every call may be asked to fail.
#define NRT_BEGIN(name) \
    if (const int fault = injected(name); fault != 0) return fault

NRT_EXPORT int nrt_get_total_vnc_count(uint32_t* count) {
    NRT_BEGIN("get_total_vnc_count");
    *count = fault_of("cores") == "none" ? 0 : 2;
    return nrt_success;
}

NRT_EXPORT int nrt_get_visible_vnc_count(uint32_t* count) {
    const char* cores = std::getenv("NEURON_RT_VISIBLE_CORES");
    *count = cores && std::strlen(cores) == 0 ? 0 : 1;
    return nrt_success;
}

NRT_EXPORT int nrt_init(int framework, const char* version, const char* layer) {
    NRT_BEGIN("init");
    if (framework != nrt_framework_none || *version || *layer || initialized) return status_invalid;
    if (const char* cores = std::getenv("NEURON_RT_VISIBLE_CORES")) {  // a library that is chatty on stdout
        std::printf("stub: started on cores %s\n", cores);
        std::fflush(stdout);
    }
    initialized = true;
    return nrt_success;
}

NRT_EXPORT void nrt_close() { initialized = false; }

NRT_EXPORT int nrt_load(const void* neff, size_t size, int32_t core, int32_t cores, NrtModel** out) {
    NRT_BEGIN("load");
    if (!initialized) return status_uninitialized;
    if (core > 0 || cores != -1) return status_not_enough_cores;
    auto model = std::make_unique<NrtModel>();
    if (!model->parse({static_cast<const char*>(neff), size})) return status_bad_version;
    if (!model->prepare()) return status_invalid;
    *out = model.release();
    return nrt_success;
}

NRT_EXPORT int nrt_unload(NrtModel* model) {
    delete model;
    return available();
}

NRT_EXPORT int nrt_get_model_tensor_info(NrtModel* model, NrtTensorInfos** out) {
    NRT_BEGIN("get_model_tensor_info");
    const size_t count = model->tensors.size();
    auto* infos = static_cast<NrtTensorInfos*>(std::calloc(1, sizeof(NrtTensorInfos) + count * sizeof(NrtTensorInfo)));
    NrtTensorInfo* entry = infos->entries();
    infos->count = count;
    for (auto& [key, described] : model->tensors) {
        std::snprintf(entry->name, sizeof entry->name, "%s", key.second.c_str());
        entry->usage = described.usage;
        entry->type = described.type;
        entry->shape = described.shape.data();
        entry->rank = uint32_t(described.shape.size());
        entry->size = nrt_type_bytes(described.type);
        for (const uint32_t n : described.shape) entry->size *= n;
        ++entry;
    }
    *out = infos;
    return nrt_success;
}

NRT_EXPORT int nrt_free_model_tensor_info(NrtTensorInfos* infos) {
    std::free(infos);
    return nrt_success;
}

NRT_EXPORT int nrt_tensor_allocate(NrtPlacement placement, int core, size_t size, const char*, NrtTensor** out) {
    NRT_BEGIN("tensor_allocate");
    if (placement != NrtPlacement::device || core != 0 || size == 0) return status_invalid;
    *out = new NrtTensor{std::vector<char>(size, char(0xff))};
    return available();
}

NRT_EXPORT void nrt_tensor_free(NrtTensor** tensor) {
    delete *tensor;
    *tensor = nullptr;
}

namespace {
bool within(const NrtTensor* tensor, size_t offset, size_t size) {
    return size <= tensor->bytes.size() && offset <= tensor->bytes.size() - size;
}
}  // namespace

NRT_EXPORT int nrt_tensor_read(const NrtTensor* tensor, void* to, size_t offset, size_t size) {
    NRT_BEGIN("tensor_read");
    if (!within(tensor, offset, size)) return status_invalid;
    std::memcpy(to, tensor->bytes.data() + offset, size);
    return available();
}

NRT_EXPORT int nrt_tensor_write(NrtTensor* tensor, const void* from, size_t offset, size_t size) {
    NRT_BEGIN("tensor_write");
    if (!within(tensor, offset, size)) return status_invalid;
    std::memcpy(tensor->bytes.data() + offset, from, size);
    return available();
}

NRT_EXPORT int nrt_allocate_tensor_set(NrtTensorSet** out) {
    NRT_BEGIN("allocate_tensor_set");
    *out = new Set;
    return available();
}

NRT_EXPORT void nrt_destroy_tensor_set(NrtTensorSet** set) {
    delete static_cast<Set*>(*set);
    *set = nullptr;
}

NRT_EXPORT int nrt_add_tensor_to_tensor_set(NrtTensorSet* set, const char* name, NrtTensor* tensor) {
    NRT_BEGIN("add_tensor_to_tensor_set");
    (*static_cast<Set*>(set))[name] = tensor;
    return available();
}

#ifdef NRT_STUB_OLD
#define nrt_execute nrt_execute_as_it_was_called
#endif
NRT_EXPORT int nrt_execute(NrtModel* model, const NrtTensorSet* in, NrtTensorSet* out) {
    NRT_BEGIN("execute");
    if (!initialized) return status_uninitialized;
    return model->execute(*static_cast<const Set*>(in), *static_cast<Set*>(out));
}

#ifndef NRT_STUB_BARE
NRT_EXPORT int nrt_get_vnc_memory_stats(uint32_t core, NrtMemoryStats* stats, size_t size_in, size_t* size_out) {
    NRT_BEGIN("get_vnc_memory_stats");
    if (core != 0 || size_in < sizeof *stats) return status_invalid;
    *stats = {1 << 20, fault_of("memory") == "full" ? size_t(1) << 20 : size_t(1) << 30};
    *size_out = sizeof *stats;
    return nrt_success;
}

NRT_EXPORT int nrt_tensor_copy(const NrtTensor* from, size_t from_offset, NrtTensor* to, size_t to_offset,
                               size_t size) {
    NRT_BEGIN("tensor_copy");
    if (!within(from, from_offset, size) || !within(to, to_offset, size)) return status_invalid;
    std::memmove(to->bytes.data() + to_offset, from->bytes.data() + from_offset, size);
    return available();
}

NRT_EXPORT int nrt_tensor_memset(NrtTensor* tensor, uint64_t offset, int value, size_t size) {
    NRT_BEGIN("tensor_memset");
    if (!within(tensor, offset, size)) return status_invalid;
    std::memset(tensor->bytes.data() + offset, value, size);
    return available();
}
#endif

// The functions are what the device will call them as.
#define MAINSTAY_X(name, returned, parameters) \
    static_assert(std::is_same_v<decltype(&nrt_##name), decltype(NrtFunctions::name)>);
MAINSTAY_NRT_FUNCTIONS(MAINSTAY_X)
