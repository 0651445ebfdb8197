// Elements of memory, float32 or float16, as float32 in registers: kernels are templates of the type
// that they load and store, and compute in float32 whichever it is.
#pragma once
#ifndef CYANEA_EMULATED
#include <cuda_fp16.h>
#endif

__device__ __forceinline__ float get(const float* at) { return *at; }
__device__ __forceinline__ float get(const __half* at) { return __half2float(*at); }

// float16 rounds to the nearest even value; what is too large becomes infinite.
__device__ __forceinline__ void put(float* at, float value) { *at = value; }
__device__ __forceinline__ void put(__half* at, float value) { *at = __float2half_rn(value); }
