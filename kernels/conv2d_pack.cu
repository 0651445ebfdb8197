// Weights as the kernels of convolutions read them (common/conv2d_tile.cuh, conv2d_small_tile.cuh), packed whenever
// they change: all of a network in a few launches.
#include "common/conv2d_result.cuh"

template <class E>
struct Conv2dPack {
    // [c_out, c_in, taps]; transposed: [c_in, c_out, taps]. The second, where there is one, has half of c_in.
    const float* weight[2];
    E* packed;            // [c_out / 64][tap][piece of c_in, an even number][64, of 16 each in the order of
                          // ResultLayout][16 bytes], zeros beyond
    int c_out, c_in, taps, flags;
};

// Of an input gradient; for patches (patches.cu), in whose channels all taps of c_in are; for few outputs
// (conv2d_narrow.cu), where all taps of c_out are outputs, as if of one tap.
#define TRANSPOSED 1
#define PATCHED 2
#define NARROW 4

// Weights that one launch packs: a network has hundreds, and all change together.
#define MOST_PACKS 92

template <class E>
struct Conv2dPacks {
    Conv2dPack<E> each[MOST_PACKS];
    int first_block[MOST_PACKS];
    int count, unused;
};

// Taps from `tap` on of a piece, whose elements have `from` or are 0, and of which the first goes `to`.
template <int TAPS, class E>
__device__ __forceinline__ void pack_taps(const float* const (&from)[Piece<E>::SIZE], E* to, int pieces, int tap) {
    float value[TAPS][Piece<E>::SIZE];
#pragma unroll
    for (int k = 0; k < Piece<E>::SIZE; ++k)
#pragma unroll
        for (int t = 0; t < TAPS; ++t) value[t][k] = from[k] ? from[k][tap + t] : 0.0f;
#pragma unroll
    for (int t = 0; t < TAPS; ++t, to += pieces * WEIGHT_BLOCK * Piece<E>::SIZE)
        *reinterpret_cast<uint4*>(to) = pack(value[t]);
}

// A thread has a piece of one output, for all taps.
template <class E>
__global__ void __launch_bounds__(256) conv2d_pack(Conv2dPacks<E> packs) {
    int block = blockIdx.x, which = 0;
    for (int step = 64; step > 0; step /= 2)
        if (which + step < packs.count && packs.first_block[which + step] <= block) which += step;
    const Conv2dPack<E>& p = packs.each[which];
    const int SIZE = Piece<E>::SIZE;
    // Taps that are terms of the product, its results, or neither.
    int columns = p.flags & PATCHED ? p.taps : 1, rows = p.flags & NARROW ? p.taps : 1;
    int taps = p.taps / (columns * rows), all = p.c_in * columns, outs = p.c_out * rows;
    int pieces = (all + 2 * SIZE - 1) / (2 * SIZE) * 2;
    int i = (block - packs.first_block[which]) * blockDim.x + threadIdx.x;
    // Eight neighbouring outputs of two pieces: lanes write whole lines, and read what lies together.
    int out = i % 8 + i / 16 % 8 * 8, piece = i / 8 % 2 + i / 128 % (pieces / 2) * 2, of = i / 128 / (pieces / 2);
    if (of >= (outs + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK) return;
    E* to = p.packed + (static_cast<long long>(of) * taps * pieces + piece) * WEIGHT_BLOCK * SIZE + out * SIZE;
    out = (out & ~15) + ResultLayout<E>::channel_of(out & 15) + of * WEIGHT_BLOCK;
    bool beyond = out >= outs;
    int tap_of = rows > 1 ? out / p.c_out : 0, each = p.weight[1] ? p.c_in / 2 : p.c_in;
    out -= tap_of * p.c_out;
    const float* from[SIZE];
#pragma unroll
    for (int k = 0; k < SIZE; ++k) {
        int at = piece * SIZE + k, c = columns > 1 ? at / columns : at;
        from[k] = nullptr;
        if (at >= all || beyond) continue;
        int column = at - c * columns + tap_of;
        const float* weight = c < each ? p.weight[0] : p.weight[1];
        if (c >= each) c -= each;
        long long row = p.flags & TRANSPOSED ? static_cast<long long>(c) * p.c_out + out
                                               : static_cast<long long>(out) * each + c;
        from[k] = weight + (row * p.taps + column);
    }
    // All taps of an element lie together. A V100's L1 doesn't keep the lines of so many warps from a tap to the next.
    if (CYANEA_CODE_PATH < 80 && taps == 9) {
        pack_taps<9>(from, to, pieces, 0);
        return;
    }
#pragma unroll 1
    for (int tap = 0; tap < taps; ++tap, to += pieces * WEIGHT_BLOCK * SIZE) pack_taps<1>(from, to, pieces, tap);
}
