// Sums over a block. The tree depends on the number of threads only, so the same inputs give the
// same bits whatever order the lanes run in.
#pragma once
#include "common/shared.cuh"

// Sum over a warp; every lane gets it.
__device__ __forceinline__ float warp_sum(float value) {
    for (int bits = 16; bits > 0; bits /= 2) value += __shfl_xor_sync(0xffffffffu, value, bits);
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
    for (int bits = 16; bits > 0; bits /= 2)
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, bits));
    return value;
}

// Sum over a block of at most 1,024 threads, a multiple of 32; every thread gets it. `partial`
// holds 32 floats of shared memory.
__device__ __forceinline__ float block_sum(float value, float* partial) {
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    value = threadIdx.x % 32 < blockDim.x / 32 ? partial[threadIdx.x % 32] : 0.0f;
    value = warp_sum(value);
    __syncthreads();
    return value;
}

// The sum of part(o, r) over r < rows for every o < count, handed to write(o, total) by one thread. Each
// sum is the work of neighbouring lanes, so that it has one order.
template <class Part, class Write>
__device__ __forceinline__ void block_totals(int count, int rows, const Part& part, const Write& write) {
    int threads = blockDim.x, lanes = 1;
    while (lanes < 32 && lanes * 2 * count <= threads) lanes *= 2;
    int lane = threadIdx.x % lanes;
    for (int base = 0; base < count; base += threads / lanes) {
        // All lanes of a warp take part in the sums.
        int own = base + threadIdx.x / lanes, o = min(own, count - 1);
        float total = 0.0f;
        for (int r = lane; r < rows; r += lanes) total += part(o, r);
        for (int bits = lanes / 2; bits > 0; bits /= 2) total += __shfl_xor_sync(0xffffffffu, total, bits);
        if (own < count && lane == 0) write(o, total);
    }
}
