// What a convolution's weight gradient is given, and how its tiles read x and dy: a piece of 16 bytes at a
// time, x normalised on its way.
#pragma once
#include "common/conv2d_source.cuh"

template <class E>
struct Conv2dWeights {
    const E* x;           // [B, height, width, c1]
    const E* x2;          // [B, height, width, c2], or null
    const float* affine;  // scale [C], shift [C], a sample each `affine_stride`; or null
    const E* dy[3];       // [B, out_height, out_width, c_out]; by columns of up to three convolutions of the
                          // same sources
    float* dw[3];         // [c_out, C, kh, kw]
    float* dbias[3];      // [c_out], or null
    float* partials;      // [tile][part][sum][thread], where there are several slices
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
    int row_tiles;        // of one convolution's results
    int slices, fan;      // of pixels, and how many are joined at once
    int parts, groups;    // of a tile of results: room for sums, and tickets
    int flags;            // WIDE, WIDE_DY
};

// dy can be read 16 bytes at a time.
#define WIDE_DY 2

// How a block brings x and dy.
enum WgradWay { GENERAL, PLAIN, NORMALISED };

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

// Neighbours that lie at a multiple of 16 bytes.
template <int SIZE>
__device__ __forceinline__ void load_all(float (&to)[SIZE], const float* from) {
#pragma unroll
    for (int i = 0; i < SIZE; i += 4) {
        float4 four = *reinterpret_cast<const float4*>(from + i);
        to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
    }
}

// A word of a piece.
__device__ __forceinline__ void unpack(unsigned word, float (&value)[2]) {
    value[0] = low_half(word);
    value[1] = high_half(word);
}
__device__ __forceinline__ void unpack(unsigned word, float (&value)[1]) { value[0] = __uint_as_float(word); }

template <class E>
__device__ __forceinline__ float normalised(const Conv2dWeights<E>& p, float value, int sample, int c) {
    if (p.affine && c < p.c1 + p.c2) {
        const float* scale = p.affine + static_cast<long long>(sample) * p.affine_stride + c;
        value = fmaf(value, scale[0], scale[p.c1 + p.c2]);
    }
    return p.silu ? silu(value) : value;
}

// A whole piece of x from channel `c` on, normalised as the convolution does it.
template <class E>
__device__ __forceinline__ uint4 normalised(const Conv2dWeights<E>& p, const uint4& piece, int sample, int c) {
    Normalisation<E> normalisation(nullptr, p.silu);
    if (p.affine) {
        normalisation.affine = true;
        const float* scale = p.affine + (static_cast<long long>(sample) * p.affine_stride + c);
        load_all(normalisation.scale, scale);
        load_all(normalisation.shift, scale + (p.c1 + p.c2));
    }
    return normalisation.of(piece);
}

// Channel `c` of source place (iy, ix), 0 outside the image.
template <class E>
__device__ __forceinline__ float source_value(const Conv2dWeights<E>& p, int sample, int iy, int ix, int c) {
    if (iy < 0 || iy >= p.height << p.upsample || ix < 0 || ix >= p.width << p.upsample) return 0.0f;
    long long row = static_cast<long long>(sample) * p.height + (iy >> p.upsample);
    long long pixel = row * p.width + (ix >> p.upsample);
    float value = get(c < p.c1 ? p.x + (pixel * p.c1 + c) : p.x2 + (pixel * p.c2 + (c - p.c1)));
    return normalised(p, value, sample, c);
}

// First output pixel of a tile.
struct WgradTile {
    int sample, oy, ox;
};

// A piece on its way: its sample, -1 where nothing is left to be normalised.
struct WgradPiece {
    uint4 value;
    int sample;
};

// A piece that is stored as it is loaded, zeros where it is not `inside`, nothing where it is not
// `wanted`: past the registers where the chip can.
template <class E>
__device__ __forceinline__ void fetch_plain(WgradPiece& piece, uint4* to, const E* from, bool inside, bool wanted) {
#if CYANEA_CODE_PATH >= 80
    if (inside) copy_async(to, from);
    else if (wanted) *to = make_uint4(0, 0, 0, 0);
#else
    piece.value = make_uint4(0, 0, 0, 0);
    if (inside) piece.value = *reinterpret_cast<const uint4*>(from);
#endif
}
__device__ __forceinline__ void land_plain(const WgradPiece& piece, uint4* to, bool wanted) {
#if CYANEA_CODE_PATH < 80
    if (wanted) *to = piece.value;
#endif
}
__device__ __forceinline__ void await_plain() {
#if CYANEA_CODE_PATH >= 80
    copy_commit();
    copy_wait<0>();
#endif
}
