// Matrix instructions and what feeds them: the only place with PTX. Every function has a twin for the
// host in host/mma.h that follows the lane layouts of the PTX ISA, "Warp-level matrix instructions".
// All 32 lanes of a warp call them together. Registers hold two float16 each, the lower index in the
// lower half; sums are float32.
#pragma once
#include "common/half.cuh"

#ifdef CYANEA_EMULATED
#include "host/mma.h"
#else

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

// COUNT matrices of 8 x 8 from shared memory; lane 8 i + j gives the address of row j of matrix i,
// 16 bytes. TRANSPOSED: each matrix is transposed on the way.
template <int COUNT, bool TRANSPOSED>
__device__ __forceinline__ void ldmatrix(unsigned* r, const __half* row) {
    static_assert(COUNT == 2 || COUNT == 4, "2 or 4 matrices");
    unsigned at = shared_address(row);
    if (COUNT == 2) {
        if (TRANSPOSED)
            asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                         : "=r"(r[0]), "=r"(r[1]) : "r"(at) : "memory");
        else
            asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                         : "=r"(r[0]), "=r"(r[1]) : "r"(at) : "memory");
    } else {
        if (TRANSPOSED)
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
        else
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
    }
}

// 16 bytes from global to shared memory, past the registers and the L1 cache.
__device__ __forceinline__ void copy_async(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 :: "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)) : "memory");
}

// Ends a group of copies.
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING groups of the calling thread are under way.
template <int PENDING>
__device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory");
}
#endif
#endif

// Two values as float16, the first in the lower half.
__device__ __forceinline__ unsigned pack_half2(float low, float high) {
    return static_cast<unsigned>(__half_as_ushort(__float2half_rn(low))) |
           static_cast<unsigned>(__half_as_ushort(__float2half_rn(high))) << 16;
}
__device__ __forceinline__ float low_half(unsigned pair) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(pair & 0xffffu)));
}
__device__ __forceinline__ float high_half(unsigned pair) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(pair >> 16)));
}
