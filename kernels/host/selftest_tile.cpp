// Products of a warp (common/warp_tile.cuh) against a plain product; built once for each code path.
#include "host/emulated.h"
#include "common/shared.cuh"
#include "common/warp_tile.cuh"

namespace {

struct Selftest {
    float* out;
    int mode;
};

// As in selftest_mma.cpp.
float a_at(int m, int k) { return static_cast<float>((m * 7 + k * 3) % 11 - 5); }
float b_at(int k, int n) { return static_cast<float>((k * 5 + n * 2) % 13 - 6); }

// out[16 x 16] of a product whose operands lie k-contiguous (modes 0 and 1: K = 16 and 8), b or both
// transposed (modes 2 and 3); mode 4: (a b) a with a b / 16 as the first operand.
__global__ void tile(Selftest p) {
    CYANEA_SHARED(uint4, memory, 128);
    const int plane = 136;
    __half* a = reinterpret_cast<__half*>(memory);
    __half* b = a + 2 * plane;
    bool a_turned = p.mode == 3, b_turned = p.mode == 2 || p.mode == 3;
    for (int i = threadIdx.x; i < 256; i += 32) {
        int major = i / 16, minor = i % 16, at = minor / 8 * plane + major * 8 + minor % 8;
        a[at] = __float2half_rn(a_turned ? a_at(minor, major) : a_at(major, minor));
        b[at] = __float2half_rn(b_turned ? b_at(major, minor) : b_at(minor, major));
    }
    __syncthreads();
    float d[8] = {};
    unsigned left[FRAGMENT(16)], right[FRAGMENT(16)];
    auto rows_of_a = [=](int k) { return a + k * 8; };
    auto rows_of_b = [=](int k) { return b + k * 8; };
    if (p.mode == 1) {
        load_a<8>(left, a + a_row() * 8, plane);
        load_b<8>(right, b + b_column<8>() * 8, plane);
        multiply<8, false, false>(d, left, right);
    } else if (p.mode == 3) {
        load_a_transposed(left, rows_of_a, plane);
        load_b_transposed(right, rows_of_b, plane);
        multiply<16, true, true>(d, left, right);
    } else {
        load_a<16>(left, a + a_row() * 8, plane);
        if (p.mode == 2) {
            load_b_transposed(right, rows_of_b, plane);
            multiply<16, false, true>(d, left, right);
        } else {
            load_b<16>(right, b + b_column<16>() * 8, plane);
            multiply<16, false, false>(d, left, right);
        }
    }
    if (p.mode == 4) {
        for (int i = 0; i < 8; ++i) d[i] /= 16.0f;
        sums_as_a(left, d);
        for (int i = 0; i < 8; ++i) d[i] = 0.0f;
        load_b_transposed(right, rows_of_a, plane);
        multiply<16, false, true>(d, left, right);
    }
    for (int i = 0; i < 8; ++i) p.out[sum_row(i) * 16 + sum_column(i)] = d[i];
}

}  // namespace

#if CYANEA_CODE_PATH >= 80
extern "C" void cyanea_selftest_tile_sm80(const void* p) { tile(*static_cast<const Selftest*>(p)); }
#else
extern "C" void cyanea_selftest_tile_sm70(const void* p) { tile(*static_cast<const Selftest*>(p)); }
#endif
