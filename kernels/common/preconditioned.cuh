// What a preconditioned network gives, from its input and the output of the network inside: one rounding
// wherever it is computed.
#pragma once

__device__ __forceinline__ float preconditioned_output(float c_skip, float x, float c_out, float output) {
    return fmaf(c_skip, x, c_out * output);
}
