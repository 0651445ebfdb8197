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
    int flags;                        // WIDE, WIDE_SHORTCUT, PAIRS
    float eps;
};

// The sources (those of the shortcut) can be read 16 bytes at a time; results go in pairs.
#define WIDE 1
#define WIDE_SHORTCUT 2
#define PAIRS 4

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

// `affine` lies in shared memory, scales of all channels, then shifts; or null.
template <class E>
__device__ __forceinline__ uint4 normalised_piece(uint4 piece, const float* affine, int channels, int c,
                                                  bool with_silu) {
    if (!affine && !with_silu) return piece;
    float value[Piece<E>::SIZE];
    unpack(piece, value);
    if (affine) {
#pragma unroll
        for (int i = 0; i < Piece<E>::SIZE; ++i)
            if (c + i < channels) value[i] = fmaf(value[i], affine[c + i], affine[channels + c + i]);
    }
    if (with_silu) {
#pragma unroll
        for (int i = 0; i < Piece<E>::SIZE; ++i) value[i] = silu(value[i]);
    }
    return pack(value);
}

// One source's entries of a group of channels: every tile, and the slices `first` .. `last`.
struct GroupMoments {
    const float* at;  // of the sample
    int first, last, slices, count;

    __device__ __forceinline__ GroupMoments(const float* moments, int sample, int tiles, int channels,
                                            int slice, int begin, int end) {
        slices = slice ? channels / slice : 0;
        at = moments + static_cast<long long>(sample) * tiles * 3 * slices;
        begin = max(min(begin, channels), 0), end = max(min(end, channels), 0);
        first = slice ? begin / slice : 0, last = slice ? end / slice : 0;
        count = (last - first) * tiles;
    }
    // Elements, mean and squared deviations of entry `i`.
    __device__ __forceinline__ float3 entry(int i) const {
        int width = last - first;
        const float* own = at + static_cast<long long>(i / width) * 3 * slices + first + i % width;
        return make_float3(own[0], own[slices], own[2 * slices]);
    }
};

// Scale and shift of every channel of a sample, in shared memory: copied, or from the moments that the
// producers of the sources left (Chan, Golub & LeVeque 1979, eq. 2.1, for all tiles at once). A group is
// the work of neighbouring lanes, so that sums have one order.
template <class E>
__device__ __forceinline__ void fill_affine(const Conv2d<E>& p, int sample, float* affine) {
    int channels = p.c1 + p.c2, thread = threadIdx.x, threads = blockDim.x;
    long long row = static_cast<long long>(sample) * p.affine_stride;
    if (p.affine) {
        for (int c = thread; c < 2 * channels; c += threads) affine[c] = p.affine[row + c];
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
        int entries = first.count + second.count;
        auto entry = [&](int i) {
            return i < first.count ? first.entry(i) : second.entry(i - first.count);
        };
        float count = 0.0f, total = 0.0f;
        for (int i = lane; i < entries; i += lanes) {
            float3 part = entry(i);
            count += part.x;
            total = fmaf(part.x, part.y, total);
        }
        count = sum(count);
        float mean = sum(total) / count, squares = 0.0f;
        for (int i = lane; i < entries; i += lanes) {
            float3 part = entry(i);
            float distance = part.y - mean;
            squares += fmaf(part.x * distance, distance, part.z);
        }
        float rstd = 1.0f / sqrtf(sum(squares) / count + p.eps);
        if (base + thread / lanes >= p.groups) continue;
        for (int c = begin + lane; c < begin + width; c += lanes) {
            float scale = rstd * p.gamma[row + c];
            affine[c] = scale;
            affine[channels + c] = fmaf(-mean, scale, p.beta[row + c]);
        }
    }
}
