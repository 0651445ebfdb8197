// Normalisation to unit magnitude: of pixels over their channels, and of a weight's rows.
//
//   pixels   one warp a run of channels, eight runs a block
//   weights  one block a row: the elements that one output channel is made from
//
// Both read their run twice: once for its sum of squares, once, from the cache, to scale it.
#include "common/half.cuh"
#include "common/magnitude.cuh"
#include "common/reduce.cuh"

// y = x / (EPSILON + |x| / sqrt(length)) for each of `runs` runs of `length` elements, `groups` of them a
// pixel; or, from dy, the gradient of x. Pooled: x is the mean of 2 x 2 pixels of an image twice as high and
// as wide.
template <class E>
struct PixelNorm {
    const E* x;
    const E* dy;  // null in the forward kernel
    E* y;
    long long runs;
    int length, groups;
    int width;  // of y
    int unused;
};

template <class E, bool POOLED>
__global__ void __launch_bounds__(256) pixel_norm_fwd(PixelNorm<E> p) {
    long long run = static_cast<long long>(blockIdx.x) * 8 + threadIdx.x / 32;
    if (run >= p.runs) return;
    const E* x = p.x + run * p.length;
    E* y = p.y + run * p.length;
    int across = p.length * p.groups, down = 2 * p.width * across;
    if (POOLED) {
        long long pixel = run / p.groups, row = pixel / p.width, column = pixel % p.width;
        x = p.x + 2 * (row * down + column * across) + run % p.groups * p.length;
    }
    auto at = [&](int i) {
        if (!POOLED) return get(x + i);
        return 0.25f * (get(x + i) + get(x + across + i) + (get(x + down + i) + get(x + down + across + i)));
    };
    float sum = 0.0f;
    for (int i = threadIdx.x % 32; i < p.length; i += 32) {
        float value = at(i);
        sum = fmaf(value, value, sum);
    }
    float scale = unit_scale(warp_sum(sum), p.length);
    for (int i = threadIdx.x % 32; i < p.length; i += 32) put(y + i, scale * at(i));
}

template <class E>
__global__ void __launch_bounds__(256) pixel_norm_dgrad(PixelNorm<E> p) {
    long long run = static_cast<long long>(blockIdx.x) * 8 + threadIdx.x / 32;
    if (run >= p.runs) return;
    const E* x = p.x + run * p.length;
    const E* dy = p.dy + run * p.length;
    E* dx = p.y + run * p.length;
    float sum = 0.0f, dot = 0.0f, length = static_cast<float>(p.length);
    for (int i = threadIdx.x % 32; i < p.length; i += 32) {
        sum = fmaf(get(x + i), get(x + i), sum);
        dot = fmaf(get(dy + i), get(x + i), dot);
    }
    float root = sqrtf(warp_sum(sum) / length);
    dot = warp_sum(dot);
    float scale = 1.0f / (EPSILON + root);
    float back = root > 0.0f ? -scale * scale * (dot / (length * root)) : 0.0f;
    for (int i = threadIdx.x % 32; i < p.length; i += 32)
        put(dx + i, fmaf(back, get(x + i), scale * get(dy + i)));
}

// y[to(r)] = gain * w[r] / (EPSILON * sqrt(length) + |w[r]|) for each row r of `length` elements, where
// `gain` is multiplied by the learned one, if there is one. The rows of `parts` parts come in turns
// and leave part by part. In place where w is null.
struct WeightNorm {
    const float* w;
    const float* learned;  // [1], or null
    float* y;
    int rows, length, parts;
    float gain;
};

__device__ __forceinline__ long long part_by_part(int row, int rows, int parts) {
    return static_cast<long long>(row % parts) * (rows / parts) + row / parts;
}

__global__ void __launch_bounds__(256) weight_norm_fwd_oihw_f32(WeightNorm p) {
    CYANEA_SHARED(float, partial, 32);
    int row = blockIdx.x;
    const float* w = (p.w ? p.w : p.y) + static_cast<long long>(row) * p.length;
    float* y = p.y + part_by_part(row, p.rows, p.parts) * p.length;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < p.length; i += blockDim.x) sum = fmaf(w[i], w[i], sum);
    float norm = sqrtf(block_sum(sum, partial));
    float gain = p.learned ? p.gain * p.learned[0] : p.gain;
    float scale = gain / (EPSILON * sqrtf(static_cast<float>(p.length)) + norm);
    for (int i = threadIdx.x; i < p.length; i += blockDim.x) y[i] = scale * w[i];
}

// dw from dy, and with a learned gain each row's share of that one's gradient.
struct WeightNormBackward {
    const float* dy;
    const float* w;
    const float* learned;  // [1], or null
    float* dw;
    float* shares;  // [rows], or null
    int rows, length, parts;
    float gain;
};

__global__ void __launch_bounds__(256) weight_norm_dgrad_oihw_f32(WeightNormBackward p) {
    CYANEA_SHARED(float, partial, 32);
    int row = blockIdx.x;
    const float* w = p.w + static_cast<long long>(row) * p.length;
    const float* dy = p.dy + part_by_part(row, p.rows, p.parts) * p.length;
    float* dw = p.dw + static_cast<long long>(row) * p.length;
    float sum = 0.0f, dot = 0.0f;
    for (int i = threadIdx.x; i < p.length; i += blockDim.x) {
        sum = fmaf(w[i], w[i], sum);
        dot = fmaf(dy[i], w[i], dot);
    }
    float norm = sqrtf(block_sum(sum, partial));
    dot = block_sum(dot, partial);
    float inverse = 1.0f / (EPSILON * sqrtf(static_cast<float>(p.length)) + norm);
    if (p.shares && threadIdx.x == 0) p.shares[row] = p.gain * inverse * dot;
    float scale = (p.learned ? p.gain * p.learned[0] : p.gain) * inverse;
    float back = norm > 0.0f ? -scale * inverse * (dot / norm) : 0.0f;
    for (int i = threadIdx.x; i < p.length; i += blockDim.x)
        dw[i] = fmaf(back, w[i], scale * dy[i]);
}
