#pragma once
// The settled turns that a prompt begins with, as a slice of a buffer that grows behind it: taking one costs nothing,
// however long the history is. What a slice shows never changes; later turns are added beyond its end, and a buffer is
// replaced, not rewritten, so a slice may be read on any thread while its session goes on.

#include <iterator>
#include <memory>
#include <vector>

#include "runtime/base/item.h"

namespace mainstay {

using ItemsPtr = std::shared_ptr<const std::vector<ItemPtr>>;

class TurnRun {
  public:
    using Turns = std::vector<ItemsPtr>;

    TurnRun() = default;
    /// All of a vector that nobody changes any more.
    explicit TurnRun(Turns turns) {
        const auto kept = std::make_shared<const Turns>(std::move(turns));
        *this = TurnRun(kept, kept->data(), kept->size());
    }
    /// `count` entries from `first` on, which `owner` keeps in place.
    TurnRun(std::shared_ptr<const void> owner, const ItemsPtr* first, size_t count)
        : owner_(std::move(owner)), first_(first), count_(count) {}

    const ItemsPtr* begin() const { return first_; }
    const ItemsPtr* end() const { return first_ + count_; }
    auto rbegin() const { return std::make_reverse_iterator(end()); }
    auto rend() const { return std::make_reverse_iterator(begin()); }
    size_t size() const { return count_; }
    bool empty() const { return count_ == 0; }
    const ItemsPtr& operator[](size_t i) const { return first_[i]; }

  private:
    std::shared_ptr<const void> owner_;
    const ItemsPtr* first_ = nullptr;
    size_t count_ = 0;
};

}  // namespace mainstay
