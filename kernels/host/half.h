// float16 for the host: storage of 16 bits, converted to and from float32 with rounding to the nearest
// even value, as cuda_fp16.h does. Arithmetic rounds after each operation, as a GPU does.
#pragma once
#if defined(__F16C__)
#include <immintrin.h>
#endif

struct alignas(2) __half {
    unsigned short bits;
};
struct alignas(4) __half2 {
    __half x, y;
};
typedef __half half;
typedef __half2 half2;

#if defined(__F16C__)
inline float __half2float(__half x) { return _cvtsh_ss(x.bits); }
inline __half __float2half_rn(float x) { return {_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT)}; }
#else
inline float __half2float(__half x) {
    __fp16 value;
    memcpy(&value, &x, 2);
    return value;
}
inline __half __float2half_rn(float x) {
    __fp16 value = static_cast<__fp16>(x);
    __half result;
    memcpy(&result, &value, 2);
    return result;
}
#endif
inline __half __float2half(float x) { return __float2half_rn(x); }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half __low2half(__half2 x) { return x.x; }
inline __half __high2half(__half2 x) { return x.y; }
inline __half2 __floats2half2_rn(float x, float y) {
    return {__float2half_rn(x), __float2half_rn(y)};
}
inline float2 __half22float2(__half2 x) { return {__half2float(x.x), __half2float(x.y)}; }
