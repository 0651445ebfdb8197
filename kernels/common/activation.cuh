// Activation functions in float32.
#pragma once

// 1 / (1 + exp(-x)); exp overflows to infinity for x below -88, which gives 0 as it should.
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

// d silu / dx = s (1 + x (1 - s)) with s = sigmoid(x).
__device__ __forceinline__ float silu_derivative(float x) {
    float s = sigmoid(x);
    return s * fmaf(x, 1.0f - s, 1.0f);
}
