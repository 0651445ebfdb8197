// Sums of squares: the mean squared error and EDM2's loss with their gradients, and the norm of all
// gradients.
//
//   sums      one block for 16,384 elements of one sample: their sum of squares in float32
//   the rest  one thread adds those sums in float64, in their order
#include "common/reduce.cuh"

struct SquareSums {
    const float* x;
    const float* target;  // subtracted first, or null
    float* sums;          // [samples, slices]
    long long elements;   // of a sample
    int slices, unused;
};

#define SLICE 16384

__global__ void __launch_bounds__(256) square_sums_fwd_nhwc_f32(SquareSums p) {
    CYANEA_SHARED(float, partial, 32);
    long long first = static_cast<long long>(blockIdx.x) * SLICE, sample = blockIdx.y;
    const float* x = p.x + sample * p.elements;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < SLICE && first + i < p.elements; i += blockDim.x) {
        float d = x[first + i];
        if (p.target) d -= p.target[sample * p.elements + first + i];
        sum = fmaf(d, d, sum);
    }
    sum = block_sum(sum, partial);
    if (threadIdx.x == 0) p.sums[sample * p.slices + blockIdx.x] = sum;
}

__device__ __forceinline__ double sum_of_slices(const float* sums, int count) {
    double sum = 0.0;
    for (int i = 0; i < count; ++i) sum += static_cast<double>(sums[i]);
    return sum;
}

// loss = sum over samples of weight * mean; the weight is 1 / batch where there are none.
struct MseLoss {
    const float* sums;
    const float* weights;  // [batch], or null
    float* loss;
    long long elements;
    int batch, slices;
};

__device__ __forceinline__ double sample_weight(const float* weights, int sample, int batch,
                                                long long elements) {
    double weight = weights ? static_cast<double>(weights[sample]) : 1.0 / batch;
    return weight / static_cast<double>(elements);
}

__global__ void __launch_bounds__(32) mse_loss_fwd_nhwc_f32(MseLoss p) {
    if (threadIdx.x != 0) return;
    double loss = 0.0;
    for (int sample = 0; sample < p.batch; ++sample) {
        double sum = sum_of_slices(p.sums + static_cast<long long>(sample) * p.slices, p.slices);
        double share = sample_weight(p.weights, sample, p.batch, p.elements) * sum;
        loss += share;
    }
    p.loss[0] = static_cast<float>(loss);
}

// dx = dloss * weight * 2 / elements * (x - target).
struct MseLossBackward {
    const float* dloss;
    const float* x;
    const float* target;
    const float* weights;
    float* dx;
    long long elements;  // of a sample
    int batch, unused;
};

__global__ void __launch_bounds__(256) mse_loss_dgrad_nhwc_f32(MseLossBackward p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    int sample = static_cast<int>(i / p.elements);
    if (sample >= p.batch) return;
    double weight = sample_weight(p.weights, sample, p.batch, p.elements);
    float scale = static_cast<float>(2.0 * static_cast<double>(p.dloss[0]) * weight);
    p.dx[i] = scale * (p.x[i] - p.target[i]);
}

// EDM2's loss: the mean over samples of weight * sum + elements * log_variance, where the weight is
// (sigma^2 + d^2) / (sigma d)^2 / exp(log_variance); also each sample's sum of squares, for the
// gradient.
struct EdmLoss {
    const float* sums;          // [batch, slices]
    const float* log_variance;  // [batch]
    const float* sigma;         // [batch]
    float* loss;
    float* squares;  // [batch]
    long long elements;
    int batch, slices;
    float sigma_data;
    int unused;
};

__device__ __forceinline__ double edm_weight(float sigma, float sigma_data, float log_variance) {
    double s = sigma, d = sigma_data;
    return (s * s + d * d) / (s * d * (s * d)) * exp(-static_cast<double>(log_variance));
}

__global__ void __launch_bounds__(32) edm_loss_fwd_nhwc_f32(EdmLoss p) {
    if (threadIdx.x != 0) return;
    double loss = 0.0;
    for (int sample = 0; sample < p.batch; ++sample) {
        double sum = sum_of_slices(p.sums + static_cast<long long>(sample) * p.slices, p.slices);
        p.squares[sample] = static_cast<float>(sum);
        double u = static_cast<double>(p.log_variance[sample]);
        double weight = edm_weight(p.sigma[sample], p.sigma_data, p.log_variance[sample]);
        loss += weight * sum + static_cast<double>(p.elements) * u;
    }
    p.loss[0] = static_cast<float>(loss / p.batch);
}

struct EdmLossBackward {
    const float* dloss;
    const float* denoised;
    const float* target;
    const float* log_variance;
    const float* sigma;
    const float* squares;
    float* ddenoised;
    float* dlog_variance;
    long long elements;  // of a sample
    int batch;
    float sigma_data;
};

// One thread an element; the first of a sample also gives that of its log-variance.
__global__ void __launch_bounds__(256) edm_loss_dgrad_nhwc_f32(EdmLossBackward p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    int sample = static_cast<int>(i / p.elements);
    if (sample >= p.batch) return;
    double upstream = static_cast<double>(p.dloss[0]) / p.batch;
    double weight = edm_weight(p.sigma[sample], p.sigma_data, p.log_variance[sample]);
    p.ddenoised[i] = static_cast<float>(2.0 * upstream * weight) * (p.denoised[i] - p.target[i]);
    if (i % p.elements == 0) {
        double error = weight * static_cast<double>(p.squares[sample]);
        p.dlog_variance[sample] = static_cast<float>(upstream * (static_cast<double>(p.elements) - error));
    }
}

// norm[0] = the root of the sum; norm[1] = 1 where that is finite, else 0.
struct GradNorm {
    const float* sums;
    float* norm;
    int count, unused;
};

__global__ void __launch_bounds__(32) grad_norm_fwd_nhwc_f32(GradNorm p) {
    if (threadIdx.x != 0) return;
    double sum = sum_of_slices(p.sums, p.count);
    float norm = static_cast<float>(sqrt(sum));
    p.norm[0] = norm;
    p.norm[1] = norm - norm == 0.0f ? 1.0f : 0.0f;
}
