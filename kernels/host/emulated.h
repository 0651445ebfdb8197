// What a .cu file finds instead of CUDA's built-ins when the host's C++ compiler builds it for the
// `emulated` device. Included before the kernel, so that the kernel itself knows nothing of it.
//
// Every CUDA thread ("lane") is a coroutine. A lane that waits, at a barrier or in a warp
// collective, hands control back to the scheduler in src/device/emulated/; the last lane to arrive
// carries a collective out for all, through pointers into the suspended stacks.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define CYANEA_EMULATED 1
#define __global__ inline
#define __device__ inline
#define __host__
#define __forceinline__ __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
// Shared memory is declared with CYANEA_SHARED and CYANEA_DYNAMIC_SHARED (common/shared.cuh), so
// that the emulator can give every block its own, filled with NaN.
#define __shared__ static_assert(false, "use CYANEA_SHARED from common/shared.cuh");

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
struct alignas(8) float2 { float x, y; };
struct float3 { float x, y, z; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
#include "host/half.h"

// The layouts below are mirrored in src/device/emulated/lanes.rs.
struct CyaneaLane;
typedef void (*CyaneaCollective)(void** operands, unsigned mask);

struct CyaneaBlock {
    uint3 index;
    dim3 size;
    dim3 grid;
    unsigned char* dynamic_shared;
    // All lanes of the block; returns when the last one has arrived.
    void (*barrier)(CyaneaLane*, const char* file, int line);
    // The lanes of a warp that `mask` names; the last one to arrive calls `execute`.
    void (*collective)(CyaneaLane*, unsigned mask, CyaneaCollective execute, void* operand,
                       const char* file, int line);
    // The block's copy of the static shared array that `key` stands for.
    void* (*static_shared)(CyaneaLane*, const void* key, size_t bytes, const char* file, int line);
#ifdef CYANEA_CHECKED
    // Called before a lane touches memory (`kind` as in host/checked.cpp), indexes an array beyond
    // its end, and uses an address that is no multiple of `alignment`.
    void (*access)(CyaneaLane*, const void* at, size_t bytes, int kind, const void* caller);
    void (*out_of_bounds)(CyaneaLane*, size_t index, const char* file, int line);
    void (*misaligned)(CyaneaLane*, const void* at, size_t alignment, const char* file, int line);
    // Ends a group of asynchronous copies (`pending` < 0), or waits until at most `pending` are left.
    void (*copies)(CyaneaLane*, int pending, const void* caller);
#endif
};

struct CyaneaLane {
    uint3 thread;
    unsigned linear;
    const CyaneaBlock* block;
};

#ifdef CYANEA_CHECKED
// Another name, so that objects of the two kinds can't be linked into one program.
#define cyanea_lane cyanea_checked_lane
// Asynchronous copies: what they write can be read when their lane has waited for them.
extern "C" void cyanea_copy_async(void* to, const void* from);
extern "C" void cyanea_copy_commit();
extern "C" void cyanea_copy_wait(int pending);
#endif
extern "C" thread_local CyaneaLane* cyanea_lane;

#define threadIdx (cyanea_lane->thread)
#define blockIdx (cyanea_lane->block->index)
#define blockDim (cyanea_lane->block->size)
#define gridDim (cyanea_lane->block->grid)
#define warpSize 32

#define CYANEA_DYNAMIC_SHARED(type, name) \
    type* name = reinterpret_cast<type*>(cyanea_lane->block->dynamic_shared)

#define CYANEA_SHARED(type, name, count)                                                    \
    static const char name##_key = 0;                                                       \
    type(&name)[count] = *static_cast<type(*)[count]>(cyanea_lane->block->static_shared( \
        cyanea_lane, &name##_key, sizeof(type) * (count), __FILE__, __LINE__))

#define __syncthreads() cyanea_lane->block->barrier(cyanea_lane, __FILE__, __LINE__)

inline void cyanea_collect(unsigned mask, CyaneaCollective execute, void* operand,
                           const char* file, int line) {
    cyanea_lane->block->collective(cyanea_lane, mask, execute, operand, file, line);
}

inline void cyanea_nothing(void**, unsigned) {}
#define __syncwarp(mask) cyanea_collect(mask, cyanea_nothing, nullptr, __FILE__, __LINE__)

// Shuffles: each lane gives a value and the lane it wants to read from. Reading a lane outside the
// mask is undefined in CUDA; here it yields NaN bits.
template <typename T>
struct CyaneaShuffle {
    T value;
    int source;
    T result;
};

template <typename T>
void cyanea_shuffle(void** operands, unsigned mask) {
    for (int lane = 0; lane < 32; ++lane) {
        if (!(mask >> lane & 1)) continue;
        CyaneaShuffle<T>* own = static_cast<CyaneaShuffle<T>*>(operands[lane]);
        if (mask >> own->source & 1) {
            own->result = static_cast<CyaneaShuffle<T>*>(operands[own->source])->value;
        } else {
            memset(&own->result, 0xff, sizeof(T));
        }
    }
}

template <typename T>
T cyanea_shuffle_from(unsigned mask, T value, int source, const char* file, int line) {
    CyaneaShuffle<T> operand = {value, source, value};
    cyanea_collect(mask, cyanea_shuffle<T>, &operand, file, line);
    return operand.result;
}

// The lane that a shuffle of `width` lanes reads; out of range means the lane itself.
inline int cyanea_up(int lane, int delta, int width) {
    return lane % width - delta < 0 ? lane : lane - delta;
}
inline int cyanea_down(int lane, int delta, int width) {
    return lane % width + delta >= width ? lane : lane + delta;
}
inline int cyanea_xor(int lane, int bits, int width) {
    return (lane ^ bits) / width > lane / width ? lane : lane ^ bits;
}
inline int cyanea_warp_lane() { return static_cast<int>(cyanea_lane->linear % 32); }

#define __shfl_sync(mask, value, source)                                                      \
    cyanea_shuffle_from(mask, value, (source) & 31, __FILE__, __LINE__)
#define __shfl_up_sync(mask, value, delta)                                                    \
    cyanea_shuffle_from(mask, value, cyanea_up(cyanea_warp_lane(), delta, 32), __FILE__, __LINE__)
#define __shfl_down_sync(mask, value, delta)                                                  \
    cyanea_shuffle_from(mask, value, cyanea_down(cyanea_warp_lane(), delta, 32), __FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, bits)                                                    \
    cyanea_shuffle_from(mask, value, cyanea_xor(cyanea_warp_lane(), bits, 32), __FILE__, __LINE__)

struct CyaneaBallot {
    bool value;
    unsigned result;
};
inline void cyanea_ballot(void** operands, unsigned mask) {
    unsigned votes = 0;
    for (int lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1 && static_cast<CyaneaBallot*>(operands[lane])->value) votes |= 1u << lane;
    for (int lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1) static_cast<CyaneaBallot*>(operands[lane])->result = votes;
}
inline unsigned cyanea_vote(unsigned mask, bool value, const char* file, int line) {
    CyaneaBallot operand = {value, 0};
    cyanea_collect(mask, cyanea_ballot, &operand, file, line);
    return operand.result;
}
#define __ballot_sync(mask, value) cyanea_vote(mask, value, __FILE__, __LINE__)
#define __any_sync(mask, value) (cyanea_vote(mask, value, __FILE__, __LINE__) != 0)
#define __all_sync(mask, value) (cyanea_vote(mask, value, __FILE__, __LINE__) == (mask))

// Integer atomics and fences; there are none on floats, whose sums would depend on the order.
inline unsigned atomicAdd(unsigned* at, unsigned value) {
    return __atomic_fetch_add(at, value, __ATOMIC_ACQ_REL);
}
inline unsigned atomicOr(unsigned* at, unsigned value) {
    return __atomic_fetch_or(at, value, __ATOMIC_ACQ_REL);
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
// Four of the eight bytes of `low` and `high`, chosen by the low three bits of each digit.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned digits) {
    uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i)
        result |= static_cast<unsigned>(bytes >> (digits >> (4 * i) & 7u) * 8 & 0xffu) << (8 * i);
    return result;
}
template <typename T>
inline T __ldg(const T* at) { return *at; }
template <typename T>
inline T __ldcg(const T* at) { return *at; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
