// The steps of diffusion around the network: noise, the forward process, the samplers' update, and
// the little that counts on the device. One thread an element throughout.
#include "common/noise.cuh"
#include "common/state.cuh"

// noise [B, P, C], standard normal. Without seeds [B, 2] the stream is the run's, with them each
// image has its own.
struct Normal {
    const unsigned* state;
    const unsigned* seeds;
    float* noise;
    int batch, pixels, channels;
    unsigned purpose;
};

__device__ __forceinline__ Stream seeded(const unsigned* seeds, const unsigned* state, int sample,
                                         unsigned purpose) {
    return {seeds[2 * sample], seeds[2 * sample + 1], purpose, state[STATE_ROW], 0u};
}

__global__ void __launch_bounds__(256) normal_fwd_nhwc_f32(Normal p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    int size = p.pixels * p.channels, sample = static_cast<int>(i / size);
    if (sample >= p.batch) return;
    int at = static_cast<int>(i % size);
    unsigned element = static_cast<unsigned>(at % p.channels) * p.pixels + at / p.channels;
    Stream stream = {p.state[STATE_SEED_LOW], p.state[STATE_SEED_HIGH], p.purpose,
                     p.state[STATE_STEP], p.state[STATE_SAMPLE] + static_cast<unsigned>(sample)};
    if (p.seeds) stream = seeded(p.seeds, p.state, sample, p.purpose);
    p.noise[i] = normal(stream, element);
}

// x_t = signal * x0 + noise * eps and, where asked for, v = signal * eps - noise * x0, with
// (signal, noise) = table[timestep].
struct AddNoise {
    const float* x0;
    const float* noise;
    const float* table;
    const float* timesteps;
    float* x_t;
    float* v;  // or null
    long long elements, sample;
    int rows, unused;
};

__global__ void __launch_bounds__(256) add_noise_fwd_nhwc_f32(AddNoise p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= p.elements) return;
    int t = static_cast<int>(p.timesteps[i / p.sample]);
    bool known = t >= 0 && t < p.rows;
    float signal = known ? p.table[2 * t] : not_a_number();
    float factor = known ? p.table[2 * t + 1] : not_a_number();
    p.x_t[i] = fmaf(p.x0[i], signal, factor * p.noise[i]);
    if (p.v) p.v[i] = fmaf(p.noise[i], signal, -factor * p.x0[i]);
}

// Row ROW of a table.
struct SelectRow {
    const float* table;
    const unsigned* state;
    float* row;
    long long width;
    int rows, unused;
};

__global__ void __launch_bounds__(256) select_row_fwd_nhwc_f32(SelectRow p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= p.width) return;
    unsigned row = p.state[STATE_ROW];
    p.row[i] = row < static_cast<unsigned>(p.rows) ? p.table[row * p.width + i] : not_a_number();
}

struct AdvanceState {
    unsigned* state;
    unsigned step, row, sample, unused;
};

__global__ void __launch_bounds__(32) advance_state_fwd_nhwc_u32(AdvanceState p) {
    if (threadIdx.x != 0) return;
    p.state[STATE_STEP] += p.step;
    p.state[STATE_ROW] += p.row;
    p.state[STATE_SAMPLE] += p.sample;
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
        value = static_cast<float>(cosine ? cos(angle) : sin(angle));
    }
    p.y[i] = value;
}

// A row of the samplers' table; src/ops/sampler_update says what the columns mean.
struct SamplerRow {
    float x0_from_x, x0_from_output, eps_from_x, eps_from_output, clip;
    float x, x0, eps, history, sigma;
    float next_x, next_x0, next_eps, next_history;
    float reserved[2];
};

// Updates x [B, P, C] and, where there is one, the history in place.
struct SamplerUpdate {
    const float* output;
    const SamplerRow* table;
    const unsigned* state;
    const unsigned* seeds;  // [B, 2], or null
    const float* given;     // noise [rows, B, P, C], or null
    float* x;
    float* history;  // or null
    int batch, pixels, channels, rows;
    unsigned purpose;
    int unused;
};

__global__ void __launch_bounds__(256) sampler_update_fwd_nhwc_f32(SamplerUpdate p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    int size = p.pixels * p.channels, sample = static_cast<int>(i / size);
    if (sample >= p.batch) return;
    unsigned index = p.state[STATE_ROW];
    if (index >= static_cast<unsigned>(p.rows)) {
        p.x[i] = not_a_number();
        return;
    }
    const SamplerRow& row = p.table[index];
    float old = p.x[i], output = p.output[i];
    float x0 = fmaf(row.x0_from_x, old, row.x0_from_output * output);
    // Comparisons that a NaN passes.
    if (x0 > row.clip) x0 = row.clip;
    if (x0 < -row.clip) x0 = -row.clip;
    float eps = fmaf(row.eps_from_x, old, row.eps_from_output * output);
    float value = fmaf(row.x, old, fmaf(row.x0, x0, row.eps * eps));
    if (p.history) {
        float last = p.history[i];
        value = fmaf(row.history, last, value);
        float next = fmaf(row.next_eps, eps, row.next_history * last);
        p.history[i] = fmaf(row.next_x, old, fmaf(row.next_x0, x0, next));
    }
    if (row.sigma != 0.0f) {
        // A row with noise in a sampler without is a mistake that must show.
        float noise = not_a_number();
        if (p.given) {
            noise = p.given[static_cast<long long>(index) * p.batch * size + i];
        } else if (p.seeds) {
            int at = static_cast<int>(i % size);
            unsigned element = static_cast<unsigned>(at % p.channels) * p.pixels + at / p.channels;
            noise = normal(seeded(p.seeds, p.state, sample, p.purpose), element);
        }
        value = fmaf(row.sigma, noise, value);
    }
    p.x[i] = value;
}
