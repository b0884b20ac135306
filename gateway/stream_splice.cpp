#include "gateway/stream_splice.h"

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>

#include "gateway/error_table.h"
#include "gateway/json_writer.h"
#include "gateway/sse.h"

namespace mainstay {
namespace {

constexpr std::string_view added_name = "response.output_item.added", done_name = "response.output_item.done";
constexpr std::string_view part_added_name = "response.content_part.added";
constexpr std::string_view delta_name = "response.output_text.delta", text_done_name = "response.output_text.done";
constexpr std::string_view delta_begin = "\"delta\":\"", delta_end = "\",\"logprobs\":[]}";

constexpr size_t frame_bytes_max = 64 * 1024 * 1024;  // one event: a closing object has the whole answer
constexpr uint32_t items_max = 64 * 1024;             // an item's index has 16 bits

bool take_text(std::string_view& from, std::string_view text) {
    if (!from.starts_with(text)) return false;
    from.remove_prefix(text.size());
    return true;
}

template <class Number>
bool take_number(std::string_view& from, Number& number) {
    const auto [end, ec] = std::from_chars(from.data(), from.data() + from.size(), number);
    if (ec != std::errc()) return false;
    from.remove_prefix(static_cast<size_t>(end - from.data()));
    return true;
}

/// The text between `before` and the next quote; ids and types have nothing escaped in them.
std::string_view quoted_behind(std::string_view json, std::string_view before) {
    const auto at = json.find(before);
    if (at == std::string_view::npos) return {};
    json.remove_prefix(at + before.size());
    return json.substr(0, std::min(json.find('"'), json.size()));
}

/// The escaped text of a delta; nothing for one that is not as ResponseStream writes it.
std::optional<std::string_view> delta_of(std::string_view rest) {
    const auto begin = rest.find(delta_begin);
    if (begin == std::string_view::npos || !rest.ends_with(delta_end)) return std::nullopt;
    rest.remove_prefix(begin + delta_begin.size());
    if (rest.size() < delta_end.size()) return std::nullopt;
    return rest.substr(0, rest.size() - delta_end.size());
}

/// Where the elements of the array that begins at `at` (its bracket) begin, and last where it ends.
std::vector<size_t> elements_of(std::string_view json, size_t at) {
    std::vector<size_t> out;
    size_t depth = 0;
    bool text = false;
    for (size_t i = at; i < json.size(); ++i) {
        const char c = json[i];
        if (text) {
            if (c == '\\')
                ++i;
            else if (c == '"')
                text = false;
            continue;
        }
        if (c == '"') text = true;
        if (c == '[' || c == '{') {
            if (depth++ == 1) out.push_back(i);
        } else if (c == ']' || c == '}') {
            if (--depth > 0) continue;
            out.push_back(i);
            return out;
        }
    }
    return {};
}

std::string output_text(std::string_view escaped) {
    std::string out = "{\"type\":\"output_text\",\"text\":\"";
    return out.append(escaped).append("\",\"annotations\":[],\"logprobs\":[]}");
}

}  // namespace

bool StreamSplice::Shown::has(std::string_view name) const { return std::ranges::find(sent, name) != sent.end(); }

void StreamSplice::feed(std::string_view bytes) {
    pending_ += bytes;
    size_t begin = 0;
    while (!finished_ && !lost_) {
        const auto end = pending_.find("\n\n", begin);
        if (end == std::string::npos) break;
        const auto event = parse(std::string_view(pending_).substr(begin, end - begin));
        if (!event) return damaged("an event of the node's stream cannot be read");
        take(*event);
        begin = end + 2;
    }
    pending_.erase(0, begin);
    if (pending_.size() > frame_bytes_max) damaged("an event of the node's stream has no end");
}

void StreamSplice::source_ended() {
    if (!lost_) finished_ = true;
}

void StreamSplice::next_source() {
    pending_.clear();
    repeated_.clear();
    lost_.reset();
    first_ = false;
}

void StreamSplice::fail(const Error& error) {
    if (finished_) return;
    std::string rest;
    JsonWriter writer(rest);
    writer.raw(",\"code\":").string(error_name(error.code)).raw(",\"message\":").string(error.message);
    writer.raw(",\"param\":").string_or_null(error.param).raw("}");
    send("error", std::nullopt, rest);
    lost_.reset();
    finished_ = true;
}

void StreamSplice::damaged(const char* why) {
    pending_.clear();
    fail({ErrorCode::internal, std::string(why) + ": read the response.", {}});
}

std::optional<StreamSplice::Event> StreamSplice::parse(std::string_view frame) {
    Event event;
    if (!take_text(frame, "event: ")) return std::nullopt;
    event.name = frame.substr(0, std::min(frame.find('\n'), frame.size()));
    frame.remove_prefix(event.name.size());
    uint64_t sequence = 0;
    if (!take_text(frame, "\ndata: {\"type\":\"") || !take_text(frame, event.name) ||
        !take_text(frame, "\",\"sequence_number\":") || !take_number(frame, sequence))
        return std::nullopt;
    if (take_text(frame, ",\"output_index\":")) {
        uint32_t index = 0;
        if (!take_number(frame, index) || index >= items_max) return std::nullopt;
        event.index = index;
    }
    event.rest = frame;
    return event;
}

void StreamSplice::take(const Event& event) {
    if (event.index) return take_item(event, *event.index);
    if (event.name == "error") return take_error(event);
    if (event.name == "response.created" || event.name == "response.queued" || event.name == "response.in_progress")
        return take_opening(event);
    take_closing(event);
}

void StreamSplice::take_opening(const Event& event) {
    const auto id = quoted_behind(event.rest, "\"response\":{\"id\":\"");
    if (response_id_.empty()) response_id_ = id;
    if (id != response_id_) return damaged("the request led to another response than before");
    // Queued is told before in progress or not at all.
    const auto told = [&](std::string_view name) { return std::ranges::find(opening_, name) != opening_.end(); };
    if (told(event.name) || told("response.in_progress")) return;
    opening_.emplace_back(event.name);
    send(event.name, std::nullopt, event.rest);
}

uint32_t StreamSplice::place_of(uint32_t source_index) {
    while (places_.size() <= source_index) places_.push_back(static_cast<uint32_t>(places_.size()) + inserted_);
    if (repeated_.size() <= source_index) repeated_.resize(source_index + 1);
    const uint32_t place = places_[source_index];
    if (items_.size() <= place) items_.resize(place + 1);
    return place;
}

void StreamSplice::take_item(const Event& event, uint32_t source_index) {
    uint32_t place = place_of(source_index);
    if (items_[place].done) return;
    if (event.name == delta_name) return take_delta(event, source_index);
    Repeated& repeated = repeated_[source_index];
    const bool replays = !first_ && !repeated.caught_up && items_[place].has(added_name);
    if (event.name == added_name) {
        const auto type = quoted_behind(event.rest, "\"item\":{\"type\":\"");
        if (replays) {
            repeated.added = event.rest;
            if (type == items_[place].type) return;
            // Something else was committed there than the text that was shown.
            if (items_[place].type != "message") return damaged("a committed item has become another one");
            return begin_anew(source_index);
        }
        items_[place].type = type;
        items_[place].id = quoted_behind(event.rest, "\"id\":\"");
    } else if (replays && event.name == part_added_name) {
        repeated.part = event.rest;
    } else if (replays && event.name == text_done_name) {
        if (repeated.text != items_[place].text) begin_anew(source_index);
        repeated.caught_up = true;
        place = places_[source_index];
    }
    Shown& shown = items_[place];
    if (shown.has(event.name)) return;
    shown.sent.emplace_back(event.name);
    send(event.name, place, event.rest);
    if (event.name != done_name) return;
    shown.done = true;
    shown.text = {};
}

void StreamSplice::take_delta(const Event& event, uint32_t source_index) {
    const auto text = delta_of(event.rest);
    if (!text) return damaged("a delta of the node's stream cannot be read");
    const uint32_t place = places_[source_index];
    Shown& shown = items_[place];
    Repeated& repeated = repeated_[source_index];
    if (first_ || repeated.caught_up) {
        shown.text += *text;
        send(event.name, place, event.rest);
        return;
    }
    repeated.text += *text;
    if (repeated.text.size() <= shown.text.size()) {
        if (!shown.text.starts_with(repeated.text)) begin_anew(source_index);
        return;
    }
    if (!repeated.text.starts_with(shown.text)) return begin_anew(source_index);
    repeated.caught_up = true;
    send_delta(place, std::string_view(repeated.text).substr(shown.text.size()));
}

/// The message that was shown ends as it is; what the present source says of it begins behind it.
void StreamSplice::begin_anew(uint32_t source_index) {
    close_incomplete(places_[source_index]);
    ++inserted_;
    ++places_[source_index];
    const uint32_t place = place_of(source_index);
    Repeated& repeated = repeated_[source_index];
    repeated.caught_up = true;
    items_[place].type = quoted_behind(repeated.added, "\"item\":{\"type\":\"");
    items_[place].id = quoted_behind(repeated.added, "\"id\":\"");
    for (const auto& [name, rest] :
         {std::pair(added_name, &repeated.added), std::pair(part_added_name, &repeated.part)})
        if (!rest->empty()) {
            items_[place].sent.emplace_back(name);
            send(name, place, *rest);
        }
    if (!repeated.text.empty()) send_delta(place, repeated.text);
}

void StreamSplice::close_incomplete(uint32_t index) {
    Shown& shown = items_[index];
    const std::string part = output_text(shown.text);
    const std::string of_item = ",\"item_id\":\"" + shown.id + "\",\"content_index\":0";
    const std::string item = "{\"type\":\"message\",\"id\":\"" + shown.id +
                             "\",\"status\":\"incomplete\",\"role\":\"assistant\",\"content\":[" + part + "]}";
    // A reader may have been lost between an item's end and its last events.
    if (!shown.has(part_added_name)) send(part_added_name, index, of_item + ",\"part\":" + output_text({}) + "}");
    if (!shown.has(text_done_name))
        send(text_done_name, index, of_item + ",\"text\":\"" + shown.text + "\",\"logprobs\":[]}");
    if (!shown.has("response.content_part.done"))
        send("response.content_part.done", index, of_item + ",\"part\":" + part + "}");
    send(done_name, index, ",\"item\":" + item + "}");
    orphans_.emplace_back(index, item);
    shown.done = true;
    shown.text = {};
}

/// What the client was shown and the turn does not have ends here, and stands in the closing object where it was shown.
void StreamSplice::take_closing(const Event& event) {
    for (uint32_t i = 0; i < items_.size(); ++i)
        if (!items_[i].done && items_[i].type == "message") close_incomplete(i);
    std::string rest(event.rest);
    std::ranges::sort(orphans_);
    for (const auto& [index, item] : orphans_) {
        const auto output = rest.find(",\"output\":[");
        const auto elements = output == std::string::npos ? std::vector<size_t>{} : elements_of(rest, output + 10);
        if (elements.empty()) return damaged("the closing event of the node's stream cannot be read");
        const size_t count = elements.size() - 1, before = std::min<size_t>(index, count);
        std::string inserted = item;
        if (before < count)
            inserted += ",";
        else if (count > 0)
            inserted.insert(0, ",");
        rest.insert(elements[before], inserted);
    }
    send(event.name, std::nullopt, rest);
    finished_ = true;
}

void StreamSplice::take_error(const Event& event) {
    boost::json::error_code ec;
    // `rest` begins with the comma behind the number.
    const auto value = boost::json::parse("{\"event\":\"error\"" + std::string(event.rest), ec);
    const auto* object = ec ? nullptr : value.if_object();
    const auto text = [&](std::string_view key) {
        const auto* found = object != nullptr ? object->if_contains(key) : nullptr;
        const auto* string = found != nullptr ? found->if_string() : nullptr;
        return string != nullptr ? std::string(string->data(), string->size()) : std::string();
    };
    const auto* known = find_error(text("code"));
    const auto code = known != nullptr ? known->code : ErrorCode::internal;
    if (code == ErrorCode::misdirected || code == ErrorCode::shard_unavailable || code == ErrorCode::internal) {
        lost_ = Error{code, text("message"), text("param")};
        return;
    }
    send(event.name, std::nullopt, event.rest);
    finished_ = true;
}

// --- out ------------------------------------------------------------------------------------------------------------

void StreamSplice::send(std::string_view name, std::optional<uint32_t> index, std::string_view rest) {
    JsonWriter writer(out_);
    writer.raw("event: ").raw(name).raw("\ndata: {\"type\":\"").raw(name);
    writer.raw("\",\"sequence_number\":").number(sequence_++);
    if (index) writer.raw(",\"output_index\":").number(uint64_t{*index});
    writer.raw(rest).raw("\n\n");
}

void StreamSplice::send_delta(uint32_t index, std::string_view escaped) {
    Shown& shown = items_[index];
    std::string rest = ",\"item_id\":\"" + shown.id + "\",\"content_index\":0,";
    rest.append(delta_begin).append(escaped).append(delta_end);
    shown.text += escaped;
    send(delta_name, index, rest);
}

}  // namespace mainstay
