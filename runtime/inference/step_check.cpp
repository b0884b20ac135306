#include "runtime/inference/step_check.h"

#include <algorithm>
#include <limits>

#include "runtime/base/limits.h"

namespace mainstay {

namespace {

bool contains(const std::vector<uint32_t>& buckets, uint32_t bucket) {
    return std::find(buckets.begin(), buckets.end(), bucket) != buckets.end();
}

}  // namespace

DeviceError refused_step(DeviceFault fault, std::string message, std::optional<uint32_t> row) {
    if (row) message = "row " + std::to_string(*row) + ": " + message;
    return {DeviceAction::fail_request, fault, std::move(message), row, 0};
}

StepCheck::StepCheck(const DeviceCaps& caps) : caps_(caps), written_by_(caps.block_count), used_by_(caps.block_count) {}

DeviceResult<> StepCheck::check_block(BlockId block) const {
    if (!is_block(block)) return refused_step(DeviceFault::bad_block_table, "no block " + std::to_string(block));
    return {};
}

DeviceResult<> StepCheck::check_export(BlockId block, uint32_t tokens) const {
    if (auto checked = check_block(block); !checked) return checked;
    if (tokens < 1 || tokens > caps_.block_tokens)
        return refused_step(DeviceFault::bad_shape,
                            std::to_string(tokens) + " tokens of a block of " + std::to_string(caps_.block_tokens));
    return {};
}

DeviceResult<> StepCheck::check_copies(std::span<const BlockCopy> copies) const {
    for (const BlockCopy& copy : copies)
        if (!is_block(copy.from) || !is_block(copy.to) || copy.from == copy.to)
            return refused_step(DeviceFault::bad_block_table,
                                "cannot copy block " + std::to_string(copy.from) + " to " + std::to_string(copy.to));
    return {};
}

DeviceResult<> StepCheck::check(const Step& step) {
    if (step.rows.empty()) return refused_step(DeviceFault::bad_shape, "a step without rows");
    if (step.rows.size() > caps_.rows_max)
        return refused_step(DeviceFault::bad_shape,
                            std::to_string(step.rows.size()) + " rows, at most " + std::to_string(caps_.rows_max));
    size_t tokens = 0, prefills = 0;
    for (uint32_t r = 0; r < step.rows.size(); ++r) {
        if (auto checked = check_row(step, r); !checked) return checked;
        tokens += step.rows[r].tokens.size();
        prefills += step.rows[r].tokens.size() > 1;
    }
    if (tokens > caps_.tokens_max)
        return refused_step(DeviceFault::bad_shape,
                            std::to_string(tokens) + " tokens, at most " + std::to_string(caps_.tokens_max));
    if (step.kind == StepKind::decode && prefills > 0)
        return refused_step(DeviceFault::bad_shape, "a row of several tokens in a decode step");
    if (prefills > caps_.prefills_max)
        return refused_step(DeviceFault::bad_shape, std::to_string(prefills) + " prefills in one step, at most " +
                                                        std::to_string(caps_.prefills_max));
    if (caps_.strict)
        if (auto checked = check_buckets(step); !checked) return checked;
    return check_conflicts(step);
}

DeviceResult<> StepCheck::check_row(const Step& step, uint32_t r) const {
    const StepRow& row = step.rows[r];
    if (row.tokens.empty()) return refused_step(DeviceFault::bad_shape, "no tokens", r);
    const uint64_t end = uint64_t(row.position) + row.tokens.size();
    if (end > caps_.context_max)
        return refused_step(
            DeviceFault::bad_shape,
            "context of " + std::to_string(end) + " tokens, at most " + std::to_string(caps_.context_max), r);
    const size_t used = (end + caps_.block_tokens - 1) / caps_.block_tokens;
    if (row.block_table.size() < used)
        return refused_step(
            DeviceFault::bad_block_table,
            "a table of " + std::to_string(row.block_table.size()) + " blocks for " + std::to_string(end) + " tokens",
            r);
    for (size_t i = 0; i < row.block_table.size(); ++i) {
        const BlockId block = row.block_table[i];
        if (i < used ? !is_block(block) : block != block_none && !is_block(block))
            return refused_step(DeviceFault::bad_block_table,
                                "entry " + std::to_string(i) + " is " + std::to_string(block), r);
    }
    for (const TokenId token : row.tokens)
        if (token >= caps_.vocabulary)
            return refused_step(
                DeviceFault::bad_token,
                "token " + std::to_string(token) + ", the vocabulary has " + std::to_string(caps_.vocabulary), r);
    if (!row.allowed.empty()) {
        if (row.allowed.size() != (caps_.vocabulary + 63) / 64)
            return refused_step(DeviceFault::bad_token, "a mask of " + std::to_string(row.allowed.size()) + " words",
                                r);
        bool any = false;
        for (TokenId token = 0; token < caps_.vocabulary && !any; ++token) any = mask_allows(row.allowed, token);
        if (!any) return refused_step(DeviceFault::bad_token, "a mask that allows no token", r);
    }
    return {};
}

DeviceResult<> StepCheck::check_buckets(const Step& step) const {
    if (step.kind == StepKind::mixed) return refused_step(DeviceFault::bad_shape, "a mixed step in strict mode");
    if (step.kind == StepKind::prefill) {
        if (step.rows.size() != 1) return refused_step(DeviceFault::bad_shape, "more than one row in a prefill step");
        if (!contains(caps_.prefill_buckets, step.token_bucket) || step.rows[0].tokens.size() > step.token_bucket)
            return refused_step(DeviceFault::bad_shape, "token bucket " + std::to_string(step.token_bucket) + " for " +
                                                            std::to_string(step.rows[0].tokens.size()) + " tokens");
    } else if (!contains(caps_.decode_buckets, step.row_bucket) || step.rows.size() > step.row_bucket) {
        return refused_step(DeviceFault::bad_shape, "row bucket " + std::to_string(step.row_bucket) + " for " +
                                                        std::to_string(step.rows.size()) + " rows");
    }
    if (!contains(caps_.context_buckets, step.context_bucket))
        return refused_step(DeviceFault::bad_shape, "no context bucket " + std::to_string(step.context_bucket));
    for (uint32_t r = 0; r < step.rows.size(); ++r) {
        const StepRow& row = step.rows[r];
        const size_t end = row.position + row.tokens.size();
        if (end > step.context_bucket)
            return refused_step(
                DeviceFault::bad_shape,
                "context of " + std::to_string(end) + " tokens in a bucket of " + std::to_string(step.context_bucket),
                r);
        if (row.block_table.size() != step.context_bucket / caps_.block_tokens)
            return refused_step(
                DeviceFault::bad_block_table,
                "a table of " + std::to_string(row.block_table.size()) + " blocks, not of the bucket's length", r);
        for (size_t i = (end + caps_.block_tokens - 1) / caps_.block_tokens; i < row.block_table.size(); ++i)
            if (row.block_table[i] != block_none)
                return refused_step(DeviceFault::bad_block_table,
                                    "entry " + std::to_string(i) + " is beyond the context", r);
    }
    return {};
}

/// A block that a row writes is that row's alone, and no table names a block twice.
DeviceResult<> StepCheck::check_conflicts(const Step& step) {
    if (stamp_ > std::numeric_limits<uint32_t>::max() - 2 * limits::device_rows_max) {
        std::fill(written_by_.begin(), written_by_.end(), 0);
        std::fill(used_by_.begin(), used_by_.end(), 0);
        stamp_ = 0;
    }
    const uint32_t first = stamp_ + 1;  // the stamp of row 0; all older ones are of other steps
    stamp_ += uint32_t(step.rows.size());
    for (uint32_t r = 0; r < step.rows.size(); ++r) {
        const StepRow& row = step.rows[r];
        const size_t last = (row.position + row.tokens.size() - 1) / caps_.block_tokens;
        for (size_t i = row.position / caps_.block_tokens; i <= last; ++i) {
            uint32_t& writer = written_by_[size_t(row.block_table[i])];
            if (writer >= first)
                return refused_step(DeviceFault::block_conflict,
                                    "block " + std::to_string(row.block_table[i]) + " is written by row " +
                                        std::to_string(writer - first) + " too",
                                    r);
            writer = first + r;
        }
    }
    for (uint32_t r = 0; r < step.rows.size(); ++r) {
        const StepRow& row = step.rows[r];
        const size_t last = (row.position + row.tokens.size() - 1) / caps_.block_tokens;
        for (size_t i = 0; i <= last; ++i) {
            const size_t block = size_t(row.block_table[i]);
            if (written_by_[block] >= first && written_by_[block] != first + r)
                return refused_step(DeviceFault::block_conflict,
                                    "block " + std::to_string(block) + " is being written by row " +
                                        std::to_string(written_by_[block] - first),
                                    r);
            if (used_by_[block] == first + r)
                return refused_step(DeviceFault::block_conflict,
                                    "block " + std::to_string(block) + " is in its table twice", r);
            used_by_[block] = first + r;
        }
    }
    return {};
}

}  // namespace mainstay
