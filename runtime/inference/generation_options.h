#pragma once
// What a request asks of one model step on a device of our own: the fields of the Responses API that mean something to
// a sampler, read from ModelRequest::options. Pure.

#include <optional>
#include <string>
#include <vector>

#include "runtime/base/result.h"
#include "runtime/inference/fair_queue.h"
#include "runtime/inference/request_options.h"
#include "runtime/inference/sampling_params.h"
#include "runtime/inference/text_device.h"

namespace mainstay {

struct GenerationOptions {
    SamplingParams sampling;  // greedy where nobody says a temperature
    std::optional<uint64_t> seed;
    uint32_t new_tokens_max = 0;  // 0: nobody says a bound
    std::vector<std::string> stops;
    ToolChoice tool_choice;
    bool parallel_calls = true;
    bool json = false;   // the text is one JSON value ...
    std::string schema;  // ... of this schema; empty: any object
    PriorityClass priority = PriorityClass::normal;
};

/// Fails with invalid_request or unsupported_value, naming the field.
Result<GenerationOptions> read_generation_options(const ModelRequest& request);

}  // namespace mainstay
