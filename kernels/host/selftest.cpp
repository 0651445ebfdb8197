// Kernels for the emulator's own tests: what it must carry out, and what it must refuse.
#include "host/emulated.h"
#include "common/shared.cuh"

namespace {

struct Selftest {
    float* out;
    int mode;
};

// out[block * threads + thread] = sum over the block of (thread + 1), through static shared memory
// and warp shuffles.
__global__ void sum_of_block(Selftest p) {
    CYANEA_SHARED(float, partial, 32);
    float value = static_cast<float>(threadIdx.x + 1);
    for (int bits = 16; bits > 0; bits /= 2) value += __shfl_xor_sync(0xffffffffu, value, bits);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0.0f;
    for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) sum += partial[warp];
    p.out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// What shuffles and votes give, one kind a mode.
__global__ void warp_functions(Selftest p) {
    int lane = static_cast<int>(threadIdx.x % 32);
    float value = static_cast<float>(lane);
    float result = 0.0f;
    if (p.mode == 0) result = __shfl_up_sync(0xffffffffu, value, 3);
    if (p.mode == 1) result = __shfl_down_sync(0xffffffffu, value, 3);
    if (p.mode == 2) result = __shfl_sync(0xffffffffu, value, 7);
    if (p.mode == 3) result = static_cast<float>(__ballot_sync(0xffffffffu, lane < 5));
    if (p.mode == 4) result = __all_sync(0xffffffffu, lane < 32) && !__any_sync(0xffffffffu, lane > 31);
    // Two halves of a warp shuffle on their own.
    if (p.mode == 5) {
        if (lane < 16) result = __shfl_xor_sync(0x0000ffffu, value, 1);
        else result = __shfl_xor_sync(0xffff0000u, value, 2);
    }
    p.out[threadIdx.x] = result;
}

// Shared memory that nobody wrote: static for mode 0, dynamic for mode 1.
__global__ void unwritten_shared(Selftest p) {
    CYANEA_SHARED(float, fixed, 64);
    CYANEA_DYNAMIC_SHARED(float, dynamic);
    p.out[blockIdx.x * blockDim.x + threadIdx.x] = p.mode == 0 ? fixed[threadIdx.x] : dynamic[threadIdx.x];
    __syncthreads();
    // The next block on this worker must not find it.
    fixed[threadIdx.x] = dynamic[threadIdx.x] = 1.0f;
}

// Faults: see the modes.
__global__ void faulty(Selftest p) {
    if (p.mode == 0) {  // two barriers for one block
        if (threadIdx.x < 3)
            __syncthreads();
        else
            __syncthreads();
    }
    if (p.mode == 1 && threadIdx.x != 5) __syncthreads();             // a lane leaves
    if (p.mode == 2 && threadIdx.x < 32 && threadIdx.x != 9) __syncwarp(0xffffffffu);  // likewise
    if (p.mode == 3 && threadIdx.x < 32) {                           // a mask without the lane
        __syncwarp(threadIdx.x == 4 ? 0x1u : 0xffffffffu);
    }
    if (p.mode == 4) {                                               // more than there is
        CYANEA_SHARED(float, large, 1 << 20);
        large[0] = 0.0f;
    }
    p.out[threadIdx.x] = 1.0f;
}

}  // namespace

#define CYANEA_SELFTEST(name) \
    extern "C" void cyanea_selftest_##name(const void* p) { name(*static_cast<const Selftest*>(p)); }
CYANEA_SELFTEST(sum_of_block)
CYANEA_SELFTEST(warp_functions)
CYANEA_SELFTEST(unwritten_shared)
CYANEA_SELFTEST(faulty)
