// Matrix instructions and what feeds them: the only place with PTX. Every function has a twin for the
// host in host/mma.h that follows the lane layouts of the PTX ISA, "Warp-level matrix instructions".
// All 32 lanes of a warp call them together. Registers hold two float16 each, the lower index in the
// lower half; sums are float32.
#pragma once
#include "common/half.cuh"

#ifdef CYANEA_EMULATED
#include "host/mma.h"
#else

// threadIdx.x, read anew: what follows from it need not stay in registers until then.
__device__ __forceinline__ int thread_again() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}

// sm_70: d += a b, four independent products of 8 x 8 x 4. A_COLUMN: a is column-major; B_ROW: b is
// row-major.
#define CYANEA_M8N8K4(a_layout, b_layout)                                                          \
    asm volatile("mma.sync.aligned.m8n8k4." a_layout "." b_layout ".f32.f16.f16.f32 "              \
                 "{%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9}, {%10, %11}, "                        \
                 "{%0, %1, %2, %3, %4, %5, %6, %7};"                                               \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),         \
                   "+f"(d[6]), "+f"(d[7])                                                          \
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(b[1]))

template <bool A_COLUMN, bool B_ROW>
__device__ __forceinline__ void mma_m8n8k4(float* d, const unsigned* a, const unsigned* b) {
    if (A_COLUMN) {
        if (B_ROW) CYANEA_M8N8K4("col", "row");
        else CYANEA_M8N8K4("col", "col");
    } else {
        if (B_ROW) CYANEA_M8N8K4("row", "row");
        else CYANEA_M8N8K4("row", "col");
    }
}

#if CYANEA_CODE_PATH >= 80
// d [16 x 8] += a [16 x 16] b [16 x 8]
__device__ __forceinline__ void mma_m16n8k16(float* d, const unsigned* a, const unsigned* b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d [16 x 8] += a [16 x 8] b [8 x 8]
__device__ __forceinline__ void mma_m16n8k8(float* d, const unsigned* a, const unsigned* b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}

__device__ __forceinline__ unsigned shared_address(const void* at) {
    return static_cast<unsigned>(__cvta_generic_to_shared(at));
}

// A place in shared memory, for loads from many places at fixed distances.
typedef unsigned SharedRow;
__device__ __forceinline__ SharedRow shared_row(const __half* row) { return shared_address(row); }
__device__ __forceinline__ SharedRow moved(SharedRow row, int elements) { return row + elements * 2; }
// Four matrices.
template <bool TRANSPOSED>
__device__ __forceinline__ void ldmatrix_at(unsigned* r, SharedRow row) {
    if (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
}

// COUNT matrices of 8 x 8 from shared memory; lane 8 i + j gives the address of row j of matrix i,
// 16 bytes. TRANSPOSED: each matrix is transposed on the way.
template <int COUNT, bool TRANSPOSED>
__device__ __forceinline__ void ldmatrix(unsigned* r, const __half* row) {
    static_assert(COUNT == 2 || COUNT == 4, "2 or 4 matrices");
    unsigned at = shared_address(row);
    if (COUNT == 4) {
        ldmatrix_at<TRANSPOSED>(r, at);
    } else {
        if (TRANSPOSED)
            asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                         : "=r"(r[0]), "=r"(r[1]) : "r"(at) : "memory");
        else
            asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                         : "=r"(r[0]), "=r"(r[1]) : "r"(at) : "memory");
    }
}

// 16 bytes from global to shared memory, past the registers and the L1 cache.
__device__ __forceinline__ void copy_async(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 :: "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)) : "memory");
}

// The same where `wanted`, without a branch.
__device__ __forceinline__ void copy_async_if(bool wanted, void* to, const void* from) {
    asm volatile("{.reg .pred wanted; setp.ne.s32 wanted, %2, 0; "
                 "@wanted cp.async.cg.shared.global [%0], [%1], 16;}"
                 :: "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(static_cast<int>(wanted)) : "memory");
}

// The same where `wanted`, zeros where it is not `inside`, without a branch.
__device__ __forceinline__ void copy_async_or_zero(bool wanted, bool inside, void* to, const void* from) {
    asm volatile("{.reg .pred wanted; setp.ne.s32 wanted, %2, 0; "
                 "@wanted cp.async.cg.shared.global [%0], [%1], 16, %3;}"
                 :: "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(static_cast<int>(wanted)),
                    "r"(inside ? 16 : 0) : "memory");
}

// Ends a group of copies.
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING groups of the calling thread are under way.
template <int PENDING>
__device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory");
}
#endif

// Starts to bring the 32 bytes around `at` from DRAM to L2.
__device__ __forceinline__ void prefetch(const void* at) {
    asm volatile("prefetch.global.L2 [%0];" :: "l"(__cvta_generic_to_global(at)));
}

// What the calling thread has seen, of its block too after a barrier, precedes for the whole device what it does
// next. __threadfence, which also gives all such fences one order, takes longer.
__device__ __forceinline__ void device_fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// Keeps a value in a register that the compiler would rather compute again and again.
__device__ __forceinline__ void keep(int& x) { asm volatile("" : "+r"(x)); }

// 2 to the power of x, within two units in the last place; 0 where that is below 2^-126.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// The logarithm to base 2, with an error of 2^-22 (relative beyond 0.5 to 2), and 1 / x, with one of one
// unit in the last place.
__device__ __forceinline__ float log2_approx(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// x, but no further from zero than `limit`; NaN stays NaN.
__device__ __forceinline__ float within(float x, float limit) {
#if CYANEA_CODE_PATH >= 80
    asm("min.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(limit));
    asm("max.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(-limit));
#else
    if (x > limit) x = limit;
    if (x < -limit) x = -limit;
#endif
    return x;
}
#endif

// Two values as float16, the first in the lower half.
__device__ __forceinline__ unsigned pack_half2(float low, float high) {
    return static_cast<unsigned>(__half_as_ushort(__float2half_rn(low))) |
           static_cast<unsigned>(__half_as_ushort(__float2half_rn(high))) << 16;
}

// The same, kept within ± limit. Rounding keeps an order, so what is rounded can be compared.
__device__ __forceinline__ unsigned pack_within(float low, float high, float limit) {
#if CYANEA_CODE_PATH >= 80 && !defined(CYANEA_EMULATED)
    unsigned pair = pack_half2(low, high), most = pack_half2(limit, limit), least = pack_half2(-limit, -limit);
    asm("min.NaN.f16x2 %0, %0, %1;" : "+r"(pair) : "r"(most));
    asm("max.NaN.f16x2 %0, %0, %1;" : "+r"(pair) : "r"(least));
    return pair;
#else
    return pack_half2(within(low, limit), within(high, limit));
#endif
}

// Two values as float16 by integer arithmetic, since sm_70 converts at the rate of special functions: for finite
// values of a magnitude below 65,504, rounded half up; what is below 2^-14 is off by up to 2^-15.
// pack_positive takes values that are not negative.
__device__ __forceinline__ unsigned shifted_half(float magnitude) {
    // The exponent rebased from 127 to 15 and three bits further up: the upper half is the result.
    return __float_as_uint(fmaxf(magnitude, 3.0517578125e-5f)) * 8u + (0x8000u - (112u << 26));
}
__device__ __forceinline__ unsigned pack_positive(float low, float high) {
#if CYANEA_CODE_PATH >= 80
    return pack_half2(low, high);
#else
    return __byte_perm(shifted_half(low), shifted_half(high), 0x7632);
#endif
}
// The same of values from 0 to below 65,504 that are LOWERED powers of two too small: on sm_70 their exponents
// are then those of float16, so that rounding is a shift, and what is below 2^-14 was zero from the start.
#if CYANEA_CODE_PATH >= 80
#define LOWERED 0
#else
#define LOWERED 112
#endif
__device__ __forceinline__ unsigned pack_lowered(float low, float high) {
#if CYANEA_CODE_PATH >= 80
    return pack_half2(low, high);
#else
    return __byte_perm(__float_as_uint(low) * 8u + 0x8000u, __float_as_uint(high) * 8u + 0x8000u, 0x7632);
#endif
}
__device__ __forceinline__ unsigned pack_signed(float low, float high) {
#if CYANEA_CODE_PATH >= 80
    return pack_half2(low, high);
#else
    unsigned first = shifted_half(fabsf(low)) | (__float_as_uint(low) & 0x80000000u);
    unsigned second = shifted_half(fabsf(high)) | (__float_as_uint(high) & 0x80000000u);
    return __byte_perm(first, second, 0x7632);
#endif
}
__device__ __forceinline__ float low_half(unsigned pair) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(pair & 0xffffu)));
}
__device__ __forceinline__ float high_half(unsigned pair) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(pair >> 16)));
}
