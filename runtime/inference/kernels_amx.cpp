// AMX tile registers for products with BF16 weights; the rest is AVX-512. A tile product always takes 16 rows, real or
// padding, so a row's bits depend on nothing but the row: even and odd k of 32 are summed apart, then added to the sum.
#if defined(__x86_64__)
#include "runtime/inference/kernels_lanes_avx512.h"
#include "runtime/inference/kernels_tables.h"

namespace mainstay {
namespace {

// Tiles 0 to 3 are sums (rows 0-15 and 16-31 by columns 0-15 and 16-31), 4 and 5 rows, 6 and 7 weights: each 16 x 64
// bytes.
struct alignas(64) TileShapes {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileShapes) == 64);

// Not on the stack: the compiler's intrinsic (GCC 12) claims to read 8 bytes of the 64, and the others would be
// dropped.
const TileShapes tile_shapes;
void begin() { _tile_loadconfig(&tile_shapes); }
void end() { _tile_release(); }

constexpr uint32_t weight_step = panel_columns * k_granule;  // elements of 32 k of a panel
constexpr int weight_row_bytes = 4 * panel_columns;          // of one pair of k

/// One or two tiles of rows with one panel. `Ahead`: fetch weights that are not in the cache yet, 8 KiB early.
template <bool Two, bool Ahead>
inline void product_tiles(const uint16_t* w, const uint16_t* x, size_t x_stride, float* y, size_t y_stride, uint32_t k,
                          bool accumulate) {
    const int xs = int(2 * x_stride), ys = int(4 * y_stride);
    const uint16_t* x2 = x + 16 * x_stride;
    float* y2 = y + 16 * y_stride;
    if (accumulate) {
        _tile_loadd(0, y, ys);
        _tile_loadd(1, y + 16, ys);
        if constexpr (Two) {
            _tile_loadd(2, y2, ys);
            _tile_loadd(3, y2 + 16, ys);
        }
    } else {
        _tile_zero(0);
        _tile_zero(1);
        if constexpr (Two) {
            _tile_zero(2);
            _tile_zero(3);
        }
    }
    for (uint32_t i = 0; i < k; i += k_granule) {
        const uint16_t* at = w + size_t(panel_columns) * i;
        if constexpr (Ahead)
            for (uint32_t line = 0; line < weight_step; line += 32) __builtin_prefetch(at + 4 * weight_step + line);
        _tile_loadd(6, at, weight_row_bytes);
        _tile_loadd(4, x + i, xs);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, at + 32, weight_row_bytes);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (Two) {
            _tile_loadd(5, x2 + i, xs);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, y, ys);
    _tile_stored(1, y + 16, ys);
    if constexpr (Two) {
        _tile_stored(2, y2, ys);
        _tile_stored(3, y2 + 16, ys);
    }
}

void product_tiled(const Product& p) {
    for (uint32_t panel = p.panel_begin; panel < p.panel_end; ++panel) {
        const uint16_t* w = (const uint16_t*)p.weights + size_t(panel) * p.k * panel_columns;
        for (uint32_t row = 0; row < p.rows; row += 32) {
            const uint16_t* x = (const uint16_t*)p.x + row * p.x_stride;
            float* y = p.y + row * p.y_stride + panel * panel_columns;
            const bool two = p.rows - row > 16;
            if (row == 0) {
                if (two)
                    product_tiles<true, true>(w, x, p.x_stride, y, p.y_stride, p.k, p.accumulate);
                else
                    product_tiles<false, true>(w, x, p.x_stride, y, p.y_stride, p.k, p.accumulate);
            } else if (two) {
                product_tiles<true, false>(w, x, p.x_stride, y, p.y_stride, p.k, p.accumulate);
            } else {
                product_tiles<false, false>(w, x, p.x_stride, y, p.y_stride, p.k, p.accumulate);
            }
        }
    }
}

}  // namespace

const Kernels kernels_amx = {"amx",    true,   product_tiled, product_f32, attend<uint16_t>, attend<float>,
                             rms_norm, swiglu, rotate,        to_bf16,     scan_logits,      begin,
                             end};

}  // namespace mainstay
#endif
