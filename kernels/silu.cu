// SiLU, y = x / (1 + exp(-x)), and its gradient, on any number of elements
// of type E.
//
// One thread an element: both kernels are bound by memory, and neighbouring threads touch
// neighbouring elements.
#include "common/activation.cuh"
#include "common/half.cuh"

template <class E>
struct SiluForward {
    const E* x;
    E* y;
    long long elements;
};

template <class E>
struct SiluBackward {
    const E* x;
    const E* dy;
    E* dx;
    long long elements;
};

template <class E>
__global__ void __launch_bounds__(256) silu_fwd(SiluForward<E> p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < p.elements) put(p.y + i, silu(get(p.x + i)));
}

template <class E>
__global__ void __launch_bounds__(256) silu_dgrad(SiluBackward<E> p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < p.elements) put(p.dx + i, get(p.dy + i) * silu_derivative(get(p.x + i)));
}
