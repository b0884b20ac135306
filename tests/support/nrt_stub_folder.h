#pragma once
// Writes a model folder for the stub of libnrt (nrt_stub.cpp): one text file for each bucket and the nrt_model.json
// that says what they are for. Tests change one line of it to make a folder that does not fit.

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "runtime/inference/llama_config.h"

namespace mainstay {

struct StubFolder {
    std::string model;  // folder of the Llama whose arithmetic it is; an absolute path
    LlamaConfig config;
    uint32_t block_tokens = 16;
    uint32_t block_count = 30;
    std::vector<uint32_t> prefill_buckets{16, 32, 64};
    std::vector<uint32_t> decode_buckets{1, 2, 4, 8};
    std::vector<uint32_t> context_buckets{32, 64, 128};
    bool last_token = true;
    int logits_type = 10;    // as NrtType
    std::string more_lines;  // of every graph
    std::string find, put;   // in the manifest, the first place

    void write(const std::filesystem::path& directory) const {
        std::filesystem::create_directories(directory);
        std::string graphs;
        for (const uint32_t context : context_buckets) {
            for (const uint32_t tokens : prefill_buckets) graphs += graph(directory, "prefill", tokens, 1, context);
            for (const uint32_t rows : decode_buckets) graphs += graph(directory, "decode", rows, rows, context);
        }
        std::string kv;
        for (uint32_t layer = 0; layer < config.num_hidden_layers; ++layer)
            for (const char* kind : {"k", "v"}) {
                const std::string name = std::string(kind) + "_cache." + std::to_string(layer);
                kv += std::string(kv.empty() ? "" : ", ") + "{\"input\": \"" + name + "\", \"output\": \"" + name +
                      ".out\"}";
            }
        std::string text = "{\"format\": 1, \"vocabulary\": " + std::to_string(config.vocab_size) +
                           ", \"block_tokens\": " + std::to_string(block_tokens) +
                           ", \"block_count\": " + std::to_string(block_count) + ", \"deterministic\": true,\n" +
                           " \"inputs\": {\"tokens\": \"input_ids\", \"positions\": \"position_ids\", \"slots\": "
                           "\"slot_mapping\", \"block_tables\": \"block_tables\"" +
                           (last_token ? ", \"last_token\": \"last_token\"" : "") + "},\n" +
                           " \"outputs\": {\"logits\": \"logits\"},\n \"kv\": [" + kv + "],\n \"graphs\": [" +
                           graphs.substr(1) + "]}\n";
        if (!find.empty()) text.replace(text.find(find), find.size(), put);
        std::ofstream(directory / "nrt_model.json") << text;
    }

  private:
    std::string graph(const std::filesystem::path& directory, const std::string& kind, uint32_t tokens, uint32_t rows,
                      uint32_t context) const {
        const std::string file = kind + "_" + std::to_string(tokens) + "_" + std::to_string(context) + ".neff";
        std::ofstream out(directory / file);
        out << "stub-neff 1\nmodel " << model << "\nkind " << kind << "\ntokens " << tokens << "\nrows " << rows
            << "\ncontext " << context << "\nblock_tokens " << block_tokens << "\nblock_count " << block_count
            << "\nlogits " << logits_type << "\n"
            << (last_token && kind == "prefill" ? "last_token\n" : "") << more_lines;
        return ",\n  {\"kind\": \"" + kind + "\", \"" + (kind == "prefill" ? "tokens" : "rows") +
               "\": " + std::to_string(kind == "prefill" ? tokens : rows) +
               ", \"context\": " + std::to_string(context) + ", \"file\": \"" + file + "\"}";
    }
};

}  // namespace mainstay
