// One product of a warp on either code path: d [16 x 16] += a [16 x K] b [K x 16], K 8 or 16, float16
// with float32 sums, 8 sums a lane. Operands come from shared memory in planes of octets: 8 values
// along the contiguous axis are 16 bytes, the next 8 lie `plane` halves further.
//
// sm_80: two m16n8k16 or m16n8k8, fed by ldmatrix. sm_70: K / 4 m8n8k4, whose four products cover
// 16 x 16: products 0 and 2 have rows 0-3 and 8-11, 1 and 3 rows 4-7 and 12-15, which makes a load of
// 16 bytes a lane free of bank conflicts; 0 and 1 have columns 0-7, 2 and 3 columns 8-15.
#pragma once
#include "common/mma.cuh"

#if CYANEA_CODE_PATH >= 80
#define FRAGMENT(K) ((K) / 4)
#else
#define FRAGMENT(K) ((K) / 2)
#endif

__device__ __forceinline__ int warp_lane() { return static_cast<int>(threadIdx.x % 32); }

// Where sum `i` of the calling lane lies. Sums i and i + 1, i even, are neighbours in a row.
__device__ __forceinline__ int sum_row(int i) {
    int lane = warp_lane();
#if CYANEA_CODE_PATH >= 80
    return lane / 4 + (i & 2) * 4;
#else
    return (lane & 4) + (lane & 1) + (i & 2) + (lane & 16) / 2;
#endif
}
__device__ __forceinline__ int sum_column(int i) {
    int lane = warp_lane();
#if CYANEA_CODE_PATH >= 80
    return (i & 4) * 2 + lane % 4 * 2 + (i & 1);
#else
    return (lane & 8) + (i & 4) + (lane & 2) + (i & 1);
#endif
}

// The row of a whose address the calling lane gives to load_a, and the column of b for load_b.
__device__ __forceinline__ int a_row() {
    int lane = warp_lane();
#if CYANEA_CODE_PATH >= 80
    return lane % 16;
#else
    return lane % 4 + (lane & 4) + (lane & 16) / 2;
#endif
}
template <int K>
__device__ __forceinline__ int b_column() {
    int lane = warp_lane();
#if CYANEA_CODE_PATH >= 80
    return K == 16 ? lane % 8 + lane / 16 * 8 : lane % 16;
#else
    return lane % 4 + (lane & 8) + (lane & 16) / 4;
#endif
}

__device__ __forceinline__ void load_octets(unsigned* r, const __half* at) {
    uint4 value = *reinterpret_cast<const uint4*>(at);
    r[0] = value.x;
    r[1] = value.y;
    r[2] = value.z;
    r[3] = value.w;
}

// a with k contiguous; `row` is the first octet of row a_row().
template <int K>
__device__ __forceinline__ void load_a(unsigned* r, const __half* row, int plane) {
#if CYANEA_CODE_PATH >= 80
    if (K == 16) ldmatrix<4, false>(r, row + warp_lane() / 16 * plane);
    else ldmatrix<2, false>(r, row);
#else
    load_octets(r, row);
    if (K == 16) load_octets(r + 4, row + plane);
#endif
}

// b with k contiguous; `column` is the first octet of column b_column<K>().
template <int K>
__device__ __forceinline__ void load_b(unsigned* r, const __half* column, int plane) {
#if CYANEA_CODE_PATH >= 80
    if (K == 16) ldmatrix<4, false>(r, column + warp_lane() / 8 % 2 * plane);
    else ldmatrix<2, false>(r, column);
#else
    load_octets(r, column);
    if (K == 16) load_octets(r + 4, column + plane);
#endif
}

// a and b with m (n) contiguous, K = 16: `at(k)` is the first octet of the 16 rows (columns) at k.
template <class Address>
__device__ __forceinline__ void load_a_transposed(unsigned* r, Address at, int plane) {
    int lane = warp_lane();
#if CYANEA_CODE_PATH >= 80
    ldmatrix<4, true>(r, at(lane % 8 + lane / 16 * 8) + lane / 8 % 2 * plane);
#else
    for (int step = 0; step < 4; ++step) {
        const __half* from = at(step * 4 + lane % 4) + lane / 16 * plane + (lane & 4);
        uint2 value = *reinterpret_cast<const uint2*>(from);
        r[2 * step] = value.x;
        r[2 * step + 1] = value.y;
    }
#endif
}
template <class Address>
__device__ __forceinline__ void load_b_transposed(unsigned* r, Address at, int plane) {
    int lane = warp_lane();
#if CYANEA_CODE_PATH >= 80
    ldmatrix<4, true>(r, at(lane % 16) + lane / 16 * plane);
#else
    for (int step = 0; step < 4; ++step) {
        const __half* from = at(step * 4 + lane % 4) + (lane & 8) / 8 * plane + (lane & 16) / 4;
        uint2 value = *reinterpret_cast<const uint2*>(from);
        r[2 * step] = value.x;
        r[2 * step + 1] = value.y;
    }
#endif
}

// d += a b. The flags say how the fragments were loaded.
template <int K, bool A_TRANSPOSED, bool B_TRANSPOSED>
__device__ __forceinline__ void multiply(float* d, const unsigned* a, const unsigned* b) {
#if CYANEA_CODE_PATH >= 80
    if (K == 16) {
        mma_m16n8k16(d, a, b);
        mma_m16n8k16(d + 4, a, b + 2);
    } else {
        mma_m16n8k8(d, a, b);
        mma_m16n8k8(d + 4, a, b + 1);
    }
#else
#pragma unroll
    for (int step = 0; step < K / 4; ++step)
        mma_m8n8k4<A_TRANSPOSED, B_TRANSPOSED>(d, a + 2 * step, b + 2 * step);
#endif
}

#if CYANEA_CODE_PATH < 80
// Sums as `pairs` of neighbours -> the operand a (K = 8) of the lane's own eight columns: a lane has two
// columns of rows lane & 1 and (lane & 1) + 2 of four; it needs four of row lane % 4.
__device__ __forceinline__ void pairs_as_own_a(unsigned* own, const unsigned* pairs) {
    bool upper = warp_lane() & 2;
#pragma unroll
    for (int step = 0; step < 2; ++step) {
        unsigned first = pairs[2 * step], second = pairs[2 * step + 1];
        unsigned other = __shfl_xor_sync(0xffffffffu, upper ? first : second, 2);
        own[2 * step] = upper ? other : first;
        own[2 * step + 1] = upper ? second : other;
    }
}
#endif

// Sums of a 16 x 16 product, as float16 in `pairs` of neighbours, as the operand a (K = 16, not
// transposed) of the next.
__device__ __forceinline__ void pairs_as_a(unsigned* r, const unsigned* pairs) {
#if CYANEA_CODE_PATH >= 80
    // Packed sums of m16n8 are what a lane holds of an operand.
#pragma unroll
    for (int i = 0; i < 4; ++i) r[i] = pairs[i];
#else
    unsigned own[4];
    pairs_as_own_a(own, pairs);
    // Columns 0-7 and 8-15 lie in products of their own.
    bool right = warp_lane() & 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        unsigned other = __shfl_xor_sync(0xffffffffu, own[i], 8);
        r[i] = right ? other : own[i];
        r[4 + i] = right ? own[i] : other;
    }
#endif
}

// The same of sums that are rounded to the nearest float16.
__device__ __forceinline__ void sums_as_a(unsigned* r, const float* d) {
    unsigned pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = pack_half2(d[2 * i], d[2 * i + 1]);
    pairs_as_a(r, pairs);
}
