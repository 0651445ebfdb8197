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

    // Products of one tap after another. `aim` names the operands of a tap: the first piece of each of the
    // lane's rows of the first 16 of a, those of the next 16 lie `step` elements further and the next piece
    // of a row `plane`; and the first column of b.
    template <int MT, int NT>
    struct Taps {
#if CYANEA_CODE_PATH >= 80
        // Addresses once; then each load is one addition, or none, away.
        SharedRow left[MT], right;

        __device__ __forceinline__ void aim(const __half* const (&rows)[ROWS], int step, int plane, const __half* column) {
            right = shared_row(column + (b_column<16>() + warp_lane() / 8 % 2 * WEIGHT_BLOCK) * 8);
#pragma unroll
            for (int m = 0; m < MT; ++m) left[m] = shared_row(rows[0] + (m * step + warp_lane() / 16 * plane));
        }
        // The sums of `count` pieces, most often WHOLE. `meanwhile` is done while they are made.
        template <int WHOLE, class Meanwhile>
        __device__ __forceinline__ void add(float* sums, int, int plane, int count, Meanwhile meanwhile) {
            if (count == WHOLE) {
#pragma unroll
                for (int piece = 0; piece < WHOLE; piece += 2) {
                    pair(sums, plane);
                    if (piece == 0) meanwhile();
                }
            } else {
                meanwhile();
#pragma unroll 1
                for (int piece = 0; piece < count; piece += 2) pair(sums, plane);
            }
        }

    private:
        __device__ __forceinline__ void pair(float* sums, int plane) {
            unsigned b[NT][4];
#pragma unroll
            for (int n = 0; n < NT; ++n) ldmatrix_at<false>(b[n], moved(right, n * 16 * 8));
            right = moved(right, 2 * WEIGHT_BLOCK * 8);
#pragma unroll
            for (int m = 0; m < MT; ++m) {
                unsigned a[4];
                ldmatrix_at<false>(a, left[m]);
                left[m] = moved(left[m], 2 * plane);
#pragma unroll
                for (int n = 0; n < NT; ++n) multiply<16, false, false>(sums + (m * NT + n) * 8, a, b[n]);
            }
        }
#else
        const __half *left, *right;

        __device__ __forceinline__ void aim(const __half* const (&rows)[ROWS], int, int, const __half* column) {
            left = rows[0], right = column + b_column<16>() * 8;
        }
        template <int WHOLE, class Meanwhile>
        __device__ __forceinline__ void add(float* sums, int step, int plane, int count, Meanwhile meanwhile) {
            meanwhile();
            // A large tile's sums and operands leave no registers for a loop that is unrolled.
#pragma unroll 1
            for (int piece = 0; piece < count; piece += 2) {
                unsigned b[NT][FRAGMENT(16)];
#pragma unroll
                for (int n = 0; n < NT; ++n)
                    load_b<16>(b[n], right + (piece * WEIGHT_BLOCK + n * 16) * 8, WEIGHT_BLOCK * 8);
#pragma unroll
                for (int m = 0; m < MT; ++m) {
                    unsigned a[FRAGMENT(16)];
                    load_a<16>(a, left + (m * step + piece * plane), plane);
#pragma unroll
                    for (int n = 0; n < NT; ++n) multiply<16, false, false>(sums + (m * NT + n) * 8, a, b[n]);
                }
            }
        }
#endif
    };
};

template <>
struct WarpProduct<float> {
    static const int ROWS = 2;

    __device__ static __forceinline__ int row(int i) { return warp_lane() / 4 + 8 * i; }

    template <int MT, int NT>
    struct Taps {
        const float *left[ROWS], *right;

        __device__ __forceinline__ void aim(const float* const (&rows)[ROWS], int, int, const float* column) {
#pragma unroll
            for (int i = 0; i < ROWS; ++i) left[i] = rows[i];
            right = column + warp_lane() % 4 * 2 * 4;
        }
        template <int WHOLE, class Meanwhile>
        __device__ __forceinline__ void add(float* sums, int step, int plane, int count, Meanwhile meanwhile) {
            meanwhile();
            for (int piece = 0; piece < count; ++piece) {
                float4 b[NT][4];
#pragma unroll
                for (int n = 0; n < NT; ++n)
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        int column = n * 16 + j / 2 * 8 + j % 2;
                        b[n][j] = *reinterpret_cast<const float4*>(right + (piece * WEIGHT_BLOCK + column) * 4);
                    }
#pragma unroll
                for (int row = 0; row < ROWS * MT; ++row) {
                    float4 a = *reinterpret_cast<const float4*>(left[row % ROWS] + (row / ROWS * step + piece * plane));
#pragma unroll
                    for (int n = 0; n < NT; ++n)
#pragma unroll
                        for (int j = 0; j < 4; ++j) {
                            float& sum = sums[(row / 2 * NT + n) * 8 + j / 2 * 4 + row % 2 * 2 + j % 2];
                            sum = fmaf(a.x, b[n][j].x, sum);
                            sum = fmaf(a.y, b[n][j].y, sum);
                            sum = fmaf(a.z, b[n][j].z, sum);
                            sum = fmaf(a.w, b[n][j].w, sum);
                        }
                }
            }
        }
    };
};
