#include "runtime/inference/kernels.h"

#include <bit>
#include <cstring>
#include <string_view>

#include "runtime/inference/kernels_tables.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mainstay {

namespace {

#if defined(__x86_64__)
/// Tile registers need the kernel's leave, once for the process and all its threads.
bool may_use_tiles() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
    constexpr unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24;
    if ((edx & (amx_bf16 | amx_tile)) != (amx_bf16 | amx_tile)) return false;
    constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

std::vector<const Kernels*> probe() {
    std::vector<const Kernels*> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (has_avx512() && __builtin_cpu_supports("avx512bf16")) {
        if (may_use_tiles()) found.push_back(&kernels_amx);
        found.push_back(&kernels_avx512bf16);
    }
    if (has_avx512()) found.push_back(&kernels_avx512);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&kernels_avx2);
#endif
    found.push_back(&kernels_portable);
    return found;
}

}  // namespace

const std::vector<const Kernels*>& runnable_kernels() {
    static const std::vector<const Kernels*> found = probe();
    return found;
}

const Kernels* find_kernels(const char* name) {
    for (const Kernels* kernels : runnable_kernels())
        if (std::string_view(kernels->name) == name) return kernels;
    return nullptr;
}

size_t packed_elements(size_t n, size_t k) { return round_up(n, panel_columns) * round_up(k, k_granule); }

void pack_column_bf16(uint16_t* panels, size_t k_padded, size_t column, const float* row, size_t k) {
    uint16_t* at = panels + column / panel_columns * panel_columns * k_padded + 2 * (column % panel_columns);
    for (size_t i = 0; i < k; ++i) at[i / 2 * 2 * panel_columns + i % 2] = bf16_of(row[i]);
}

void pack_column_f32(float* panels, size_t k_padded, size_t column, const float* row, size_t k) {
    float* at = panels + column / panel_columns * panel_columns * k_padded + column % panel_columns;
    for (size_t i = 0; i < k; ++i) at[i * panel_columns] = row[i];
}

uint16_t bf16_of(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    if (value != value) return uint16_t((bits | 0x400000) >> 16);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float float_of_bf16(uint16_t value) { return std::bit_cast<float>(uint32_t(value) << 16); }

float float_of_f16(uint16_t value) {
    const uint32_t sign = uint32_t(value & 0x8000) << 16, exponent = (value >> 10) & 0x1f, fraction = value & 0x3ff;
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | fraction << 13);
    if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
    const float magnitude = float(fraction) * 0x1p-24f;  // subnormal, exact in a float
    return sign ? -magnitude : magnitude;
}

}  // namespace mainstay
