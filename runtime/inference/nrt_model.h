#pragma once
// What a model folder for the Neuron runtime holds: compiled graphs (NEFF files), one for each bucket, and
// nrt_model.json, which says what each is for and what its tensors are called (docs/formats/nrt_model.md). A NEFF tells
// names, types and shapes of its tensors, but not what they mean; that is written down here and checked against it when
// it is loaded. Immutable after reading.

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/base/result.h"
#include "runtime/inference/device.h"

namespace mainstay {

/// One compiled graph: a prefill of one row of up to `tokens` tokens, or a decode of up to `rows` rows of one.
struct NrtGraph {
    StepKind kind = StepKind::decode;
    uint32_t tokens = 0;   // of the whole step: the token bucket, or as many as rows
    uint32_t rows = 1;     // the row bucket
    uint32_t context = 0;  // bucket
    std::string file;      // in the folder
};

/// Keys or values of one layer. Input and output are one tensor, which the graph changes in place.
struct NrtKvTensor {
    std::string input, output;
};

struct NrtModelFolder {
    std::string directory;
    std::string manifest;  // its text
    uint32_t vocabulary = 0;
    uint32_t block_tokens = 0;
    uint32_t block_count = 0;  // with the null block
    bool deterministic = false;
    std::string tokens, positions, slots, block_tables;  // names of inputs
    std::string last_token;                              // empty: prefills give the logits of every token
    std::string logits;                                  // name of the output
    std::vector<NrtKvTensor> kv;
    std::vector<NrtGraph> graphs;
    // Ascending; every combination of a token or row bucket with a context bucket has its graph.
    std::vector<uint32_t> prefill_buckets, decode_buckets, context_buckets;

    const NrtGraph& graph(StepKind kind, uint32_t bucket, uint32_t context) const;
};

/// Reads nrt_model.json of `directory`. Fails with model_not_loadable and the key as `param`.
Result<NrtModelFolder> read_nrt_model(const std::string& directory);
/// The same from the file's text; `directory` is only noted.
Result<NrtModelFolder> parse_nrt_model(std::string_view json, std::string directory);

}  // namespace mainstay
