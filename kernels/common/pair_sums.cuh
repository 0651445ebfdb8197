// Sums of products that two warps of a block made parts of: each gives half of them away and keeps the others.
#pragma once
#include "common/warp_tile.cuh"

// The sums of COUNT products of 16 x 16 of which two warps made parts, whose numbers differ by DISTANCE. The first of
// them takes those of the first half of products, or where they ALTERNATE of the even ones, through `shared`, which is
// [warp][2 HALF][lane]. Of an odd COUNT the second takes one that it has already in place of what is not there.
template <int COUNT, int DISTANCE, bool ALTERNATE>
struct PairSums {
    static_assert(!ALTERNATE || COUNT % 2 == 0, "each has a neighbour");
    static const int HALF = (COUNT + 1) / 2;
    float sums[COUNT * 8];

    __device__ __forceinline__ void give(float4* shared) const {
        float4* to = shared + (threadIdx.x / 32 * (2 * HALF) * 32 + warp_lane());
#pragma unroll
        for (int i = 0; i < HALF * 8; i += 4, to += 32)
            *to = make_float4(part(i, true), part(i + 1, true), part(i + 2, true), part(i + 3, true));
    }
    // Sets what is taken, or ADDS to it, when all has been given.
    template <bool ADDS>
    __device__ __forceinline__ void take(float* to, const float4* shared) const {
        const float4* from = shared + ((threadIdx.x / 32 ^ DISTANCE) * (2 * HALF) * 32 + warp_lane());
#pragma unroll
        for (int i = 0; i < HALF * 8; i += 4, from += 32) {
            float4 four = *from;
            float other[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                float sum = part(i + j, false) + other[j];
                to[i + j] = ADDS ? to[i + j] + sum : sum;
            }
        }
    }

private:
    // Sum `i` of what the other warp takes, or of what stays.
    __device__ __forceinline__ float part(int i, bool others) const {
        int product = i / 8, first = ALTERNATE ? 2 * product : product;
        int second = ALTERNATE ? first + 1 : min(first + HALF, COUNT - 1);
        bool of_second = (threadIdx.x / 32 & DISTANCE) != (others ? DISTANCE : 0);
        return of_second ? sums[second * 8 + i % 8] : sums[first * 8 + i % 8];
    }
};
