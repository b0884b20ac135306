#include "runtime/session/prompt.h"

#include <algorithm>
#include <string_view>
#include <unordered_set>

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

size_t window_bytes_of(const Turn& turn) {
    size_t bytes = 0;
    for (const ItemPtr& item : turn.items) bytes += sizeof(Item) + item->bytes();
    return bytes;
}

Window::Window(const Window& other)
    : entries_(other.entries_),
      bytes_(other.bytes_),
      bytes_max_(other.bytes_max_),
      items_(other.items_),
      dropped_(other.dropped_) {
    if (items_) renew(entries_.size());
}

void Window::set_bytes(size_t bytes) {
    bytes_max_ = bytes;
    trim();
}

void Window::push(TurnPtr turn) {
    const size_t bytes = window_bytes_of(*turn);
    bytes_ += bytes;
    if (!items_ || items_->size() == items_->capacity()) renew(entries_.size() + entries_.size() / 2 + 4);
    items_->push_back(prompt_items(turn));
    entries_.push_back(Entry{std::move(turn), bytes});
    trim();
}

void Window::drop_first() {
    bytes_ -= entries_.front().bytes;
    dropped_bytes_ += entries_.front().bytes;
    ++dropped_;
    entries_.pop_front();
}

void Window::drop_up_to(TurnNo no) {
    while (!entries_.empty() && entries_.front().turn->no <= no) drop_first();
    trim();
}

void Window::clear() {
    entries_.clear();
    items_.reset();
    bytes_ = dropped_ = dropped_bytes_ = 0;
}

/// What was dropped is held on to until it is a quarter of what is not: so a push moves a few pointers, and a window
/// holds a quarter more than its bound.
void Window::trim() {
    if (bytes_ > bytes_max_)
        while (entries_.size() > 1 && bytes_ > bytes_max_ / limits::history_window_kept) drop_first();
    if (dropped_bytes_ > bytes_ / 4) renew(entries_.size() + entries_.size() / 2 + 4);
}

void Window::renew(size_t capacity) {
    auto fresh = std::make_shared<TurnRun::Turns>();
    fresh->reserve(capacity);
    if (items_) fresh->assign(items_->begin() + static_cast<ptrdiff_t>(dropped_), items_->end());
    items_ = std::move(fresh);
    dropped_ = dropped_bytes_ = 0;
}

TurnPtr Window::find(TurnNo no) const {
    for (auto at = entries_.rbegin(); at != entries_.rend(); ++at)
        if (at->turn->no == no) return at->turn;
    return nullptr;
}

TurnNo Window::first() const {
    TurnNo first;
    for (const Entry& entry : entries_)
        if (first.value == 0 || entry.turn->no < first) first = entry.turn->no;
    return first;
}

std::optional<TurnNo> Window::cut(size_t keep, const Turn& open) const {
    std::unordered_set<std::string_view> answered;
    for (const ItemPtr& item : open.items)
        if (item->kind == ItemKind::function_call_output) answered.insert(item->call_id);
    const auto asked_by = [&](const Turn& turn) {
        return std::any_of(turn.items.begin(), turn.items.end(), [&](const ItemPtr& item) {
            return item->kind == ItemKind::function_call && answered.contains(item->call_id);
        });
    };
    std::optional<TurnNo> up_to;
    size_t left = bytes_;
    for (const Entry& entry : entries_) {
        if ((up_to && left <= keep) || entry.turn->no >= open.no || asked_by(*entry.turn)) break;
        left -= entry.bytes;
        up_to = std::max(up_to.value_or(entry.turn->no), entry.turn->no);
    }
    return up_to;
}

TurnRun Window::run() const {
    if (entries_.empty()) return {};
    return TurnRun(items_, items_->data() + dropped_, entries_.size());
}

}  // namespace mainstay
