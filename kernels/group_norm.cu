// Group normalisation of NHWC activations [B, P pixels, C], with an optional SiLU. C = c1 + c2 channels come
// from one tensor or from two, of elements of type E; everything else is float32.
//
// A block of `fwd` has a slab of one sample's channels, whole groups of at least two pieces of 16 bytes, and a
// thread one piece of every `rows`-th pixel. Groups wider than a piece for each thread are gone through in
// windows of so many channels.
//
//   fwd           a block has all pixels. They stay in registers, as far as these go, while it finds mean and
//                 variance, so that memory is read once.
//   moments_fwd   the sources' producers left moments: blocks share a sample's pixels, and each merges the
//                 moments of its groups.
//   stats         one block a sample and group, for `affine`: one thread an element.
#include "common/activation.cuh"
#include "common/channel_slab.cuh"
#include "common/conv2d_source.cuh"

template <class E>
struct GroupNormStats {
    Source<E> source;
    float* stats;  // [B, groups, 2]: mean, 1 / sqrt(variance + eps)
    int pixels, c1, c2, groups;
    float eps;
    int unused;
};

template <class E>
__global__ void __launch_bounds__(256) group_norm_stats(GroupNormStats<E> p) {
    CYANEA_SHARED(float, partial, 32);
    int group = blockIdx.x, sample = blockIdx.y;
    int width = (p.c1 + p.c2) / p.groups, count = width * p.pixels;
    long long first = static_cast<long long>(sample) * p.pixels;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < count; i += blockDim.x)
        sum += load(p.source, first + i / width, group * width + i % width, p.c1, p.c2);
    float mean = block_sum(sum, partial) / count;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        float d = load(p.source, first + i / width, group * width + i % width, p.c1, p.c2) - mean;
        squares = fmaf(d, d, squares);
    }
    float variance = block_sum(squares, partial) / count;
    if (threadIdx.x == 0) {
        float* stats = p.stats + 2 * (sample * p.groups + group);
        stats[0] = mean;
        stats[1] = 1.0f / sqrtf(variance + p.eps);
    }
}

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

// The pixels of a block.
template <class E>
__device__ __forceinline__ int block_start(const GroupNormForward<E>& p) {
    return static_cast<int>(blockIdx.y) * p.share;
}
template <class E>
__device__ __forceinline__ int block_end(const GroupNormForward<E>& p) {
    return min(block_start(p) + p.share, p.pixels);
}

// The calling thread's pieces of a window of its block: `count` of them, from pixel `first` of the sample on.
// WHOLE: all tensors can be read and written a piece at a time.
template <bool WHOLE, class E>
struct OwnPieces {
    const GroupNormForward<E>& p;
    const Slab<E>& slab;
    int first, count;

    __device__ __forceinline__ OwnPieces(const GroupNormForward<E>& p, const Slab<E>& slab) : p(p), slab(slab) {
        first = block_start(p) + slab.row;
        int to = block_end(p);
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
    // Calls use(index, piece) from piece `index` on, DEPTH of which are on their way at a time.
    template <int DEPTH, class Use>
    __device__ __forceinline__ void each(int index, const Use& use) const {
#pragma unroll 1
        for (; index < count; index += DEPTH) {
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
    // With the moments of a group, which are the work of `lanes` lanes.
    template <class E>
    __device__ __forceinline__ void finish(const GroupNormForward<E>& p, int group, int width, float mean_of,
                                           float variance, int lane, int lanes) const {
        float rstd = 1.0f / sqrtf(variance + p.eps);
        for (int c = group * width + lane; c < (group + 1) * width; c += lanes) {
            mean[c] = mean_of;
            scale[c] *= rstd;
        }
        if (blockIdx.y > 0 || lane > 0) return;
        float* stats = p.stats + 2 * (blockIdx.z * p.groups + blockIdx.x * p.slab / width + group);
        stats[0] = mean_of;
        stats[1] = rstd;
    }
    // From the moments of each channel.
    template <class E>
    __device__ __forceinline__ void merge(const GroupNormForward<E>& p, int groups, int width) const {
        float pixels = p.pixels;
        auto part = [&](int group, int c) {
            float2 of = moments[group * width + c];
            return make_float3(pixels, of.x, of.y);
        };
        float elements = pixels * width;
        auto write = [&](int group, float mean_of, float squares, int lane, int lanes) {
            finish(p, group, width, mean_of, squares / elements, lane, lanes);
        };
        block_moments(groups, width, elements, part, write);
        __syncthreads();
    }
};

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
    int start = block_start(p), count = (block_end(p) - start) * width;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        int c = i % width;
        long long pixel = static_cast<long long>(blockIdx.z) * p.pixels + (start + i / width);
        float distance = load(p.source, pixel, first + c, p.c1, p.c2) - table.mean[c];
        float value = fmaf(distance, table.scale[c], table.shift[c]);
        if (SILU) value = stored_silu(value, static_cast<const E*>(nullptr));
        put(p.y + (pixel * channels + first + c), value);
    }
}

// Blocks of up to 512 threads, which then have a multiprocessor to themselves.
template <bool SILU, class E>
__global__ void __launch_bounds__(512, 1) group_norm_fwd(GroupNormForward<E> p) {
    const int HELD = 16, BATCH = 2;  // pieces that a thread keeps, and reads at a time
    CYANEA_SHARED(float, parts, 2 * 512 * Piece<E>::SIZE);
    CYANEA_DYNAMIC_SHARED(float2, channel_table);
    ChannelTable table(channel_table, p.slab);
    int channels = p.c1 + p.c2, width = channels / p.groups, windows = Slab<E>::windows(p.slab);
    int groups = min(p.slab, channels - static_cast<int>(blockIdx.x) * p.slab) / width;
    table.start(p);
    if (p.wide && windows == 1) {
        Slab<E> slab(p.slab, channels, p.pixels, 0);
        OwnPieces<true, E> pieces(p, slab);
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
        pieces.template each<2>(HELD, [&](int index, const uint4& piece) { moments.add(index, piece); });
        merge_pixels(slab, moments.mean, moments.squares, p.pixels, parts, table.moments);
        table.merge(p, groups, width);
        PieceNorm<SILU, E> norm(table, slab);
#pragma unroll
        for (int d = 0; d < HELD; ++d)
            if (d < pieces.count) pieces.write(d, norm.of(held[d]));
        pieces.template each<2>(HELD, [&](int index, const uint4& piece) { pieces.write(index, norm.of(piece)); });
        return;
    }
#pragma unroll 1
    for (int window = 0; window < windows; ++window) {
        Slab<E> slab(p.slab, channels, p.pixels, window);
        PieceMoments<E> moments;
        OwnPieces<false, E>(p, slab).template each<1>(
            0, [&](int index, const uint4& piece) { moments.add(index, piece); });
        merge_pixels(slab, moments.mean, moments.squares, p.pixels, parts, table.moments);
    }
    table.merge(p, groups, width);
    apply_elements<SILU>(p, table);
}

// With the moments that the sources' producers left.
template <bool SILU, class E>
__global__ void __launch_bounds__(256, 3) group_norm_moments_fwd(GroupNormForward<E> p) {
    CYANEA_DYNAMIC_SHARED(float2, channel_table);
    ChannelTable table(channel_table, p.slab);
    int channels = p.c1 + p.c2, width = channels / p.groups, first_channel = blockIdx.x * p.slab;
    int groups = min(p.slab, channels - first_channel) / width, lane = threadIdx.x % 32;
    table.start(p);
    __syncthreads();
    for (int group = threadIdx.x / 32; group < groups; group += 8) {
        int begin = first_channel + group * width, end = begin + width;
        GroupMoments moments(p, blockIdx.z, begin, end);
        float2 of = moments.merged(moments.load(0));
        table.finish(p, group, width, of.x, of.y, lane, 32);
    }
    __syncthreads();
    if (!p.wide) {
        apply_elements<SILU>(p, table);
        return;
    }
#pragma unroll 1
    for (int window = 0; window < Slab<E>::windows(p.slab); ++window) {
        Slab<E> slab(p.slab, channels, p.pixels, window);
        OwnPieces<true, E> pieces(p, slab);
        PieceNorm<SILU, E> norm(table, slab);
        pieces.template each<4>(0, [&](int index, const uint4& piece) { pieces.write(index, norm.of(piece)); });
    }
}
