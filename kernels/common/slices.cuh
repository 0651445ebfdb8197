// Sums that several blocks make parts of.
#pragma once
#include "common/mma.cuh"
#include "common/shared.cuh"

// Whether the block is the last of `blocks` to come here, and so sees what each wrote before. All of its
// threads take part. The ticket is zero again then.
__device__ __forceinline__ bool comes_last(unsigned* ticket, int blocks) {
    CYANEA_SHARED(unsigned, drawn, 1);
    // What all threads wrote precedes the barrier, and so the fence and the ticket of one of them.
    __syncthreads();
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

// Parts lie as [slice][vector of sums][thread], so that a thread's loads are few and wide where sums come in fours.
template <int SUMS>
struct PartVector {
    static const int SIZE = SUMS % 4 == 0 ? 4 : 1;
};
template <int THREADS, int SUMS>
__device__ __forceinline__ void store_part(float* to, const float* sums) {
    const int SIZE = PartVector<SUMS>::SIZE;
    to += threadIdx.x * SIZE;
#pragma unroll
    for (int i = 0; i < SUMS; i += SIZE, to += THREADS * SIZE) {
        if (SIZE == 4) *reinterpret_cast<float4*>(to) = make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]);
        else *to = sums[i];
    }
}

// The sums of these slices, in their order, to `sink`(which, sum): as many loads are under way at a time as there are
// registers for, of a few slices.
template <int THREADS, int SUMS, class Sink>
__device__ __forceinline__ void add_parts(const float* partials, int slices, Sink sink) {
    const int SIZE = PartVector<SUMS>::SIZE, BATCH = SUMS < 32 ? SUMS : 32;
    const int TOGETHER = SUMS > 32 ? 1 : BATCH > 16 ? 128 / BATCH : 8;
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
                const float* of = partials + (static_cast<long long>(from + k) * SUMS + first) * THREADS;
                of += threadIdx.x * SIZE;
                if (from + k >= slices) continue;
#pragma unroll
                for (int i = 0; i < BATCH && first + i < SUMS; i += SIZE, of += THREADS * SIZE) {
                    if (SIZE == 1) {
                        part[k][i] = __ldcg(of);
                        continue;
                    }
                    float4 four = __ldcg(reinterpret_cast<const float4*>(of));
                    part[k][i] = four.x, part[k][i + 1] = four.y, part[k][i + 2] = four.z, part[k][i + 3] = four.w;
                }
            }
#pragma unroll
            for (int k = 0; k < TOGETHER; ++k) {
                if (from + k >= slices) continue;
#pragma unroll
                for (int i = 0; i < BATCH && first + i < SUMS; ++i) sums[i] += part[k][i];
            }
        }
#pragma unroll
        for (int i = 0; i < BATCH && first + i < SUMS; ++i) sink(first + i, sums[i]);
    }
}

// Adds to the sums of slice `own` those of all others, of up to 8, so that which one it is makes no difference:
// neighbours first, whose numbers differ in one bit, then these pairs, then these fours. What isn't there is zero.
template <int THREADS, int SUMS>
__device__ __forceinline__ void add_others(float (&sums)[SUMS], const float* partials, int slices, int own) {
    static_assert(SUMS % 4 == 0, "a vector of sums is four");
    auto load = [&](float (&part)[SUMS], int slice) {
        const float4* of = reinterpret_cast<const float4*>(partials) + (slice * (SUMS / 4) * THREADS + threadIdx.x);
#pragma unroll
        for (int i = 0; i < SUMS; i += 4, of += THREADS) {
            float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (slice < slices) four = __ldcg(of);
            part[i] = four.x, part[i + 1] = four.y, part[i + 2] = four.z, part[i + 3] = four.w;
        }
    };
    float part[4][SUMS];
#pragma unroll
    for (int k = 1; k < 4; ++k) load(part[k], own ^ k);
#pragma unroll
    for (int i = 0; i < SUMS; ++i) sums[i] = (sums[i] + part[1][i]) + (part[2][i] + part[3][i]);
    if (slices <= 4) return;
#pragma unroll
    for (int k = 0; k < 4; ++k) load(part[k], own ^ (4 + k));
#pragma unroll
    for (int i = 0; i < SUMS; ++i) sums[i] += (part[0][i] + part[1][i]) + (part[2][i] + part[3][i]);
}

// Adds the sums of all slices, in an order of their numbers; true in the block that came last, which has them all.
// No block waits for another.
template <int THREADS, int SUMS>
__device__ __forceinline__ bool join_slices(float (&sums)[SUMS], float* partials, unsigned* ticket,
                                            int slice, int slices) {
    store_part<THREADS, SUMS>(partials + static_cast<long long>(slice) * SUMS * THREADS, sums);
    if (!comes_last(ticket, slices)) return false;
    // Many sums leave no registers for those of other slices.
    if (SUMS > 32 || slices > 8)
        add_parts<THREADS, SUMS>(partials, slices, [&](int i, float sum) { sums[i] = sum; });
    else add_others<THREADS, SUMS>(sums, partials, slices, slice);
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
    if (has_sums) store_part<THREADS, SUMS>(partials + slice * part, sums);
    int group = slice / fan, groups = (slices + fan - 1) / fan, first = group * fan;
    int count = min(fan, slices - first);
    const float* from = partials + first * part;
    if (!comes_last(tickets + group, count)) return;
    if (groups > 1) {
        static_assert(PartVector<SUMS>::SIZE == 1, "sums are stored one by one");
        float* of_group = partials + (slices + group) * part + threadIdx.x;
        auto store = [&](int i, float sum) { of_group[i * THREADS] = sum; };
        if (has_sums) add_parts<THREADS, SUMS>(from, count, store);
        if (!comes_last(tickets + groups, groups)) return;
        from = partials + slices * part, count = groups;
    }
    if (has_sums) add_parts<THREADS, SUMS>(from, count, sink);
}
