// Only in builds that break guarantees on purpose; see crash_point.h.
#include <cstdlib>
#include <string_view>

namespace mainstay {

bool mutant(std::string_view name);
bool mutant(std::string_view name) {
    static const char* chosen = std::getenv("MAINSTAY_MUTANT");
    return chosen && name == chosen;
}

}  // namespace mainstay
