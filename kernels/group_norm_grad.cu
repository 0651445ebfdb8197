// The gradient of group normalisation with its optional SiLU (group_norm.cu), whose slabs, windows and types it
// shares. A block has all pixels of a slab: it reads them for the sums of its channels and again for dx, but keeps in
// shared memory as many as there is room for. The block that comes last of a slab adds the samples' sums to dgamma and
// dbeta.
#include "common/activation.cuh"
#include "common/channel_slab.cuh"
#include "common/conv2d_source.cuh"
#include "common/slices.cuh"

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
    int kept;              // pieces of x, and of dy, that a thread keeps: none if not `wide`, or of several windows
    int kept_at;           // where in dynamic shared memory, in bytes
};

// Calls `use(pixel, dz, x - mean, WHOLE)` for the calling thread's piece of all pixels of its sample. Its first ones
// are put into `kept` or, AGAIN, taken from there.
template <bool SILU, bool WHOLE, bool AGAIN, int DEPTH, class E, int SIZE, class Use>
__device__ __forceinline__ void each_gradient(const GroupNormBackward<E>& p, const Slab<E>& slab,
                                              const ChannelNorm<SIZE>& norm, uint4* kept, const Use& use) {
    long long start = static_cast<long long>(blockIdx.y) * p.pixels;
    int threads = blockDim.x, left = WHOLE ? p.kept : 0;
    kept += threadIdx.x;
    for (int base = slab.row; base < p.pixels; base += DEPTH * slab.rows) {
        uint4 held_x[DEPTH] = {}, held_dy[DEPTH] = {};
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            if (AGAIN && WHOLE && d < left) {
                held_x[d] = kept[2 * d * threads], held_dy[d] = kept[(2 * d + 1) * threads];
                continue;
            }
            long long pixel = start + min(base + d * slab.rows, p.pixels - 1);
            held_x[d] = source_piece(p.source.x, p.source.x2, p.c1, p.c2, WHOLE, pixel, slab.c);
            held_dy[d] = source_piece<E>(p.dy, nullptr, p.c1 + p.c2, 0, WHOLE, pixel, slab.c);
        }
        if (WHOLE) {
#pragma unroll
            for (int d = 0; d < DEPTH; ++d)
                if (!AGAIN && d < left) kept[2 * d * threads] = held_x[d], kept[(2 * d + 1) * threads] = held_dy[d];
            left -= DEPTH, kept += 2 * DEPTH * threads;
        }
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            if (base + d * slab.rows >= p.pixels) continue;
            float distance[SIZE], dz[SIZE];
            unpack(held_x[d], distance);
            unpack(held_dy[d], dz);
#pragma unroll
            for (int i = 0; i < SIZE; ++i) distance[i] -= norm.mean[i];
            if (SILU) {
#pragma unroll
                for (int i = 0; i < SIZE; i += 2) {
                    float z = fmaf(distance[i], norm.scale[i], norm.shift[i]);
                    float next_z = fmaf(distance[i + 1], norm.scale[i + 1], norm.shift[i + 1]);
                    stored_silu_gradient(z, next_z, dz[i], dz[i + 1], static_cast<const E*>(nullptr));
                }
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
    uint4* kept = reinterpret_cast<uint4*>(reinterpret_cast<unsigned char*>(table) + p.kept_at);
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
        if (p.wide) each_gradient<SILU, true, false, DEPTH>(p, slab, norm, kept, add);
        else each_gradient<SILU, false, false, 1>(p, slab, norm, kept, add);
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
    for (int o = thread; o < 2 * slab_width; o += blockDim.x) {
        int c = o % slab_width;
        float total = totals[o] * (o < slab_width ? 1.0f : stats[2 * (c / width) + 1]);
        float* to = o < slab_width ? p.dbeta : p.dgamma;
        if (p.tickets) p.sums[(2ll * sample + o / slab_width) * channels + first_channel + c] = total;
        else to[static_cast<long long>(sample) * p.affine_stride + first_channel + c] = total;
    }
    __syncthreads();

    for (int c = thread; c < slab_width; c += blockDim.x) {
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
        if (p.wide) each_gradient<SILU, true, true, DEPTH>(p, slab, norm, kept, finish);
        else each_gradient<SILU, false, true, 1>(p, slab, norm, kept, finish);
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
