#pragma once
// Randomness as a parameter, like time. Ids of sessions must be unguessable, so the real source is the kernel's, by
// libsodium; tests and the simulator use a seeded one.

#include <cstdint>

#include "runtime/base/clock.h"
#include "runtime/base/id.h"

namespace mainstay {

class Random {
  public:
    virtual ~Random() = default;
    virtual uint64_t next() = 0;
    /// Uniform in [0, bound). Precondition: bound > 0.
    uint64_t below(uint64_t bound);
};

/// Thread-safe; draws from the kernel in blocks per thread.
class SecureRandom final : public Random {
  public:
    uint64_t next() override;
};

/// splitmix64: tests and simulation only.
class SeededRandom final : public Random {
  public:
    explicit SeededRandom(uint64_t seed) : state_(seed) {}
    uint64_t next() override;

  private:
    uint64_t state_;
};

/// A new root session: a family of its own whose id begins with the time, so that new sessions are neighbours on disk.
SessionId make_session_id(Random& random, TimeMs now);
/// A fork: another session of the same family.
SessionId make_fork_id(Random& random, FamilyId family);

}  // namespace mainstay
