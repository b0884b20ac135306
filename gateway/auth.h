#pragma once
// Who is asking. In this version one admin key, given as a bearer token; a key is kept only as its hash, and hashes are
// compared in constant time, so that neither a memory dump of the door nor the time of an answer tells the key.

#include <optional>
#include <string_view>

#include "gateway/bridge.h"
#include "runtime/base/id.h"

namespace mainstay {

class Authenticator {
  public:
    /// An empty key refuses everyone.
    explicit Authenticator(std::string_view admin_key);

    /// `authorization` is the header's value: "Bearer KEY". Nothing: missing, of another scheme, or wrong.
    std::optional<Principal> authenticate(std::string_view authorization) const;

  private:
    std::optional<KeyHash> admin_key_;
};

}  // namespace mainstay
