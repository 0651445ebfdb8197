// Group normalisation of NHWC activations [B, P pixels, C], with an optional SiLU. C = c1 + c2 channels come
// from one tensor or from two, of elements of type E; everything else is float32.
//
// A block has a slab of one sample's channels, whole groups of at least two pieces of 16 bytes, and a thread one
// piece of every `rows`-th pixel. Groups wider than a piece for each thread are gone through in windows of so many
// channels.
//
//   fwd           a block has all pixels. They stay in registers while it finds mean and variance, so that memory
//                 is read once. What doesn't fit there takes two launches, in which blocks share a sample's pixels:
//   stats         mean and variance of groups; the last block of a slab merges what the others found.
//   moments_fwd   each block normalises its pixels with these, or it merges moments that the sources' producers left.
//
// `affine` leaves normalisation to a reader of `stats`.
#include "common/activation.cuh"
#include "common/channel_slab.cuh"
#include "common/conv2d_source.cuh"
#include "common/slices.cuh"

// affine[b, 0, c] and affine[b, 1, c], so that the normalised value is x * first + second.
struct GroupNormAffine {
    const float* gamma;
    const float* beta;
    const float* stats;
    float* affine;
    int channels, groups, affine_stride, batch;
};

__global__ void __launch_bounds__(256) group_norm_affine_fwd_nhwc_f32(GroupNormAffine p) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.batch * p.channels) return;
    int sample = i / p.channels, c = i % p.channels;
    const float* stats = p.stats + 2 * (sample * p.groups + c / (p.channels / p.groups));
    long long from = static_cast<long long>(sample) * p.affine_stride + c;
    float factor = stats[1] * p.gamma[from];
    float* to = p.affine + 2ll * sample * p.channels + c;
    to[0] = factor;
    to[p.channels] = fmaf(-stats[0], factor, p.beta[from]);
}

template <class E>
struct GroupNormForward {
    Source<E> source;
    const float* moments[2];  // of both sources, as convolutions leave them (see Conv2d); or null
    const float* gamma;       // [C], or [B, C] where `affine_stride` is C
    const float* beta;
    E* y;
    float* stats;             // [B, groups, 2]: mean, 1 / sqrt(variance + eps)
    int pixels, c1, c2, groups, affine_stride;
    int slab;                 // channels of a block
    int share;                // pixels of a block
    int wide;                 // whether all tensors can be read and written a piece at a time
    int slice_log1, slice_log2, parts_log1, parts_log2;  // log2, of moments (see Conv2d)
    float eps;
    int unused;
};

template <class E>
struct GroupNormStats {
    Source<E> source;
    float* stats;       // [B, groups, 2]: mean, 1 / sqrt(variance + eps)
    float2* parts;      // [B, blocks of a sample, groups]: mean and squared deviations
    unsigned* tickets;  // [B, slabs]
    int pixels, c1, c2, groups, slab, share, wide;
    float eps;
};

// The pixels of a block, `y` of which has a share of them.
template <class Params>
__device__ __forceinline__ int block_start(const Params& p, int y) {
    return y * p.share;
}
template <class Params>
__device__ __forceinline__ int block_end(const Params& p, int y) {
    return min(block_start(p, y) + p.share, p.pixels);
}

// The calling thread's pieces of a window of its block: `count` of them, from pixel `first` of the sample on.
// WHOLE: all tensors can be read and written a piece at a time.
template <bool WHOLE, class E, class Params>
struct OwnPieces {
    const Params& p;
    const Slab<E>& slab;
    int first, count;

    __device__ __forceinline__ OwnPieces(const Params& p, const Slab<E>& slab) : p(p), slab(slab) {
        first = block_start(p, blockIdx.y) + slab.row;
        int to = block_end(p, blockIdx.y);
        count = first < to ? (to - first - 1) / slab.rows + 1 : 0;
    }
    __device__ __forceinline__ int pixel(int index) const { return first + index * slab.rows; }
    __device__ __forceinline__ uint4 read(int index) const {
        long long start = static_cast<long long>(blockIdx.z) * p.pixels;
        if (!WHOLE) return source_piece(p.source.x, p.source.x2, p.c1, p.c2, false, start + pixel(index), slab.c);
        // The same, in terms that don't depend on `index` but for a product. A whole piece is of one source.
        bool second = slab.c >= p.c1;
        int stride = second ? p.c2 : p.c1;
        const E* from = (second ? p.source.x2 - p.c1 : p.source.x) + ((start + first) * stride + slab.c);
        return *reinterpret_cast<const uint4*>(from + index * (slab.rows * stride));
    }
    __device__ __forceinline__ void write(int index, const uint4& piece) const {
        int channels = p.c1 + p.c2;
        long long start = static_cast<long long>(blockIdx.z) * p.pixels + first;
        *reinterpret_cast<uint4*>(p.y + (start * channels + slab.c) + index * (slab.rows * channels)) = piece;
    }
    // Calls use(index, piece) for all pieces, DEPTH of which are on their way at a time.
    template <int DEPTH, class Use>
    __device__ __forceinline__ void each(const Use& use) const {
#pragma unroll 1
        for (int index = 0; index < count; index += DEPTH) {
            uint4 piece[DEPTH];
#pragma unroll
            for (int d = 0; d < DEPTH; ++d) piece[d] = read(min(index + d, count - 1));
#pragma unroll
            for (int d = 0; d < DEPTH; ++d)
                if (index + d < count) use(index + d, piece[d]);
        }
    }
};

// Mean and squared deviations of the channels of a thread's pieces (Welford 1962).
template <class E>
struct PieceMoments {
    float mean[Piece<E>::SIZE] = {}, squares[Piece<E>::SIZE] = {};

    __device__ __forceinline__ void add(int index, const uint4& piece) {
        float x[Piece<E>::SIZE], part = 1.0f / (index + 1);
        unpack(piece, x);
#pragma unroll
        for (int i = 0; i < Piece<E>::SIZE; ++i) {
            float distance = x[i] - mean[i];
            mean[i] = fmaf(distance, part, mean[i]);
            squares[i] = fmaf(distance, x[i] - mean[i], squares[i]);
        }
    }
};

// Of the groups of a slab, from the moments of each of its channels over so many pixels: write(group, mean, squares,
// lane, lanes) for the lanes that share a group.
template <class Write>
__device__ __forceinline__ void group_moments(const float2* moments, int groups, int width, int pixels,
                                              const Write& write) {
    float each = pixels;
    auto part = [&](int group, int c) {
        float2 of = moments[group * width + c];
        return make_float3(each, of.x, of.y);
    };
    block_moments(groups, width, each * width, part, write);
}

template <class E>
__global__ void __launch_bounds__(256, 3) group_norm_stats(GroupNormStats<E> p) {
    CYANEA_SHARED(float, parts, 2 * 256 * Piece<E>::SIZE);
    CYANEA_DYNAMIC_SHARED(float2, moments);
    int channels = p.c1 + p.c2, width = channels / p.groups, sample = blockIdx.z, blocks = gridDim.y;
    int groups = min(p.slab, channels - static_cast<int>(blockIdx.x) * p.slab) / width;
    int first_group = blockIdx.x * p.slab / width, pixels = block_end(p, blockIdx.y) - block_start(p, blockIdx.y);
#pragma unroll 1
    for (int window = 0; window < Slab<E>::windows(p.slab); ++window) {
        Slab<E> slab(p.slab, channels, p.pixels, window);
        PieceMoments<E> own;
        auto add = [&](int index, const uint4& piece) { own.add(index, piece); };
        if (p.wide) OwnPieces<true, E, GroupNormStats<E>>(p, slab).template each<4>(add);
        else OwnPieces<false, E, GroupNormStats<E>>(p, slab).template each<1>(add);
        merge_pixels(slab, own.mean, own.squares, pixels, parts, moments);
    }
    float2* of_block = p.parts + (static_cast<long long>(sample) * blocks + blockIdx.y) * p.groups + first_group;
    group_moments(moments, groups, width, pixels, [&](int group, float mean, float squares, int lane, int) {
        if (lane == 0) of_block[group] = make_float2(mean, squares);
    });
    if (!comes_last(p.tickets + sample * gridDim.x + blockIdx.x, blocks)) return;
    const float2* of_sample = p.parts + static_cast<long long>(sample) * blocks * p.groups + first_group;
    float elements = static_cast<float>(width) * p.pixels;
    auto part = [&](int group, int block) {
        float2 of = __ldcg(of_sample + static_cast<long long>(block) * p.groups + group);
        return make_float3(static_cast<float>(width) * (block_end(p, block) - block_start(p, block)), of.x, of.y);
    };
    block_moments(groups, blocks, elements, part, [&](int group, float mean, float squares, int lane, int) {
        if (lane > 0) return;
        float* stats = p.stats + 2 * (sample * p.groups + first_group + group);
        stats[0] = mean;
        stats[1] = 1.0f / sqrtf(squares / elements + p.eps);
    });
}

// What a block knows of its channels, in shared memory: first gamma and beta, then how they are normalised.
struct ChannelTable {
    float2* moments;
    float *mean, *scale, *shift;

    __device__ __forceinline__ ChannelTable(float2* at, int slab)
        : moments(at), mean(reinterpret_cast<float*>(at + slab)), scale(mean + slab), shift(scale + slab) {}

    template <class E>
    __device__ __forceinline__ void start(const GroupNormForward<E>& p) const {
        int first = blockIdx.x * p.slab, count = min(p.slab, p.c1 + p.c2 - first);
        long long row = static_cast<long long>(blockIdx.z) * p.affine_stride + first;
        for (int c = threadIdx.x; c < count; c += blockDim.x) {
            scale[c] = p.gamma[row + c];
            shift[c] = p.beta[row + c];
        }
    }
    // With mean and 1 / deviation of a group, which are the work of `lanes` lanes.
    __device__ __forceinline__ void finish(int group, int width, float mean_of, float rstd, int lane, int lanes) const {
        for (int c = group * width + lane; c < (group + 1) * width; c += lanes) {
            mean[c] = mean_of;
            scale[c] *= rstd;
        }
    }
};

// Where mean and 1 / deviation of the first group of a block lie.
template <class E>
__device__ __forceinline__ float* block_stats(const GroupNormForward<E>& p, int width) {
    return p.stats + 2 * (blockIdx.z * p.groups + blockIdx.x * p.slab / width);
}

// Normalises pieces of the calling thread's channels.
template <bool SILU, class E>
struct PieceNorm {
    float mean[Piece<E>::SIZE], scale[Piece<E>::SIZE], shift[Piece<E>::SIZE];

    __device__ __forceinline__ PieceNorm(const ChannelTable& table, const Slab<E>& slab) {
        int first = min(slab.c, slab.end - Piece<E>::SIZE) - slab.first;
#pragma unroll
        for (int i = 0; i < Piece<E>::SIZE; ++i)
            mean[i] = table.mean[first + i], scale[i] = table.scale[first + i], shift[i] = table.shift[first + i];
    }
    __device__ __forceinline__ uint4 of(const uint4& piece) const {
        float x[Piece<E>::SIZE];
        unpack(piece, x);
#pragma unroll
        for (int i = 0; i < Piece<E>::SIZE; ++i) x[i] = fmaf(x[i] - mean[i], scale[i], shift[i]);
        if (SILU) stored_silu<E>(x);
        return pack(x);
    }
};

// Normalises all of a block's elements, one after another.
template <bool SILU, class E>
__device__ __forceinline__ void apply_elements(const GroupNormForward<E>& p, const ChannelTable& table) {
    int channels = p.c1 + p.c2, first = blockIdx.x * p.slab, width = min(p.slab, channels - first);
    int start = block_start(p, blockIdx.y), count = (block_end(p, blockIdx.y) - start) * width;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        int c = i % width;
        long long pixel = static_cast<long long>(blockIdx.z) * p.pixels + (start + i / width);
        float distance = load(p.source, pixel, first + c, p.c1, p.c2) - table.mean[c];
        float value = fmaf(distance, table.scale[c], table.shift[c]);
        if (SILU) value = stored_silu(value, static_cast<const E*>(nullptr));
        put(p.y + (pixel * channels + first + c), value);
    }
}

// Blocks of up to 512 threads, which then have a multiprocessor to themselves. All tensors can be read and written a
// piece at a time, a thread has at most HELD of them.
template <bool SILU, class E>
__global__ void __launch_bounds__(512, 1) group_norm_fwd(GroupNormForward<E> p) {
    const int HELD = 16, BATCH = 2;  // pieces that a thread keeps, and reads at a time
    CYANEA_SHARED(float, parts, 2 * 512 * Piece<E>::SIZE);
    CYANEA_DYNAMIC_SHARED(float2, channel_table);
    ChannelTable table(channel_table, p.slab);
    int channels = p.c1 + p.c2, width = channels / p.groups;
    int groups = min(p.slab, channels - static_cast<int>(blockIdx.x) * p.slab) / width;
    table.start(p);
    Slab<E> slab(p.slab, channels, p.pixels, 0);
    OwnPieces<true, E, GroupNormForward<E>> pieces(p, slab);
    PieceMoments<E> moments;
    uint4 held[HELD];
    // Some are on their way while those before them are added.
#pragma unroll
    for (int batch = 0; batch <= HELD; batch += BATCH) {
        if (batch < min(pieces.count, HELD)) {
#pragma unroll
            for (int d = batch; d < batch + BATCH; ++d)
                if (d < pieces.count) held[d] = pieces.read(d);
        }
        int before = batch - BATCH;
        if (0 <= before && before < pieces.count) {
#pragma unroll
            for (int d = before; d < before + BATCH; ++d)
                if (d < pieces.count) moments.add(d, held[d]);
        }
    }
    merge_pixels(slab, moments.mean, moments.squares, p.pixels, parts, table.moments);
    float* stats = block_stats(p, width);
    float elements = static_cast<float>(p.pixels) * width;
    auto finish = [&](int group, float mean, float squares, int lane, int lanes) {
        float rstd = 1.0f / sqrtf(squares / elements + p.eps);
        table.finish(group, width, mean, rstd, lane, lanes);
        if (lane == 0) stats[2 * group] = mean, stats[2 * group + 1] = rstd;
    };
    group_moments(table.moments, groups, width, p.pixels, finish);
    __syncthreads();
    PieceNorm<SILU, E> norm(table, slab);
#pragma unroll
    for (int d = 0; d < HELD; ++d)
        if (d < pieces.count) pieces.write(d, norm.of(held[d]));
}

// With the moments that the sources' producers left or, where there are none, with `stats`.
template <bool SILU, class E>
__global__ void __launch_bounds__(256, 3) group_norm_moments_fwd(GroupNormForward<E> p) {
    CYANEA_DYNAMIC_SHARED(float2, channel_table);
    ChannelTable table(channel_table, p.slab);
    int channels = p.c1 + p.c2, width = channels / p.groups, first_channel = blockIdx.x * p.slab;
    int groups = min(p.slab, channels - first_channel) / width, lane = threadIdx.x % 32;
    table.start(p);
    __syncthreads();
    float* stats = block_stats(p, width);
    for (int group = threadIdx.x / 32; group < groups; group += 8) {
        if (!p.moments[0]) {
            table.finish(group, width, stats[2 * group], stats[2 * group + 1], lane, 32);
            continue;
        }
        int begin = first_channel + group * width, end = begin + width;
        GroupMoments moments(p, blockIdx.z, begin, end);
        // Both halves of the warp do the same.
        const int LOG = 4;
        static_assert(1 << LOG == GroupMoments::Share::LANES, "as many as may share a group");
        int part = lane % GroupMoments::Share::LANES;
        auto rest = [&](Moments& own, int first) { moments.add_rest(own, first, LOG); };
        float2 of = merged<true>(moments.load<true>(part, LOG), part, LOG, rest);
        float rstd = 1.0f / sqrtf(of.y + p.eps);
        table.finish(group, width, of.x, rstd, lane, 32);
        if (blockIdx.y == 0 && lane == 0) stats[2 * group] = of.x, stats[2 * group + 1] = rstd;
    }
    __syncthreads();
    if (!p.wide) {
        apply_elements<SILU>(p, table);
        return;
    }
#pragma unroll 1
    for (int window = 0; window < Slab<E>::windows(p.slab); ++window) {
        Slab<E> slab(p.slab, channels, p.pixels, window);
        OwnPieces<true, E, GroupNormForward<E>> pieces(p, slab);
        PieceNorm<SILU, E> norm(table, slab);
        pieces.template each<4>([&](int index, const uint4& piece) { pieces.write(index, norm.of(piece)); });
    }
}
