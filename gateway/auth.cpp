#include "gateway/auth.h"

#include "runtime/base/digest.h"

namespace mainstay {
namespace {

constexpr std::string_view scope = "mainstay admin key";
constexpr size_t key_bytes_max = 512;

bool same(const KeyHash& a, const KeyHash& b) {
    volatile uint8_t difference = 0;
    for (size_t i = 0; i < a.size(); ++i) difference = difference | (a[i] ^ b[i]);
    return difference == 0;
}

/// The scheme is case-insensitive (RFC 9110).
bool is_bearer(std::string_view scheme) {
    constexpr std::string_view bearer = "bearer";
    if (scheme.size() != bearer.size()) return false;
    for (size_t i = 0; i < bearer.size(); ++i)
        if ((scheme[i] | 0x20) != bearer[i]) return false;
    return true;
}

}  // namespace

Authenticator::Authenticator(std::string_view admin_key) {
    if (!admin_key.empty()) admin_key_ = key_hash(scope, admin_key);
}

std::optional<Principal> Authenticator::authenticate(std::string_view authorization) const {
    const auto space = authorization.find(' ');
    if (!admin_key_ || space == std::string_view::npos || !is_bearer(authorization.substr(0, space)))
        return std::nullopt;
    auto key = authorization.substr(space + 1);
    while (!key.empty() && key.front() == ' ') key.remove_prefix(1);
    if (key.empty() || key.size() > key_bytes_max || !same(key_hash(scope, key), *admin_key_)) return std::nullopt;
    return Principal{TenantId{1}, "admin", true};
}

}  // namespace mainstay
