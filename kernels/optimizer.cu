// What an optimizer step does to parameters: Adam with decoupled or L2 weight decay (Loshchilov & Hutter 2019,
// arXiv:1711.05101, algorithm 2), moving averages, and sums of gradients over micro-batches. All update in
// place, four elements a thread; the order of rounding is src/ops/adamw's.
#include "common/shared.cuh"
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

// The elements of a thread, from `first` on, four or, of the last ones, fewer: zeros for those that are missing.
struct Four {
    long long first, elements;
    bool whole;

    __device__ __forceinline__ explicit Four(long long elements) : elements(elements) {
        first = 4 * (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x);
        whole = first + 4 <= elements;
    }
    __device__ __forceinline__ void read(const float* from, float (&to)[4]) const {
        if (whole) {
            float4 four = *reinterpret_cast<const float4*>(from + first);
            to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
            return;
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) to[i] = first + i < elements ? from[first + i] : 0.0f;
    }
    __device__ __forceinline__ void write(float* to, const float (&from)[4]) const {
        if (whole) {
            *reinterpret_cast<float4*>(to + first) = make_float4(from[0], from[1], from[2], from[3]);
            return;
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (first + i < elements) to[first + i] = from[i];
    }
};

// What all elements of a step share.
struct AdamStep {
    float gradient, l2, keep, rate1, rate2, beta2, size, bias2, eps, average;

    __device__ __forceinline__ void find(const AdamW& p) {
        double rate = __uint_as_float(p.state[STATE_LEARNING_RATE]);
        double scale = __uint_as_float(p.state[STATE_LOSS_SCALE]);
        double clip = p.max_norm / (static_cast<double>(p.norm[0]) / scale + 1e-6);
        gradient = static_cast<float>((clip < 1.0 ? clip : 1.0) / scale);
        l2 = p.decoupled ? 0.0f : static_cast<float>(p.weight_decay);
        double decay = rate * p.weight_decay;
        keep = p.decoupled ? static_cast<float>(1.0 - decay) : 1.0f;
        rate1 = static_cast<float>(1.0 - p.beta1), rate2 = static_cast<float>(1.0 - p.beta2);
        beta2 = static_cast<float>(p.beta2), eps = static_cast<float>(p.eps);
        double correction = __uint_as_float(p.state[STATE_BIAS2]);
        bias2 = static_cast<float>(sqrt(correction));
        size = static_cast<float>(rate / static_cast<double>(__uint_as_float(p.state[STATE_BIAS1])));
        double held = __uint_as_float(p.state[STATE_EMA_DECAY]);
        average = static_cast<float>(1.0 - held);
    }
    __device__ __forceinline__ void update(float g, float& w, float& m, float& v) const {
        // Of a step that isn't skipped, which may have some where they count as zero.
        g = fabsf(g) <= LARGEST_FLOAT ? g : 0.0f;
        g = fmaf(l2, w, g * gradient);
        w *= keep;
        m = fmaf(rate1, g - m, m);
        v = fmaf(rate2 * g, g, v * beta2);
        w -= size * (m / (sqrtf(v) / bias2 + eps));
    }
};

__global__ void __launch_bounds__(256) adamw_fwd_nhwc_f32(AdamW p) {
    CYANEA_SHARED(AdamStep, shared_step, 1);
    // Written so that NaN counts as not finite: nothing changes but two words of the state.
    if (p.norm[1] != 1.0f && !p.zero_non_finite) {
        if (blockIdx.x > 0 || threadIdx.x > 0) return;
        p.state[STATE_SKIPPED] += 1;
        if (p.state[STATE_FIRST_BAD] == 0) p.state[STATE_FIRST_BAD] = p.state[STATE_STEP] + 1;
        return;
    }
    Four four(p.elements);
    float g[4], w[4], m[4], v[4], ema[4] = {};
    four.read(p.grads, g);
    four.read(p.w, w);
    four.read(p.m, m);
    four.read(p.v, v);
    if (p.ema) four.read(p.ema, ema);
    // Divisions and a root in float64 by one thread, while the others' elements come.
    if (threadIdx.x == 0) shared_step[0].find(p);
    __syncthreads();
    const AdamStep step = shared_step[0];
#pragma unroll
    for (int i = 0; i < 4; ++i) step.update(g[i], w[i], m[i], v[i]);
    four.write(p.w, w);
    four.write(p.m, m);
    four.write(p.v, v);
    if (!p.ema) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) ema[i] = fmaf(step.average, w[i] - ema[i], ema[i]);
    four.write(p.ema, ema);
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
    Four four(p.elements);
    float step[4], sum[4], rate = p.scale;
    four.read(p.x, step);
    four.read(p.sum, sum);
    if (p.state) rate = static_cast<float>(1.0 - static_cast<double>(__uint_as_float(p.state[p.decay])));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (p.state) step[i] -= sum[i];
        sum[i] = fmaf(step[i], rate, sum[i]);
    }
    four.write(p.sum, sum);
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
