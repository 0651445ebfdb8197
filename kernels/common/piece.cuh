// 16 bytes of neighbouring channels, the unit of loads and of shared memory in matrix products: 8 of
// float16, 4 of float32.
#pragma once
#include "common/mma.cuh"

template <class E>
struct Piece {
    static const int SIZE = 16 / sizeof(E);
};

__device__ __forceinline__ void unpack(const uint4& piece, float (&value)[8]) {
    value[0] = low_half(piece.x), value[1] = high_half(piece.x);
    value[2] = low_half(piece.y), value[3] = high_half(piece.y);
    value[4] = low_half(piece.z), value[5] = high_half(piece.z);
    value[6] = low_half(piece.w), value[7] = high_half(piece.w);
}
__device__ __forceinline__ void unpack(const uint4& piece, float (&value)[4]) {
    value[0] = __uint_as_float(piece.x), value[1] = __uint_as_float(piece.y);
    value[2] = __uint_as_float(piece.z), value[3] = __uint_as_float(piece.w);
}
__device__ __forceinline__ uint4 pack(const float (&value)[8]) {
    return make_uint4(pack_half2(value[0], value[1]), pack_half2(value[2], value[3]),
                      pack_half2(value[4], value[5]), pack_half2(value[6], value[7]));
}
__device__ __forceinline__ uint4 pack(const float (&value)[4]) {
    return make_uint4(__float_as_uint(value[0]), __float_as_uint(value[1]),
                      __float_as_uint(value[2]), __float_as_uint(value[3]));
}

// Four neighbouring channels as memory has them, kept within ± limit.
template <class E>
struct Quad {
    typedef uint4 Type;
    __device__ static __forceinline__ uint4 packed(const float (&value)[4], float limit) {
        float kept[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) kept[i] = within(value[i], limit);
        return pack(kept);
    }
};
template <>
struct Quad<__half> {
    typedef uint2 Type;
    __device__ static __forceinline__ uint2 packed(const float (&value)[4], float limit) {
        return make_uint2(pack_within(value[0], value[1], limit), pack_within(value[2], value[3], limit));
    }
};
__device__ __forceinline__ void unpack(const uint2& quad, float (&value)[4]) {
    value[0] = low_half(quad.x), value[1] = high_half(quad.x);
    value[2] = low_half(quad.y), value[3] = high_half(quad.y);
}

// Two neighbours, which lie at a multiple of their size.
__device__ __forceinline__ float2 get_pair(const __half* at) {
    unsigned pair = *reinterpret_cast<const unsigned*>(at);
    return make_float2(low_half(pair), high_half(pair));
}
__device__ __forceinline__ float2 get_pair(const float* at) {
    return *reinterpret_cast<const float2*>(at);
}
__device__ __forceinline__ void put_pair(__half* at, float low, float high) {
    *reinterpret_cast<unsigned*>(at) = pack_half2(low, high);
}
__device__ __forceinline__ void put_pair(float* at, float low, float high) {
    *reinterpret_cast<float2*>(at) = make_float2(low, high);
}

// A value as memory of this type holds it.
__device__ __forceinline__ float rounded(float value, const __half*) {
    return __half2float(__float2half_rn(value));
}
__device__ __forceinline__ float rounded(float value, const float*) { return value; }
