// Sums of squares: the mean squared error and EDM2's loss with their gradients, and the norm of all
// gradients.
//
// A block has 16,384 elements of one sample and adds their squares in float32. The block that comes last adds
// these sums in float64, in an order of their numbers.
#include "common/reduce.cuh"
#include "common/slices.cuh"

#define SLICE 16384
#define THREADS 256

// The sum of squares of the block's elements of x, or of x - target; the sample's `elements` lie together.
__device__ __forceinline__ float slice_sum(const float* x, const float* target, long long elements) {
    const int BATCH = 16;  // loads under way at a time
    CYANEA_SHARED(float, partial, 32);
    long long first = static_cast<long long>(blockIdx.x) * SLICE, start = blockIdx.y * elements + first;
    int count = static_cast<int>(elements - first < SLICE ? elements - first : SLICE), i = threadIdx.x;
    x += start;
    if (target) target += start;
    float sum = 0.0f;
#pragma unroll 1
    for (; i + (BATCH - 1) * THREADS < count; i += BATCH * THREADS) {
        float d[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; ++k) d[k] = x[i + k * THREADS];
        if (target) {
#pragma unroll
            for (int k = 0; k < BATCH; ++k) d[k] -= target[i + k * THREADS];
        }
#pragma unroll
        for (int k = 0; k < BATCH; ++k) sum = fmaf(d[k], d[k], sum);
    }
#pragma unroll 1
    for (; i < count; i += THREADS) {
        float d = target ? x[i] - target[i] : x[i];
        sum = fmaf(d, d, sum);
    }
    return block_sum(sum, partial);
}

// The sum over each `lanes` neighbouring threads, a power of two; the first of them gets it.
__device__ __forceinline__ double neighbours_sum(double value, double* all, int lanes) {
    int thread = threadIdx.x;
    all[thread] = value;
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
        __syncthreads();
        if (thread % lanes < distance) all[thread] += all[thread + distance];
    }
    double sum = all[thread];
    __syncthreads();
    return sum;
}

// In the block that comes last, true and, in thread 0, the sum over samples of value(sample, sum of its squares).
template <class Value>
__device__ __forceinline__ bool join_samples(float sum, float* sums, unsigned* ticket, double& total,
                                             const Value& value) {
    CYANEA_SHARED(double, all, THREADS);
    int slices = gridDim.x, samples = gridDim.y, thread = threadIdx.x;
    if (thread == 0) sums[static_cast<long long>(blockIdx.y) * slices + blockIdx.x] = sum;
    if (!comes_last(ticket, slices * samples)) return false;
    int lanes = THREADS;
    while (lanes > 1 && lanes * samples > THREADS) lanes /= 2;
    total = 0.0;
    for (int base = 0; base < samples; base += THREADS / lanes) {
        int sample = base + thread / lanes;
        double of_sample = 0.0;
        if (sample < samples) {
            const float* from = sums + static_cast<long long>(sample) * slices;
#pragma unroll 8
            for (int slice = thread % lanes; slice < slices; slice += lanes)
                of_sample += static_cast<double>(__ldcg(from + slice));
        }
        of_sample = neighbours_sum(of_sample, all, lanes);
        if (sample < samples && thread % lanes == 0) total += value(sample, of_sample);
    }
    total = neighbours_sum(total, all, THREADS);
    return thread == 0;
}

// loss = sum over samples of weight * mean; the weight is 1 / batch where there are none.
struct MseLoss {
    const float* x;
    const float* target;
    const float* weights;  // [batch], or null
    float* loss;
    float* sums;           // [batch, slices]
    unsigned* ticket;
    long long elements;    // of a sample
    double scale;          // 1 / elements, or that and 1 / batch where there are no weights
};

__device__ __forceinline__ double sample_weight(const float* weights, int sample, int batch,
                                                long long elements) {
    double weight = weights ? static_cast<double>(weights[sample]) : 1.0 / batch;
    return weight / static_cast<double>(elements);
}

__global__ void __launch_bounds__(THREADS) mse_loss_fwd_nhwc_f32(MseLoss p) {
    double loss;
    auto share = [&](int sample, double sum) {
        return p.weights ? static_cast<double>(p.weights[sample]) * sum : sum;
    };
    if (!join_samples(slice_sum(p.x, p.target, p.elements), p.sums, p.ticket, loss, share)) return;
    p.loss[0] = static_cast<float>(loss * p.scale);
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

__global__ void __launch_bounds__(THREADS) mse_loss_dgrad_nhwc_f32(MseLossBackward p) {
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
    const float* x;
    const float* target;
    const float* log_variance;  // [batch]
    const float* sigma;         // [batch]
    float* loss;
    float* squares;             // [batch]
    float* sums;                // [batch, slices]
    unsigned* ticket;
    long long elements;         // of a sample
    float sigma_data;
    int unused;
};

__device__ __forceinline__ double edm_weight(float sigma, float sigma_data, float log_variance) {
    double s = sigma, d = sigma_data;
    return (s * s + d * d) / (s * d * (s * d)) * exp(-static_cast<double>(log_variance));
}

__global__ void __launch_bounds__(THREADS) edm_loss_fwd_nhwc_f32(EdmLoss p) {
    double loss;
    auto share = [&](int sample, double sum) {
        p.squares[sample] = static_cast<float>(sum);
        double u = static_cast<double>(p.log_variance[sample]);
        double weight = edm_weight(p.sigma[sample], p.sigma_data, p.log_variance[sample]);
        return weight * sum + static_cast<double>(p.elements) * u;
    };
    if (join_samples(slice_sum(p.x, p.target, p.elements), p.sums, p.ticket, loss, share))
        p.loss[0] = static_cast<float>(loss / gridDim.y);
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
__global__ void __launch_bounds__(THREADS) edm_loss_dgrad_nhwc_f32(EdmLossBackward p) {
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
    const float* x;
    float* norm;
    float* sums;  // [slices]
    unsigned* ticket;
    long long elements;
};

__global__ void __launch_bounds__(THREADS) grad_norm_fwd_nhwc_f32(GradNorm p) {
    double total;
    auto itself = [](int, double sum) { return sum; };
    if (!join_samples(slice_sum(p.x, nullptr, p.elements), p.sums, p.ticket, total, itself)) return;
    float norm = static_cast<float>(sqrt(total));
    p.norm[0] = norm;
    p.norm[1] = norm - norm == 0.0f ? 1.0f : 0.0f;
}
