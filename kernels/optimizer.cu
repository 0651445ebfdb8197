// What an optimizer step does to parameters, one thread a parameter: Adam with decoupled or L2
// weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2), moving averages, and sums
// of gradients over micro-batches. All update in place; the order of rounding is src/ops/adamw's.
#include "common/state.cuh"

#define LARGEST_FLOAT 3.402823466e38f

struct AdamW {
    const float* grads;
    const float* norm;  // [2]: the gradients' norm, and 1 where it is finite
    float* w;
    float* m;
    float* v;
    float* ema;  // or null
    unsigned* state;
    long long elements;
    double beta1, beta2, eps, weight_decay;
    double max_norm;  // infinity where gradients aren't clipped
    int decoupled, zero_non_finite;
};

__global__ void __launch_bounds__(256) adamw_fwd_nhwc_f32(AdamW p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    // Written so that NaN counts as not finite: nothing changes but two words of the state.
    if (p.norm[1] != 1.0f && !p.zero_non_finite) {
        if (i != 0) return;
        p.state[STATE_SKIPPED] += 1;
        if (p.state[STATE_FIRST_BAD] == 0) p.state[STATE_FIRST_BAD] = p.state[STATE_STEP] + 1;
        return;
    }
    if (i >= p.elements) return;
    double rate = __uint_as_float(p.state[STATE_LEARNING_RATE]);
    double scale = __uint_as_float(p.state[STATE_LOSS_SCALE]);
    double clip = p.max_norm / (static_cast<double>(p.norm[0]) / scale + 1e-6);
    float gradient = static_cast<float>((clip < 1.0 ? clip : 1.0) / scale);
    float l2 = p.decoupled ? 0.0f : static_cast<float>(p.weight_decay);
    double decay = rate * p.weight_decay;
    float keep = p.decoupled ? static_cast<float>(1.0 - decay) : 1.0f;
    float rate1 = static_cast<float>(1.0 - p.beta1), rate2 = static_cast<float>(1.0 - p.beta2);
    float beta2 = static_cast<float>(p.beta2), eps = static_cast<float>(p.eps);
    double correction = __uint_as_float(p.state[STATE_BIAS2]);
    float bias2 = static_cast<float>(sqrt(correction));
    float size = static_cast<float>(rate / static_cast<double>(__uint_as_float(p.state[STATE_BIAS1])));

    float w = p.w[i], m = p.m[i], v = p.v[i];
    // Of a step that isn't skipped, which may have some where they count as zero.
    float g = fabsf(p.grads[i]) <= LARGEST_FLOAT ? p.grads[i] : 0.0f;
    g = fmaf(l2, w, g * gradient);
    w *= keep;
    m = fmaf(rate1, g - m, m);
    v = fmaf(rate2 * g, g, v * beta2);
    w -= size * (m / (sqrtf(v) / bias2 + eps));
    p.w[i] = w;
    p.m[i] = m;
    p.v[i] = v;
    if (p.ema) {
        double held = __uint_as_float(p.state[STATE_EMA_DECAY]);
        p.ema[i] = fmaf(static_cast<float>(1.0 - held), w - p.ema[i], p.ema[i]);
    }
}

// sum += scale * x or, with a state, a moving average: sum += (1 - decay) * (x - sum).
struct Accumulate {
    const float* x;
    const unsigned* state;  // null for a sum
    float* sum;
    long long elements;
    float scale;
    int decay;  // word of the state
};

__global__ void __launch_bounds__(256) accumulate_fwd_nhwc_f32(Accumulate p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= p.elements) return;
    float rate = p.scale, step = p.x[i], sum = p.sum[i];
    if (p.state) {
        rate = static_cast<float>(1.0 - static_cast<double>(__uint_as_float(p.state[p.decay])));
        step -= sum;
    }
    p.sum[i] = fmaf(step, rate, sum);
}

struct Fill {
    float* y;
    long long elements;
    float value;
    int unused;
};

__global__ void __launch_bounds__(256) fill_fwd_nhwc_f32(Fill p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < p.elements) p.y[i] = p.value;
}
