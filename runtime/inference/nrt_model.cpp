#include "runtime/inference/nrt_model.h"

#include <algorithm>
#include <boost/json.hpp>
#include <fstream>
#include <limits>
#include <optional>
#include <set>

#include "runtime/base/limits.h"

namespace mainstay {

namespace {

namespace json = boost::json;

Error bad(const std::string& key, const std::string& why) {
    return {ErrorCode::model_not_loadable, "nrt_model.json: " + key + " " + why, key};
}

/// An object whose keys are all asked for: one that is left over is a mistake of whoever wrote it.
class Fields {
  public:
    Fields(const json::value& value, std::string prefix) : prefix_(std::move(prefix)) {
        if (value.is_object())
            object_ = &value.get_object();
        else
            fail("", "must be an object");
    }

    void number(const char* key, uint32_t& out, uint32_t least, uint32_t most) {
        const json::value* value = take(key, true);
        if (!value) return;
        const bool fits = value->is_int64() && value->get_int64() >= least && value->get_int64() <= most;
        if (!fits) return fail(key, "must be an integer from " + std::to_string(least) + " to " + std::to_string(most));
        out = uint32_t(value->get_int64());
    }
    void flag(const char* key, bool& out) {
        const json::value* value = take(key, false);
        if (!value) return;
        if (!value->is_bool()) return fail(key, "must be true or false");
        out = value->get_bool();
    }
    void text(const char* key, std::string& out, bool required = true) {
        const json::value* value = take(key, required);
        if (!value) return;
        const bool fits = value->is_string() && !value->get_string().empty() &&
                          value->get_string().size() < limits::tensor_name_bytes_max;
        if (!fits) return fail(key, "must be a short string");
        out = value->get_string();
    }
    const json::value* take(const char* key, bool required) {
        if (!object_) return nullptr;
        taken_.insert(key);
        const json::value* value = object_->if_contains(key);
        if (!value && required) fail(key, "is missing");
        return value;
    }
    const json::array* list(const char* key, size_t most) {
        const json::value* value = take(key, true);
        if (!value) return nullptr;
        if (value->is_array() && !value->get_array().empty() && value->get_array().size() <= most)
            return &value->get_array();
        fail(key, "must be a list of 1 to " + std::to_string(most));
        return nullptr;
    }
    void fail(const std::string& key, const std::string& why) {
        if (!error_) error_ = bad(prefix_ + key, why);
    }
    const std::optional<Error>& finish() {
        if (object_)
            for (const auto& entry : *object_)
                if (!taken_.contains(std::string(entry.key()))) fail(entry.key(), "is not known");
        return error_;
    }

  private:
    const json::object* object_ = nullptr;
    std::string prefix_;
    std::set<std::string> taken_;
    std::optional<Error> error_;
};

Result<NrtGraph> read_graph(const json::value& value, size_t index, uint32_t block_tokens) {
    const std::string prefix = "graphs[" + std::to_string(index) + "].";
    Fields fields(value, prefix);
    NrtGraph graph;
    std::string kind;
    fields.text("kind", kind);
    if (kind == "prefill") {
        graph.kind = StepKind::prefill;
        fields.number("tokens", graph.tokens, 1, limits::device_tokens_max);
    } else if (kind == "decode") {
        fields.number("rows", graph.rows, 1, limits::device_rows_max);
        graph.tokens = graph.rows;
    } else {
        fields.fail("kind", "must be \"prefill\" or \"decode\"");
    }
    fields.number("context", graph.context, block_tokens, limits::model_context_max);
    fields.text("file", graph.file);
    if (const auto& error = fields.finish()) return *error;
    if (graph.context % block_tokens != 0) return bad(prefix + "context", "must be a multiple of block_tokens");
    if (graph.file.find('/') != std::string::npos || graph.file.front() == '.')
        return bad(prefix + "file", "must name a file of the folder");
    return graph;
}

uint32_t bucket_of(const NrtGraph& graph) { return graph.kind == StepKind::prefill ? graph.tokens : graph.rows; }

/// The lists of buckets, and that no combination lacks its graph or has two: a scheduler may ask for any.
Result<void> collect_buckets(NrtModelFolder& model) {
    std::set<uint32_t> prefill, decode, context;
    std::set<std::tuple<StepKind, uint32_t, uint32_t>> there;
    for (const NrtGraph& graph : model.graphs) {
        (graph.kind == StepKind::prefill ? prefill : decode).insert(bucket_of(graph));
        context.insert(graph.context);
        if (!there.insert({graph.kind, bucket_of(graph), graph.context}).second)
            return bad("graphs", std::string("name two for ") + to_string(graph.kind) + " " +
                                     std::to_string(bucket_of(graph)) + " with context " +
                                     std::to_string(graph.context));
    }
    for (const StepKind kind : {StepKind::prefill, StepKind::decode}) {
        const std::set<uint32_t>& buckets = kind == StepKind::prefill ? prefill : decode;
        if (buckets.empty()) return bad("graphs", std::string("have none for ") + to_string(kind));
        for (const uint32_t bucket : buckets)
            for (const uint32_t length : context)
                if (!there.contains({kind, bucket, length}))
                    return bad("graphs", std::string("have none for ") + to_string(kind) + " " +
                                             std::to_string(bucket) + " with context " + std::to_string(length));
    }
    model.prefill_buckets.assign(prefill.begin(), prefill.end());
    model.decode_buckets.assign(decode.begin(), decode.end());
    model.context_buckets.assign(context.begin(), context.end());
    return {};
}

Result<void> read_names(Fields& fields, NrtModelFolder& model) {
    if (const json::value* value = fields.take("inputs", true)) {
        Fields inputs(*value, "inputs.");
        inputs.text("tokens", model.tokens);
        inputs.text("positions", model.positions);
        inputs.text("slots", model.slots);
        inputs.text("block_tables", model.block_tables);
        inputs.text("last_token", model.last_token, false);
        if (const auto& error = inputs.finish()) return *error;
    }
    if (const json::value* value = fields.take("outputs", true)) {
        Fields outputs(*value, "outputs.");
        outputs.text("logits", model.logits);
        if (const auto& error = outputs.finish()) return *error;
    }
    const json::array* kv = fields.list("kv", 2 * limits::model_layers_max);
    for (size_t i = 0; kv && i < kv->size(); ++i) {
        Fields pair((*kv)[i], "kv[" + std::to_string(i) + "].");
        NrtKvTensor& tensor = model.kv.emplace_back();
        pair.text("input", tensor.input);
        pair.text("output", tensor.output);
        if (const auto& error = pair.finish()) return *error;
    }
    return {};
}

Result<void> check_names(const NrtModelFolder& model) {
    std::set<std::string> inputs, outputs;
    bool twice = false;
    for (const std::string* name :
         {&model.tokens, &model.positions, &model.slots, &model.block_tables, &model.last_token})
        if (!name->empty()) twice |= !inputs.insert(*name).second;
    outputs.insert(model.logits);
    for (const NrtKvTensor& tensor : model.kv) {
        twice |= !inputs.insert(tensor.input).second;
        twice |= !outputs.insert(tensor.output).second;
    }
    if (twice) return bad("inputs", "and outputs name a tensor twice");
    return {};
}

}  // namespace

const NrtGraph& NrtModelFolder::graph(StepKind kind, uint32_t bucket, uint32_t context) const {
    const auto found = std::find_if(graphs.begin(), graphs.end(), [&](const NrtGraph& graph) {
        return graph.kind == kind && bucket_of(graph) == bucket && graph.context == context;
    });
    INVARIANT(found != graphs.end(), "a graph for every combination of buckets");
    return *found;
}

Result<NrtModelFolder> parse_nrt_model(std::string_view text, std::string directory) {
    if (text.size() > limits::nrt_manifest_bytes_max) return bad("", "is too large");
    boost::system::error_code problem;
    json::parse_options options;
    options.max_depth = 8;
    const json::value value = json::parse({text.data(), text.size()}, problem, {}, options);
    if (problem) return bad("", "is no JSON: " + problem.message());

    NrtModelFolder model;
    model.directory = std::move(directory);
    model.manifest = text;
    Fields fields(value, "");
    uint32_t format = 0;
    fields.number("format", format, 1, 1);
    fields.number("vocabulary", model.vocabulary, 1, limits::model_vocabulary_max);
    fields.number("block_tokens", model.block_tokens, 1, limits::device_block_tokens_max);
    fields.number("block_count", model.block_count, 2, limits::device_blocks_max);
    fields.flag("deterministic", model.deterministic);
    if (auto named = read_names(fields, model); !named) return named.error();
    const json::array* graphs = fields.list("graphs", limits::nrt_graphs_max);
    if (const auto& error = fields.finish()) return *error;
    for (size_t i = 0; i < graphs->size(); ++i) {
        auto graph = read_graph((*graphs)[i], i, model.block_tokens);
        if (!graph) return graph.error();
        model.graphs.push_back(std::move(*graph));
    }
    if (auto ok = check_names(model); !ok) return ok.error();
    if (auto ok = collect_buckets(model); !ok) return ok.error();
    if (uint64_t(model.block_count) * model.block_tokens > uint64_t(std::numeric_limits<int32_t>::max()))
        return bad("block_count", "is too large for slots of 32 bits");
    if (uint64_t(model.context_buckets.back()) > uint64_t(model.block_count - 1) * model.block_tokens)
        return bad("block_count", "is too small for one sequence of the largest context");
    return model;
}

Result<NrtModelFolder> read_nrt_model(const std::string& directory) {
    std::ifstream file(directory + "/nrt_model.json", std::ios::binary);
    if (!file) return bad("", "is not in " + directory);
    std::string text(limits::nrt_manifest_bytes_max + 1, '\0');
    file.read(text.data(), std::streamsize(text.size()));
    text.resize(size_t(file.gcount()));
    return parse_nrt_model(text, directory);
}

}  // namespace mainstay
