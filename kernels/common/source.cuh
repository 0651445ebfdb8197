// An activation that a kernel reads: one NHWC tensor, or two read as if their channels were
// concatenated, so that the concatenation is never written.
#pragma once

struct Source {
    const float* x;
    const float* x2;  // null where there is one tensor
};

// Channel `c` of pixel `pixel` (counted over the batch); the tensors have `c1` and `c2` channels.
__device__ __forceinline__ float load(Source s, long long pixel, int c, int c1, int c2) {
    return c < c1 ? s.x[pixel * c1 + c] : s.x2[pixel * c2 + (c - c1)];
}

__device__ __forceinline__ void store(float* y, float* y2, long long pixel, int c, int c1, int c2,
                                      float value) {
    if (c < c1)
        y[pixel * c1 + c] = value;
    else
        y2[pixel * c2 + (c - c1)] = value;
}
