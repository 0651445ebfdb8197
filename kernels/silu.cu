// SiLU, y = x / (1 + exp(-x)), and its gradient, on any number of elements.
//
// One thread an element: both kernels are bound by memory, and neighbouring threads touch
// neighbouring elements.
#include "common/activation.cuh"

struct SiluForward {
    const float* x;
    float* y;
    long long elements;
};

struct SiluBackward {
    const float* x;
    const float* dy;
    float* dx;
    long long elements;
};

__global__ void __launch_bounds__(256) silu_fwd_nhwc_f32(SiluForward p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < p.elements) p.y[i] = silu(p.x[i]);
}

__global__ void __launch_bounds__(256) silu_dgrad_nhwc_f32(SiluBackward p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < p.elements) p.dx[i] = p.dy[i] * silu_derivative(p.x[i]);
}
