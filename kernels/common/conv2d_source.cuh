// What a convolution is given, and how a tile reads its sources: two tensors as if concatenated,
// normalised on the way into shared memory, once an element.
#pragma once
#include "common/activation.cuh"
#include "common/piece.cuh"
#include "common/reduce.cuh"
#include "common/shared.cuh"

// Divides numbers below 2^31 by one that is known when a program is compiled (Granlund & Montgomery 1994, theorem 4.2).
struct Divisor {
    int divisor;
    unsigned multiplier;  // 2^(31 + b) / divisor, rounded up, where divisor <= 2^b
    int shift;            // b - 1

    __device__ __forceinline__ int quotient(int x) const {
        int high = static_cast<int>(__umulhi(static_cast<unsigned>(x), multiplier) >> shift);
        return divisor == 1 ? x : high;
    }
};

template <class E>
struct Conv2d {
    const E* x;
    const E* x2;            // null where there is one source
    const float* affine;    // scale [C], shift [C], a sample each `affine_stride`; or null
    const float* moments[2];  // of both sources, [part][3][slice] a sample (see store_moments); or null
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
    float* own_moments;     // of y, as `moments`; or null
    float* own_affine;      // what the normalisation by moments came to: scale [C], shift [C] a sample, or null
    float* own_stats;       // with it: mean, 1 / sqrt(variance + eps) of [groups] a sample
    float* partials;        // [tile][slice][M N], where there are several slices; then moments of tiles
    unsigned* tickets;      // [tile], and for moments [sample][tile of channels]; zero between launches
    int batch, height, width, c1, c2;
    int out_height, out_width, c_out, kh, kw;
    int stride_h, stride_w, pad_top, pad_left;
    int upsample, silu, affine_stride, shift_stride;
    int shortcut1, shortcut2;         // channels of the shortcut's sources
    int groups, group_width;          // of the normalisation by moments, and channels of a group
    unsigned group_reciprocal;        // of group_width (see divided)
    int slice_log1, slice_log2, own_slice_log;  // log2 of channels of a slice of moments; or -1
    int parts_log1, parts_log2;       // log2 of parts of a sample's pixels that moments are of
    int tile_moments;                 // where in `partials` those of tiles begin; or -1, where readers merge them
    int moment_tickets;               // where in `tickets` theirs begin
    int tile_width_log;               // of the M pixels of a tile
    int region_height, region_width;  // source pixels that a tile reaches
    unsigned region_reciprocal;       // of region_width (see divided)
    int sample_pixels;                // of rows of pixels without an image; else 0
    int slices;                       // that the input channels are split into
    unsigned slices_reciprocal;       // see divided; 0 where they are not split
    int chunk;                        // pieces of input channels in shared memory at a time, an even number
    int main_chunks, chunks;          // of the sources, and with those of the shortcut
    int flags;                        // WIDE, WIDE_SHORTCUT, QUADS
    int buffers;                      // for regions, of tiles whose weights stay in registers: 1 or 2
    float eps;
    float residual_scale;             // that the residual is multiplied by
    float limit;                      // results are within ± this; infinity for none
    Divisor tiles_x, tiles_y;         // of an image, transposed of a phase of it
    int unused;                       // it fills the last 8 bytes
};

// x / d by the reciprocal of d, 2^32 / d rounded up, where x d is below 2^32.
__device__ __forceinline__ int divided(int x, unsigned reciprocal) {
    return static_cast<int>(__umulhi(static_cast<unsigned>(x), reciprocal));
}

// Which of up to three siblings a tile of channels belongs to, and which of its `tiles` it is.
struct ColumnTile {
    int sibling, tile;

    __device__ __forceinline__ ColumnTile(int column, int tiles) {
        sibling = (column >= tiles) + (column >= 2 * tiles);
        // Else it would be made again wherever it is needed, for want of registers.
        keep(sibling);
        tile = column - sibling * tiles;
    }
};

// What a sibling has of what there is for each. A parameter that is indexed would be copied to local memory.
template <class T>
__device__ __forceinline__ T of_sibling(T const (&each)[3], int sibling) {
    T last = sibling == 1 ? each[1] : each[2];
    return sibling == 0 ? each[0] : last;
}

// The sources (those of the shortcut) can be read 16 bytes at a time, the results stored four channels at a time.
#define WIDE 1
#define WIDE_SHORTCUT 2
#define QUADS 4

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

// What is done to a piece of source channels: scaled and shifted, if there is anything to do it with, then SiLU
// if wanted.
template <class E>
struct Normalisation {
    float scale[Piece<E>::SIZE], shift[Piece<E>::SIZE];
    bool silu;

    // `coefficients`, of the first channel, lie in shared memory; or null.
    __device__ __forceinline__ Normalisation(const float2* coefficients, bool with_silu) {
        silu = with_silu;
#pragma unroll
        for (int i = 0; i < Piece<E>::SIZE; ++i) scale[i] = 1.0f, shift[i] = 0.0f;
        if (!coefficients) return;
#pragma unroll
        for (int i = 0; i < Piece<E>::SIZE; i += 2) {
            float4 pair = *reinterpret_cast<const float4*>(coefficients + i);
            scale[i] = pair.x, shift[i] = pair.y, scale[i + 1] = pair.z, shift[i + 1] = pair.w;
        }
    }
    // Without branches, so that several pieces are under way at once.
    __device__ __forceinline__ uint4 of(uint4 piece) const {
        float value[Piece<E>::SIZE];
        unpack(piece, value);
#pragma unroll
        for (int i = 0; i < Piece<E>::SIZE; ++i) value[i] = fmaf(value[i], scale[i], shift[i]);
        stored_silu<E>(value, silu);
        return pack(value);
    }
};

// Elements, mean and squared deviations from it, of parts that come one batch after another (Chan, Golub & LeVeque
// 1979, eq. 2.1).
struct Moments {
    struct Batch {
        static const int SIZE = 4;
        float elements[SIZE], mean[SIZE], squares[SIZE];
    };
    float elements = 0.0f, mean = 0.0f, squares = 0.0f;

    // The first `count` of a batch, at least one, or all: a reciprocal for all.
    __device__ __forceinline__ void add(Batch batch, int count) {
        float all = elements, total = elements * mean;
#pragma unroll
        for (int i = 0; i < Batch::SIZE; ++i) {
            if (i >= count) batch.elements[i] = batch.squares[i] = 0.0f;
            all += batch.elements[i], total = fmaf(batch.elements[i], batch.mean[i], total);
        }
        float next = total * reciprocal_approx(all), moved = mean - next;
        squares = fmaf(elements * moved, moved, squares);
#pragma unroll
        for (int i = 0; i < Batch::SIZE; ++i) {
            float distance = batch.mean[i] - next;
            squares += fmaf(batch.elements[i] * distance, distance, batch.squares[i]);
        }
        elements = all, mean = next;
    }
};

// What the producers of its sources left of a group of channels of a sample: parts of the pixels of slices of one
// source, or on both sides of the seam.
struct GroupMoments {
    // The group has the channels from `begin` to `end`.
    template <class Params>
    __device__ __forceinline__ GroupMoments(const Params& p, int sample, int begin, int end) {
        int channels[2] = {p.c1, p.c2}, slice_log[2] = {p.slice_log1, p.slice_log2};
        parts_log[0] = p.parts_log1, parts_log[1] = p.parts_log2;
#pragma unroll
        for (int source = 0; source < 2; ++source) {
            at[source] = nullptr, pitch[source] = count[source] = 0;
            if (slice_log[source] >= 0) {
                int log = slice_log[source], first = max(min(begin, channels[source]), 0) >> log;
                int slices = (max(min(end, channels[source]), 0) >> log) - first;
                count[source] = slices << parts_log[source];
                pitch[source] = channels[source] >> log;
                at[source] = p.moments[source] + ((3ll * sample * pitch[source] << parts_log[source]) + first);
            }
            begin -= channels[source], end -= channels[source];
        }
    }
    // Those from `first` on: all, most often. One again beyond the last: without branches all are under way at once.
    typedef Moments::Batch Batch;
    __device__ __forceinline__ Batch load(int first) const {
        Batch batch;
#pragma unroll
        for (int i = 0; i < Batch::SIZE; ++i) {
            int which = min(first + i, count[0] + count[1] - 1);
            bool second = which >= count[0];
            int own = second ? which - count[0] : which, log = second ? parts_log[1] : parts_log[0];
            int next = second ? pitch[1] : pitch[0], part = own & ((1 << log) - 1);
            const float* from = (second ? at[1] : at[0]) + (3 * part * next + (own >> log));
            batch.elements[i] = from[0], batch.mean[i] = from[next], batch.squares[i] = from[2 * next];
        }
        return batch;
    }
    // Mean and variance. The first ones are loaded.
    __device__ __forceinline__ float2 merged(Batch batch) const {
        int all = count[0] + count[1];
        Moments moments;
#pragma unroll 1
        for (int first = 0;;) {
            moments.add(batch, all - first);
            first += Batch::SIZE;
            if (first >= all) break;
            batch = load(first);
        }
        return make_float2(moments.mean, moments.squares * reciprocal_approx(moments.elements));
    }

private:
    const float* at[2];
    int pitch[2], count[2], parts_log[2];
};

// Scale and shift of a channel of a sample, copied or from moments: on their way, and known.
template <class E>
struct ChannelAffine {
    float first, second;  // scale and shift, or gamma and beta
    int group;
    GroupMoments::Batch parts;

    __device__ __forceinline__ void load(const Conv2d<E>& p, int sample, int c) {
        int channels = p.c1 + p.c2, own = min(c, channels - 1);
        long long row = static_cast<long long>(sample) * p.affine_stride + own;
        group = p.group_width == 1 ? own : divided(own, p.group_reciprocal);
        if (p.affine) {
            first = p.affine[row], second = p.affine[row + channels];
            return;
        }
        parts = moments(p, sample).load(0);
        first = p.gamma[row], second = p.beta[row];
    }
    // Of the loaded channel, zeros beyond the last. Where they are kept they go to memory, too.
    __device__ __forceinline__ float2 known(const Conv2d<E>& p, int sample, int c, bool keeps) const {
        int channels = p.c1 + p.c2;
        if (c >= channels) return make_float2(0.0f, 0.0f);
        if (p.affine) return make_float2(first, second);
        float2 merged = moments(p, sample).merged(parts);
        float mean = merged.x, rstd = rsqrtf(merged.y + p.eps);
        float scale = rstd * first, shift = fmaf(-mean, scale, second);
        if (keeps) {
            float* own = p.own_affine + (2ll * sample * channels + c);
            own[0] = scale, own[channels] = shift;
            float* stats = p.own_stats + 2 * (sample * p.groups + group);
            if (c == group * p.group_width) stats[0] = mean, stats[1] = rstd;
        }
        return make_float2(scale, shift);
    }

private:
    __device__ __forceinline__ GroupMoments moments(const Conv2d<E>& p, int sample) const {
        return GroupMoments(p, sample, group * p.group_width, (group + 1) * p.group_width);
    }
};

// Scale and shift of the channels from `c` on, a thread each, up to `end`, to `affine` from there on. Those of a
// thread's first channel are loaded.
template <class E>
__device__ __forceinline__ void fill_affine(const Conv2d<E>& p, int sample, ChannelAffine<E>& own, int c, int end,
                                            float2* affine, bool keeps) {
    int first = c;
    for (c += threadIdx.x; c < end; c += blockDim.x) {
        if (c - first >= static_cast<int>(blockDim.x)) own.load(p, sample, c);
        affine[c - first] = own.known(p, sample, c, keeps);
    }
}
