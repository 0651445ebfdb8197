// Where a tile of a convolution lies, and what of the source its taps reach.
//
// Transposed, a tile has outputs of one phase (place modulo stride) on each axis, so that it needs a
// fixed subset of the taps and reads neighbouring source pixels.
#pragma once
#include "common/conv2d_source.cuh"

// The place of a tile on one axis: output = (first + i) step + phase. Its taps are `first_tap`,
// `first_tap` + `steps`, …; tap number t reads the source at (first + i) scale + offset(t).
template <bool TRANSPOSED>
struct Axis {
    int first, phase, stride, pad, size;  // size: taps of the kernel

    __device__ __forceinline__ int first_tap() const { return TRANSPOSED ? (phase + pad) % stride : 0; }
    // From one of its taps to the next, or from one of its outputs.
    __device__ __forceinline__ int steps() const { return TRANSPOSED ? stride : 1; }
    // Taps, 0 or less for none.
    __device__ __forceinline__ int count() const {
        return TRANSPOSED ? (size - first_tap() + stride - 1) / stride : size;
    }
    __device__ __forceinline__ int scale() const { return TRANSPOSED ? 1 : stride; }
    __device__ __forceinline__ int place(int i) const { return (first + i) * scale(); }
    // What the first tap adds to a place; each further tap adds one more, or transposed one less.
    __device__ __forceinline__ int offset() const {
        return TRANSPOSED ? (phase + pad) / stride : -pad;
    }
    __device__ __forceinline__ int output(int i) const {
        return TRANSPOSED ? (first + i) * stride + phase : first + i;
    }
    // The lowest place that any tap reads.
    __device__ __forceinline__ int base() const {
        if (!TRANSPOSED) return first * stride - pad;
        int lowest = phase + pad - size + 1;
        return first + (lowest >= 0 ? lowest / stride : -((stride - 1 - lowest) / stride));
    }
};

// What only fills and results need of a tile: where registers are few it waits in shared memory.
struct TileOrigin {
    int sample, first_y, first_x, phase_y, phase_x;
    int base_y, base_x;  // of the region in the source
};

// The pixels of a tile: WIDTH wide, or, of 64 or 128, one row. Moments are of 64 or halves of these, or of all of 80.
template <int OF>
struct TilePixels {
    static_assert(OF == 64 || OF == 80 || OF == 128, "moments are of 64 pixels, or their halves, or of 16 x 5");
    static const int PIXELS = OF, WIDTH_LOG = OF == 80 ? 4 : 3, WIDTH = 1 << WIDTH_LOG;
    static const int MOMENT_HEIGHT = (PIXELS == 80 ? 80 : 64) / WIDTH;

    // The first row of pixels of a row of tiles.
    template <class Params>
    __device__ static __forceinline__ int first_row(const Params& p, int row) {
        return PIXELS == 80 ? row * (PIXELS >> p.tile_width_log)
                            : row << ((PIXELS == 128 ? 7 : 6) - p.tile_width_log);
    }
    // Whether tiles are one row.
    template <class Params>
    __device__ static __forceinline__ bool is_row(const Params& p) {
        return PIXELS != 80 && p.tile_width_log > WIDTH_LOG;
    }
};

// Where the tile lies.
template <bool TRANSPOSED, class Pixels, class E>
__device__ __forceinline__ TileOrigin tile_origin(const Conv2d<E>& p, int tile) {
    int steps_h = TRANSPOSED ? p.stride_h : 1, steps_w = TRANSPOSED ? p.stride_w : 1;
    TileOrigin at;
    int rest = p.tiles_x.quotient(tile);
    at.first_x = (tile - rest * p.tiles_x.divisor) << p.tile_width_log;
    tile = rest, rest = p.tiles_y.quotient(tile);
    at.first_y = Pixels::first_row(p, tile - rest * p.tiles_y.divisor);
    tile = rest;
    at.phase_x = tile % steps_w;
    tile /= steps_w;
    at.phase_y = tile % steps_h;
    at.sample = tile / steps_h;
    Axis<TRANSPOSED> rows = {at.first_y, at.phase_y, p.stride_h, p.pad_top, p.kh};
    Axis<TRANSPOSED> columns = {at.first_x, at.phase_x, p.stride_w, p.pad_left, p.kw};
    at.base_y = rows.base() >> p.upsample, at.base_x = columns.base() >> p.upsample;
    return at;
}
