# Every outside library, by Debian package (the list itself is in tools/deps).
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(CapnProto CONFIG REQUIRED)
find_package(prometheus-cpp CONFIG REQUIRED)
find_package(doctest CONFIG REQUIRED)
find_package(Boost 1.81 REQUIRED COMPONENTS json url)
find_package(CURL CONFIG QUIET)
if(NOT TARGET CURL::libcurl)
  find_package(CURL REQUIRED)
endif()
find_package(OpenSSL REQUIRED)
find_package(tomlplusplus CONFIG REQUIRED)
find_package(CLI11 CONFIG REQUIRED)
find_package(spdlog CONFIG REQUIRED)
pkg_check_modules(LMDB REQUIRED IMPORTED_TARGET lmdb)
pkg_check_modules(SODIUM REQUIRED IMPORTED_TARGET libsodium)
pkg_check_modules(ZSTD REQUIRED IMPORTED_TARGET libzstd)
pkg_check_modules(LZ4 REQUIRED IMPORTED_TARGET liblz4)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)

# Messages are allocated on one thread and freed on another; this allocator was made for that (measured: a quarter less
# CPU a turn than glibc's). Not under sanitizers, which bring their own.
find_library(MIMALLOC_LIBRARY mimalloc REQUIRED)

# Debian's CAF 0.17.6 ships neither a CMake nor a pkg-config file.
find_path(CAF_INCLUDE_DIR caf/all.hpp REQUIRED)
find_library(CAF_CORE_LIBRARY caf_core REQUIRED)
add_library(mainstay_caf INTERFACE)
target_link_libraries(mainstay_caf INTERFACE ${CAF_CORE_LIBRARY} Threads::Threads)
