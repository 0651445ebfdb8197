// Sums that several blocks make parts of.
#pragma once
#include "common/mma.cuh"
#include "common/shared.cuh"

// Whether the block is the last of `blocks` to come here, and so sees what each wrote before. All of its
// threads take part. The ticket is zero again then.
__device__ __forceinline__ bool comes_last(unsigned* ticket, int blocks) {
    CYANEA_SHARED(unsigned, drawn, 1);
    // What all threads wrote precedes the barrier, and so the fence and the ticket of one of them.
    __syncthreads();  // Stays: what precedes what in global memory is watched by no check.
    if (threadIdx.x == 0) {
        device_fence();
        drawn[0] = atomicAdd(ticket, 1u);
        device_fence();
    }
    __syncthreads();
    if (drawn[0] != static_cast<unsigned>(blocks - 1)) return false;
    if (threadIdx.x == 0) *ticket = 0;
    return true;
}

// The sums of these slices, in their order, to `sink`(which, sum). Where there are many few registers are left, so
// 32 loads are under way at a time; else 64, of several slices.
template <int THREADS, int SUMS, class Sink>
__device__ __forceinline__ void add_parts(const float* partials, int slices, Sink sink) {
    const int BATCH = SUMS < 32 ? SUMS : 32, TOGETHER = SUMS > 32 ? 1 : 64 / BATCH;
#pragma unroll
    for (int first = 0; first < SUMS; first += BATCH) {
        float sums[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; ++i) sums[i] = 0.0f;
#pragma unroll 1
        for (int from = 0; from < slices; from += TOGETHER) {
            float part[TOGETHER][BATCH];
#pragma unroll
            for (int k = 0; k < TOGETHER; ++k) {
                // The last one again beyond it: without branches all are under way at once.
                int slice = min(from + k, slices - 1);
                const float* of = partials + (static_cast<long long>(slice) * SUMS + first) * THREADS + threadIdx.x;
#pragma unroll
                for (int i = 0; i < BATCH; ++i) part[k][i] = first + i < SUMS ? __ldcg(of + i * THREADS) : 0.0f;
            }
#pragma unroll
            for (int k = 0; k < TOGETHER; ++k)
#pragma unroll
                for (int i = 0; i < BATCH; ++i)
                    if (from + k < slices) sums[i] += part[k][i];
        }
#pragma unroll
        for (int i = 0; i < BATCH && first + i < SUMS; ++i) sink(first + i, sums[i]);
    }
}

// Adds the sums of all slices in their order; true in the block that came last, which has them all.
// No block waits for another.
template <int THREADS, int SUMS>
__device__ __forceinline__ bool join_slices(float (&sums)[SUMS], float* partials, unsigned* ticket,
                                            int slice, int slices) {
    float* own = partials + static_cast<long long>(slice) * SUMS * THREADS;
#pragma unroll
    for (int i = 0; i < SUMS; ++i) own[i * THREADS + threadIdx.x] = sums[i];
    if (!comes_last(ticket, slices)) return false;
    add_parts<THREADS, SUMS>(partials, slices, [&](int i, float sum) { sums[i] = sum; });
    return true;
}

// Adds the sums that the first THREADS threads of a block have of all slices, in their order: `sink`(which,
// sum) gets them in the block that came last. No block waits for another. Groups of `fan` slices are joined
// first, and then their sums, so that no block reads more than a few parts. There is room for a part of every
// slice and of every group, and a ticket for every group and for the whole. Sums of a single slice take the same
// way, so that there are registers for what the sink computes.
template <int THREADS, int SUMS, class Sink>
__device__ __forceinline__ void join_groups(const float (&sums)[SUMS], float* partials, unsigned* tickets,
                                            int slice, int slices, int fan, Sink sink) {
    bool has_sums = threadIdx.x < THREADS;
    const long long part = static_cast<long long>(SUMS) * THREADS;
    float* own = partials + slice * part + threadIdx.x;
#pragma unroll
    for (int i = 0; i < SUMS; ++i)
        if (has_sums) own[i * THREADS] = sums[i];
    int group = slice / fan, groups = (slices + fan - 1) / fan, first = group * fan;
    int count = min(fan, slices - first);
    const float* from = partials + first * part;
    if (!comes_last(tickets + group, count)) return;
    if (groups > 1) {
        float* of_group = partials + (slices + group) * part + threadIdx.x;
        auto store = [&](int i, float sum) { of_group[i * THREADS] = sum; };
        if (has_sums) add_parts<THREADS, SUMS>(from, count, store);
        if (!comes_last(tickets + groups, groups)) return;
        from = partials + slices * part, count = groups;
    }
    if (has_sums) add_parts<THREADS, SUMS>(from, count, sink);
}
