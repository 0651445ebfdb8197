// Kernels for the tests of the matrix instructions' twins: a product of small integers a[m][k] and
// b[k][n] through registers, by the layouts of the PTX ISA.
#include "host/emulated.h"
#include "common/mma.cuh"
#include "common/shared.cuh"

namespace {

struct Selftest {
    float* out;
    int mode;
};

// What the tests expect too.
float a_at(int m, int k) { return static_cast<float>((m * 7 + k * 3) % 11 - 5); }
float b_at(int k, int n) { return static_cast<float>((k * 5 + n * 2) % 13 - 6); }

// out[product][8 x 8] of m8n8k4; mode 1: a column-major, mode 2: b row-major.
__global__ void m8n8k4(Selftest p) {
    int lane = threadIdx.x, product = lane / 4 % 4, high = lane / 16 * 4;
    float d[8] = {};
    unsigned a[2], b[2];
    for (int pair = 0; pair < 2; ++pair) {
        float left[2], right[2];
        for (int i = 0; i < 2; ++i) {
            int own = lane % 4, along = pair * 2 + i;
            left[i] = p.mode & 1 ? a_at(product + along + high, own) : a_at(product + own + high, along);
            right[i] = p.mode & 2 ? b_at(own, along + high) : b_at(along, own + high);
        }
        a[pair] = pack_half2(left[0], left[1]);
        b[pair] = pack_half2(right[0], right[1]);
    }
    if (p.mode == 0) mma_m8n8k4<false, false>(d, a, b);
    if (p.mode == 1) mma_m8n8k4<true, false>(d, a, b);
    if (p.mode == 2) mma_m8n8k4<false, true>(d, a, b);
    if (p.mode == 3) mma_m8n8k4<true, true>(d, a, b);
    for (int i = 0; i < 8; ++i) {
        int row = (lane & 1) + (i & 2) + high, column = (i & 4) + (lane & 2) + (i & 1);
        p.out[product * 64 + row * 8 + column] = d[i];
    }
}

// out[16 x 8] of m16n8k16 (mode 0) and m16n8k8 (mode 1), operands in registers as documented; of
// m16n8k16 with operands through ldmatrix (mode 2), b transposed on the way (mode 3).
__global__ void m16n8(Selftest p) {
    CYANEA_SHARED(unsigned short, bits, 16 * 16 * 2);
    int lane = threadIdx.x, row = lane / 4, pair = lane % 4 * 2;
    float d[4] = {};
    unsigned a[4], b[4];
    for (int i = 0; i < 4; ++i) {
        int m = row + i % 2 * 8, k = pair + i / 2 * 8;
        a[i] = pack_half2(a_at(m, k), a_at(m, k + 1));
        b[i] = pack_half2(b_at(pair + i * 8, row), b_at(pair + i * 8 + 1, row));
    }
    if (p.mode == 0) mma_m16n8k16(d, a, b);
    if (p.mode == 1) mma_m16n8k8(d, a, b);
    if (p.mode >= 2) {
        __half* stored = reinterpret_cast<__half*>(bits);
        for (int i = lane; i < 256; i += 32) stored[i] = __float2half_rn(a_at(i / 16, i % 16));
        for (int i = lane; i < 128; i += 32)
            stored[256 + i] =
                __float2half_rn(p.mode == 2 ? b_at(i % 16, i / 16) : b_at(i / 8, i % 8));
        __syncthreads();
        ldmatrix<4, false>(a, stored + lane % 16 * 16 + lane / 16 * 8);
        if (p.mode == 2) ldmatrix<2, false>(b, stored + 256 + lane % 8 * 16 + lane / 8 % 2 * 8);
        else ldmatrix<2, true>(b, stored + 256 + lane % 16 * 8);
        mma_m16n8k16(d, a, b);
    }
    for (int i = 0; i < 4; ++i) p.out[(row + i / 2 * 8) * 8 + pair + i % 2] = d[i];
}

}  // namespace

#define CYANEA_SELFTEST(name) \
    extern "C" void cyanea_selftest_##name(const void* p) { name(*static_cast<const Selftest*>(p)); }
CYANEA_SELFTEST(m8n8k4)
CYANEA_SELFTEST(m16n8)
