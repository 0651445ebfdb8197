// What a convolution's weight gradient is given, and x as its tiles take it: normalised on its way.
#pragma once
#include "common/conv2d_source.cuh"

template <class E>
struct Conv2dWeights {
    const E* x;           // [B, height, width, c1]
    const E* x2;          // [B, height, width, c2], or null
    const float* affine;  // scale [C], shift [C], a sample each `affine_stride`; or null
    const E* dy[3];       // [B, out_height, out_width, c_out]; by columns of up to three convolutions of the
                          // same sources
    float* dw[3];         // [rows, columns] for each tap of what is no column; of patches of dy see row_taps
    float* dbias[3];      // [c_out], or null
    float* partials;      // [tile][part][sum][thread]
    unsigned* tickets;    // [tile][group of slices]
    int batch, height, width, c1, c2;
    int out_height, out_width, c_out, kh, kw;
    int stride_h, stride_w, pad_top, pad_left;
    int upsample, silu, affine_stride;
    int sample_pixels;    // of rows of pixels without an image; else 0
    int pixels, samples, tile_width_log, tile_height_log;  // of a tile
    int tiles, tiles_y, tiles_x;                  // of pixels, in all and of a sample
    int region, region_height, region_width;      // pixels of (b), and its sides for a sample
    int sub_width;        // region_width / stride_w
    int second_tap, third_tap;  // how much further in a row of (b) they read than the first
    int row_factor;       // 2^20 / region_width, rounded up
    int sample_factor;    // 2^20 / region_height, rounded up
    int row_tiles;        // of one convolution's results
    int slices, fan;      // of pixels, and how many are joined at once
    int parts, groups;    // of a tile of results: room for sums, and tickets
    int flags;            // WIDE, WIDE_DY
    int rows, columns;    // of the product that belong to dw: those of a patch's last zeros are beyond
    Divisor row_taps;     // of patches of dy, whose rows are an output channel and a tap: taps; else 1
    int bias_tap;         // of these the one that reads all of dy; else 0
    int unused;           // it fills the last 8 bytes
};

// dy can be read 16 bytes at a time.
#define WIDE_DY 2

// Puts `value` at place `i`, without an index that would move the piece to memory.
__device__ __forceinline__ void set_element(uint4& piece, int i, float value) {
    unsigned bits = __float_as_uint(value);
    if (i == 0) piece.x = bits;
    if (i == 1) piece.y = bits;
    if (i == 2) piece.z = bits;
    if (i == 3) piece.w = bits;
}
__device__ __forceinline__ void set_element(uint4& piece, int i, __half value) {
    unsigned bits = static_cast<unsigned>(__half_as_ushort(value)) << i % 2 * 16;
    if (i / 2 == 0) piece.x |= bits;
    if (i / 2 == 1) piece.y |= bits;
    if (i / 2 == 2) piece.z |= bits;
    if (i / 2 == 3) piece.w |= bits;
}

template <class E>
__device__ __forceinline__ float normalised(const Conv2dWeights<E>& p, float value, int sample, int c) {
    if (p.affine && c < p.c1 + p.c2) {
        const float* scale = p.affine + static_cast<long long>(sample) * p.affine_stride + c;
        value = fmaf(value, scale[0], scale[p.c1 + p.c2]);
    }
    return p.silu ? silu(value) : value;
}

// Scale and shift of a piece's channels, in parts of four. Where it BRANCHES, SiLU costs nothing that isn't there;
// without, the compiler can mix it with products.
template <class E, bool BRANCHES>
struct WgradAffine {
    float4 scale[Piece<E>::SIZE / 4], shift[Piece<E>::SIZE / 4];

    // Those of the part's channels, of which `c` is the first.
    __device__ __forceinline__ void load(const Conv2dWeights<E>& p, int part, int sample, int c) {
        scale[part] = make_float4(1.0f, 1.0f, 1.0f, 1.0f), shift[part] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (!p.affine) return;
        const float* at = p.affine + (sample * p.affine_stride + c);
        scale[part] = *reinterpret_cast<const float4*>(at);
        shift[part] = *reinterpret_cast<const float4*>(at + (p.c1 + p.c2));
    }
    // As the convolution does it.
    __device__ __forceinline__ void normalise(int part, bool silu, float (&value)[4]) const {
        value[0] = fmaf(value[0], scale[part].x, shift[part].x);
        value[1] = fmaf(value[1], scale[part].y, shift[part].y);
        value[2] = fmaf(value[2], scale[part].z, shift[part].z);
        value[3] = fmaf(value[3], scale[part].w, shift[part].w);
        if (!BRANCHES) stored_silu<E>(value, silu);
        else if (silu) stored_silu<E>(value);
    }
    __device__ __forceinline__ void normalise(int part, bool silu, uint4& piece) const {
        normalise_part(part, silu, piece, static_cast<const E*>(nullptr));
    }

private:
    __device__ __forceinline__ void normalise_part(int part, bool silu, uint4& piece, const __half*) const {
        unsigned &first = part ? piece.z : piece.x, &second = part ? piece.w : piece.y;
        float value[4] = {low_half(first), high_half(first), low_half(second), high_half(second)};
        normalise(part, silu, value);
        first = pack_half2(value[0], value[1]);
        second = pack_half2(value[2], value[3]);
    }
    __device__ __forceinline__ void normalise_part(int part, bool silu, uint4& piece, const float*) const {
        float value[4];
        unpack(piece, value);
        normalise(part, silu, value);
        piece = pack(value);
    }
};

// Channel `c` of source place (iy, ix), 0 outside the image.
template <class E>
__device__ __forceinline__ float source_value(const Conv2dWeights<E>& p, int sample, int iy, int ix, int c) {
    if (iy < 0 || iy >= p.height << p.upsample || ix < 0 || ix >= p.width << p.upsample) return 0.0f;
    long long row = static_cast<long long>(sample) * p.height + (iy >> p.upsample);
    long long pixel = row * p.width + (ix >> p.upsample);
    float value = get(c < p.c1 ? p.x + (pixel * p.c1 + c) : p.x2 + (pixel * p.c2 + (c - p.c1)));
    return normalised(p, value, sample, c);
}
