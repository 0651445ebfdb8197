// Kernels with one fault each, for the tests of checked mode, which look for the line that the
// comment `fault: <name>` marks. In no manifest.
#include "common/mma.cuh"
#include "common/shared.cuh"

struct Faults {
    const float* in;
    float* out;  // 64 floats
    int mode, behind;
};

// Static shared memory: out[i] = the neighbour's value.
__global__ void faults_in_static(Faults p) {
    CYANEA_SHARED(float, tile, 64);
    CYANEA_SHARED(float, other, 64);
    int i = static_cast<int>(threadIdx.x);
    if (p.mode == 0) {
        tile[i] = p.in[i];
        p.out[i] = tile[(i + 33) % 64];  // fault: race between warps
    }
    if (p.mode == 1) {
        tile[i] = p.in[i];
        p.out[i] = tile[i ^ 1];  // fault: race inside a warp
    }
    if (p.mode == 2) {
        tile[i] = p.in[i];
        __syncthreads();
        p.out[i] = tile[(i + 33) % 64];
        tile[i] = 0.0f;  // fault: write after read
    }
    if (p.mode == 3) {
        if (i != 5) tile[i] = p.in[i];
        __syncthreads();
        p.out[i] = tile[63 - i];  // fault: never written
    }
    if (p.mode == 4) tile[i + p.behind] = p.in[i];  // fault: index of a static array
    if (p.mode == 5) {
        other[i] = 0.0f;
        float* at = tile;
        at[i + p.behind] = p.in[i];  // fault: behind a static array
    }
    if (p.mode == 6) tile[i % 2] = p.in[i];  // fault: two writers
}

__global__ void faults_in_dynamic(Faults p) {
    CYANEA_DYNAMIC_SHARED(float, tile);
    CYANEA_SHARED(float, after, 64);
    int i = static_cast<int>(threadIdx.x);
    after[i] = 0.0f;
    if (p.mode == 0) tile[i + p.behind] = p.in[i];  // fault: behind dynamic shared memory
    if (p.mode == 1) {
        tile[i] = p.in[i];
        __syncthreads();
        if (i == 9) reinterpret_cast<float4*>(tile + p.behind)->x = 0.0f;  // fault: misaligned shared
    }
    if (p.mode == 2) {
        tile[i] = p.in[i];
        p.out[i] = __shfl_xor_sync(0xffffffffu, tile[i], 1);
        tile[i ^ 1] = 0.0f;  // fault: a shuffle orders no memory
    }
    if (p.mode == 3) {
        if (i < 16) copy_async(tile + 4 * i, p.in + 4 * i);
        copy_commit();
        __syncthreads();
        p.out[i] = tile[i];  // fault: a copy without a wait
    }
    if (p.mode == 4) {
        if (i < 16) copy_async(tile + 4 * i, p.in + 4 * i);
        copy_commit();
        copy_wait<0>();
        p.out[i] = tile[63 - i];  // fault: a wait without a barrier
    }
    if (p.mode == 5 && i < 8) copy_async(tile + 4 * i, p.in + 4 * i + 2);  // fault: misaligned copy
}

__global__ void faults_in_global(Faults p) {
    int i = static_cast<int>(threadIdx.x);
    if (p.mode == 0) p.out[i] = p.in[i + p.behind];  // fault: read behind a view
    if (p.mode == 1) p.out[i + p.behind] = 1.0f;  // fault: write behind a view
    if (p.mode == 2) const_cast<float*>(p.in)[i] = 1.0f;  // fault: write to what is read
    if (p.mode == 3 && i == 7) {
        float4 row = *reinterpret_cast<const float4*>(p.in + p.behind);  // fault: misaligned global
        p.out[i] = row.x + row.w;
    }
    if (p.mode == 4) p.out[i - 64 - p.behind] = 1.0f;  // fault: write before a view
    if (p.mode == 5) atomicAdd(reinterpret_cast<unsigned*>(p.out) + i + p.behind, 1u);  // atomic
}

// What is in order: barriers of both kinds, a tile that is used again, a shuffle, vectors, atomics.
__global__ void faults_none(Faults p) {
    CYANEA_SHARED(float, tile, 64);
    CYANEA_SHARED(unsigned, count, 1);
    CYANEA_DYNAMIC_SHARED(float, wide);
    int i = static_cast<int>(threadIdx.x);
    float own[4] = {};
    if (i == 0) count[0] = 0;
    for (int round = 0; round < 3; ++round) {
        tile[i] = p.in[i] + static_cast<float>(round);
        __syncthreads();
        own[round & 3] += tile[(i + 33) % 64];
        atomicAdd(&count[0], 1u);
        __syncthreads();
        tile[i] = own[round & 3];
        __syncwarp(0xffffffffu);
        own[3] += tile[i ^ 1];
        __syncwarp(0xffffffffu);
    }
    __syncthreads();
    if (i < 16) {
        float4 row = reinterpret_cast<const float4*>(p.in)[i];
        reinterpret_cast<float4*>(wide)[i] = row;
    }
    __syncthreads();
    if (i >= 48) {
        copy_async(wide + 4 * (i - 48), p.in + 4 * (i - 48));
        copy_commit();
        copy_wait<0>();
    }
    __syncthreads();
    float sum = own[3] + wide[i] + static_cast<float>(count[0]);
    p.out[i] = sum + __shfl_down_sync(0xffffffffu, sum, 1);
}
