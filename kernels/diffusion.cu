// The steps of diffusion around the network: noise, the forward process and the samplers' update. One
// thread an element, but where something else is said.
#include "common/angle.cuh"
#include "common/half.cuh"
#include "common/noise.cuh"
#include "common/preconditioned.cuh"
#include "common/reduce.cuh"
#include "common/slices.cuh"
#include "common/state.cuh"

// Each image has its own stream.
__device__ __forceinline__ Stream seeded(const unsigned* seeds, const unsigned* state, int sample,
                                         unsigned purpose) {
    return {seeds[2 * sample], seeds[2 * sample + 1], purpose, state[STATE_ROW], 0u};
}

// x_t = signal * x0 + noise * eps and, where asked for, v = signal * eps - noise * x0, with (signal, noise) =
// table[timestep] or (1, sigma). Without given noise eps is drawn from the run's stream, and kept where asked for.
struct AddNoise {
    const float* x0;
    const float* noise;  // or null
    const float* table;     // [rows, 2], or null
    const float* times;     // [B]: timesteps or, without a table, sigma
    const unsigned* state;  // where noise is drawn, else null
    float* x_t;
    float* v;  // or null
    float* drawn;  // or null
    long long elements;
    int pixels, channels, rows;
    unsigned purpose;
};

__global__ void __launch_bounds__(256) add_noise_fwd_nhwc_f32(AddNoise p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= p.elements) return;
    int size = p.pixels * p.channels, sample = static_cast<int>(i / size);
    float signal = 1.0f, factor = p.times[sample];
    if (p.table) {
        int t = static_cast<int>(factor);
        bool known = t >= 0 && t < p.rows;
        signal = known ? p.table[2 * t] : not_a_number();
        factor = known ? p.table[2 * t + 1] : not_a_number();
    }
    float eps;
    if (p.state) {
        unsigned element = nchw_element(static_cast<int>(i % size), p.pixels, p.channels);
        eps = normal(run_stream(p.state, sample, p.purpose), element);
        if (p.drawn) p.drawn[i] = eps;
    } else {
        eps = p.noise[i];
    }
    p.x_t[i] = fmaf(p.x0[i], signal, factor * eps);
    if (p.v) p.v[i] = fmaf(eps, signal, -factor * p.x0[i]);
}

// Rows of a table [height, width]: that of the state, or those that `rows` [count] names.
struct SelectRow {
    const float* table;
    const unsigned* state;  // null where there are rows
    const float* rows;
    float* y;  // [count, width]
    long long width;
    int height, count;
};

__global__ void __launch_bounds__(256) select_row_fwd_nhwc_f32(SelectRow p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    long long place = i / p.width;
    if (place >= p.count) return;
    unsigned row = p.state ? p.state[STATE_ROW] : static_cast<unsigned>(p.rows[place]);
    bool inside = row < static_cast<unsigned>(p.height);
    p.y[i] = inside ? p.table[row * p.width + i % p.width] : not_a_number();
}

// Sines and cosines of t * f, f = exp(rate * i / span) for i < half, first one kind, then the
// other; an odd width ends with a zero. In float64 between the roundings to float32 that diffusers
// makes, because a timestep of 999 magnifies errors.
struct TimestepEmbedding {
    const float* t;
    float* y;
    int batch, width, cosine_first;
    float rate, span;
    int unused;
};

__global__ void __launch_bounds__(256) timestep_embedding_fwd_nhwc_f32(TimestepEmbedding p) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int sample = i / p.width, column = i % p.width, half = p.width / 2;
    if (sample >= p.batch) return;
    float value = 0.0f;
    if (column < 2 * half) {
        float exponent = p.rate * static_cast<float>(column % half) / p.span;
        float frequency = static_cast<float>(exp(static_cast<double>(exponent)));
        double angle = static_cast<double>(p.t[sample] * frequency);
        bool cosine = (column < half) == (p.cosine_first != 0);
        value = static_cast<float>(cosine ? cosine_of(angle) : sine_of(angle));
    }
    p.y[i] = value;
}

// y = sqrt(2) * cos(x * freqs + phases), [batch, channels]; angles are rounded to float32 as in PyTorch.
// The gradients: of x, one block a sample; of freqs and phases, one thread a channel.
struct FourierFeatures {
    const float* x;
    const float* freqs;
    const float* phases;
    const float* dy;  // null in the forward kernel
    float* y;         // or the gradient of x or of freqs
    float* second;    // null, or the gradient of phases
    int batch, channels;
};

#define ROOT_2 1.4142135623730951

__device__ __forceinline__ double fourier_angle(const FourierFeatures& p, int sample, int c) {
    return static_cast<double>(p.x[sample] * p.freqs[c] + p.phases[c]);
}

// What the gradient of an angle is.
__device__ __forceinline__ float fourier_slope(const FourierFeatures& p, int sample, int c) {
    float slope = static_cast<float>(-ROOT_2 * sine_of(fourier_angle(p, sample, c)));
    return slope * p.dy[sample * p.channels + c];
}

__global__ void __launch_bounds__(256) fourier_features_fwd_nhwc_f32(FourierFeatures p) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int sample = i / p.channels;
    if (sample >= p.batch) return;
    p.y[i] = static_cast<float>(ROOT_2 * cosine_of(fourier_angle(p, sample, i % p.channels)));
}

__global__ void __launch_bounds__(256) fourier_features_dgrad_nhwc_f32(FourierFeatures p) {
    CYANEA_SHARED(float, partial, 32);
    float sum = 0.0f;
    for (int c = threadIdx.x; c < p.channels; c += blockDim.x)
        sum = fmaf(fourier_slope(p, blockIdx.x, c), p.freqs[c], sum);
    sum = block_sum(sum, partial);
    if (threadIdx.x == 0) p.y[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(256) fourier_features_wgrad_nhwc_f32(FourierFeatures p) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= p.channels) return;
    float freqs = 0.0f, phases = 0.0f;
    for (int sample = 0; sample < p.batch; ++sample) {
        float slope = fourier_slope(p, sample, c);
        freqs += slope * p.x[sample];
        phases += slope;
    }
    p.y[c] = freqs;
    p.second[c] = phases;
}

// c_skip, c_out, c_in [batch, channels] and c_noise [batch] of noise levels; src/ops/preconditioning has
// the formulas. Or, from gradients of those, the gradient of the noise levels.
struct Preconditioning {
    const float* sigma;
    float* values[4];  // gradients in the backward kernel, each of which may be null
    float* dsigma;
    int batch, channels;
    float sigma_data;
    int unused;
};

__global__ void __launch_bounds__(256) preconditioning_fwd_nhwc_f32(Preconditioning p) {
    int sample = blockIdx.x * blockDim.x + threadIdx.x;
    if (sample >= p.batch) return;
    double s = p.sigma[sample], d = p.sigma_data, q = s * s + d * d;
    float skip = static_cast<float>(d * d / q), out = static_cast<float>(s * d / sqrt(q));
    float in = static_cast<float>(1.0 / sqrt(q));
    for (int c = 0; c < p.channels; ++c) {
        p.values[0][sample * p.channels + c] = skip;
        p.values[1][sample * p.channels + c] = out;
        p.values[2][sample * p.channels + c] = in;
    }
    p.values[3][sample] = static_cast<float>(log(s) / 4.0);
}

__global__ void __launch_bounds__(256) preconditioning_dgrad_nhwc_f32(Preconditioning p) {
    int sample = blockIdx.x * blockDim.x + threadIdx.x;
    if (sample >= p.batch) return;
    double s = p.sigma[sample], d = p.sigma_data, q = s * s + d * d, cube = q * sqrt(q);
    float skip = static_cast<float>(-2.0 * s * d * d / (q * q));
    float out = static_cast<float>(d * d * d / cube), in = static_cast<float>(-s / cube);
    float of_skip = 0.0f, of_out = 0.0f, of_in = 0.0f;
    for (int c = 0; c < p.channels; ++c) {
        int i = sample * p.channels + c;
        if (p.values[0]) of_skip += p.values[0][i];
        if (p.values[1]) of_out += p.values[1][i];
        if (p.values[2]) of_in += p.values[2][i];
    }
    float sum = skip * of_skip + out * of_out + in * of_in;
    if (p.values[3]) sum += static_cast<float>(0.25 / s) * p.values[3][sample];
    p.dsigma[sample] = sum;
}

// A row of the samplers' table; src/ops/sampler_update says what the columns mean.
struct SamplerRow {
    float x0_from_x, x0_from_output, eps_from_x, eps_from_output, clip;
    float x, x0, eps, history, sigma;
    float next_x, next_x0, next_eps, next_history;
    float reserved[2];
};

// Updates x [B, P, C] and, where there is one, the history in place, and counts on to the next row.
template <class E>
struct SamplerUpdate {
    const E* output;
    const SamplerRow* table;
    const float* c_skip;    // [1, C] or [B, C] where the output is to be preconditioned, or null
    const float* c_out;     // the same
    const unsigned* seeds;  // [B, 2], or null
    const float* given;     // noise [rows, B, P, C], or null
    float* x;
    float* history;       // or null
    float* x_rest;        // or null: x and history, and the table's rows, are sums of two float32
    float* history_rest;  // or null
    unsigned* state;
    unsigned* ticket;     // zero between launches
    int batch, pixels, channels, rows;
    unsigned purpose;
    int factor_rows;  // of c_skip and c_out
};

__device__ __forceinline__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// One element's update in T, from the state, the history, the network's output and fresh noise, which
// are read where the row gives them weight.
template <typename T>
__device__ __forceinline__ void sampler_step(const SamplerRow& row, const SamplerRow& rest, T& x,
                                             T& history, float output, float noise) {
    auto of = [&](float SamplerRow::*column) { return T(row.*column) + T(rest.*column); };
    T old = x, last = history, out = output;
    T x0 = multiply_add(of(&SamplerRow::x0_from_x), old, of(&SamplerRow::x0_from_output) * out);
    // Comparisons that a NaN passes.
    if (x0 > row.clip) x0 = row.clip;
    if (x0 < -row.clip) x0 = -row.clip;
    T eps = multiply_add(of(&SamplerRow::eps_from_x), old, of(&SamplerRow::eps_from_output) * out);
    x = multiply_add(of(&SamplerRow::x0), x0, of(&SamplerRow::eps) * eps);
    x = multiply_add(of(&SamplerRow::history), last, multiply_add(of(&SamplerRow::x), old, x));
    T next = multiply_add(of(&SamplerRow::next_eps), eps, of(&SamplerRow::next_history) * last);
    next = multiply_add(of(&SamplerRow::next_x0), x0, next);
    history = multiply_add(of(&SamplerRow::next_x), old, next);
    if (row.sigma != 0.0f) x = multiply_add(of(&SamplerRow::sigma), T(noise), x);
}

// A value in two float32: the nearest, and what it leaves.
__device__ __forceinline__ void store_pair(double value, float* high, float* low) {
    *high = static_cast<float>(value);
    *low = static_cast<float>(value - static_cast<double>(*high));
}

template <class E>
__device__ __forceinline__ void update_element(const SamplerUpdate<E>& p, long long i) {
    int size = p.pixels * p.channels, sample = static_cast<int>(i / size);
    if (sample >= p.batch) return;
    unsigned index = p.state[STATE_ROW];
    if (index >= static_cast<unsigned>(p.rows)) {
        p.x[i] = not_a_number();
        return;
    }
    const SamplerRow& row = p.table[p.x_rest ? 2 * index : index];
    float noise = 0.0f;
    if (row.sigma != 0.0f) {
        // A row with noise in a sampler without is a mistake that must show.
        noise = not_a_number();
        if (p.given) {
            noise = p.given[static_cast<long long>(index) * p.batch * size + i];
        } else if (p.seeds) {
            unsigned element = nchw_element(static_cast<int>(i % size), p.pixels, p.channels);
            noise = normal(seeded(p.seeds, p.state, sample, p.purpose), element);
        }
    }
    float output = get(p.output + i);
    if (p.c_skip) {
        int factor = sample % p.factor_rows * p.channels + static_cast<int>(i % p.channels);
        output = preconditioned_output(p.c_skip[factor], p.x[i], p.c_out[factor], output);
    }
    if (p.x_rest) {
        double x = static_cast<double>(p.x[i]) + p.x_rest[i], history = 0.0;
        if (p.history) history = static_cast<double>(p.history[i]) + p.history_rest[i];
        sampler_step(row, p.table[2 * index + 1], x, history, output, noise);
        store_pair(x, &p.x[i], &p.x_rest[i]);
        if (p.history) store_pair(history, &p.history[i], &p.history_rest[i]);
        return;
    }
    float x = p.x[i], history = p.history ? p.history[i] : 0.0f;
    sampler_step(row, SamplerRow{}, x, history, output, noise);
    p.x[i] = x;
    if (p.history) p.history[i] = history;
}

template <class E>
__global__ void __launch_bounds__(256) sampler_update(SamplerUpdate<E> p) {
    update_element(p, static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x);
    // The last block to come here counts on: no other will read the row any more.
    if (comes_last(p.ticket, gridDim.x) && threadIdx.x == 0) p.state[STATE_ROW] += 1;
}
