// Sums of squares: the mean squared error with its gradient, and the norm of all gradients.
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
        double sum = 0.0;
        for (int slice = 0; slice < p.slices; ++slice)
            sum += static_cast<double>(p.sums[static_cast<long long>(sample) * p.slices + slice]);
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

// norm[0] = the root of the sum; norm[1] = 1 where that is finite, else 0.
struct GradNorm {
    const float* sums;
    float* norm;
    int count, unused;
};

__global__ void __launch_bounds__(32) grad_norm_fwd_nhwc_f32(GradNorm p) {
    if (threadIdx.x != 0) return;
    double sum = 0.0;
    for (int i = 0; i < p.count; ++i) sum += static_cast<double>(p.sums[i]);
    float norm = static_cast<float>(sqrt(sum));
    p.norm[0] = norm;
    p.norm[1] = norm - norm == 0.0f ? 1.0f : 0.0f;
}
