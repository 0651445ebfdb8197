// Linear layers that read the same rows x [B, K]: y_i [B, C_i] = x w_i^T + b_i with w_i [C_i, K], all layers
// in one launch, and their gradients: dx = the sum over layers of dy_i w_i, dw_i = dy_i^T x, db_i.
//
// A block makes 64 x 64 results, a thread 4 x 4 of them, from 16 terms of each sum at a time.
//
//   forward   rows of x by channels of one layer.
//   dgrad     rows of x by columns of x; the layers' parts are added in an order of their numbers by the last to come.
//   wgrad     channels of one layer by columns of x; the blocks of the first columns also make db.
#include "common/shared.cuh"
#include "common/slices.cuh"

#define MOST_LAYERS 32

struct RowLayer {
    float* weight;  // [channels, width], or its gradient
    float* bias;    // [channels], or its gradient
    float* y;       // [B, channels], or its gradient
};

struct RowLinears {
    float* x;           // [B, width], or its gradient
    float* partials;    // of dx, [tile][layer] as store_part has 16 sums
    unsigned* tickets;  // a tile of dx each
    RowLayer each[MOST_LAYERS];
    int channels[MOST_LAYERS];
    int first_tile[MOST_LAYERS];  // tiles of 64 channels of the layers in front
    int batch, width, count, unused;
};

// The layer that a tile of channels belongs to.
__device__ __forceinline__ int layer_of(const RowLinears& p, int tile) {
    int layer = 0;
    for (int step = MOST_LAYERS / 2; step > 0; step /= 2)
        if (layer + step < p.count && p.first_tile[layer + step] <= tile) layer += step;
    return layer;
}

// sums [i][j] += a(4 row + i, term) b(4 column + j, term) over all terms; a and b give 0 beyond their
// tensors. TERMS_A, TERMS_B: whether neighbours in memory are terms.
template <bool TERMS_A, bool TERMS_B, class A, class B>
__device__ __forceinline__ void add_products(int terms, const A& a, const B& b, float (&sums)[16]) {
    const int STEP = 16, PITCH = 68;
    CYANEA_SHARED(float, left, 16 * 68);
    CYANEA_SHARED(float, right, 16 * 68);
    int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
    for (int first = 0; first < terms; first += STEP) {
        for (int i = threadIdx.x; i < 64 * STEP; i += 256) {
            int term = TERMS_A ? i % STEP : i / 64, at = TERMS_A ? i / STEP : i % 64;
            left[term * PITCH + at] = first + term < terms ? a(at, first + term) : 0.0f;
            term = TERMS_B ? i % STEP : i / 64, at = TERMS_B ? i / STEP : i % 64;
            right[term * PITCH + at] = first + term < terms ? b(at, first + term) : 0.0f;
        }
        __syncthreads();
        for (int term = 0; term < STEP; ++term)
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    sums[4 * i + j] =
                        fmaf(left[term * PITCH + row + i], right[term * PITCH + column + j], sums[4 * i + j]);
        __syncthreads();
    }
}

// Calls `use(row, column, sum)` for each of the calling thread's results.
template <class Use>
__device__ __forceinline__ void each_result(const float (&sums)[16], const Use& use) {
#pragma unroll
    for (int i = 0; i < 16; ++i) use(threadIdx.x / 16 * 4 + i / 4, threadIdx.x % 16 * 4 + i % 4, sums[i]);
}

__global__ void __launch_bounds__(256) row_linear_fwd_nhwc_f32(RowLinears p) {
    int layer = layer_of(p, blockIdx.x), channels = p.channels[layer];
    int first = (blockIdx.x - p.first_tile[layer]) * 64, first_row = blockIdx.y * 64;
    RowLayer own = p.each[layer];
    float sums[16] = {};
    auto x = [&](int row, int term) {
        row += first_row;
        return row < p.batch ? p.x[static_cast<long long>(row) * p.width + term] : 0.0f;
    };
    auto weight = [&](int c, int term) {
        c += first;
        return c < channels ? own.weight[static_cast<long long>(c) * p.width + term] : 0.0f;
    };
    add_products<true, true>(p.width, x, weight, sums);
    each_result(sums, [&](int row, int c, float sum) {
        row += first_row, c += first;
        if (row < p.batch && c < channels)
            own.y[static_cast<long long>(row) * channels + c] = sum + own.bias[c];
    });
}

__global__ void __launch_bounds__(256) row_linear_dgrad_nhwc_f32(RowLinears p) {
    int layer = blockIdx.z, channels = p.channels[layer];
    int first = blockIdx.x * 64, first_row = blockIdx.y * 64;
    RowLayer own = p.each[layer];
    float sums[16] = {};
    auto dy = [&](int row, int term) {
        row += first_row;
        return row < p.batch ? own.y[static_cast<long long>(row) * channels + term] : 0.0f;
    };
    auto weight = [&](int column, int term) {
        column += first;
        return column < p.width ? own.weight[static_cast<long long>(term) * p.width + column] : 0.0f;
    };
    add_products<true, false>(channels, dy, weight, sums);
    int tile = blockIdx.y * gridDim.x + blockIdx.x;
    float* partials = p.partials + static_cast<long long>(tile) * p.count * 16 * 256;
    if (!join_slices<256>(sums, partials, p.tickets + tile, layer, p.count)) return;
    each_result(sums, [&](int row, int column, float sum) {
        row += first_row, column += first;
        if (row < p.batch && column < p.width) p.x[static_cast<long long>(row) * p.width + column] = sum;
    });
}

__global__ void __launch_bounds__(256) row_linear_wgrad_nhwc_f32(RowLinears p) {
    int layer = layer_of(p, blockIdx.x), channels = p.channels[layer];
    int first = (blockIdx.x - p.first_tile[layer]) * 64, first_column = blockIdx.y * 64;
    RowLayer own = p.each[layer];
    float sums[16] = {};
    auto dy = [&](int c, int term) {
        c += first;
        return c < channels ? own.y[static_cast<long long>(term) * channels + c] : 0.0f;
    };
    auto x = [&](int column, int term) {
        column += first_column;
        return column < p.width ? p.x[static_cast<long long>(term) * p.width + column] : 0.0f;
    };
    add_products<false, false>(p.batch, dy, x, sums);
    each_result(sums, [&](int c, int column, float sum) {
        c += first, column += first_column;
        if (c < channels && column < p.width) own.weight[static_cast<long long>(c) * p.width + column] = sum;
    });
    if (blockIdx.y > 0) return;
    for (int c = threadIdx.x; c < min(64, channels - first); c += 256) {
        float total = 0.0f;
        for (int row = 0; row < p.batch; ++row) total += dy(c, row);
        own.bias[first + c] = total;
    }
}
