#include "runtime/session/prompt.h"

#include <algorithm>

namespace mainstay {
namespace {

ItemsPtr filtered(const Turn& turn) {
    auto items = std::make_shared<std::vector<ItemPtr>>();
    items->reserve(turn.items.size());
    auto withheld = turn.withheld.begin();
    for (uint32_t i = 0; i < turn.items.size(); ++i) {
        if (withheld != turn.withheld.end() && *withheld == i)
            ++withheld;
        else
            items->push_back(turn.items[i]);
    }
    return items;
}

}  // namespace

ItemsPtr prompt_items(const TurnPtr& turn) {
    return turn->withheld.empty() ? ItemsPtr(turn, &turn->items) : filtered(*turn);
}

ItemsPtr prompt_items(const Turn& turn) { return filtered(turn); }

void Window::set_bytes(size_t bytes) {
    bytes_max_ = bytes;
    trim();
}

void Window::push(TurnPtr turn) {
    Entry entry{turn, prompt_items(turn), 0};
    for (const ItemPtr& item : turn->items) entry.bytes += sizeof(Item) + item->bytes();
    bytes_ += entry.bytes;
    entries_.push_back(std::move(entry));
    snapshot_.reset();
    trim();
}

void Window::drop_up_to(TurnNo no) {
    while (first_ < entries_.size() && entries_[first_].turn->no <= no) {
        bytes_ -= entries_[first_].bytes;
        entries_[first_++] = Entry{};
        snapshot_.reset();
    }
    trim();
}

void Window::clear() {
    entries_.clear();
    first_ = bytes_ = 0;
    snapshot_.reset();
}

void Window::trim() {
    while (entries_.size() > first_ + 1 && bytes_ > bytes_max_) {
        bytes_ -= entries_[first_].bytes;
        entries_[first_++] = Entry{};
        snapshot_.reset();
    }
    // The emptied front is given up in one move when it is half of everything, so a push costs the same at any turn.
    if (first_ > 16 && first_ * 2 > entries_.size()) {
        entries_.erase(entries_.begin(), entries_.begin() + static_cast<ptrdiff_t>(first_));
        first_ = 0;
    }
}

TurnPtr Window::find(TurnNo no) const {
    for (size_t i = entries_.size(); i > first_; --i)
        if (entries_[i - 1].turn->no == no) return entries_[i - 1].turn;
    return nullptr;
}

std::shared_ptr<const std::vector<ItemsPtr>> Window::snapshot() const {
    if (!snapshot_) {
        auto made = std::make_shared<std::vector<ItemsPtr>>();
        made->reserve(entries_.size() - first_);
        for (size_t i = first_; i < entries_.size(); ++i) made->push_back(entries_[i].items);
        snapshot_ = std::move(made);
    }
    return snapshot_;
}

}  // namespace mainstay
