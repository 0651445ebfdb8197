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
