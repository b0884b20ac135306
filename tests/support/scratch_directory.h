#pragma once
// A directory of one test case, removed with all that is in it when the case ends.

#include <cstdlib>
#include <filesystem>
#include <string>

#include "runtime/base/invariant.h"

class ScratchDirectory {
  public:
    ScratchDirectory() : path_((std::filesystem::temp_directory_path() / "mainstay_XXXXXX").string()) {
        INVARIANT(::mkdtemp(path_.data()) != nullptr, "no scratch directory");
    }
    ~ScratchDirectory() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    ScratchDirectory(const ScratchDirectory&) = delete;
    ScratchDirectory& operator=(const ScratchDirectory&) = delete;

    std::string operator/(const std::string& name) const { return path_ + "/" + name; }

  private:
    std::string path_;
};
