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
    const float* affine;    // scale [C], shift [C], a sample each `affine_stride`; or null, transposed always, as gamma
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
    int split, even_columns;          // 1 where even columns of a region lie first, and how many; or 0, and all columns
    int sample_pixels;                // of rows of pixels without an image; else 0
    int slices;                       // that the input channels are split into
    unsigned slices_reciprocal;       // see divided; 0 where they are not split
    int chunk;                        // pieces of input channels in shared memory at a time, an even number
    int main_chunks, chunks;          // of the sources, and with those of a shortcut that passes through regions
    int flags;                        // WIDE, WIDE_SHORTCUT, QUADS, HALVES
    int buffers;                      // for regions, of tiles whose weights stay in registers: 1 or 2
    float eps;
    float residual_scale;             // that the residual is multiplied by
    float limit;                      // results are within ± this; infinity for none
    Divisor tiles_x, tiles_y;         // of an image, transposed of a phase of it
    int group_lanes_log;              // log2 of lanes that share a group's parts: a factor of its width, or Share::LANES
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

// The sources (those of the shortcut) can be read 16 bytes at a time, the results stored four channels at a time; moments
// are left of halves of tiles.
#define WIDE 1
#define WIDE_SHORTCUT 2
#define QUADS 4
#define HALVES 8

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

// Where scale and shift of a channel lie among those of `channels`, a multiple of two pieces: the same two of each piece
// side by side, so that lanes with neighbouring pieces read without bank conflicts, and the next two `pitch` further.
template <class E>
struct AffinePlace {
    static const int SIZE = Piece<E>::SIZE;
    __device__ static __forceinline__ int pitch(int channels) { return channels / SIZE * 2; }
    __device__ static __forceinline__ int of_piece(int piece) { return piece * 2; }
    __device__ static __forceinline__ int of_channel(int c, int channels) {
        return of_piece(c / SIZE) + c % SIZE / 2 * pitch(channels) + c % 2;
    }
};

// What is done to a piece of source channels: scaled and shifted, if there is anything to do it with, then SiLU
// if wanted.
template <class E>
struct Normalisation {
    float scale[Piece<E>::SIZE], shift[Piece<E>::SIZE];
    bool silu;

    // `coefficients` lie in shared memory as AffinePlace says, from the first channel on; or null.
    __device__ __forceinline__ Normalisation(const float2* coefficients, int pitch, bool with_silu) {
        silu = with_silu;
#pragma unroll
        for (int i = 0; i < Piece<E>::SIZE; ++i) scale[i] = 1.0f, shift[i] = 0.0f;
        if (!coefficients) return;
#pragma unroll
        for (int i = 0; i < Piece<E>::SIZE; i += 2) {
            float4 pair = *reinterpret_cast<const float4*>(coefficients + i / 2 * pitch);
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

    // The first `count` of a batch, or all: a reciprocal for all. Parts may be empty.
    __device__ __forceinline__ void add(Batch batch, int count) {
        float all = elements, total = elements * mean;
#pragma unroll
        for (int i = 0; i < Batch::SIZE; ++i) {
            if (i >= count) batch.elements[i] = batch.squares[i] = 0.0f;
            all += batch.elements[i], total = fmaf(batch.elements[i], batch.mean[i], total);
        }
        float next = total * reciprocal_approx(fmaxf(all, 1.0f)), moved = mean - next;
        squares = fmaf(elements * moved, moved, squares);
#pragma unroll
        for (int i = 0; i < Batch::SIZE; ++i) {
            float distance = batch.mean[i] - next;
            squares += fmaf(batch.elements[i] * distance, distance, batch.squares[i]);
        }
        elements = all, mean = next;
    }
};

// Steps of 2^log from `first` to `end`, which is beyond it.
__device__ __forceinline__ int steps_to(int first, int end, int log) { return (end - first + (1 << log) - 1) >> log; }

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
                at[source] = p.moments[source] + ((3 * sample * pitch[source] << parts_log[source]) + first);
            }
            begin -= channels[source], end -= channels[source];
        }
    }
    // A lane's share of the parts, where 2^lanes_log neighbours have a group, LANES at most: part number `lane`, and where
    // these are not all, the next few that are as many lanes further on. Beside it the mean of part 0. All are under way at
    // once.
    struct Share {
        static const int LANES = 16;
        int all;  // parts
        float centre;
        Moments own;
        Moments::Batch more;
    };
    // AHEAD: whether there are registers for the next few.
    template <bool AHEAD>
    __device__ __forceinline__ Share load(int lane, int lanes_log) const {
        Share share = {};
        const int lanes = 1 << lanes_log;
        const float* from = part(lane);
        share.all = count[0] + count[1];
        share.centre = part(0)[next(0)];
        share.own.elements = from[0], share.own.mean = from[next(lane)], share.own.squares = from[2 * next(lane)];
        if (AHEAD && share.all > lanes) share.more = load_more(lane + lanes, lanes);
        return share;
    }
    // Adds those of the lane's parts from `first` on.
    __device__ __forceinline__ void add_rest(Moments& own, int first, int lanes_log) const {
#pragma unroll 1
        for (; first < count[0] + count[1]; first += Moments::Batch::SIZE << lanes_log)
            own.add(load_more(first, 1 << lanes_log), steps_to(first, count[0] + count[1], lanes_log));
    }

private:
    const float* at[2];
    int pitch[2], count[2], parts_log[2];

    // Of number `which`; the last again beyond it, so that nothing waits for a branch.
    __device__ __forceinline__ bool second(int which) const { return which >= count[0] && count[1] > 0; }
    __device__ __forceinline__ int next(int which) const { return second(which) ? pitch[1] : pitch[0]; }
    __device__ __forceinline__ const float* part(int which) const {
        which = min(which, count[0] + count[1] - 1);
        int own = second(which) ? which - count[0] : which, log = second(which) ? parts_log[1] : parts_log[0];
        return (second(which) ? at[1] : at[0]) + (3 * (own & ((1 << log) - 1)) * next(which) + (own >> log));
    }
    // Those from `first` on, `step` apart.
    __device__ __forceinline__ Moments::Batch load_more(int first, int step) const {
        Moments::Batch batch;
#pragma unroll
        for (int i = 0; i < Moments::Batch::SIZE; ++i) {
            int which = first + i * step;
            const float* from = part(which);
            batch.elements[i] = from[0], batch.mean[i] = from[next(which)], batch.squares[i] = from[2 * next(which)];
        }
        return batch;
    }
};

// Mean and variance of what 2^lanes_log neighbours have, LANES at most, in each of them: from deviations from `centre`, the
// mean of one part, so that all sums are made at once. Where that part has an nth of all elements, what is subtracted in the
// end is less than n times what is left. All lanes of the warp come here.
template <int LANES>
__device__ __forceinline__ float2 merged_lanes(const Moments& own, float centre, int lanes_log) {
    float distance = own.mean - centre;
    float elements = own.elements, total = elements * distance, squares = fmaf(total, distance, own.squares);
    // Where there are fewer lanes all sums are doubled instead.
#pragma unroll
    for (int bit = 1; bit < LANES; bit *= 2) {
        int other = bit & ((1 << lanes_log) - 1);
        elements += __shfl_xor_sync(0xffffffffu, elements, other);
        total += __shfl_xor_sync(0xffffffffu, total, other);
        squares += __shfl_xor_sync(0xffffffffu, squares, other);
    }
    float inverse = reciprocal_approx(elements), moved = total * inverse;
    return make_float2(centre + moved, fmaxf(fmaf(-total, moved, squares), 0.0f) * inverse);
}

// Mean and variance of what 2^lanes_log neighbours share, in each of them. All lanes of the warp come here.
// `rest`(own, first) adds the lane's parts from `first` on, which are not in its share.
template <bool AHEAD, class Rest>
__device__ __forceinline__ float2 merged(const GroupMoments::Share& share, int lane, int lanes_log, Rest rest) {
    Moments own = share.own;
    if (lane >= share.all) own.elements = own.squares = 0.0f;
    int first = lane + (1 << lanes_log);
    if (AHEAD && first < share.all) {
        own.add(share.more, steps_to(first, share.all, lanes_log));
        first += Moments::Batch::SIZE << lanes_log;
    }
    if (first < share.all) rest(own, first);
    return merged_lanes<GroupMoments::Share::LANES>(own, share.centre, lanes_log);
}

// Scale and shift of a channel of a sample, copied or from moments: on their way, and known. AHEAD as above.
template <class E, bool AHEAD>
struct ChannelAffine {
    float first, second;  // scale and shift, or gamma and beta
    int group;
    GroupMoments::Share parts;

    __device__ __forceinline__ void load(const Conv2d<E>& p, int sample, int c) {
        int channels = p.c1 + p.c2, own = min(c, channels - 1);
        int row = sample * p.affine_stride + own;
        group = p.group_width == 1 ? own : divided(own, p.group_reciprocal);
        if (p.affine) {
            first = p.affine[row], second = p.affine[row + channels];
            return;
        }
        parts = moments(p, sample).template load<AHEAD>(lane(p), p.group_lanes_log);
        first = p.gamma[row], second = p.beta[row];
    }
    // Of the loaded channel, zeros beyond the last. Those that a lane keeps go to memory, too. All lanes of the warp come
    // here, neighbours with neighbouring channels.
    __device__ __forceinline__ float2 known(const Conv2d<E>& p, int sample, int c, bool keeps) const {
        int channels = p.c1 + p.c2;
        float scale = first, shift = second;
        if (!p.affine) {
            auto rest = [&](Moments& own, int first) { moments(p, sample).add_rest(own, first, p.group_lanes_log); };
            float2 of = merged<AHEAD>(parts, lane(p), p.group_lanes_log, rest);
            float mean = of.x, rstd = rsqrtf(of.y + p.eps);
            scale = rstd * first, shift = fmaf(-mean, scale, second);
            if (keeps) {
                float* own = p.own_affine + (2ll * sample * channels + c);
                own[0] = scale, own[channels] = shift;
                float* stats = p.own_stats + 2 * (sample * p.groups + group);
                if (c == group * p.group_width) stats[0] = mean, stats[1] = rstd;
            }
        }
        return c < channels ? make_float2(scale, shift) : make_float2(0.0f, 0.0f);
    }

private:
    __device__ __forceinline__ GroupMoments moments(const Conv2d<E>& p, int sample) const {
        return GroupMoments(p, sample, group * p.group_width, (group + 1) * p.group_width);
    }
    __device__ static __forceinline__ int lane(const Conv2d<E>& p) { return threadIdx.x & ((1 << p.group_lanes_log) - 1); }
};

// Whether the calling thread's warp has some of the channels from `first` up to `end`, a thread each.
__device__ __forceinline__ bool warp_has_channels(int first, int end) {
    return first + static_cast<int>(threadIdx.x & ~31u) < end;
}

// Scale and shift of the channels from `first` up to `end`, to `affine`, by their places. Both are multiples of 16, so that
// lanes that share a group are side by side. Those of a thread's first channel are loaded, in warps that have some.
template <class E, bool AHEAD>
__device__ __forceinline__ void fill_affine(const Conv2d<E>& p, int sample, ChannelAffine<E, AHEAD>& own, int first,
                                            int end, float2* affine, bool keeps) {
    int threads = blockDim.x;
    for (int done = 0; warp_has_channels(first + done, end); done += threads) {
        int c = first + done + static_cast<int>(threadIdx.x);
        if (done > 0) own.load(p, sample, c);
        float2 of = own.known(p, sample, c, keeps && c < min(end, p.c1 + p.c2));
        if (c < end) affine[AffinePlace<E>::of_channel(c - first, end - first)] = of;
    }
}
