// Sums that several blocks make parts of.
#pragma once
#include "common/shared.cuh"

// Adds the sums of all slices in their order; true in the block that came last, which has them all.
// No block waits for another.
template <int SUMS>
__device__ __forceinline__ bool join_slices(float (&sums)[SUMS], float* partials, unsigned* ticket,
                                            int slice, int slices) {
    CYANEA_SHARED(unsigned, drawn, 1);
    int threads = blockDim.x;
    float* own = partials + static_cast<long long>(slice) * SUMS * threads;
#pragma unroll
    for (int i = 0; i < SUMS; ++i) own[i * threads + threadIdx.x] = sums[i];
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) drawn[0] = atomicAdd(ticket, 1u);
    __syncthreads();
    if (drawn[0] != static_cast<unsigned>(slices - 1)) return false;
    __threadfence();
#pragma unroll
    for (int i = 0; i < SUMS; ++i) sums[i] = 0.0f;
    for (int from = 0; from < slices; ++from) {
        const float* other = partials + static_cast<long long>(from) * SUMS * threads;
#pragma unroll
        for (int i = 0; i < SUMS; ++i) sums[i] += __ldcg(other + (i * threads + threadIdx.x));
    }
    if (threadIdx.x == 0) *ticket = 0;
    return true;
}
