// What makes magnitudes one.
#pragma once

#define EPSILON 1e-4f

// What `length` channels of a pixel or a token are multiplied by, of the sum of their squares.
__device__ __forceinline__ float unit_scale(float squares, int length) {
    return 1.0f / (EPSILON + sqrtf(squares / static_cast<float>(length)));
}
