// What a warp of the weight gradient adds for 16 pixels: for each tap, rows (channels of dy) times
// columns (channels of x), in blocks of MT x NT products of 16 x 16. Pixels are the terms of the sums.
// Operands come from shared memory in planes of pieces: 16 bytes along the channels, the next pixel
// behind them, the next piece `plane` pixels further.
//
// float16 goes to tensor cores. In float32 a lane makes 4 x 4 results of every 32 x 16.
#pragma once
#include "common/piece.cuh"
#include "common/warp_tile.cuh"

// Adds the products of pixels `first` to `first` + 15. `left` and `right` are the warp's first planes. Pixel
// k of dy is that of x at place(k), and tap (ky, kx) reads it ky `rows` and shift(kx) further. Eight pixels
// are neighbours in x, too. `during` is called with 0 to TAPS, between the products of taps where there are
// instructions to be hidden by those.
template <int TAPS, int MT, int NT, class Place, class Shift, class During>
__device__ __forceinline__ void wgrad_step(float* sums, const __half*, const uint4* left, int left_plane,
                                           const uint4* right, int right_plane, int first, Place place,
                                           int rows, Shift shift, During during) {
    int lane = warp_lane();
#if CYANEA_CODE_PATH >= 80
    const uint4* dy = left + lane / 8 % 2 * left_plane + first + lane % 8 + lane / 16 * 8;
    const uint4* x = right + lane / 16 * right_plane + place(first + lane % 16);
    auto load_a = [&](unsigned* r, int m) {
        ldmatrix<4, true>(r, reinterpret_cast<const __half*>(dy + 2 * m * left_plane));
    };
    auto load_b = [&](unsigned* r, int further) {
        ldmatrix<4, true>(r, reinterpret_cast<const __half*>(x + further));
    };
#else
    // Columns 0-3 and 8-11 are those of products 0 and 1, the others of 2 and 3, so that 16 lanes read
    // whole pieces of 4 pixels.
    const uint2* dy = reinterpret_cast<const uint2*>(left + lane / 16 * left_plane + first + lane % 4) + lane / 4 % 2;
    const uint4* octet = right + lane / 16 * right_plane;
    const uint2* x[2];
    for (int half = 0; half < 2; ++half)
        x[half] = reinterpret_cast<const uint2*>(octet + place(first + half * 8 + lane % 4)) + lane / 8 % 2;
    auto load_a = [&](unsigned* r, int m) {
#pragma unroll
        for (int step = 0; step < 4; ++step) {
            uint2 value = dy[2 * (2 * m * left_plane + step * 4)];
            r[2 * step] = value.x;
            r[2 * step + 1] = value.y;
        }
    };
    auto load_b = [&](unsigned* r, int further) {
#pragma unroll
        for (int step = 0; step < 4; ++step) {
            uint2 value = x[step / 2][2 * (further + step % 2 * 4)];
            r[2 * step] = value.x;
            r[2 * step + 1] = value.y;
        }
    };
#endif
    unsigned a[MT][FRAGMENT(16)];
#pragma unroll
    for (int t = 0; t < TAPS; ++t) {
        during(t);
        unsigned b[NT][FRAGMENT(16)];
#pragma unroll
        for (int n = 0; n < NT; ++n) load_b(b[n], 2 * n * right_plane + t / 3 * rows + shift(t % 3));
#pragma unroll
        for (int m = 0; m < MT; ++m) {
            if (t == 0) load_a(a[m], m);
#pragma unroll
            for (int n = 0; n < NT; ++n)
                multiply<16, true, true>(sums + ((t * MT + m) * NT + n) * 8, a[m], b[n]);
        }
    }
    during(TAPS);
}

template <int TAPS, int MT, int NT, class Place, class Shift, class During>
__device__ __forceinline__ void wgrad_step(float* sums, const float*, const uint4* left, int left_plane,
                                           const uint4* right, int right_plane, int first, Place place,
                                           int rows, Shift shift, During during) {
    left += warp_lane() / 4 * left_plane;
    right += warp_lane() % 4 * right_plane;
    during(0);
#pragma unroll 1
    for (int k = first; k < first + 16; ++k) {
        const uint4* x = right + place(k);
        float a[MT / 2][4];
#pragma unroll
        for (int m = 0; m < MT / 2; ++m) unpack(left[8 * m * left_plane + k], a[m]);
#pragma unroll
        for (int t = 0; t < TAPS; ++t) {
#pragma unroll
            for (int n = 0; n < NT; ++n) {
                float b[4];
                unpack(x[4 * n * right_plane + t / 3 * rows + shift(t % 3)], b);
#pragma unroll
                for (int m = 0; m < MT / 2; ++m) {
#pragma unroll
                    for (int i = 0; i < 16; ++i) {
                        float& sum = sums[((t * (MT / 2) + m) * NT + n) * 16 + i];
                        sum = fmaf(a[m][i / 4], b[i % 4], sum);
                    }
                }
            }
        }
    }
#pragma unroll
    for (int t = 1; t <= TAPS; ++t) during(t);
}

// Where sum `i` of the calling lane lies in the warp's block.
struct WgradPlace {
    int tap, row, column;
};
template <int MT, int NT>
__device__ __forceinline__ WgradPlace wgrad_place(const __half*, int i) {
    int product = i / 8, m = product / NT % MT, n = product % NT;
#if CYANEA_CODE_PATH >= 80
    int column = sum_column(i % 8);
#else
    int column = (i & 4) * 2 + (warp_lane() & 8) / 2 + (warp_lane() & 2) + (i & 1);
#endif
    return {product / NT / MT, m * 16 + sum_row(i % 8), n * 16 + column};
}
template <int MT, int NT>
__device__ __forceinline__ WgradPlace wgrad_place(const float*, int i) {
    int block = i / 16, m = block / NT % (MT / 2), n = block % NT;
    int row = (m * 8 + warp_lane() / 4) * 4 + i % 16 / 4;
    return {block / NT / (MT / 2), row, (n * 4 + warp_lane() % 4) * 4 + i % 4};
}
