// The product body of a 3×3 convolution with everything in shared memory: 8×8 pixels × 128 channels a
// warpgroup, 64 input channels, 9 taps, by `mma.sync` (ldmatrix) or by `wgmma` (descriptors without
// swizzle). Both read the same planes: input [octet of channels][10 · 10 pixels + 1][8], so that eight
// neighbouring pixels are 128 contiguous bytes at any tap; weights [tap][octet][128][8].
#include <cuda_fp16.h>

static constexpr int WIDTH = 10;
static constexpr int PLANE = WIDTH * WIDTH + 1;
static constexpr int OCTETS = 8;
static constexpr int TAPS = 9;
static constexpr int COLUMNS = 128;
static constexpr int INPUT_BYTES = OCTETS * PLANE * 16;
static constexpr int WEIGHT_BYTES = TAPS * OCTETS * COLUMNS * 16;

static __device__ unsigned shared_address(const void *pointer) {
    return (unsigned)__cvta_generic_to_shared(pointer);
}

// Weights once a block, the input once a warpgroup; gives the address of the warpgroup's input, the same
// in all lanes, as the compiler can see.
static __device__ unsigned stage(char *shared, const uint4 *input, const uint4 *weights) {
    for (int i = threadIdx.x; i < WEIGHT_BYTES / 16; i += blockDim.x) {
        reinterpret_cast<uint4 *>(shared)[i] = weights[i];
    }
    char *mine = shared + WEIGHT_BYTES + threadIdx.x / 128 * INPUT_BYTES;
    for (int i = threadIdx.x % 128; i < INPUT_BYTES / 16; i += 128) {
        reinterpret_cast<uint4 *>(mine)[i] = input[i];
    }
    return __shfl_sync(0xffffffffu, shared_address(mine), 0);
}

static __device__ float *output_of(float *output) {
    const size_t group = blockIdx.x * (blockDim.x / 128) + threadIdx.x / 128;
    return output + group * 64 * COLUMNS;
}

static __device__ void load_matrices(unsigned (&to)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address));
}

// A warp has 32 pixels × 64 columns.
extern "C" __global__ void __launch_bounds__(512, 1)
    product_mma(const uint4 *input, const uint4 *weights, float *output, int rounds) {
    extern __shared__ __align__(128) char shared[];
    const unsigned a = stage(shared, input, weights);
    const unsigned b = shared_address(shared);
    __syncthreads();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const int row0 = warp % 2 * 32, column0 = warp / 2 * 64;
    const int matrix = lane / 8;
    float sums[2][8][4] = {};
    for (int round = 0; round < rounds; round++) {
        // Unrolled, it would not fit into 128 registers.
#pragma unroll 1
        for (int tap = 0; tap < TAPS; tap++) {
            const int shift = tap / 3 * WIDTH + tap % 3;
#pragma unroll
            for (int octet = 0; octet < OCTETS; octet += 2) {
                unsigned left[2][4];
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const int row = row0 + 16 * i + matrix % 2 * 8 + lane % 8;
                    const int pixel = row / 8 * WIDTH + row % 8 + shift;
                    load_matrices(left[i], a + ((octet + matrix / 2) * PLANE + pixel) * 16);
                }
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    unsigned right[4];
                    const int column = column0 + 16 * j + matrix / 2 * 8 + lane % 8;
                    const int plane = tap * OCTETS + octet + matrix % 2;
                    load_matrices(right, b + (plane * COLUMNS + column) * 16);
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        float(&c)[4] = sums[i / 2][2 * j + i % 2];
                        const unsigned(&l)[4] = left[i / 2];
                        asm volatile(
                            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
                            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                            : "r"(l[0]), "r"(l[1]), "r"(l[2]), "r"(l[3]), "r"(right[i % 2 * 2]),
                              "r"(right[i % 2 * 2 + 1]));
                    }
                }
            }
        }
    }
    float *mine = output_of(output);
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const int row = row0 + 16 * i + k / 2 * 8 + lane / 4;
                mine[row * COLUMNS + column0 + 8 * j + lane % 4 * 2 + k % 2] = sums[i][j][k];
            }
        }
    }
}

#ifdef CYANEA_WGMMA
// A matrix descriptor without swizzle (PTX ISA, "Asynchronous Warpgroup Level Matrix Shared Memory
// Layout"): 8 rows of 16 bytes are contiguous; `k_pitch` bytes to the next 8 of K, `row_pitch` to the
// next 8 rows.
static __device__ unsigned long long descriptor(unsigned address, int k_pitch, int row_pitch) {
    return (unsigned long long)((address & 0x3ffff) >> 4) | (unsigned long long)(k_pitch >> 4) << 16 |
           (unsigned long long)(row_pitch >> 4) << 32;
}

#define FOUR(x, n) "+f"(x[n]), "+f"(x[n + 1]), "+f"(x[n + 2]), "+f"(x[n + 3])
#define SIXTEEN(x, n) FOUR(x, n), FOUR(x, n + 4), FOUR(x, n + 8), FOUR(x, n + 12)

static __device__ void product(float (&sums)[64], unsigned long long a, unsigned long long b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, 1, 1, 1, 0, 0;"
        : SIXTEEN(sums, 0), SIXTEEN(sums, 16), SIXTEEN(sums, 32), SIXTEEN(sums, 48)
        : "l"(a), "l"(b));
}

extern "C" __global__ void __launch_bounds__(512, 1)
    product_wgmma(const uint4 *input, const uint4 *weights, float *output, int rounds) {
    extern __shared__ __align__(128) char shared[];
    const unsigned a = stage(shared, input, weights);
    const unsigned b = shared_address(shared);
    // What ordinary stores wrote is to be seen by the asynchronous reader.
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    // Descriptors count addresses in 16 bytes, as the planes do.
    const unsigned long long a0 = descriptor(a, PLANE * 16, WIDTH * 16);
    const unsigned long long b0 = descriptor(b, COLUMNS * 16, 128);
    float sums[64] = {};
    for (int round = 0; round < rounds; round++) {
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int tap = 0; tap < TAPS; tap++) {
            const int shift = tap / 3 * WIDTH + tap % 3;
#pragma unroll
            for (int octet = 0; octet < OCTETS; octet += 2) {
                product(sums, a0 + octet * PLANE + shift, b0 + (tap * OCTETS + octet) * COLUMNS);
            }
        }
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    }
    float *mine = output_of(output);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
#pragma unroll
    for (int i = 0; i < 64; i++) {
        const int row = 16 * warp + i / 2 % 2 * 8 + lane / 4;
        mine[row * COLUMNS + i / 4 * 8 + lane % 4 * 2 + i % 2] = sums[i];
    }
}
#endif
