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

// How many neighbouring lanes of a block share the work for each of `count` results.
__device__ __forceinline__ int lanes_each(int count) {
    int lanes = 1;
#pragma unroll
    for (int more = 2; more <= 32; more *= 2)
        if (more * count <= static_cast<int>(blockDim.x)) lanes = more;
    return lanes;
}

// Sum over that many lanes; each of them gets it.
__device__ __forceinline__ float lanes_sum(float value, int lanes) {
    // Skipped steps of an unrolled loop take longer than the loop.
#pragma unroll 1
    for (int bits = lanes / 2; bits > 0; bits /= 2) value += __shfl_xor_sync(0xffffffffu, value, bits);
    return value;
}

// The sum of part(o, r) over r < rows for every o < count, handed to write(o, total) by one thread. Each
// sum is the work of neighbouring lanes, so that it has one order.
template <class Part, class Write>
__device__ __forceinline__ void block_totals(int count, int rows, const Part& part, const Write& write) {
    int threads = blockDim.x, lanes = lanes_each(count), lane = threadIdx.x % lanes;
    for (int base = 0; base < count; base += threads / lanes) {
        // All lanes of a warp take part in the sums.
        int own = base + threadIdx.x / lanes, o = min(own, count - 1);
        float total = 0.0f;
        for (int r = lane; r < rows; r += lanes) total += part(o, r);
        total = lanes_sum(total, lanes);
        if (own < count && lane == 0) write(o, total);
    }
}

// Mean and sum of squared deviations of `elements` elements, of which part(o, r), r < rows, says how many it has
// and these two of them (Chan, Golub & LeVeque 1979, eq. 2.1, for all parts at once), for every o < count. Each
// of the lanes that share this work calls write(o, mean, squares, lane, lanes).
template <class Part, class Write>
__device__ __forceinline__ void block_moments(int count, int rows, float elements, const Part& part,
                                              const Write& write) {
    int threads = blockDim.x, lanes = lanes_each(count), lane = threadIdx.x % lanes;
    for (int base = 0; base < count; base += threads / lanes) {
        int own = base + threadIdx.x / lanes, o = min(own, count - 1);
        float total = 0.0f, squares = 0.0f;
#pragma unroll 4
        for (int r = lane; r < rows; r += lanes) {
            float3 of = part(o, r);
            total = fmaf(of.x, of.y, total);
        }
        float mean = lanes_sum(total, lanes) / elements;
#pragma unroll 4
        for (int r = lane; r < rows; r += lanes) {
            float3 of = part(o, r);
            float distance = of.y - mean;
            squares += fmaf(of.x * distance, distance, of.z);
        }
        squares = lanes_sum(squares, lanes);
        if (own < count) write(o, mean, squares, lane, lanes);
    }
}
