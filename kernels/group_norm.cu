// Group normalisation of NHWC activations [B, P pixels, C], with an optional SiLU, and its
// gradient. C = c1 + c2 channels come from one tensor or from two, of elements of type E; everything
// else is float32.
//
//   stats     one block a sample and group: the mean, then the sum of squared deviations from it.
//   forward   one thread an element.
//   sums      one block a sample and 32 channels: each warp takes every eighth pixel.
//   dgrad     one block a sample and group.
//   wgrad     one thread a channel: sums over samples in their order.
#include "common/activation.cuh"
#include "common/reduce.cuh"
#include "common/source.cuh"

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

template <class E>
struct GroupNormForward {
    Source<E> source;
    const float* gamma;  // [C], or [B, C] where `affine_stride` is C
    const float* beta;
    const float* stats;
    E* y;
    int pixels, c1, c2, groups, affine_stride, batch;
};

template <bool SILU, class E>
__global__ void __launch_bounds__(256) group_norm_fwd(GroupNormForward<E> p) {
    int channels = p.c1 + p.c2;
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    long long pixel = i / channels;
    if (pixel >= static_cast<long long>(p.batch) * p.pixels) return;
    int c = static_cast<int>(i % channels), sample = static_cast<int>(pixel / p.pixels);
    const float* stats = p.stats + 2 * (sample * p.groups + c / (channels / p.groups));
    long long affine = static_cast<long long>(sample) * p.affine_stride + c;
    float x = load(p.source, pixel, c, p.c1, p.c2);
    float z = fmaf((x - stats[0]) * stats[1], p.gamma[affine], p.beta[affine]);
    put(p.y + i, SILU ? silu(z) : z);
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

// `D` is the type of the result: E, or float for the sums.
template <class E, class D>
struct GroupNormBackward {
    const E* dy;
    Source<E> source;
    const float* gamma;
    const float* beta;
    const float* stats;
    const float* sums;  // [B, 2, C]: sums of dz and of dz * xhat over the pixels
    D* dx;
    D* dx2;
    int pixels, c1, c2, groups, affine_stride, batch;
};

// dz and xhat of one element.
template <bool SILU, class E, class D>
__device__ __forceinline__ float2 group_norm_dz(const GroupNormBackward<E, D>& p, long long pixel,
                                                int sample, int c) {
    int channels = p.c1 + p.c2;
    const float* stats = p.stats + 2 * (sample * p.groups + c / (channels / p.groups));
    float xhat = (load(p.source, pixel, c, p.c1, p.c2) - stats[0]) * stats[1];
    float dz = get(p.dy + (pixel * channels + c));
    if (SILU) {
        long long affine = static_cast<long long>(sample) * p.affine_stride + c;
        dz *= silu_derivative(fmaf(xhat, p.gamma[affine], p.beta[affine]));
    }
    return make_float2(dz, xhat);
}

// Writes the sums, which it takes as `dx`.
template <bool SILU, class E>
__global__ void __launch_bounds__(256) group_norm_sums(GroupNormBackward<E, float> p) {
    CYANEA_SHARED(float, partial, 512);
    int channels = p.c1 + p.c2, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int c = blockIdx.x * 32 + lane, sample = blockIdx.y;
    float sum = 0.0f, product = 0.0f;
    if (c < channels) {
        for (int i = warp; i < p.pixels; i += 8) {
            long long pixel = static_cast<long long>(sample) * p.pixels + i;
            float2 element = group_norm_dz<SILU>(p, pixel, sample, c);
            sum += element.x;
            product = fmaf(element.x, element.y, product);
        }
    }
    partial[threadIdx.x] = sum;
    partial[256 + threadIdx.x] = product;
    __syncthreads();
    if (warp < 2 && c < channels) {
        float total = 0.0f;
        for (int w = 0; w < 8; ++w) total += partial[256 * warp + 32 * w + lane];
        p.dx[(2ll * sample + warp) * channels + c] = total;
    }
}

template <bool SILU, class E>
__global__ void __launch_bounds__(256) group_norm_dgrad(GroupNormBackward<E, E> p) {
    int channels = p.c1 + p.c2, width = channels / p.groups;
    int group = blockIdx.x, sample = blockIdx.y, count = width * p.pixels;
    const float* gamma = p.gamma + static_cast<long long>(sample) * p.affine_stride;
    const float* sums = p.sums + 2ll * sample * channels;
    float sum = 0.0f, product = 0.0f;
    for (int c = group * width; c < (group + 1) * width; ++c) {
        sum = fmaf(gamma[c], sums[c], sum);
        product = fmaf(gamma[c], sums[channels + c], product);
    }
    sum /= count;
    product /= count;
    float rstd = p.stats[2 * (sample * p.groups + group) + 1];
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        long long pixel = static_cast<long long>(sample) * p.pixels + i / width;
        int c = group * width + i % width;
        float2 element = group_norm_dz<SILU>(p, pixel, sample, c);
        float inner = fmaf(gamma[c], element.x, -fmaf(element.y, product, sum));
        store(p.dx, p.dx2, pixel, c, p.c1, p.c2, rstd * inner);
    }
}

struct GroupNormWeights {
    const float* sums;  // [B, 2, C]
    float* dgamma;      // [C], or [B, C] if `shared` is 0
    float* dbeta;
    int channels, batch, shared, unused;
};

__global__ void __launch_bounds__(256) group_norm_wgrad_nhwc_f32(GroupNormWeights p) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int rows = p.shared ? 1 : p.batch;
    if (i >= rows * p.channels) return;
    int first = i / p.channels, c = i % p.channels;
    int last = p.shared ? p.batch : first + 1;
    float dbeta = 0.0f, dgamma = 0.0f;
    for (int sample = first; sample < last; ++sample) {
        dbeta += p.sums[2ll * sample * p.channels + c];
        dgamma += p.sums[(2ll * sample + 1) * p.channels + c];
    }
    p.dgamma[i] = dgamma;
    p.dbeta[i] = dbeta;
}
