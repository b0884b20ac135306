#pragma once
// Where tokens come from: one device runs steps, and a step is a batch of rows of many sequences. The device knows
// neither sessions nor who owns which block: block tables and allocation belong to the scheduler, a device sees block
// ids only, and the attention state of a sequence is the content of the blocks that its table names. So a row carries
// everything: whatever the batch, the chunking of the prefill, or a block that was exported and imported in between,
// the tokens of a row are the same bits (Caps::deterministic, per model_hash and kernel_id).
//
// A device belongs to one worker thread: every call is made there, and run() blocks it for the length of one step. It
// never retries and never replaces absent hardware. Violations of the contract in a step are typed errors with nothing
// written to any block, because a scheduler's fault must be visible without hardware.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "runtime/base/error_code.h"
#include "runtime/base/result.h"
#include "runtime/inference/sampling_params.h"

namespace mainstay {

/// A KV block of the device. Block 0 is the null block: it exists, holds nothing and is never in a table that is read
/// or written. An entry that is not used is `block_none`.
using BlockId = int32_t;
constexpr BlockId block_none = -1;
constexpr BlockId block_null = 0;

/// Names a sequence in results; the device keeps nothing under it.
using SequenceHandle = uint64_t;

/// What a device is and what it can take. Constant for its life.
struct DeviceCaps {
    std::string kind;        // "neuron_core_sim", "nrt"
    std::string hardware;    // whose time and power is told: "trn2"; empty: none
    bool simulated = true;   // device seconds and joules are modelled, and are labelled so wherever they are printed
    std::string model_hash;  // hex; of shapes, options and all weights
    std::string kernel_id;   // names the arithmetic; equal hash and id: equal bits
    std::string kv_format;   // names the bytes of an exported block; equal format and hash: importable

    uint32_t vocabulary = 0;
    uint32_t block_tokens = 0;              // tokens of one KV block
    uint32_t block_count = 0;               // with the null block: ids 1 to block_count - 1 can be allocated
    uint64_t block_bytes = 0;               // of one exported block, framing included
    uint32_t context_max = 0;               // tokens of one sequence
    uint32_t rows_max = 0;                  // of one step
    uint32_t tokens_max = 0;                // of one step, over all rows
    uint32_t prefills_max = 0;              // rows with more than one token in one step
    bool mixed_steps = false;               // decodes and prefills may share a step
    bool strict = false;                    // static shapes: the three lists below are not empty and bind
    std::vector<uint32_t> prefill_buckets;  // tokens of a prefill row, ascending
    std::vector<uint32_t> decode_buckets;   // rows of a decode step, ascending
    std::vector<uint32_t> context_buckets;  // tokens of context (position + tokens) of any row, ascending
    bool kv_export = false;
    bool logit_mask = false;
    bool deterministic = false;
};

enum class StepKind : uint8_t { decode, prefill, mixed };
const char* to_string(StepKind kind);

/// One sequence's part of a step: `tokens` take positions [position, position + tokens.size()), and what the sequence
/// holds before `position` is in its blocks. One token: a decode, or a prefill of one.
struct StepRow {
    SequenceHandle sequence = 0;
    uint64_t epoch = 0;  // returned; a result of an old epoch is dropped by who asked (fencing after cancel, migration)
    std::vector<TokenId> tokens;
    uint32_t position = 0;
    /// Entry i holds positions [i * block_tokens, (i + 1) * block_tokens). Covers position + tokens.size(). In strict
    /// mode it has context_bucket / block_tokens entries, block_none beyond what is used.
    std::vector<BlockId> block_table;
    bool want_token = true;    // false: a prefill chunk that is not the last
    bool want_logits = false;  // the row's last logits, after the mask
    SamplingParams sampling;
    uint64_t seed = 0;
    /// Bit t of word t / 64 set: token t may be chosen. Empty: all may. Otherwise (vocabulary + 63) / 64 words.
    std::vector<uint64_t> allowed;
};

struct Step {
    uint64_t id = 0;
    StepKind kind = StepKind::mixed;
    uint32_t token_bucket = 0;    // strict prefill: one of prefill_buckets
    uint32_t row_bucket = 0;      // strict decode: one of decode_buckets
    uint32_t context_bucket = 0;  // strict: one of context_buckets
    std::vector<StepRow> rows;
};

struct RowResult {
    SequenceHandle sequence = 0;
    uint64_t epoch = 0;
    std::optional<TokenId> token;
    std::span<const float> logits;  // of the device; valid until its next call
};

/// What a step cost. `wall_s` was measured. `device_s` and `joules` are modelled where caps().simulated, with assumed
/// power; zero where the device tells none.
struct StepCost {
    double wall_s = 0;
    double device_s = 0;
    double joules = 0;
    uint64_t flops = 0;           // over padded shapes
    uint64_t bytes = 0;           // moved to and from device memory, over padded shapes
    uint32_t tokens = 0;          // asked for
    uint32_t padded_tokens = 0;   // computed for nothing, because of buckets
    uint64_t context_tokens = 0;  // KV read, summed over rows
    uint64_t padded_context = 0;  // KV read for nothing
};

struct StepResult {
    uint64_t step = 0;
    std::vector<RowResult> rows;  // in the order of the step's
    StepCost cost;
};

/// What the caller of a failed step is to do: the columns of the table of status codes of the Neuron runtime.
enum class DeviceAction : uint8_t {
    retry,           // back-pressure: the same step again later, on this device
    fail_request,    // the step or its row `row` is wrong; the others may run again without it
    restart_worker,  // the device is lost with its blocks; sequences go on elsewhere from their tokens
};
const char* to_string(DeviceAction action);

/// Why, for programs; `message` is for people.
enum class DeviceFault : uint8_t {
    queue_full,
    resource,
    bad_shape,        // rows, tokens, kind or bucket outside what caps() allow
    bad_block_table,  // too short, an id out of range, the null block or block_none where a block is needed
    block_conflict,   // a slot written twice, or (strict) a block written by one row and used by another
    bad_token,        // an id outside the vocabulary, or a mask that allows none
    bad_bytes,        // an imported block: damaged, of another model, kernel or shape
    numeric,          // not a number among the logits
    timeout,
    hardware,
    unsupported,
};
const char* to_string(DeviceFault fault);

struct DeviceError {
    DeviceAction action = DeviceAction::fail_request;
    DeviceFault fault = DeviceFault::bad_shape;
    std::string message;          // names the bound or field
    std::optional<uint32_t> row;  // index in the step, where one is to blame
    int status = 0;               // the hardware's own code, where there is one
};

/// A value or a DeviceError; no value for void.
template <class T = std::monostate>
class [[nodiscard]] DeviceResult {
  public:
    DeviceResult() requires std::is_same_v<T, std::monostate>
    = default;
    DeviceResult(T value) : state_(std::in_place_index<0>, std::move(value)) {}
    DeviceResult(DeviceError error) : state_(std::in_place_index<1>, std::move(error)) {}

    bool ok() const { return state_.index() == 0; }
    explicit operator bool() const { return ok(); }
    T& operator*() {
        INVARIANT(ok(), "value of a failed DeviceResult");
        return std::get<0>(state_);
    }
    T* operator->() { return &**this; }
    const DeviceError& error() const {
        INVARIANT(!ok(), "error of a successful DeviceResult");
        return std::get<1>(state_);
    }

  private:
    std::variant<T, DeviceError> state_;
};

struct BlockCopy {
    BlockId from = block_none;
    BlockId to = block_none;
};

class Device {
  public:
    virtual ~Device() = default;
    virtual const DeviceCaps& caps() const = 0;

    /// Runs all rows and chooses their tokens. On error no row has a result; blocks that the step would have written
    /// hold their content before position on, and the positions of the step are to be computed again.
    virtual DeviceResult<StepResult> run(const Step& step) = 0;

    /// Copies whole blocks in order: a shared tail gets its own copy before it is written to.
    virtual DeviceResult<> copy_blocks(std::span<const BlockCopy> copies) = 0;

    /// The first `tokens` (1 to block_tokens) tokens of a block as bytes that name their model, format and checksum
    /// (docs/formats/kv_block.md). What else the block holds is left out, whose ever it was.
    virtual DeviceResult<std::string> export_block(BlockId block, uint32_t tokens) const = 0;
    /// Fills `block` and returns its tokens. Bytes that are damaged or belong to another model, kernel or shape are
    /// refused with bad_bytes and change nothing: the caller recomputes.
    virtual DeviceResult<uint32_t> import_block(BlockId block, std::string_view bytes) = 0;
};

}  // namespace mainstay
