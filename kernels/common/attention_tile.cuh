// What the kernels of attention are made of, for float16 on tensor cores and for float32 in plain
// arithmetic: tiles of tokens in shared memory, products of a warp, and the range of gradients.
//
// A tile holds rows of a head's channels in planes of 16 bytes, [unit][row], with an odd pitch. A warp
// works on products of 16 x 16, of which a lane holds eight sums: four in each of two rows, its
// `sides`, which it shares with three other lanes.
#pragma once
#include "common/reduce.cuh"
#include "common/warp_tile.cuh"

#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f

template <class E>
struct Attention {
    const E* q;    // [B, N, heads * D], as dy, y and dq
    const E* k;    // [B, M, heads * D], as v, dk and dv
    const E* v;
    const E* dy;
    E* y;
    float* lse;    // [B, N, heads]: ln of the sum of exp(scores)
    float* delta;  // [B, N, heads]: sum of dy * y; dq's kernel writes it for that of dk and dv
    E* dq;
    E* dk;
    E* dv;
    int queries, keys, heads, depth;
    float scale;
    int passes;  // over rows of its own that a block of attention.cu makes
};

// The rows of one head: `at` is its first channel in the first row. Tensors have less than 2^31
// elements, so that offsets are of 32 bits.
template <class E>
struct Tokens {
    const E* at;
    int count, depth;
    int stride;
};
template <class E>
__device__ __forceinline__ int head_start(const Attention<E>& p, int count) {
    return static_cast<int>((blockIdx.z * count * p.heads + blockIdx.y) * p.depth);
}
template <class E>
__device__ __forceinline__ Tokens<E> tokens(const Attention<E>& p, const E* at, int count) {
    return {at + head_start(p, count), count, p.depth, p.heads * p.depth};
}

// Elements of 16 bytes, and of a plane of `rows` rows.
template <class E>
__device__ constexpr int unit() { return 16 / static_cast<int>(sizeof(E)); }
template <class E>
__device__ constexpr int plane(int rows) { return (rows | 1) * unit<E>(); }
// Elements of a tile.
template <class E>
__device__ constexpr int area(int rows, int channels) { return channels / unit<E>() * plane<E>(rows); }

// Probabilities are rounded to float16 when they are this many powers of two larger.
template <class E>
__device__ constexpr float lift(bool backward) { return sizeof(E) == 4 ? 0.0f : backward ? 14.0f : 10.0f; }
// In float32 those of attention.cu are this many smaller (see pack_lowered). That takes three bits from the argument
// of exp, far below what rounding takes, unless weights are split; and what is 2^24 times smaller than the largest is
// zero in sums of them, too.
template <class E>
__device__ constexpr int lowered(bool split) { return sizeof(E) == 4 || split ? 0 : LOWERED; }
__device__ constexpr float power_of_two(int exponent) { return exponent == 0 ? 1.0f : 2.0f * power_of_two(exponent - 1); }
// Weights of rows, as float32 holds them before they are rounded: of either sign, positive, or positive and
// LOWERED powers of two smaller.
enum Weights { SIGNED, POSITIVE, SMALLER };
__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

// 16 bytes of a row, of which `channels` are left; heads of float16 begin at multiples of 8 bytes.
template <class E>
__device__ __forceinline__ uint4 read_unit(const E* at, int channels, bool whole) {
    if (whole) return *reinterpret_cast<const uint4*>(at);
    uint2 low = *reinterpret_cast<const uint2*>(at), high = make_uint2(0, 0);
    if (channels > unit<E>() / 2) high = *reinterpret_cast<const uint2*>(at + unit<E>() / 2);
    return make_uint4(low.x, low.y, high.x, high.y);
}

// ROWS rows from `first`, CHANNELS channels from `channel`, by a block or (THREADS = 32) a warp; zeros
// beyond the ends. `flip` is added to each word by exclusive or: it can change signs. ASYNC: the copies
// are waited for elsewhere.
template <int ROWS, int CHANNELS, int THREADS, bool ASYNC, class E>
__device__ __forceinline__ void fill(E* to, const Tokens<E>& from, int first, int channel, unsigned flip) {
    const int UNITS = CHANNELS / unit<E>(), COUNT = ROWS * UNITS, TOGETHER = 4;
    bool whole = from.depth % unit<E>() == 0;
#pragma unroll 4
    for (int start = 0; start < COUNT; start += THREADS * TOGETHER) {
        uint4 held[TOGETHER];
        E* place[TOGETHER];
        bool stored[TOGETHER];
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) {
            int at = start + i * THREADS + static_cast<int>(threadIdx.x % THREADS);
            int row = first + at / UNITS, own = channel + at % UNITS * unit<E>();
            stored[i] = start + i * THREADS < COUNT && (COUNT % THREADS == 0 || at < COUNT);
            if (!stored[i]) continue;
            place[i] = to + (at % UNITS * plane<E>(ROWS) + at / UNITS * unit<E>());
            held[i] = make_uint4(0, 0, 0, 0);
            if (row >= from.count || own >= from.depth) continue;
            const E* source = from.at + (row * from.stride + own);
#if CYANEA_CODE_PATH >= 80
            if (ASYNC && whole) {
                copy_async(place[i], source);
                stored[i] = false;
                continue;
            }
#endif
            held[i] = read_unit(source, from.depth - own, whole);
            if (!ASYNC && flip) {
                held[i].x ^= flip;
                held[i].y ^= flip;
                held[i].z ^= flip;
                held[i].w ^= flip;
            }
        }
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i)
            if (stored[i]) *reinterpret_cast<uint4*>(place[i]) = held[i];
    }
}
// Ends a group of such copies, and waits for all of them.
__device__ __forceinline__ void fill_commit() {
#if CYANEA_CODE_PATH >= 80
    copy_commit();
#endif
}
__device__ __forceinline__ void fill_wait() {
#if CYANEA_CODE_PATH >= 80
    copy_wait<0>();
#endif
}

// The sum of products of two units.
__device__ __forceinline__ float dot_unit(const float*, uint4 a, uint4 b) {
    float sum = __uint_as_float(a.x) * __uint_as_float(b.x);
    sum = fmaf(__uint_as_float(a.y), __uint_as_float(b.y), sum);
    sum = fmaf(__uint_as_float(a.z), __uint_as_float(b.z), sum);
    return fmaf(__uint_as_float(a.w), __uint_as_float(b.w), sum);
}
__device__ __forceinline__ float dot_pair(unsigned a, unsigned b, float sum) {
    return fmaf(high_half(a), high_half(b), fmaf(low_half(a), low_half(b), sum));
}
__device__ __forceinline__ float dot_unit(const __half*, uint4 a, uint4 b) {
    return dot_pair(a.w, b.w, dot_pair(a.z, b.z, dot_pair(a.y, b.y, dot_pair(a.x, b.x, 0.0f))));
}

// Two neighbours of a row; the first has an even index.
__device__ __forceinline__ void put_pair(float* at, float low, float high) {
    *reinterpret_cast<float2*>(at) = make_float2(low, high);
}
__device__ __forceinline__ void put_pair(__half* at, float low, float high) {
    *reinterpret_cast<unsigned*>(at) = pack_half2(low, high);
}

// Products of a warp: `left` is 16 rows and `right` 16 columns of STEP terms.
template <class E>
struct Product;

template <>
struct Product<__half> {
    static const int STEP = 16;
    typedef unsigned Left[FRAGMENT(16)];
    typedef unsigned Right[FRAGMENT(16)];
#if CYANEA_CODE_PATH >= 80
    static const int NEAR = 1, FAR = 2;
#else
    static const int NEAR = 2, FAR = 8;
#endif
    static __device__ __forceinline__ int side(int i) { return i / 2 % 2; }
    static __device__ __forceinline__ int row(int side) { return sum_row(2 * side); }
    // The column of sum i, of scores and of rows of channels.
    static __device__ __forceinline__ int score_column(int i) { return sum_column(i); }
    static __device__ __forceinline__ int column(int i) { return sum_column(i); }
    // Both with terms contiguous, from the unit that `rows` (`columns`) begin with.
    static __device__ __forceinline__ void left(Left& a, const __half* rows, int plane) {
        load_a<16>(a, rows + a_row() * 8, plane);
    }
    static __device__ __forceinline__ void right(Right& b, const __half* columns, int plane) {
        load_b<16>(b, columns + b_column<16>() * 8, plane);
    }
    // STEP rows of 16 columns.
    static __device__ __forceinline__ void right_rows(Right& b, const __half* rows, int plane) {
        load_b_transposed(b, [=](int k) { return rows + k * 8; }, plane);
    }
    static __device__ __forceinline__ void add(float* sums, const Left& a, const Right& b) {
        multiply<16, false, false>(sums, a, b);
    }
    static __device__ __forceinline__ void add_rows(float* sums, const Left& a, const Right& b) {
        multiply<16, false, true>(sums, a, b);
    }
};

template <>
struct Product<float> {
    static const int STEP = 4;
    typedef float4 Left[2];
    typedef float4 Right[4];
    static const int NEAR = 1, FAR = 2;
    static __device__ __forceinline__ int side(int i) { return i / 4; }
    static __device__ __forceinline__ int row(int side) { return warp_lane() / 4 + side * 8; }
    static __device__ __forceinline__ int score_column(int i) { return warp_lane() % 4 + i % 4 * 4; }
    static __device__ __forceinline__ int column(int i) { return warp_lane() % 4 * 4 + i % 4; }
    static __device__ __forceinline__ void left(Left& a, const float* rows, int) {
        a[0] = *reinterpret_cast<const float4*>(rows + row(0) * 4);
        a[1] = *reinterpret_cast<const float4*>(rows + row(1) * 4);
    }
    static __device__ __forceinline__ void right(Right& b, const float* columns, int) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            b[i] = *reinterpret_cast<const float4*>(columns + score_column(i) * 4);
    }
    // Rows `apart` rows apart.
    static __device__ __forceinline__ void right_rows(Right& b, const float* rows, int plane,
                                                      int apart = 1) {
        const float* from = rows + warp_lane() % 4 * plane;
#pragma unroll
        for (int k = 0; k < 4; ++k) b[k] = *reinterpret_cast<const float4*>(from + k * apart * 4);
    }
    static __device__ __forceinline__ void add(float* sums, const Left& a, const Right& b) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            float sum = fmaf(a[i / 4].x, b[i % 4].x, sums[i]);
            sum = fmaf(a[i / 4].y, b[i % 4].y, sum);
            sum = fmaf(a[i / 4].z, b[i % 4].z, sum);
            sums[i] = fmaf(a[i / 4].w, b[i % 4].w, sum);
        }
    }
    static __device__ __forceinline__ void add_row(float* sums, float a, const float4& b) {
        sums[0] = fmaf(a, b.x, sums[0]);
        sums[1] = fmaf(a, b.y, sums[1]);
        sums[2] = fmaf(a, b.z, sums[2]);
        sums[3] = fmaf(a, b.w, sums[3]);
    }
    static __device__ __forceinline__ void add_rows(float* sums, const Left& a, const Right& b) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
            add_row(sums + 4 * side, a[side].x, b[0]);
            add_row(sums + 4 * side, a[side].y, b[1]);
            add_row(sums + 4 * side, a[side].z, b[2]);
            add_row(sums + 4 * side, a[side].w, b[3]);
        }
    }
};

// Over the four lanes that share a row.
template <class E>
__device__ __forceinline__ float row_sum(float value) {
    value += __shfl_xor_sync(0xffffffffu, value, Product<E>::NEAR);
    return value + __shfl_xor_sync(0xffffffffu, value, Product<E>::FAR);
}
template <class E>
__device__ __forceinline__ float row_max(float value) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, Product<E>::NEAR));
    return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, Product<E>::FAR));
}
// Which of the four the calling lane is.
template <class E>
__device__ __forceinline__ int row_member() {
    int lane = warp_lane();
    return (lane & Product<E>::NEAR ? 1 : 0) + (lane & Product<E>::FAR ? 2 : 0);
}

// Gradients of scores as float16 holds them: times a power of two, `factor`, that takes the largest
// seen so far near 2^8, and at most to 2^15. What is 2^22 times smaller still has all its bits.
struct Range {
    float factor, limit;

    __device__ __forceinline__ Range() : factor(1.0f), limit(0.0f) {}
    // For a new largest magnitude; returns what sums so far must be multiplied by. Infinity (pass it
    // for NaN too) makes NaN of everything, as integer arithmetic would hide it.
    __device__ __forceinline__ float follow(float largest) {
        int before = static_cast<int>(__float_as_uint(factor) >> 23);
        int exponent = min(262 - static_cast<int>(__float_as_uint(largest) >> 23), 253);
        if (!(largest < infinity())) {
            factor = __uint_as_float(0x7fc00000u);
            return factor;
        }
        factor = __uint_as_float(static_cast<unsigned>(exponent) << 23);
        limit = __uint_as_float(static_cast<unsigned>(min(269 - exponent, 254)) << 23);
        return __uint_as_float(static_cast<unsigned>(max(min(exponent - before + 127, 254), 0)) << 23);
    }
    __device__ __forceinline__ float inverse() const {
        return __uint_as_float(0x7f000000u - __float_as_uint(factor));
    }
};
