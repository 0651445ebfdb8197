// Moments of tiles, as convolutions leave them (store_moments), merged.
#pragma once
#include "common/conv2d_source.cuh"
#include "common/reduce.cuh"

// Mean and variance of a group from what the producers of its sources left, by a warp (as fill_affine,
// which shares a warp among groups).
__device__ __forceinline__ float2 merge_moments(GroupMoments& first, GroupMoments& second) {
    int lane = threadIdx.x % 32;
    float count = 0.0f, total = 0.0f, squares = 0.0f;
    auto add = [&](float elements, float mean, float) {
        count += elements;
        total = fmaf(elements, mean, total);
    };
    first.each(lane, 32, false, add);
    second.each(lane, 32, false, add);
    count = warp_sum(count);
    float mean = warp_sum(total) / count;
    auto deviate = [&](float elements, float own, float within) {
        float distance = own - mean;
        squares += fmaf(elements * distance, distance, within);
    };
    first.each(lane, 32, true, deviate);
    second.each(lane, 32, true, deviate);
    return make_float2(mean, warp_sum(squares) / count);
}
