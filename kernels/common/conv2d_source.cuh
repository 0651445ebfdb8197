// What a convolution is given, and how a tile reads its sources: two tensors as if concatenated,
// normalised on the way into shared memory, once an element.
#pragma once
#include "common/activation.cuh"
#include "common/piece.cuh"
#include "common/shared.cuh"

template <class E>
struct Conv2d {
    const E* x;
    const E* x2;            // null where there is one source
    const float* affine;    // scale [C], shift [C], a sample each `affine_stride`; or null
    const float* moments[2];  // of both sources, [tile][3][slice] a sample (see store_moments); or null
    const float* gamma;     // with moments: [C], a sample each `affine_stride`
    const float* beta;
    const E* weight[3];     // packed (see conv2d_pack); siblings read the same sources
    const float* bias[3];   // [c_out], or null
    const E* shortcut[2];   // sources of a 1x1 convolution that is added, of the output's size; or null
    const E* shortcut_weight;
    const float* shortcut_bias;
    const float* shift;     // [c_out], a sample each `shift_stride`; or null
    const E* residual;      // as y, or null
    E* y[3];
    float* own_moments;     // of y, or null
    float* own_affine;      // what the normalisation by moments came to: scale [C], shift [C] a sample, or null
    float* own_stats;       // with it: mean, 1 / sqrt(variance + eps) of [groups] a sample
    float* partials;        // [tile][slice][M N], where there are several slices
    unsigned* tickets;      // [tile], zero between launches
    int batch, height, width, c1, c2;
    int out_height, out_width, c_out, kh, kw;
    int stride_h, stride_w, pad_top, pad_left;
    int upsample, silu, affine_stride, shift_stride;
    int shortcut1, shortcut2;         // channels of the shortcut's sources
    int groups;                       // of the normalisation by moments
    int tiles1, tiles2;               // that the sources' moments are of
    int slice1, slice2, own_slice;    // channels of a slice of moments
    int tile_width_log;               // of the M pixels of a tile
    int region_height, region_width;  // source pixels that a tile reaches
    int sample_pixels;                // of rows of pixels without an image; else 0
    int slices;                       // that the input channels are split into
    int chunk;                        // pieces of input channels in shared memory at a time, an even number
    int flags;                        // WIDE, WIDE_SHORTCUT, PIECES
    float eps;
    float residual_scale;             // that the residual is multiplied by
    float limit;                      // results are within ± this; infinity for none
};

// The sources (those of the shortcut) can be read, the results stored 16 bytes at a time.
#define WIDE 1
#define WIDE_SHORTCUT 2
#define PIECES 4

// The piece at channel `c` of source pixel `pixel`; zeros beyond the channels.
template <class E>
__device__ __forceinline__ uint4 source_piece(const E* x, const E* x2, int c1, int c2, bool wide,
                                              long long pixel, int c) {
    if (wide) {
        if (c >= c1 + c2) return make_uint4(0, 0, 0, 0);
        return *reinterpret_cast<const uint4*>(c < c1 ? x + (pixel * c1 + c) : x2 + (pixel * c2 + (c - c1)));
    }
    float value[Piece<E>::SIZE];
#pragma unroll
    for (int i = 0; i < Piece<E>::SIZE; ++i) {
        int own = c + i;
        value[i] = 0.0f;
        if (own < c1) value[i] = get(x + (pixel * c1 + own));
        else if (own < c1 + c2) value[i] = get(x2 + (pixel * c2 + (own - c1)));
    }
    return pack(value);
}

// What is done to a piece of source channels: scaled and shifted, if there is anything to do it with, and
// SiLU.
template <class E>
struct Normalisation {
    float scale[Piece<E>::SIZE], shift[Piece<E>::SIZE];
    bool affine, silu;

    // `coefficients`, of the first channel, lie in shared memory; or null.
    __device__ __forceinline__ Normalisation(const float2* coefficients, bool with_silu) {
        affine = coefficients != nullptr, silu = with_silu;
        if (!affine) return;
#pragma unroll
        for (int i = 0; i < Piece<E>::SIZE; i += 2) {
            float4 pair = *reinterpret_cast<const float4*>(coefficients + i);
            scale[i] = pair.x, shift[i] = pair.y, scale[i + 1] = pair.z, shift[i + 1] = pair.w;
        }
    }
    __device__ __forceinline__ uint4 of(uint4 piece) const {
        if (!affine && !silu) return piece;
        float value[Piece<E>::SIZE];
        unpack(piece, value);
#pragma unroll
        for (int i = 0; i < Piece<E>::SIZE; ++i) {
            if (affine) value[i] = fmaf(value[i], scale[i], shift[i]);
            if (silu) value[i] = stored_silu(value[i], static_cast<const E*>(nullptr));
        }
        return pack(value);
    }

private:
    // SiLU as exact as the type of the result is.
    __device__ static __forceinline__ float stored_silu(float x, const float*) { return ::silu(x); }
    __device__ static __forceinline__ float stored_silu(float x, const __half*) { return silu_approx(x); }
};

// One source's entries of a group of channels, from `begin` to `end`: its slices of every tile.
struct GroupMoments {
    __device__ __forceinline__ GroupMoments(const float* moments, int sample, int tile_count, int channels,
                                            int slice_channels, int begin, int end) {
        at = nullptr, tiles = tile_count, width = slices = 0;
        if (!slice_channels) return;
        slices = channels / slice_channels;
        int first = max(min(begin, channels), 0) / slice_channels;
        width = max(min(end, channels), 0) / slice_channels - first;
        at = moments + (static_cast<long long>(sample) * tiles * 3 * slices + first);
    }
    // Every `lanes`-th entry from `lane` on: its elements, mean and squared deviations. `again`: the same
    // lane has been here.
    template <class Visit>
    __device__ __forceinline__ void each(int lane, int lanes, bool again, Visit visit) {
        if (width == 0) return;
        bool held = again && tiles * width <= BATCH * lanes;
        int tile = 0, slice = 0;
        if (!held) tile = lane / width, slice = lane % width;
        do {
            if (!held) load(tile, slice, lanes);
            // An entry beyond the last has no elements.
#pragma unroll
            for (int i = 0; i < BATCH; ++i) visit(part[i][0], part[i][1], part[i][2]);
        } while (!held && tile < tiles);
    }

private:
    static const int BATCH = 8;  // loads under way at a time

    const float* at;
    int slices, tiles, width;
    float part[BATCH][3];  // what was loaded last

    __device__ __forceinline__ void load(int& tile, int& slice, int lanes) {
        int more_tiles = lanes / width, more = lanes % width;
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            const float* own = at + (tile * 3 * slices + slice);
#pragma unroll
            for (int j = 0; j < 3; ++j) part[i][j] = tile < tiles ? own[j * slices] : 0.0f;
            tile += more_tiles;
            slice += more;
            if (slice >= width) slice -= width, ++tile;
        }
    }
};

// Mean and variance of a group from the moments that the producers of its sources left (Chan, Golub &
// LeVeque 1979, eq. 2.1, for all tiles at once). It is the work of `lanes` neighbouring lanes, over which
// `sum` adds, so that sums have one order.
template <class Sum>
__device__ __forceinline__ float2 merged(GroupMoments& first, GroupMoments& second, int lane, int lanes, Sum sum) {
    float count = 0.0f, total = 0.0f, squares = 0.0f;
    auto add = [&](float elements, float mean, float) {
        count += elements;
        total = fmaf(elements, mean, total);
    };
    first.each(lane, lanes, false, add);
    second.each(lane, lanes, false, add);
    count = sum(count);
    float mean = sum(total) / count;
    auto deviate = [&](float elements, float own, float within) {
        float distance = own - mean;
        squares += fmaf(elements * distance, distance, within);
    };
    first.each(lane, lanes, true, deviate);
    second.each(lane, lanes, true, deviate);
    return make_float2(mean, sum(squares) / count);
}

// Scale and shift of every channel of a sample, in shared memory, zeros up to `padded`: copied, or from
// moments; the block that `keeps` them leaves these in memory, too.
template <class E>
__device__ __forceinline__ void fill_affine(const Conv2d<E>& p, int sample, float2* affine, int padded, bool keeps) {
    int channels = p.c1 + p.c2, thread = threadIdx.x, threads = blockDim.x;
    long long row = static_cast<long long>(sample) * p.affine_stride;
    for (int c = channels + thread; c < padded; c += threads) affine[c] = make_float2(0.0f, 0.0f);
    if (p.affine) {
        for (int c = thread; c < channels; c += threads)
            affine[c] = make_float2(p.affine[row + c], p.affine[row + channels + c]);
        return;
    }
    int lanes = 1;
    while (lanes < 32 && lanes * 2 * p.groups <= threads) lanes *= 2;
    int width = channels / p.groups, lane = thread % lanes;
    auto sum = [&](float value) {
        for (int bits = lanes / 2; bits > 0; bits /= 2)
            value += __shfl_xor_sync(0xffffffffu, value, bits);
        return value;
    };
    for (int base = 0; base < p.groups; base += threads / lanes) {
        // All lanes of a warp take part in the sums.
        int group = min(base + thread / lanes, p.groups - 1), begin = group * width;
        GroupMoments first(p.moments[0], sample, p.tiles1, p.c1, p.slice1, begin, begin + width);
        GroupMoments second(p.moments[1], sample, p.tiles2, p.c2, p.slice2, begin - p.c1,
                            begin + width - p.c1);
        float2 group_moments = merged(first, second, lane, lanes, sum);
        float mean = group_moments.x, rstd = 1.0f / sqrtf(group_moments.y + p.eps);
        if (base + thread / lanes >= p.groups) continue;
        if (keeps && lane == 0) {
            float* stats = p.own_stats + 2 * (sample * p.groups + group);
            stats[0] = mean, stats[1] = rstd;
        }
        for (int c = begin + lane; c < begin + width; c += lanes) {
            float scale = rstd * p.gamma[row + c], shift = fmaf(-mean, scale, p.beta[row + c]);
            affine[c] = make_float2(scale, shift);
            if (!keeps) continue;
            float* own = p.own_affine + (2ll * sample * channels + c);
            own[0] = scale, own[channels] = shift;
        }
    }
}
