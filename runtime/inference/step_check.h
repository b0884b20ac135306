#pragma once
// The contract of a step (device.h), checked before anything is computed or written: bounds, block tables, buckets, and
// that no two rows meet in a block which one of them writes. The same for every device that has blocks, so that a
// scheduler's fault has one name whatever runs below. Owned by the device's thread.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "runtime/inference/device.h"

namespace mainstay {

/// What the caller did wrong: fail_request, with the row in the message too.
DeviceError refused_step(DeviceFault fault, std::string message, std::optional<uint32_t> row = std::nullopt);

inline bool mask_allows(const std::vector<uint64_t>& mask, TokenId token) {
    return mask.empty() || (mask[token / 64] >> (token % 64) & 1);
}

class StepCheck {
  public:
    /// `caps` outlives it.
    explicit StepCheck(const DeviceCaps& caps);

    /// Every rule of a step.
    DeviceResult<> check(const Step& step);
    DeviceResult<> check_copies(std::span<const BlockCopy> copies) const;
    DeviceResult<> check_block(BlockId block) const;
    DeviceResult<> check_export(BlockId block, uint32_t tokens) const;

  private:
    bool is_block(BlockId block) const { return block > block_null && uint32_t(block) < caps_.block_count; }
    DeviceResult<> check_row(const Step& step, uint32_t r) const;
    DeviceResult<> check_buckets(const Step& step) const;
    DeviceResult<> check_conflicts(const Step& step);

    const DeviceCaps& caps_;
    std::vector<uint32_t> written_by_, used_by_;  // by block: the stamp of the row that last did
    uint32_t stamp_ = 0;
};

}  // namespace mainstay
