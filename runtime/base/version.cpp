#include "runtime/base/version.h"

namespace mainstay {

std::string_view build_version() { return MAINSTAY_VERSION; }  // set for this file by the build

}  // namespace mainstay
