// The 16 rows that a warp of attention.cu has to itself: as left operands of products, and as sums over
// weighted rows of the other side.
#pragma once
#include "common/attention_packed.cuh"

// 16 rows for the calling warp alone.
template <int DEPTH, bool NORMALISE, class E>
__device__ __forceinline__ void fetch_rows(E* room, const Tokens<E>& from, int first, unsigned flip) {
    __syncwarp(0xffffffffu);
    fill<16, DEPTH, 32, false>(room, from, first, 0, flip);
    __syncwarp(0xffffffffu);
    if (!NORMALISE) return;
    normalise_rows<16, DEPTH, 32>(room, from.depth);
    __syncwarp(0xffffffffu);
}

// 16 rows of a warp as left operands: in float16 they stay in registers. `fetch` takes them from row
// `first` of a head, by way of `room` for 16 x DEPTH in shared memory; `flip` as in `fill`; NORMALISE: as in
// attention_packed.cuh.
template <class E, int DEPTH>
struct Own {
    const E* rows;

    template <bool NORMALISE>
    __device__ __forceinline__ void fetch(E* room, const Tokens<E>& from, int first, unsigned flip) {
        fetch_rows<DEPTH, NORMALISE>(room, from, first, flip);
        rows = room;
    }
    // Which of 16 rows of `others` sum i of `dot` is for.
    static __device__ __forceinline__ int other_row(int i) { return Product<E>::score_column(i); }
    // sums[n] += these rows . rows 16 n .. 16 n + 15 of `others`
    template <int N>
    __device__ __forceinline__ void dot(float (&sums)[N][8], const E* others, int other_plane) const {
#pragma unroll 2
        for (int at = 0; at < DEPTH / unit<E>(); ++at) {
            typename Product<E>::Left a;
            Product<E>::left(a, rows + at * plane<E>(16), plane<E>(16));
#pragma unroll
            for (int n = 0; n < N; ++n) {
                typename Product<E>::Right b;
                Product<E>::right(b, others + (at * other_plane + n * 16 * unit<E>()), other_plane);
                Product<E>::add(sums[n], a, b);
            }
        }
    }
};

template <int DEPTH>
struct Own<__half, DEPTH> {
    unsigned r[DEPTH / 16][FRAGMENT(16)];

    template <bool NORMALISE>
    __device__ __forceinline__ void fetch(__half* room, const Tokens<__half>& from, int first, unsigned flip) {
        fetch_rows<DEPTH, NORMALISE>(room, from, first, flip);
#pragma unroll
        for (int at = 0; at < DEPTH / 16; ++at)
            Product<__half>::left(r[at], room + at * 2 * plane<__half>(16), plane<__half>(16));
    }
    static __device__ __forceinline__ int other_row(int i) { return Product<__half>::score_column(i); }
    template <int N>
    __device__ __forceinline__ void dot(float (&sums)[N][8], const __half* others, int other_plane) const {
#pragma unroll
        for (int at = 0; at < DEPTH / 16; ++at) {
#pragma unroll
            for (int n = 0; n < N; ++n) {
                unsigned b[FRAGMENT(16)];
                Product<__half>::right(b, others + (n * 16 * 8 + at * 2 * other_plane), other_plane);
                Product<__half>::add(sums[n], r[at], b);
            }
        }
    }
};

// Eight channels: what a lane holds of an operand lies together in memory, so it is read as it stands. On sm_70
// columns 4-7 of a product change places with 8-11: four rows that halves of a warp read for `Sums` together
// then lie in different banks.
template <>
struct Own<__half, 8> {
    unsigned r[FRAGMENT(8)];
    int column;

    template <bool NORMALISE>
    __device__ __forceinline__ void fetch(__half*, const Tokens<__half>& from, int first, unsigned flip) {
        int lane = warp_lane();
        column = (CYANEA_CODE_PATH >= 80 ? b_column<8>() : lane % 4 + (lane & 8) / 2 + (lane & 16) / 2) * 8;
        keep(column);
#if CYANEA_CODE_PATH >= 80
        int row = first + warp_lane() / 4, channel = warp_lane() % 4 * 2;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const __half* at = from.at + ((row + 8 * i) * from.stride + channel);
            bool live = row + 8 * i < from.count && channel < from.depth;
            r[i] = live ? *reinterpret_cast<const unsigned*>(at) ^ flip : 0u;
            if (!NORMALISE) continue;
            float squares = row_sum<__half>(dot_pair(r[i], r[i], 0.0f));
            r[i] = scale_pair(r[i], unit_scale(squares, from.depth));
        }
#else
        int row = first + a_row();
        uint4 value = make_uint4(0, 0, 0, 0);
        if (row < from.count) value = read_unit(from.at + row * from.stride, from.depth, from.depth == 8);
        if (NORMALISE)
            value = scale_unit(from.at, value, unit_scale(dot_unit(from.at, value, value), from.depth));
        r[0] = value.x ^ flip;
        r[1] = value.y ^ flip;
        r[2] = value.z ^ flip;
        r[3] = value.w ^ flip;
#endif
    }
    static __device__ __forceinline__ int other_row(int i) {
        int lane = warp_lane();
        return CYANEA_CODE_PATH >= 80 ? sum_column(i) : ((lane / 2 & 4) | (lane & 2)) + (i & 4) * 2 + (i & 1);
    }
    template <int N>
    __device__ __forceinline__ void dot(float (&sums)[N][8], const __half* others, int other_plane) const {
#pragma unroll
        for (int n = 0; n < N; ++n) {
            unsigned b[FRAGMENT(8)];
            load_b<8>(b, others + column + n * 16 * 8, other_plane);
            multiply<8, false, false>(sums[n], r, b);
        }
    }
};

// Whether weights are multiplied in two parts, as float16 holds them and what that leaves: where there
// are few rows, single weights are large and their rounding shows, and a second product costs little.
template <class E>
__device__ __forceinline__ bool split_rounding(int rows) { return sizeof(E) == 2 && rows <= 128; }

// Weights of rows as float16, and what that leaves of each in place of what it gave.
template <Weights KIND>
__device__ __forceinline__ void pack(unsigned* pairs, const float* weights) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
        pairs[i] = KIND == SIGNED     ? pack_signed(weights[2 * i], weights[2 * i + 1])
                   : KIND == POSITIVE ? pack_positive(weights[2 * i], weights[2 * i + 1])
                                      : pack_lowered(weights[2 * i], weights[2 * i + 1]);
}
__device__ __forceinline__ void pack_rest(unsigned* pairs, const float* weights) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
        pairs[i] = pack_signed(weights[2 * i] - low_half(pairs[i]), weights[2 * i + 1] - high_half(pairs[i]));
}
// Weights of 16 rows, for each of a warp's own 16, as left operand of `Sums::add`: rounded, or what rounding leaves
// of them; KIND: as what they come.
template <class E, int DEPTH>
struct Weighted {
    float at[8];

    template <Weights KIND>
    __device__ __forceinline__ void round(const float* weights) {
#pragma unroll
        for (int i = 0; i < 8; ++i) at[i] = weights[i];
    }
    template <Weights KIND>
    __device__ __forceinline__ void rest(const float*) {}
};
template <int DEPTH>
struct Weighted<__half, DEPTH> {
    unsigned r[FRAGMENT(16)];

    template <Weights KIND>
    __device__ __forceinline__ void round(const float* weights) {
        unsigned pairs[4];
        pack<KIND>(pairs, weights);
        place(pairs);
    }
    template <Weights KIND>
    __device__ __forceinline__ void rest(const float* weights) {
        unsigned pairs[4];
        pack<KIND>(pairs, weights);
        pack_rest(pairs, weights);
        place(pairs);
    }
    __device__ __forceinline__ void place(const unsigned* pairs) {
#if CYANEA_CODE_PATH < 80
        if (DEPTH == 8) {
            pairs_as_own_a(r, pairs);
            return;
        }
#endif
        pairs_as_a(r, pairs);
    }
};
// Adds N products of 16 x 16 as weights of the 16 N rows at `rows` to `sums`; `split` as above.
template <Weights KIND, class S, class E, int N>
__device__ __forceinline__ void add_weighted(S& sums, const float (&weights)[N][8], const E* rows, int plane,
                                             bool split) {
    typename S::Left left;
#pragma unroll
    for (int n = 0; n < N; ++n) {
        left.template round<KIND>(weights[n]);
        sums.add(left, rows + 16 * n * unit<E>(), plane);
        if (!split) continue;
        left.template rest<KIND>(weights[n]);
        sums.add(left, rows + 16 * n * unit<E>(), plane);
    }
}

// Sums of a warp over weighted rows, 16 x DEPTH. `add` takes the 16 rows at `rows`; `each` calls
// f(side, channel, low, high).
template <class E, int DEPTH>
struct Sums {
    typedef Weighted<E, DEPTH> Left;
    float at[DEPTH / 16][8];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < DEPTH / 2; ++i) at[i / 8][i % 8] = 0.0f;
    }
    __device__ __forceinline__ void scale(float first, float second) {
#pragma unroll
        for (int i = 0; i < DEPTH / 2; ++i) at[i / 8][i % 8] *= Product<E>::side(i % 8) ? second : first;
    }
    __device__ __forceinline__ void add(const Left& left, const float* rows, int plane) {
#pragma unroll 1
        for (int step = 0; step < 4; ++step) {
            // Lane `step` of a row's four has the weights of rows step, step + 4, ...
            float4 a[2];
            spread(a, left.at, (warp_lane() & 28) + step);
#pragma unroll
            for (int n = 0; n < DEPTH / 16; ++n) {
                float4 b[4];
                Product<float>::right_rows(b, rows + (n * 4 * plane + step * 4), plane, 4);
                Product<float>::add_rows(at[n], a, b);
            }
        }
    }
    __device__ __forceinline__ void add(const Left& left, const __half* rows, int plane) {
#pragma unroll
        for (int n = 0; n < DEPTH / 16; ++n) {
            unsigned b[FRAGMENT(16)];
            Product<__half>::right_rows(b, rows + n * 2 * plane, plane);
            multiply<16, false, true>(at[n], left.r, b);
        }
    }
    __device__ __forceinline__ void finish() {}
    template <class F>
    __device__ __forceinline__ void each(F f) const {
#pragma unroll
        for (int i = 0; i < DEPTH / 2; i += 2)
            f(Product<E>::side(i % 8), i / 8 * 16 + Product<E>::column(i % 8), at[i / 8][i % 8],
              at[i / 8][i % 8 + 1]);
    }

    static __device__ __forceinline__ void spread(float4 (&a)[2], const float* weights, int lane) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
            a[side].x = __shfl_sync(0xffffffffu, weights[4 * side], lane);
            a[side].y = __shfl_sync(0xffffffffu, weights[4 * side + 1], lane);
            a[side].z = __shfl_sync(0xffffffffu, weights[4 * side + 2], lane);
            a[side].w = __shfl_sync(0xffffffffu, weights[4 * side + 3], lane);
        }
    }
};

// Eight channels: an m16n8k16 has just as many columns. Elsewhere a product of 16 x 16 would be half
// empty, so its two halves take eight of the 16 rows each, and are added up at the end.
template <class E>
struct Sums<E, 8> {
    typedef Weighted<E, 8> Left;
#if CYANEA_CODE_PATH >= 80
    static const int COUNT = sizeof(E) == 2 ? 4 : 8;
#else
    static const int COUNT = 8;
#endif
    // The lane bit that tells the halves apart.
    static const int HALF = COUNT == 4 ? 0 : sizeof(E) == 2 ? 8 : 2;
    float at[COUNT];
    // Of the rows that the calling lane reads, in float16.
    int offset;

    __device__ __forceinline__ void clear() {
        int lane = warp_lane();
#if CYANEA_CODE_PATH >= 80
        offset = lane % 16 * 8;
#else
        offset = ((lane & 8) / 2 + lane % 4) * 8 + (lane & 16) / 4;
#endif
        keep(offset);
#pragma unroll
        for (int i = 0; i < COUNT; ++i) at[i] = 0.0f;
    }
    __device__ __forceinline__ void scale(float first, float second) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) at[i] *= Product<E>::side(i) ? second : first;
    }
    __device__ __forceinline__ void add(const Left& left, const float* rows, int plane) {
        int lane = warp_lane();
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            int from = (lane & 2) + step;
            float4 a[2], b[4];
            Sums<float, 16>::spread(a, left.at, (lane & 28) + from);
#pragma unroll
            for (int k = 0; k < 4; ++k)
                b[k] = *reinterpret_cast<const float4*>(rows + ((lane & 1) * plane + (from + 4 * k) * 4));
            Product<float>::add_rows(at, a, b);
        }
    }
    __device__ __forceinline__ void add(const Left& left, const __half* rows, int) {
#if CYANEA_CODE_PATH >= 80
        unsigned b[2];
        ldmatrix<2, true>(b, rows + offset);
        mma_m16n8k16(at, left.r, b);
#else
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            uint2 value = *reinterpret_cast<const uint2*>(rows + offset + step * 8 * 8);
            unsigned b[2] = {value.x, value.y};
            mma_m8n8k4<false, true>(at, left.r + 2 * step, b);
        }
#endif
    }
    __device__ __forceinline__ void finish() {
        if (HALF == 0) return;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) at[i] += __shfl_xor_sync(0xffffffffu, at[i], HALF);
    }
    template <class F>
    __device__ __forceinline__ void each(F f) const {
        int lane = warp_lane();
        if (lane & HALF) return;
#pragma unroll
        for (int i = 0; i < COUNT; i += 2) {
            int channel = COUNT == 4 ? lane % 4 * 2
                          : sizeof(E) == 2 ? (i & 4) + (lane & 2)
                                           : (lane & 1) * 4 + i % 4;
            f(Product<E>::side(i), channel, at[i], at[i + 1]);
        }
    }
};
