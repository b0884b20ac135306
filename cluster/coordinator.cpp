#include "cluster/coordinator.h"

#include <algorithm>

#include "runtime/base/digest.h"

namespace mainstay {
namespace {

std::optional<uint8_t> hex_digit(char c) {
    if (c >= '0' && c <= '9') return static_cast<uint8_t>(c - '0');
    if (c >= 'a' && c <= 'f') return static_cast<uint8_t>(c - 'a' + 10);
    return std::nullopt;
}

}  // namespace

bool names_model(const std::vector<std::string>& models, std::string_view model) {
    return std::any_of(models.begin(), models.end(),
                       [&](const std::string& name) { return name == "*" || name == model; });
}

std::string to_text(const NodeUuid& uuid) {
    std::string hex = to_hex({reinterpret_cast<const char*>(uuid.data()), uuid.size()});
    for (const size_t at : {20, 16, 12, 8}) hex.insert(at, 1, '-');
    return hex;
}

std::optional<NodeUuid> uuid_from_text(std::string_view text) {
    if (text.size() != 36) return std::nullopt;
    NodeUuid out{};
    size_t digits = 0;
    for (size_t at = 0; at < text.size(); ++at) {
        if (at == 8 || at == 13 || at == 18 || at == 23) {
            if (text[at] != '-') return std::nullopt;
            continue;
        }
        const auto digit = hex_digit(text[at]);
        if (!digit) return std::nullopt;
        out[digits / 2] = static_cast<uint8_t>(out[digits / 2] << 4 | *digit);
        ++digits;
    }
    return out;
}

}  // namespace mainstay
