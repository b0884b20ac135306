#include "runtime/inference/nrt_device.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <utility>

#include "runtime/base/digest.h"
#include "runtime/base/limits.h"
#include "runtime/inference/kernels.h"
#include "runtime/inference/kv_block.h"
#include "runtime/inference/nrt_model.h"
#include "runtime/inference/sampler.h"
#include "runtime/inference/step_check.h"

namespace mainstay {

namespace {

constexpr int first_core = 0;  // cores are counted among the visible ones

Error not_loadable(std::string message, std::string param) {
    return {ErrorCode::model_not_loadable, std::move(message), std::move(param)};
}

/// A file's bytes, read by whoever touches them: a NEFF may have gigabytes.
class MappedFile {
  public:
    static Result<MappedFile> open(const std::string& path) {
        const auto failed = [&] { return not_loadable(path + ": " + std::strerror(errno), path); };
        const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
        if (fd < 0) return failed();
        MappedFile file;
        struct stat info {};
        const bool known = ::fstat(fd, &info) == 0;
        if (known && info.st_size > 0 && uint64_t(info.st_size) <= limits::nrt_graph_bytes_max) {
            file.size_ = size_t(info.st_size);
            file.data_ = ::mmap(nullptr, file.size_, PROT_READ, MAP_PRIVATE, fd, 0);
        }
        ::close(fd);
        if (!known || file.data_ == MAP_FAILED) return failed();
        if (!file.data_) return not_loadable(path + " is empty or too large", path);
        return file;
    }
    MappedFile(MappedFile&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
    MappedFile& operator=(MappedFile&&) = delete;
    ~MappedFile() {
        if (data_ && data_ != MAP_FAILED) ::munmap(data_, size_);
    }
    const void* data() const { return data_; }
    size_t size() const { return size_; }

  private:
    MappedFile() = default;
    void* data_ = nullptr;
    size_t size_ = 0;
};

struct TensorShape {
    int type = 0;
    std::vector<uint32_t> dimensions;
    size_t bytes = 0;
    friend bool operator==(const TensorShape&, const TensorShape&) = default;
};

std::string to_string(const TensorShape& shape) {
    std::string out = nrt_type_name(shape.type) + "[";
    for (size_t i = 0; i < shape.dimensions.size(); ++i) out += (i ? "," : "") + std::to_string(shape.dimensions[i]);
    return out + "]";
}

using Shapes = std::map<std::string, TensorShape>;  // by name

struct GraphShapes {
    Shapes inputs, outputs;
};

class NrtDevice final : public Device {
  public:
    NrtDevice(std::shared_ptr<const NrtRuntime> runtime, NrtModelFolder model)
        : runtime_(std::move(runtime)), f_(runtime_->functions()), model_(std::move(model)) {}

    ~NrtDevice() override {
        for (Graph& graph : graphs_) {
            if (graph.in) f_.destroy_tensor_set(&graph.in);
            if (graph.out) f_.destroy_tensor_set(&graph.out);
            for (NrtTensor** tensor : graph.own_tensors())
                if (*tensor) f_.tensor_free(tensor);
            if (graph.model) f_.unload(graph.model);
        }
        for (Kv& kv : kv_)
            if (kv.tensor) f_.tensor_free(&kv.tensor);
    }

    Result<void> load() {
        std::string digests = model_.manifest;
        graphs_.resize(model_.graphs.size());
        for (size_t i = 0; i < graphs_.size(); ++i)
            if (auto loaded = load_graph(graphs_[i], model_.graphs[i], digests); !loaded) return loaded;
        for (Graph& graph : graphs_)
            if (auto bound = bind(graph); !bound) return bound;
        fill_caps(digests);
        check_.emplace(caps_);
        return {};
    }

    const DeviceCaps& caps() const override { return caps_; }

    DeviceResult<StepResult> run(const Step& step) override {
        const auto start = std::chrono::steady_clock::now();
        if (auto checked = check_->check(step); !checked) return checked.error();
        const bool prefill = step.kind == StepKind::prefill;
        const NrtGraph& about =
            model_.graph(step.kind, prefill ? step.token_bucket : step.row_bucket, step.context_bucket);
        Graph& graph = graphs_[size_t(&about - model_.graphs.data())];
        if (auto written = write_inputs(graph, step); !written) return written.error();
        const int status = f_.execute(graph.model, graph.in, graph.out);
        const bool numbers = status != nrt_success && nrt_status_meaning(status).fault == DeviceFault::numeric;
        if (status != nrt_success && !numbers) return nrt_error("execute", status);
        if (auto read = read_logits(graph, step); !read) return read.error();
        StepResult result;
        result.step = step.id;
        result.cost = cost(step, about);
        if (auto chosen = choose(graph, step, result); !chosen) {
            DeviceError error = chosen.error();
            error.status = status;
            return error;
        }
        // The core met a NaN that is in no logits of ours: perhaps in keys and values, so no row is trusted.
        if (numbers) return nrt_error("execute", status);
        result.cost.wall_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        return result;
    }

    DeviceResult<> copy_blocks(std::span<const BlockCopy> copies) override {
        if (auto checked = check_->check_copies(copies); !checked) return checked;
        std::vector<char> buffer;
        for (const BlockCopy& copy : copies)
            for (Kv& kv : kv_) {
                const size_t from = kv.block_bytes * size_t(copy.from), to = kv.block_bytes * size_t(copy.to);
                if (f_.tensor_copy) {
                    const int status = f_.tensor_copy(kv.tensor, from, kv.tensor, to, kv.block_bytes);
                    if (status != nrt_success) return nrt_error("tensor_copy", status);
                    continue;
                }
                buffer.resize(kv.block_bytes);
                int status = f_.tensor_read(kv.tensor, buffer.data(), from, buffer.size());
                if (status != nrt_success) return nrt_error("tensor_read", status);
                status = f_.tensor_write(kv.tensor, buffer.data(), to, buffer.size());
                if (status != nrt_success) return nrt_error("tensor_write", status);
            }
        return {};
    }

    DeviceResult<std::string> export_block(BlockId block, uint32_t tokens) const override {
        if (auto checked = check_->check_export(block, tokens); !checked) return checked.error();
        std::string out(caps_.block_bytes, '\0');
        size_t at = kv_block_header_bytes;
        for (const Kv& kv : kv_) {
            // Tokens are the outermost dimension of a block, so what was asked for is its beginning.
            const size_t bytes = kv.block_bytes / caps_.block_tokens * tokens;
            const int status = f_.tensor_read(kv.tensor, out.data() + at, kv.block_bytes * size_t(block), bytes);
            if (status != nrt_success) return nrt_error("tensor_read", status);
            at += kv.block_bytes;
        }
        seal_kv_block(out, identity_, tokens);
        return out;
    }

    DeviceResult<uint32_t> import_block(BlockId block, std::string_view bytes) override {
        if (auto checked = check_->check_block(block); !checked) return checked.error();
        auto tokens =
            open_kv_block(bytes, identity_, caps_.block_tokens, size_t(caps_.block_bytes) - kv_block_header_bytes);
        if (!tokens) return tokens;
        const char* from = bytes.data() + kv_block_header_bytes;
        for (Kv& kv : kv_) {
            const int status = f_.tensor_write(kv.tensor, from, kv.block_bytes * size_t(block), kv.block_bytes);
            if (status != nrt_success) return nrt_error("tensor_write", status);
            from += kv.block_bytes;
        }
        return tokens;
    }

  private:
    /// Loaded, with the tensors that are its own and the sets that it is executed with.
    struct Graph {
        const NrtGraph* about = nullptr;
        NrtModel* model = nullptr;
        NrtTensor *tokens = nullptr, *positions = nullptr, *slots = nullptr, *tables = nullptr, *last = nullptr,
                  *logits = nullptr;
        NrtTensorSet *in = nullptr, *out = nullptr;
        GraphShapes shapes;
        int logits_type = 0;
        bool every_token = false;  // logits of every token of a prefill, not of its last
        std::vector<NrtTensor**> own_tensors() { return {&tokens, &positions, &slots, &tables, &last, &logits}; }
    };
    struct Kv {
        NrtTensor* tensor = nullptr;
        size_t block_bytes = 0;
        TensorShape shape;
    };

    // --- loading ------------------------------------------------------------------------------------------------
    Result<void> load_graph(Graph& graph, const NrtGraph& about, std::string& digests) {
        const std::string path = model_.directory + "/" + about.file;
        auto file = MappedFile::open(path);
        if (!file) return file.error();
        const KeyHash digest = key_hash("neff", {static_cast<const char*>(file->data()), file->size()});
        digests.append(reinterpret_cast<const char*>(digest.data()), digest.size());
        graph.about = &about;
        // -1 cores: as many as the graph was compiled for. More than one is not built, and the load refuses it.
        int status = f_.load(file->data(), file->size(), first_core, -1, &graph.model);
        if (status != nrt_success) {
            graph.model = nullptr;
            return nrt_start_error("load", status, path);
        }
        NrtTensorInfos* infos = nullptr;
        status = f_.get_model_tensor_info(graph.model, &infos);
        if (status != nrt_success || !infos) return nrt_start_error("get_model_tensor_info", status, path);
        auto read = read_shapes(*infos, graph.shapes, path);
        f_.free_model_tensor_info(infos);
        return read;
    }

    static Result<void> read_shapes(NrtTensorInfos& infos, GraphShapes& shapes, const std::string& path) {
        if (infos.count > limits::nrt_tensors_max) return not_loadable(path + " has too many tensors", path);
        for (uint64_t i = 0; i < infos.count; ++i) {
            const NrtTensorInfo& info = infos.entries()[i];
            const std::string name(info.name, strnlen(info.name, sizeof info.name));
            TensorShape shape{info.type, {}, info.size};
            if (info.rank > limits::tensor_rank_max)
                return not_loadable(path + ": tensor " + name + " has too many dimensions", name);
            shape.dimensions.assign(info.shape, info.shape + info.rank);
            (info.usage == NrtUsage::input ? shapes.inputs : shapes.outputs)[name] = std::move(shape);
        }
        return {};
    }

    static std::string role(const Graph& graph, const std::string& name) {
        return graph.about->file + ": tensor " + name;
    }

    /// Takes the shape out, so that what is left over in the end is what nobody knows.
    static Result<TensorShape> take(Graph& graph, Shapes& shapes, const std::string& name) {
        const auto found = shapes.find(name);
        if (found == shapes.end()) return not_loadable(role(graph, name) + " is not in the graph", name);
        TensorShape shape = std::move(found->second);
        shapes.erase(found);
        uint64_t bytes = nrt_type_bytes(shape.type);
        for (const uint32_t n : shape.dimensions) {
            if (n == 0 || bytes > std::numeric_limits<uint64_t>::max() / n) bytes = 0;
            bytes *= n;
        }
        if (bytes == 0 || bytes != shape.bytes)
            return not_loadable(role(graph, name) + " is " + to_string(shape) + " in " + std::to_string(shape.bytes) +
                                    " bytes, which does not fit together",
                                name);
        return shape;
    }

    Result<void> allocate(const std::string& name, size_t bytes, NrtTensor** tensor) {
        const int status = f_.tensor_allocate(NrtPlacement::device, first_core, bytes, name.c_str(), tensor);
        if (status == nrt_success) return {};
        *tensor = nullptr;
        return nrt_start_error("tensor_allocate", status, name + " of " + std::to_string(bytes) + " bytes");
    }

    Result<void> add(NrtTensorSet* set, const std::string& name, NrtTensor* tensor) {
        const int status = f_.add_tensor_to_tensor_set(set, name.c_str(), tensor);
        if (status == nrt_success) return {};
        return nrt_start_error("add_tensor_to_tensor_set", status, name);
    }

    Result<void> bind_input(Graph& graph, const std::string& name, std::vector<uint32_t> dimensions,
                            NrtTensor** tensor) {
        auto shape = take(graph, graph.shapes.inputs, name);
        if (!shape) return shape.error();
        TensorShape wanted{int(NrtType::int32), std::move(dimensions), shape->bytes};
        if (!(*shape == wanted))
            return not_loadable(role(graph, name) + " is " + to_string(*shape) + ", not " + to_string(wanted), name);
        if (auto done = allocate(name, shape->bytes, tensor); !done) return done;
        return add(graph.in, name, *tensor);
    }

    Result<void> bind_logits(Graph& graph) {
        const std::string& name = model_.logits;
        auto shape = take(graph, graph.shapes.outputs, name);
        if (!shape) return shape.error();
        graph.every_token = graph.about->kind == StepKind::prefill && model_.last_token.empty();
        const std::vector<uint32_t> wanted{graph.every_token ? graph.about->tokens : graph.about->rows,
                                           model_.vocabulary};
        const bool known = shape->type == int(NrtType::float32) || shape->type == int(NrtType::bfloat16) ||
                           shape->type == int(NrtType::float16);
        if (!known || shape->dimensions != wanted)
            return not_loadable(role(graph, name) + " is " + to_string(*shape) + ", not float32, bfloat16 or float16 " +
                                    to_string(TensorShape{int(NrtType::float32), wanted, 0}).substr(7),
                                name);
        graph.logits_type = shape->type;
        if (auto done = allocate(name, shape->bytes, &graph.logits); !done) return done;
        return add(graph.out, name, graph.logits);
    }

    Result<void> bind_kv(Graph& graph, size_t index) {
        const NrtKvTensor& names = model_.kv[index];
        auto input = take(graph, graph.shapes.inputs, names.input);
        if (!input) return input.error();
        auto output = take(graph, graph.shapes.outputs, names.output);
        if (!output) return output.error();
        if (!(*input == *output))
            return not_loadable(role(graph, names.output) + " is " + to_string(*output) + ", but its input " +
                                    names.input + " is " + to_string(*input),
                                names.output);
        const bool paged = input->dimensions.size() >= 2 && input->dimensions[0] == model_.block_count &&
                           input->dimensions[1] == model_.block_tokens;
        if (!paged)
            return not_loadable(role(graph, names.input) + " is " + to_string(*input) + ", which does not begin with " +
                                    std::to_string(model_.block_count) + " blocks of " +
                                    std::to_string(model_.block_tokens) + " tokens",
                                names.input);
        if (index == kv_.size()) {
            if (auto made = make_kv(names.input, *input); !made) return made;
        }
        Kv& kv = kv_[index];
        if (!(kv.shape == *input))
            return not_loadable(role(graph, names.input) + " is " + to_string(*input) + ", but " + to_string(kv.shape) +
                                    " in another graph",
                                names.input);
        if (auto done = add(graph.in, names.input, kv.tensor); !done) return done;
        return add(graph.out, names.output, kv.tensor);
    }

    Result<void> make_kv(const std::string& name, const TensorShape& shape) {
        if (f_.get_vnc_memory_stats) {
            NrtMemoryStats stats{};
            size_t written = 0;
            const int status = f_.get_vnc_memory_stats(first_core, &stats, sizeof stats, &written);
            if (status == nrt_success && written >= sizeof stats &&
                shape.bytes > stats.bytes_limit - std::min(stats.bytes_used, stats.bytes_limit))
                return not_loadable("KV tensor " + name + " needs " + std::to_string(shape.bytes >> 20) +
                                        " MiB, the core has " +
                                        std::to_string((stats.bytes_limit - stats.bytes_used) >> 20) + " MiB left",
                                    "memory");
        }
        Kv& kv = kv_.emplace_back();
        kv.shape = shape;
        kv.block_bytes = shape.bytes / model_.block_count;
        if (auto done = allocate(name, shape.bytes, &kv.tensor); !done) return done;
        return clear(kv.tensor, shape.bytes);
    }

    /// A NaN left over from whoever had the memory before would survive a multiplication by zero.
    Result<void> clear(NrtTensor* tensor, size_t bytes) {
        if (f_.tensor_memset) {
            const int status = f_.tensor_memset(tensor, 0, 0, bytes);
            if (status == nrt_success) return {};
            return nrt_start_error("tensor_memset", status, "KV blocks");
        }
        const std::string zeros(std::min<size_t>(bytes, 4 << 20), '\0');
        for (size_t at = 0; at < bytes; at += zeros.size()) {
            const int status = f_.tensor_write(tensor, zeros.data(), at, std::min(zeros.size(), bytes - at));
            if (status != nrt_success) return nrt_start_error("tensor_write", status, "KV blocks");
        }
        return {};
    }

    Result<void> bind(Graph& graph) {
        const uint32_t tokens = graph.about->tokens, rows = graph.about->rows;
        for (NrtTensorSet** set : {&graph.in, &graph.out})
            if (const int status = f_.allocate_tensor_set(set); status != nrt_success) {
                *set = nullptr;
                return nrt_start_error("allocate_tensor_set", status, graph.about->file);
            }
        if (auto done = bind_input(graph, model_.tokens, {tokens}, &graph.tokens); !done) return done;
        if (auto done = bind_input(graph, model_.positions, {tokens}, &graph.positions); !done) return done;
        if (auto done = bind_input(graph, model_.slots, {tokens}, &graph.slots); !done) return done;
        if (auto done = bind_input(graph, model_.block_tables, {rows, graph.about->context / model_.block_tokens},
                                   &graph.tables);
            !done)
            return done;
        if (graph.about->kind == StepKind::prefill && !model_.last_token.empty())
            if (auto done = bind_input(graph, model_.last_token, {1}, &graph.last); !done) return done;
        for (size_t i = 0; i < model_.kv.size(); ++i)
            if (auto done = bind_kv(graph, i); !done) return done;
        if (auto done = bind_logits(graph); !done) return done;
        for (const Shapes* left : {&graph.shapes.inputs, &graph.shapes.outputs})
            if (!left->empty())
                return not_loadable(role(graph, left->begin()->first) + ", " + to_string(left->begin()->second) +
                                        ", is not named in nrt_model.json",
                                    left->begin()->first);
        return {};
    }

    void fill_caps(const std::string& digests) {
        const KeyHash hash = key_hash("nrt model", digests);
        caps_.kind = "nrt";
        caps_.simulated = false;
        caps_.model_hash = to_hex({reinterpret_cast<const char*>(hash.data()), hash.size()});
        caps_.kernel_id = "neff-" + caps_.model_hash.substr(0, 16);
        caps_.kv_format = caps_.kernel_id;
        for (size_t i = 0, n = 0; i < kv_.size(); i += n) {
            for (n = 1; i + n < kv_.size() && kv_[i + n].shape == kv_[i].shape;) ++n;
            caps_.kv_format += " " + std::to_string(n) + "x" + to_string(kv_[i].shape);
        }
        caps_.vocabulary = model_.vocabulary;
        caps_.block_tokens = model_.block_tokens;
        caps_.block_count = model_.block_count;
        caps_.block_bytes = kv_block_header_bytes;
        for (const Kv& kv : kv_) caps_.block_bytes += kv.block_bytes;
        caps_.context_max = model_.context_buckets.back();
        caps_.rows_max = model_.decode_buckets.back();
        caps_.tokens_max = std::max(model_.prefill_buckets.back(), caps_.rows_max);
        caps_.prefills_max = 1;
        caps_.strict = true;
        caps_.prefill_buckets = model_.prefill_buckets;
        caps_.decode_buckets = model_.decode_buckets;
        caps_.context_buckets = model_.context_buckets;
        caps_.kv_export = caps_.logit_mask = true;
        caps_.deterministic = model_.deterministic;
        identity_ = kv_block_identity(caps_.model_hash, caps_.kv_format);
    }

    // --- a step -------------------------------------------------------------------------------------------------
    DeviceResult<> write(NrtTensor* tensor, const std::vector<int32_t>& values) {
        const int status = f_.tensor_write(tensor, values.data(), 0, values.size() * sizeof(int32_t));
        if (status != nrt_success) return nrt_error("tensor_write", status);
        return {};
    }

    DeviceResult<> write_inputs(Graph& graph, const Step& step) {
        const size_t table = graph.about->context / caps_.block_tokens;
        tokens_.assign(graph.about->tokens, 0);
        positions_.assign(graph.about->tokens, 0);
        slots_.assign(graph.about->tokens, -1);
        tables_.assign(graph.about->rows * table, block_none);
        for (size_t r = 0, at = 0; r < step.rows.size(); ++r) {
            const StepRow& row = step.rows[r];
            std::copy(row.block_table.begin(), row.block_table.end(), tables_.begin() + std::ptrdiff_t(r * table));
            for (size_t i = 0; i < row.tokens.size(); ++i, ++at) {
                const uint32_t position = row.position + uint32_t(i);
                tokens_[at] = int32_t(row.tokens[i]);
                positions_[at] = int32_t(position);
                slots_[at] = row.block_table[position / caps_.block_tokens] * int32_t(caps_.block_tokens) +
                             int32_t(position % caps_.block_tokens);
            }
        }
        if (auto done = write(graph.tokens, tokens_); !done) return done;
        if (auto done = write(graph.positions, positions_); !done) return done;
        if (auto done = write(graph.slots, slots_); !done) return done;
        if (auto done = write(graph.tables, tables_); !done) return done;
        if (!graph.last) return {};
        last_.assign(1, int32_t(step.rows[0].tokens.size()) - 1);
        return write(graph.last, last_);
    }

    DeviceResult<> read_logits(const Graph& graph, const Step& step) {
        const auto wants = [](const StepRow& row) { return row.want_token || row.want_logits; };
        if (std::none_of(step.rows.begin(), step.rows.end(), wants)) return {};
        const size_t row_bytes = caps_.vocabulary * nrt_type_bytes(graph.logits_type);
        const size_t first = graph.every_token ? step.rows[0].tokens.size() - 1 : 0;
        raw_.resize(step.rows.size() * row_bytes);
        const int status = f_.tensor_read(graph.logits, raw_.data(), first * row_bytes, raw_.size());
        if (status != nrt_success) return nrt_error("tensor_read", status);
        const size_t count = step.rows.size() * caps_.vocabulary;
        logits_.resize(count);
        if (graph.logits_type == int(NrtType::float32)) {
            std::memcpy(logits_.data(), raw_.data(), count * sizeof(float));
            return {};
        }
        const bool bf16 = graph.logits_type == int(NrtType::bfloat16);
        for (size_t i = 0; i < count; ++i) {
            uint16_t narrow;
            std::memcpy(&narrow, raw_.data() + i * sizeof narrow, sizeof narrow);
            logits_[i] = bf16 ? float_of_bf16(narrow) : float_of_f16(narrow);
        }
        return {};
    }

    DeviceResult<> choose(const Graph&, const Step& step, StepResult& result) {
        for (uint32_t r = 0; r < step.rows.size(); ++r) {
            const StepRow& row = step.rows[r];
            RowResult& out = result.rows.emplace_back();
            out.sequence = row.sequence;
            out.epoch = row.epoch;
            if (!row.want_token && !row.want_logits) continue;
            const std::span<float> logits{logits_.data() + size_t(r) * caps_.vocabulary, caps_.vocabulary};
            if (!std::all_of(logits.begin(), logits.end(), [](float value) { return std::isfinite(value); }))
                return refused_step(DeviceFault::numeric, "logits that are no finite numbers", r);
            for (TokenId token = 0; !row.allowed.empty() && token < caps_.vocabulary; ++token)
                if (!mask_allows(row.allowed, token)) logits[token] = -std::numeric_limits<float>::infinity();
            if (row.want_logits) out.logits = logits;
            if (row.want_token) out.token = sample(logits, row.sampling, row.seed, row.position + row.tokens.size());
        }
        return {};
    }

    /// What the graph computed, whatever it held. The runtime tells neither time nor power.
    StepCost cost(const Step& step, const NrtGraph& graph) const {
        StepCost out;
        for (const StepRow& row : step.rows) {
            out.tokens += uint32_t(row.tokens.size());
            out.context_tokens += row.position + row.tokens.size();
        }
        out.padded_tokens = graph.tokens - out.tokens;
        out.padded_context = uint64_t(graph.rows) * graph.context - out.context_tokens;
        return out;
    }

    const std::shared_ptr<const NrtRuntime> runtime_;
    const NrtFunctions& f_;
    const NrtModelFolder model_;
    DeviceCaps caps_;
    std::string identity_;
    std::vector<Graph> graphs_;  // as model_.graphs
    std::vector<Kv> kv_;         // as model_.kv
    std::optional<StepCheck> check_;
    std::vector<int32_t> tokens_, positions_, slots_, tables_, last_;
    std::vector<char> raw_;
    std::vector<float> logits_;
};

}  // namespace

Result<std::shared_ptr<const NrtRuntime>> NrtRuntime::start(std::shared_ptr<const NrtLibrary> library) {
    const NrtFunctions& f = library->functions();
    const auto absent = [&](std::string why) {
        return Error{ErrorCode::device_absent, library->path() + ": " + std::move(why), "device"};
    };
    uint32_t total = 0, visible = 0;
    int status = f.get_total_vnc_count(&total);
    if (status == nrt_success) status = f.get_visible_vnc_count(&visible);
    if (status != nrt_success) return absent(nrt_start_error("get_visible_vnc_count", status, "no NeuronCore").message);
    if (total == 0) return absent("this machine has no NeuronCore");
    if (visible == 0)
        return absent("none of " + std::to_string(total) + " NeuronCores is visible: see NEURON_RT_VISIBLE_CORES");
    status = f.init(nrt_framework_none, "", "");
    if (status != nrt_success) return absent(nrt_start_error("init", status, "the runtime does not start").message);
    return std::shared_ptr<const NrtRuntime>(new NrtRuntime(std::move(library)));
}

NrtRuntime::~NrtRuntime() { functions().close(); }

Result<std::unique_ptr<Device>> make_nrt_device(std::shared_ptr<const NrtRuntime> runtime,
                                                const std::string& directory) {
    auto model = read_nrt_model(directory);
    if (!model) return model.error();
    auto device = std::make_unique<NrtDevice>(std::move(runtime), std::move(*model));
    if (auto loaded = device->load(); !loaded) return loaded.error();
    return std::unique_ptr<Device>(std::move(device));
}

}  // namespace mainstay
