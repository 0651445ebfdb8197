// Normal noise as a function of (key, purpose, step, sample, element): Philox4x32-10 (Salmon,
// Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3") and the transform of
// Box & Muller (1958). The same operations as src/ops/noise, each rounded by IEEE 754, so that
// every device gives the same bits; that file explains the polynomials.
#pragma once
#include "common/state.cuh"

struct Stream {
    unsigned key_low, key_high, purpose, step, sample;
};

__device__ __forceinline__ uint4 philox4x32(uint4 x, unsigned key_low, unsigned key_high) {
    for (int round = 0; round < 10; ++round) {
        if (round > 0) {
            key_low += 0x9E3779B9u;
            key_high += 0xBB67AE85u;
        }
        unsigned first_high = __umulhi(0xD2511F53u, x.x), first_low = 0xD2511F53u * x.x;
        unsigned second_high = __umulhi(0xCD9E8D57u, x.z), second_low = 0xCD9E8D57u * x.z;
        x = make_uint4(second_high ^ x.y ^ key_low, second_low, first_high ^ x.w ^ key_high,
                       first_low);
    }
    return x;
}

// ln(n / 2^24) for 1 <= n <= 2^24.
__device__ __forceinline__ float ln_of_24_bits(unsigned n) {
    unsigned bits = __float_as_uint(static_cast<float>(static_cast<int>(n)));
    int exponent = static_cast<int>(bits - 0x3f3504f3u) >> 23;
    float f = __uint_as_float(bits - (static_cast<unsigned>(exponent) << 23)) - 1.0f;
    float p = 0.06915368f;
    p = fmaf(p, f, -0.11789808f);
    p = fmaf(p, f, 0.11872976f);
    p = fmaf(p, f, -0.12384348f);
    p = fmaf(p, f, 0.14218658f);
    p = fmaf(p, f, -0.16669251f);
    p = fmaf(p, f, 0.20002227f);
    p = fmaf(p, f, -0.24999987f);
    p = fmaf(p, f, 0.3333331f);
    float square = f * f;
    float tail = fmaf(square, -0.5f, square * f * p);
    return fmaf(static_cast<float>(exponent - 24), 0.69314718f, f + tail);
}

// cos and sin of 2 pi (n + 1/2) / 2^24, turned by an eighth of the circle, for n < 2^24.
__device__ __forceinline__ float2 cos_sin_of_24_bits(unsigned n) {
    unsigned quadrant = n >> 22;
    int odd = static_cast<int>(2 * (n & 0x3fffffu) + 1);
    float t = static_cast<float>(odd - (1 << 22)) * 1.1920928955078125e-7f;
    float z = t * t;
    float s = 2.590451e-4f;
    s = fmaf(s, z, -4.7317334e-3f);
    s = fmaf(s, z, 7.970048e-2f);
    s = fmaf(s, z, -0.6459645f);
    s = fmaf(s, z, 1.57079633f) * t;
    float c = 9.036317e-4f;
    c = fmaf(c, z, -2.0860072e-2f);
    c = fmaf(c, z, 0.2536692f);
    c = fmaf(c, z, -1.2337005f);
    c = fmaf(c, z, 1.0f);
    float x = quadrant & 1 ? s : c, y = quadrant & 1 ? c : s;
    unsigned left = ((quadrant ^ (quadrant >> 1)) & 1) << 31, below = (quadrant >> 1) << 31;
    return make_float2(__uint_as_float(__float_as_uint(x) ^ left),
                       __uint_as_float(__float_as_uint(y) ^ below));
}

// The number as in NCHW of element `at` of a sample in NHWC.
__device__ __forceinline__ unsigned nchw_element(int at, int pixels, int channels) {
    return static_cast<unsigned>(at % channels) * pixels + at / channels;
}

// The stream of a training run's sample `sample` of this micro-batch.
__device__ __forceinline__ Stream run_stream(const unsigned* state, int sample, unsigned purpose) {
    return {state[STATE_SEED_LOW], state[STATE_SEED_HIGH], purpose, state[STATE_STEP],
            state[STATE_SAMPLE] + static_cast<unsigned>(sample)};
}

// The words of elements 4 n .. 4 n + 3 of a sample, of which `element`, numbered as in NCHW, is one.
__device__ __forceinline__ uint4 stream_words(Stream stream, unsigned element) {
    uint4 counter = make_uint4(element / 4, stream.sample, stream.step, stream.purpose);
    return philox4x32(counter, stream.key_low, stream.key_high);
}

// The deviate of element `element` of a sample.
__device__ __forceinline__ float normal(Stream stream, unsigned element) {
    uint4 words = stream_words(stream, element);
    unsigned a = element & 2 ? words.z : words.x, b = element & 2 ? words.w : words.y;
    float radius = sqrtf(-2.0f * ln_of_24_bits((a >> 8) + 1));
    float2 direction = cos_sin_of_24_bits(b >> 8);
    return radius * (element & 1 ? direction.y : direction.x);
}
