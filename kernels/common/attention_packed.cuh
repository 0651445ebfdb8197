// Queries, keys and values that are parts of one tensor [B, N, 3 * heads * D] and normalised row by row
// while they are loaded: x / (1e-4 + |x| / sqrt(D)), as pixel_norm of magnitude.cu would leave them.
#pragma once
#include "common/attention_tile.cuh"
#include "common/magnitude.cuh"

// The rows of one head in a part of it; `at` is the part's first element.
template <class E>
__device__ __forceinline__ Tokens<E> packed_tokens(const Attention<E>& p, const E* at, int count) {
    int stride = 3 * p.heads * p.depth;
    return {at + static_cast<int>(blockIdx.z * count * stride + blockIdx.y * p.depth), count, p.depth, stride};
}
template <bool PACKED, class E>
__device__ __forceinline__ Tokens<E> rows_of(const Attention<E>& p, const E* at, int count) {
    return PACKED ? packed_tokens(p, at, count) : tokens(p, at, count);
}

__device__ __forceinline__ unsigned scale_pair(unsigned pair, float scale) {
    return pack_half2(low_half(pair) * scale, high_half(pair) * scale);
}
__device__ __forceinline__ uint4 scale_unit(const __half*, uint4 value, float scale) {
    return make_uint4(scale_pair(value.x, scale), scale_pair(value.y, scale), scale_pair(value.z, scale),
                      scale_pair(value.w, scale));
}
__device__ __forceinline__ uint4 scale_unit(const float*, uint4 value, float scale) {
    return make_uint4(__float_as_uint(__uint_as_float(value.x) * scale), __float_as_uint(__uint_as_float(value.y) * scale),
                      __float_as_uint(__uint_as_float(value.z) * scale), __float_as_uint(__uint_as_float(value.w) * scale));
}

// Normalises whole rows of `depth` channels, and zeros behind them, in a tile of shared memory that all
// THREADS threads see; neighbouring lanes share a row, so that a tile is left to nobody meanwhile.
template <int ROWS, int CHANNELS, int THREADS, class E>
__device__ __forceinline__ void normalise_rows(E* tile, int depth) {
    const int UNITS = CHANNELS / unit<E>(), LANES = UNITS < 32 ? UNITS : 32, EACH = UNITS / LANES;
    static_assert(ROWS * LANES % THREADS == 0 && UNITS % LANES == 0, "all lanes have as much to do");
#pragma unroll 2
    for (int start = 0; start < ROWS * LANES; start += THREADS) {
        int at = start + static_cast<int>(threadIdx.x % THREADS);
        E* first = tile + (at % LANES * plane<E>(ROWS) + at / LANES * unit<E>());
        uint4 held[EACH];
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            held[i] = *reinterpret_cast<const uint4*>(first + i * LANES * plane<E>(ROWS));
            squares += dot_unit(tile, held[i], held[i]);
        }
#pragma unroll
        for (int bit = 1; bit < LANES; bit *= 2) squares += __shfl_xor_sync(0xffffffffu, squares, bit);
        float scale = unit_scale(squares, depth);
#pragma unroll
        for (int i = 0; i < EACH; ++i)
            *reinterpret_cast<uint4*>(first + i * LANES * plane<E>(ROWS)) = scale_unit(tile, held[i], scale);
    }
}

// Sums of squares of rows that arrive in slices of CHANNELS channels, eight lanes a row.
template <class E, int ROWS, int CHANNELS>
struct Squares {
    static const int EACH = ROWS / 32;
    static_assert(CHANNELS / unit<E>() == 8 && ROWS % 32 == 0, "eight of 256 lanes have a row");
    float sums[EACH];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < EACH; ++i) sums[i] = 0.0f;
    }
    __device__ __forceinline__ void add(const E* slice) {
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            int row = static_cast<int>(threadIdx.x) / 8 + i * 32;
            uint4 value = *reinterpret_cast<const uint4*>(slice + (threadIdx.x % 8 * plane<E>(ROWS) + row * unit<E>()));
            sums[i] += dot_unit(slice, value, value);
        }
    }
    __device__ __forceinline__ void finish(float* scales, int depth) {
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            float sum = sums[i];
            for (int bit = 1; bit < 8; bit *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
            if (threadIdx.x % 8 == 0) scales[static_cast<int>(threadIdx.x) / 8 + i * 32] = unit_scale(sum, depth);
        }
    }
};
