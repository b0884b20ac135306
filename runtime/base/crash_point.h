#pragma once
// Places where a test may kill the process, to prove that dying there loses and repeats nothing. MAINSTAY_CRASH_POINT
// ("name" or "name:n", the n-th visit) arms one before any thread starts; unarmed, a visit costs one load and a branch.
// "name:n:ms" stands still there for so long before it dies: what must wait for this point has no excuse to have left.
// The names are listed in tests/e2e/crash_points.json; a test holds list and code together.
//
// Mutants are the other side of that proof: builds with MAINSTAY_MUTANTS can break one guarantee on purpose
// (MAINSTAY_MUTANT=name), and the same tests must then fail. Release builds do not contain them.

#include <string_view>

namespace mainstay {

namespace crash_point_detail {
extern bool armed;
void visit(std::string_view name);
}  // namespace crash_point_detail

/// Reads the environment; call once at the start of main().
void arm_crash_point();

inline void crash_point(std::string_view name) {
    if (crash_point_detail::armed) [[unlikely]]
        crash_point_detail::visit(name);
}

#ifdef MAINSTAY_MUTANTS
bool mutant(std::string_view name);
#else
constexpr bool mutant(std::string_view) { return false; }
#endif

}  // namespace mainstay
