#pragma once
// Rows of the meta table that both halves of DiskStore use (docs/formats/state.md). For those two files only.

#include <string>

namespace mainstay {

inline const std::string meta_cluster("cluster\0", 8);

}  // namespace mainstay
