// Activation functions in float32.
#pragma once
#include "common/mma.cuh"

// 1 / (1 + exp(-x)); exp overflows to infinity for x below -88, which gives 0 as it should.
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

// d silu / dx = s (1 + x (1 - s)) with s = sigmoid(x).
__device__ __forceinline__ float silu_derivative(float x) {
    float s = sigmoid(x);
    return s * fmaf(x, 1.0f - s, 1.0f);
}

// SiLU of one value and of two, as exact as the stored type is. For float16 the relative error is below 2^-18
// down to x = -20, beyond which results round to zero.
__device__ __forceinline__ float stored_silu(float x, const float*) { return silu(x); }
__device__ __forceinline__ float stored_silu(float x, const __half*) {
    return x * reciprocal_approx(1.0f + exp2_approx(x * -1.44269504f));
}

__device__ __forceinline__ void stored_silu(float& x, float& y, bool wanted, const float*) {
    if (wanted) x = silu(x), y = silu(y);
}
// Special functions run at a quarter of the rate of others or less, so two values share one reciprocal: with
// a = 1 + exp(-x) and b = 1 + exp(-y), sigmoid(x) is b / (a b). Within 2^62 the product of both is finite and
// its reciprocal isn't flushed; what that makes of x from -2^37 to -43 is zero in float16 as before. The
// minimum of NaN and a number is the number: NaN in one doesn't reach the other, and stays NaN by the last
// product.
__device__ __forceinline__ void stored_silu(float& x, float& y, bool wanted, const __half*) {
    // Without SiLU, 0: that makes both sigmoids 1, as exactly as the reciprocal of 1 is.
    float most = wanted ? 4.611686018427387904e18f : 0.0f;
    float a = 1.0f + fminf(exp2_approx(x * -1.44269504f), most);
    float b = 1.0f + fminf(exp2_approx(y * -1.44269504f), most);
    float inverse = reciprocal_approx(a * b);
    x *= b * inverse;
    y *= a * inverse;
}

// What the derivatives of SiLU at x and y, s (1 + x (1 - s)) with s = sigmoid(x), make of two gradients. For float16 as
// above; 1 - s is exp(-x) s, which is 0 where x is large, and not the error of s.
__device__ __forceinline__ void stored_silu_gradient(float x, float y, float& dx, float& dy, const float*) {
    dx *= silu_derivative(x), dy *= silu_derivative(y);
}
// One reciprocal for two, as above.
__device__ __forceinline__ void stored_silu_gradient(float x, float y, float& dx, float& dy, const __half*) {
    const float MOST = 4.611686018427387904e18f;
    float a = 1.0f + fminf(exp2_approx(x * -1.44269504f), MOST);
    float b = 1.0f + fminf(exp2_approx(y * -1.44269504f), MOST);
    float inverse = reciprocal_approx(a * b), sigmoid_x = b * inverse, sigmoid_y = a * inverse;
    // a - 1 needs no register from then on; it is off by 2^-24 at most, and exact beyond x = 17.
    dx *= sigmoid_x * fmaf(x, (a - 1.0f) * sigmoid_x, 1.0f);
    dy *= sigmoid_y * fmaf(y, (b - 1.0f) * sigmoid_y, 1.0f);
}

// Of all, neighbours in pairs.
template <class E, int SIZE>
__device__ __forceinline__ void stored_silu(float (&value)[SIZE], bool wanted = true) {
#pragma unroll
    for (int i = 0; i < SIZE; i += 2) stored_silu(value[i], value[i + 1], wanted, static_cast<const E*>(nullptr));
}
