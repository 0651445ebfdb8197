// Group normalisation of NHWC activations [B, P pixels, C], with an optional SiLU, and its
// gradient. C = c1 + c2 channels come from one tensor or from two, of elements of type E; everything
// else is float32.
//
// A block of forward and dgrad has a slab of one sample's channels, whole groups of at least two pieces
// of 16 bytes, and a thread one piece of every `rows`-th pixel. Groups wider than a piece for each thread
// are gone through in windows of so many channels.
//
//   forward   where the sources' producers left moments, blocks share a sample's pixels and each merges
//             the moments of its groups; else a block has all pixels and reads them three times: for
//             means, for squared deviations, for the result.
//   dgrad     a block has all pixels: it reads them for the sums of its channels and again for dx. The
//             block that comes last of a slab adds the samples' sums to dgamma and dbeta.
//   stats     one block a sample and group, for `affine`: one thread an element.
#include "common/activation.cuh"
#include "common/channel_slab.cuh"
#include "common/conv2d_source.cuh"
#include "common/slices.cuh"

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
    const float* moments[2];  // of both sources, as convolutions leave them (store_moments); or null
    const float* gamma;       // [C], or [B, C] where `affine_stride` is C
    const float* beta;
    E* y;
    float* stats;             // [B, groups, 2]: mean, 1 / sqrt(variance + eps)
    int pixels, c1, c2, groups, affine_stride;
    int slab;                 // channels of a block
    int share;                // pixels of a block
    int wide;                 // whether all tensors can be read and written a piece at a time
    int slice1, slice2;       // channels that the moments of each source are of
    float eps;
    int unused;
};

// Calls `use(pixel, values, WHOLE)` for the calling thread's piece of the pixels `from` .. `to` of a
// sample, DEPTH of which are on their way at a time.
template <bool WHOLE, int DEPTH, class E, class Use>
__device__ __forceinline__ void each_piece(const GroupNormForward<E>& p, const Slab<E>& slab, int from,
                                           int to, const Use& use) {
    const int SIZE = Piece<E>::SIZE;
    long long start = static_cast<long long>(blockIdx.z) * p.pixels;
    for (int base = from + slab.row; base < to; base += DEPTH * slab.rows) {
        uint4 held[DEPTH];
#pragma unroll
        for (int d = 0; d < DEPTH; ++d)
            held[d] = source_piece(p.source.x, p.source.x2, p.c1, p.c2, WHOLE,
                                   start + min(base + d * slab.rows, to - 1), slab.c);
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            if (base + d * slab.rows >= to) continue;
            float value[SIZE];
            unpack(held[d], value);
            use(start + base + d * slab.rows, value, WHOLE);
        }
    }
}

template <bool SILU, class E>
__global__ void __launch_bounds__(256, 2) group_norm_fwd(GroupNormForward<E> p) {
    const int SIZE = Piece<E>::SIZE;
    CYANEA_SHARED(float, parts, 2048);
    CYANEA_SHARED(float, own, 64);  // mean and rstd of the slab's groups
    CYANEA_DYNAMIC_SHARED(float, totals);
    int channels = p.c1 + p.c2, width = channels / p.groups, sample = blockIdx.z, thread = threadIdx.x;
    int from = blockIdx.y * p.share, to = min(from + p.share, p.pixels);
    int windows = Slab<E>::windows(p.slab), first_channel = blockIdx.x * p.slab;
    int groups = (min(first_channel + p.slab, channels) - first_channel) / width;
    if (p.moments[0]) {
        for (int group = thread / 32; group < groups; group += 8) {
            int begin = first_channel + group * width, end = begin + width;
            auto sum = [](float value) { return warp_sum(value); };
            float2 moments = GroupMoments(p, sample, begin, end).merged(thread % 32, 32, sum);
            if (thread % 32 > 0) continue;
            own[2 * group] = moments.x;
            own[2 * group + 1] = 1.0f / sqrtf(moments.y + p.eps);
        }
        __syncthreads();
    }
    // Means, then squared deviations.
#pragma unroll 1
    for (int pass = 0; pass < 2 && !p.moments[0]; ++pass) {
#pragma unroll 1
        for (int window = 0; window < windows; ++window) {
            Slab<E> slab(p.slab, channels, p.pixels, window);
            float mean[SIZE] = {}, sums[SIZE] = {};
#pragma unroll
            for (int i = 0; i < SIZE && pass > 0; ++i) {
                int c = min(slab.c + i, slab.end - 1) - slab.first;
                mean[i] = own[2 * (c / width)];
            }
            auto add = [&](long long, const float(&x)[SIZE], bool) {
#pragma unroll
                for (int i = 0; i < SIZE; ++i) {
                    float distance = x[i] - mean[i];
                    sums[i] += pass == 0 ? distance : distance * distance;
                }
            };
            if (p.wide) each_piece<true, 2>(p, slab, from, to, add);
            else each_piece<false, 1>(p, slab, from, to, add);
            total_pixels<1>(slab, sums, parts, totals);
        }
        if (thread < groups) {
            float total = 0.0f;
            for (int c = 0; c < width; ++c) total += totals[thread * width + c];
            total /= static_cast<float>(width) * p.pixels;
            own[2 * thread + pass] = pass == 0 ? total : 1.0f / sqrtf(total + p.eps);
        }
        __syncthreads();
    }
    const float* gamma = p.gamma + static_cast<long long>(sample) * p.affine_stride + first_channel;
    const float* beta = p.beta + static_cast<long long>(sample) * p.affine_stride + first_channel;
#pragma unroll 1
    for (int window = 0; window < windows; ++window) {
        Slab<E> slab(p.slab, channels, p.pixels, window);
        ChannelNorm<SIZE> norm(slab, own, gamma, beta, width);
        auto apply = [&](long long pixel, float(&x)[SIZE], bool wide) {
#pragma unroll
            for (int i = 0; i < SIZE; ++i) {
                float z = fmaf(x[i] - norm.mean[i], norm.scale[i], norm.shift[i]);
                x[i] = SILU ? silu(z) : z;
            }
            store_piece<E>(p.y, nullptr, channels, 0, wide, pixel, slab.c, slab.end, x);
        };
        if (p.wide) each_piece<true, 2>(p, slab, from, to, apply);
        else each_piece<false, 1>(p, slab, from, to, apply);
    }
    if (blockIdx.y == 0 && thread < 2 * groups)
        p.stats[2 * (sample * p.groups + first_channel / width) + thread] = own[thread];
}

template <class E>
struct GroupNormBackward {
    const E* dy;
    Source<E> source;
    const float* gamma;
    const float* beta;
    const float* stats;
    const E* residual[2];  // as dy, added to dx; or null
    E* dx;
    E* dx2;
    float* dgamma;         // as gamma
    float* dbeta;
    float* rows;           // [B, C]: sums of dx, without residuals, over the pixels; or null
    float* sums;           // [B, 2, C]: sums of dz and of dz * xhat over the pixels, with `tickets`
    unsigned* tickets;     // a slab each, where samples share gamma; or null
    int pixels, c1, c2, groups, affine_stride, batch, slab, wide;
};

// Calls `use(pixel, dz, x - mean, WHOLE)` for the calling thread's piece of all pixels of its sample.
template <bool SILU, bool WHOLE, int DEPTH, class E, int SIZE, class Use>
__device__ __forceinline__ void each_gradient(const GroupNormBackward<E>& p, const Slab<E>& slab,
                                              const ChannelNorm<SIZE>& norm, const Use& use) {
    long long start = static_cast<long long>(blockIdx.y) * p.pixels;
    for (int base = slab.row; base < p.pixels; base += DEPTH * slab.rows) {
        uint4 held_x[DEPTH] = {}, held_dy[DEPTH] = {};
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            long long pixel = start + min(base + d * slab.rows, p.pixels - 1);
            held_x[d] = source_piece(p.source.x, p.source.x2, p.c1, p.c2, WHOLE, pixel, slab.c);
            held_dy[d] = source_piece<E>(p.dy, nullptr, p.c1 + p.c2, 0, WHOLE, pixel, slab.c);
        }
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            if (base + d * slab.rows >= p.pixels) continue;
            float distance[SIZE], dz[SIZE];
            unpack(held_x[d], distance);
            unpack(held_dy[d], dz);
#pragma unroll
            for (int i = 0; i < SIZE; ++i) {
                distance[i] -= norm.mean[i];
                if (SILU) dz[i] *= silu_derivative(fmaf(distance[i], norm.scale[i], norm.shift[i]));
            }
            use(start + base + d * slab.rows, dz, distance, WHOLE);
        }
    }
}

template <bool SILU, class E>
__global__ void __launch_bounds__(256, 2) group_norm_dgrad(GroupNormBackward<E> p) {
    const int SIZE = Piece<E>::SIZE;
    CYANEA_SHARED(float, parts, 6144);
    CYANEA_SHARED(float2, own, 32);  // of the slab's groups the factor of x - mean in dx, and what is added
    CYANEA_DYNAMIC_SHARED(float2, table);  // `own` for each channel
    float* totals = reinterpret_cast<float*>(table + p.slab);
    int channels = p.c1 + p.c2, width = channels / p.groups, sample = blockIdx.y, thread = threadIdx.x;
    int windows = Slab<E>::windows(p.slab), first_channel = blockIdx.x * p.slab;
    int slab_width = min(p.slab, channels - first_channel), groups = slab_width / width;
    const float* stats = p.stats + 2 * (sample * p.groups + first_channel / width);
    const float* gamma = p.gamma + static_cast<long long>(sample) * p.affine_stride + first_channel;
    const float* beta = p.beta + static_cast<long long>(sample) * p.affine_stride + first_channel;

    const int DEPTH = CYANEA_CODE_PATH < 80 ? 1 : 2;  // sm_70 is short of registers
#pragma unroll 1
    for (int window = 0; window < windows; ++window) {
        Slab<E> slab(p.slab, channels, p.pixels, window);
        ChannelNorm<SIZE> norm(slab, stats, gamma, beta, width);
        float sums[3 * SIZE] = {};
        // Sums of dz, of dz (x - mean), and of x - mean.
        auto add = [&](long long, const float(&dz)[SIZE], const float(&distance)[SIZE], bool) {
#pragma unroll
            for (int i = 0; i < SIZE; ++i) {
                sums[i] += dz[i];
                sums[SIZE + i] = fmaf(dz[i], distance[i], sums[SIZE + i]);
                sums[2 * SIZE + i] += distance[i];
            }
        };
        if (p.wide) each_gradient<SILU, true, DEPTH>(p, slab, norm, add);
        else each_gradient<SILU, false, 1>(p, slab, norm, add);
        total_pixels<3>(slab, sums, parts, totals);
    }
    if (thread < groups) {
        float sum = 0.0f, product = 0.0f, count = static_cast<float>(width) * p.pixels;
        for (int c = thread * width; c < (thread + 1) * width; ++c) {
            sum = fmaf(gamma[c], totals[c], sum);
            product = fmaf(gamma[c], totals[slab_width + c], product);
        }
        float rstd = stats[2 * thread + 1];
        own[thread] = make_float2(-rstd * rstd * rstd * product / count, -rstd * sum / count);
    }
    for (int o = thread; o < 2 * slab_width; o += 256) {
        int c = o % slab_width;
        float total = totals[o] * (o < slab_width ? 1.0f : stats[2 * (c / width) + 1]);
        float* to = o < slab_width ? p.dbeta : p.dgamma;
        if (p.tickets) p.sums[(2ll * sample + o / slab_width) * channels + first_channel + c] = total;
        else to[static_cast<long long>(sample) * p.affine_stride + first_channel + c] = total;
    }
    __syncthreads();

    for (int c = thread; c < slab_width; c += 256) {
        float2 line = table[c] = own[c / width];
        if (!p.rows) continue;
        float sum = fmaf(stats[2 * (c / width) + 1] * gamma[c], totals[c], line.x * totals[2 * slab_width + c]);
        p.rows[static_cast<long long>(sample) * channels + first_channel + c] =
            fmaf(static_cast<float>(p.pixels), line.y, sum);
    }
    __syncthreads();
#pragma unroll 1
    for (int window = 0; window < windows; ++window) {
        Slab<E> slab(p.slab, channels, p.pixels, window);
        ChannelNorm<SIZE> norm(slab, stats, gamma, beta, width);
        auto finish = [&](long long pixel, const float(&dz)[SIZE], const float(&distance)[SIZE],
                          bool wide) {
            // Read anew each time: there are no registers for what the table says.
            int first = slab.c - slab.first + thread_again() - thread;
            float dx[SIZE];
#pragma unroll
            for (int i = 0; i < SIZE; ++i) {
                float2 line = table[wide ? first + i : min(first + i, slab_width - 1)];
                dx[i] = fmaf(norm.scale[i], dz[i], fmaf(line.x, distance[i], line.y));
            }
#pragma unroll
            for (int which = 0; which < 2; ++which) {
                if (!p.residual[which]) continue;
                float other[SIZE];
                unpack(source_piece<E>(p.residual[which], nullptr, channels, 0, wide, pixel, slab.c), other);
#pragma unroll
                for (int i = 0; i < SIZE; ++i) dx[i] += other[i];
            }
            store_piece<E>(p.dx, p.dx2, p.c1, p.c2, wide, pixel, slab.c, slab.end, dx);
        };
        if (p.wide) each_gradient<SILU, true, DEPTH>(p, slab, norm, finish);
        else each_gradient<SILU, false, 1>(p, slab, norm, finish);
    }

    if (!p.tickets) return;
    if (!comes_last(p.tickets + blockIdx.x, p.batch)) return;
    auto of_sample = [&](int o, int other) {
        return __ldcg(p.sums + ((2ll * other + o / slab_width) * channels + first_channel + o % slab_width));
    };
    block_totals(2 * slab_width, p.batch, of_sample, [&](int o, float total) {
        (o < slab_width ? p.dbeta : p.dgamma)[first_channel + o % slab_width] = total;
    });
}
