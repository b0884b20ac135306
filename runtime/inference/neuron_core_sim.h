#pragma once
// A NeuronCore on the CPU: the Device contract with the real arithmetic of a Llama and, beside it, a modelled clock
// that tells what the step would take on the hardware that it stands for (device_clock.h, always labelled simulated).
//
// Strict mode adds what a compiled graph imposes (vllm-neuron's design): static buckets for prefill tokens, decode rows
// and context, one prefill per step and no decodes beside it, tables of fixed length that hold block_none where nothing
// is. It changes no result. It is there so that a scheduler's faults show up without hardware.
//
// Owned by the worker's thread; brings its own threads for the arithmetic.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/inference/device.h"
#include "runtime/inference/device_clock.h"
#include "runtime/inference/llama_model.h"

namespace mainstay {

struct NeuronCoreSimOptions {
    std::string hardware = "trn2";  // what the clock stands for; empty: no clock
    double busy_watts = 0;          // 0: as the table assumes
    double idle_watts = 0;
    std::string kernels;  // empty: the best that the machine runs; else one of runnable_kernels()
    unsigned threads = 2;
    uint32_t block_tokens = 16;  // multiple of 16, at most limits::device_block_tokens_max
    uint32_t block_count = 1024;
    uint32_t context_max = 0;  // 0: what the model was trained for, and at most what the blocks hold
    uint32_t rows_max = 32;
    uint32_t tokens_max = 256;
    bool strict = false;
    std::vector<uint32_t> prefill_buckets;  // strict; empty: powers of two from 16 up to tokens_max
    std::vector<uint32_t> decode_buckets;   // strict; empty: powers of two up to rows_max
    std::vector<uint32_t> context_buckets;  // strict; empty: context_max only
    uint64_t memory_bytes_max = 0;          // 0: what the machine has available
};

/// Loads the model of `directory` and makes a device of it. Fails with model_not_loadable (files, memory) or
/// unsupported_value (an option, named as `param`).
Result<std::unique_ptr<Device>> open_neuron_core_sim(const std::string& directory, Precision precision,
                                                     const NeuronCoreSimOptions& options);
/// The same for a model that is loaded, which several devices may share.
Result<std::unique_ptr<Device>> make_neuron_core_sim(std::shared_ptr<const LlamaModel> model,
                                                     const NeuronCoreSimOptions& options);

}  // namespace mainstay
