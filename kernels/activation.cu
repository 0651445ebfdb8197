// Functions of single elements of type E, and their gradients: scaled SiLU, scale * x / (1 + exp(-x)),
// and clipping to +-limit.
//
// One thread an element: all are bound by memory, and neighbouring threads touch neighbouring elements.
#include "common/activation.cuh"
#include "common/half.cuh"

template <class E>
struct Activation {
    const E* x;
    E* y;
    long long elements;
    float parameter;  // scale or limit
    int unused;
};

template <class E>
struct ActivationBackward {
    const E* x;
    const E* dy;
    E* dx;
    long long elements;
    float parameter;
    int unused;
};

template <class E>
__global__ void __launch_bounds__(256) silu_fwd(Activation<E> p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < p.elements) put(p.y + i, p.parameter * silu(get(p.x + i)));
}

template <class E>
__global__ void __launch_bounds__(256) silu_dgrad(ActivationBackward<E> p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= p.elements) return;
    put(p.dx + i, get(p.dy + i) * (p.parameter * silu_derivative(get(p.x + i))));
}

// NaN compares false, and stays.
template <class E>
__global__ void __launch_bounds__(256) clip_fwd(Activation<E> p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= p.elements) return;
    float x = get(p.x + i);
    x = x > p.parameter ? p.parameter : x;
    put(p.y + i, x < -p.parameter ? -p.parameter : x);
}

template <class E>
__global__ void __launch_bounds__(256) clip_dgrad(ActivationBackward<E> p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= p.elements) return;
    put(p.dx + i, fabsf(get(p.x + i)) <= p.parameter ? get(p.dy + i) : 0.0f);
}
