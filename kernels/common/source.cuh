// An activation that a kernel reads: one NHWC tensor, or two read as if their channels were
// concatenated, so that the concatenation is never written.
#pragma once
#include "common/half.cuh"

template <class E>
struct Source {
    const E* x;
    const E* x2;  // null where there is one tensor
};

// Channel `c` of pixel `pixel` (counted over the batch); the tensors have `c1` and `c2` channels.
template <class E>
__device__ __forceinline__ float load(Source<E> s, long long pixel, int c, int c1, int c2) {
    return get(c < c1 ? s.x + (pixel * c1 + c) : s.x2 + (pixel * c2 + (c - c1)));
}

template <class E>
__device__ __forceinline__ void store(E* y, E* y2, long long pixel, int c, int c1, int c2,
                                      float value) {
    put(c < c1 ? y + (pixel * c1 + c) : y2 + (pixel * c2 + (c - c1)), value);
}
