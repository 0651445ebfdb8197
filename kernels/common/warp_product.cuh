// The product of a warp over pieces of k, for either element type: sums [MT 16 x NT 16] += a b.
//
// a and b lie in shared memory in planes of pieces: 16 bytes of neighbouring k for each row of a, and
// for each column of b. float16 goes to tensor cores (common/warp_tile.cuh); float32 is summed with
// FMA, k ascending, each lane at the places where tensor cores of sm_80 have theirs.
#pragma once
#include "common/piece.cuh"
#include "common/warp_tile.cuh"

// Columns of b whose pieces lie side by side.
#define WEIGHT_BLOCK 64

template <class E>
struct WarpProduct;

template <>
struct WarpProduct<__half> {
    // Rows of a 16 x 16 product whose addresses a lane gives.
    static const int ROWS = 1;

    __device__ static __forceinline__ int row(int) { return a_row(); }
    __device__ static __forceinline__ int sum_row(int i) { return ::sum_row(i); }
    __device__ static __forceinline__ int sum_column(int i) { return ::sum_column(i); }

    // `a`: the first piece of each of the lane's rows of the first 16; those of the next 16 lie `step`
    // elements further, and the next piece of a row `plane`. `b`: the first column.
    template <int MT, int NT>
    __device__ static __forceinline__ void add(float* sums, const __half* const (&a)[ROWS], int step, int plane,
                                               const __half* b, int pieces) {
        b += b_column<16>() * 8;
#if CYANEA_CODE_PATH >= 80
        // Addresses once; then each load is one addition, or none, away.
        SharedRow left_at[MT], right_at = shared_row(b + warp_lane() / 8 % 2 * WEIGHT_BLOCK * 8);
#pragma unroll
        for (int m = 0; m < MT; ++m) left_at[m] = shared_row(a[0] + (m * step + warp_lane() / 16 * plane));
#endif
        // On sm_70 a large tile's sums and operands leave no registers for a loop that is unrolled.
#pragma unroll CYANEA_CODE_PATH >= 80 ? 4 : 1
        for (int piece = 0; piece < pieces; piece += 2) {
            unsigned right[NT][FRAGMENT(16)];
#pragma unroll
            for (int n = 0; n < NT; ++n) {
#if CYANEA_CODE_PATH >= 80
                ldmatrix_at<false>(right[n], moved(right_at, n * 16 * 8));
#else
                load_b<16>(right[n], b + (piece * WEIGHT_BLOCK + n * 16) * 8, WEIGHT_BLOCK * 8);
#endif
            }
#pragma unroll
            for (int m = 0; m < MT; ++m) {
                unsigned left[FRAGMENT(16)];
#if CYANEA_CODE_PATH >= 80
                ldmatrix_at<false>(left, left_at[m]);
                left_at[m] = moved(left_at[m], 2 * plane);
#else
                load_a<16>(left, a[0] + (m * step + piece * plane), plane);
#endif
#pragma unroll
                for (int n = 0; n < NT; ++n)
                    multiply<16, false, false>(sums + (m * NT + n) * 8, left, right[n]);
            }
#if CYANEA_CODE_PATH >= 80
            right_at = moved(right_at, 2 * WEIGHT_BLOCK * 8);
#endif
        }
    }
};

template <>
struct WarpProduct<float> {
    static const int ROWS = 2;

    __device__ static __forceinline__ int row(int i) { return warp_lane() / 4 + 8 * i; }
    __device__ static __forceinline__ int sum_row(int i) { return warp_lane() / 4 + (i & 2) * 4; }
    __device__ static __forceinline__ int sum_column(int i) {
        return (i & 4) * 2 + warp_lane() % 4 * 2 + (i & 1);
    }

    template <int MT, int NT>
    __device__ static __forceinline__ void add(float* sums, const float* const (&a)[ROWS], int step, int plane,
                                               const float* b, int pieces) {
        b += warp_lane() % 4 * 2 * 4;
        for (int piece = 0; piece < pieces; ++piece) {
            float4 right[NT][4];
#pragma unroll
            for (int n = 0; n < NT; ++n)
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    int column = n * 16 + j / 2 * 8 + j % 2;
                    right[n][j] = *reinterpret_cast<const float4*>(b + (piece * WEIGHT_BLOCK + column) * 4);
                }
#pragma unroll
            for (int row = 0; row < ROWS * MT; ++row) {
                float4 left = *reinterpret_cast<const float4*>(a[row % ROWS] + (row / ROWS * step + piece * plane));
#pragma unroll
                for (int n = 0; n < NT; ++n)
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        float& sum = sums[(row / 2 * NT + n) * 8 + j / 2 * 4 + row % 2 * 2 + j % 2];
                        sum = fmaf(left.x, right[n][j].x, sum);
                        sum = fmaf(left.y, right[n][j].y, sum);
                        sum = fmaf(left.z, right[n][j].z, sum);
                        sum = fmaf(left.w, right[n][j].w, sum);
                    }
            }
        }
    }
};
