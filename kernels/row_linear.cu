// Linear layers that read the same rows x [B, K]: y_i [B, C_i] = x w_i^T + b_i with w_i [C_i, K], all layers
// in one launch, and their gradients: dx = the sum over layers of dy_i w_i, dw_i = dy_i^T x, db_i. All tensors are
// float32; products are of type E, which rounds what they multiply.
//
// A block makes 64 x 64 results, a warp 16 x 32 of them, from 8 pieces of each sum's terms at a time; those that
// follow are on their way to registers while these are multiplied.
//
//   forward   rows of x by channels of one layer.
//   dgrad     rows of x by columns of x; the layers' parts are added in an order of their numbers by the last to come.
//   wgrad     channels of one layer by columns of x; the blocks of the first columns also make db.
#include "common/shared.cuh"
#include "common/slices.cuh"
#include "common/warp_product.cuh"

#define MOST_LAYERS 32
#define THREADS 256
#define SIDE WEIGHT_BLOCK  // rows and columns of a block's results
#define PIECES 8           // of a row or column that are in shared memory at a time

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
    int batch, width, count;
    int wide;  // whether all that is read begins where four elements can be read at once
};

// Gradients of results are sums over pixels and scaled with the loss: as float16 they are multiplied by this much less.
template <class E>
struct GradientScale {
    static constexpr float DOWN = sizeof(E) == 2 ? 0.0625f : 1.0f, UP = sizeof(E) == 2 ? 16.0f : 1.0f;
};

// The layer that a tile of channels belongs to.
__device__ __forceinline__ int layer_of(const RowLinears& p, int tile) {
    int layer = 0;
    for (int step = MOST_LAYERS / 2; step > 0; step /= 2)
        if (layer + step < p.count && p.first_tile[layer + step] <= tile) layer += step;
    return layer;
}

// One side of a product: 64 rows of terms, of which those from `count` on and terms from `terms` on count as zero.
// TERMS: neighbours in memory are terms of a row, else rows of a term; `pitch` is the distance of the others.
template <class E, bool TERMS>
struct Operand {
    static const int SIZE = Piece<E>::SIZE, OWN = PIECES * SIDE / THREADS;

    const float* from;
    int pitch, count, terms;
    bool wide;
    float scale, held[OWN][SIZE];

    // `aligned`: rows of whole fours of terms can be read four at a time.
    __device__ __forceinline__ Operand(const float* from, int pitch, int count, int terms, bool aligned,
                                       float scale = 1.0f)
        : from(from), pitch(pitch), count(count), terms(terms), wide(aligned && TERMS && pitch % 4 == 0),
          scale(scale) {}

    // Neighbouring lanes have neighbours in memory, of terms only so many that storing them has few bank conflicts.
    __device__ static __forceinline__ int row(int own) {
        int item = own * THREADS + static_cast<int>(threadIdx.x);
        return TERMS ? item / 4 % SIDE : item % SIDE;
    }
    __device__ static __forceinline__ int piece(int own) {
        int item = own * THREADS + static_cast<int>(threadIdx.x);
        return TERMS ? item % 4 + item / (4 * SIDE) * 4 : item / SIDE;
    }
    // Starts to read the thread's pieces of the terms from `first` on.
    __device__ __forceinline__ void request(int first) {
#pragma unroll
        for (int own = 0; own < OWN; ++own) {
            int r = row(own), term = first + piece(own) * SIZE;
            long long across = TERMS ? r : term, along = TERMS ? term : r;
            const float* at = from + (across * pitch + along);
#pragma unroll
            for (int i = 0; i < SIZE; i += 4) {
                if (wide) {
                    float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                    if (r < count && term + i < terms) four = *reinterpret_cast<const float4*>(at + i);
                    held[own][i] = four.x, held[own][i + 1] = four.y;
                    held[own][i + 2] = four.z, held[own][i + 3] = four.w;
                    continue;
                }
#pragma unroll
                for (int k = i; k < i + 4; ++k) {
                    float value = 0.0f;
                    if (r < count && term + k < terms) value = at[TERMS ? k : static_cast<long long>(k) * pitch];
                    held[own][k] = value;
                }
            }
        }
    }
    // As WarpProduct takes them: [piece][row].
    __device__ __forceinline__ void store(E* to) const {
#pragma unroll
        for (int own = 0; own < OWN; ++own) {
            float scaled[SIZE];
#pragma unroll
            for (int i = 0; i < SIZE; ++i) scaled[i] = held[own][i] * scale;
            *reinterpret_cast<uint4*>(to + (piece(own) * SIDE + row(own)) * SIZE) = pack(scaled);
        }
    }
};

// The block's sums, which each_result names.
template <class E, bool TERMS_A, bool TERMS_B>
__device__ __forceinline__ void add_products(Operand<E, TERMS_A>& a, Operand<E, TERMS_B>& b, float (&sums)[16]) {
    typedef WarpProduct<E> Product;
    const int SIZE = Piece<E>::SIZE, PLANE = SIDE * SIZE;
    CYANEA_SHARED(uint4, left, PIECES * SIDE);
    CYANEA_SHARED(uint4, right, PIECES * SIDE);
    E *rows = reinterpret_cast<E*>(left), *columns = reinterpret_cast<E*>(right);
    int warp = threadIdx.x / 32;
    const E* own_rows[Product::ROWS];
#pragma unroll
    for (int i = 0; i < Product::ROWS; ++i) own_rows[i] = rows + (warp % 4 * 16 + Product::row(i)) * SIZE;
    a.request(0);
    b.request(0);
#pragma unroll 1
    for (int first = 0; first < a.terms; first += PIECES * SIZE) {
        if (first > 0) __syncthreads();
        a.store(rows);
        b.store(columns);
        __syncthreads();
        if (first + PIECES * SIZE < a.terms) {
            a.request(first + PIECES * SIZE);
            b.request(first + PIECES * SIZE);
        }
        typename Product::template Taps<1, 2> product;
        product.aim(own_rows, 0, PLANE, columns + warp / 4 * 32 * SIZE);
        product.template add<PIECES>(sums, 0, PLANE, PIECES, [] {});
    }
}

// Calls `use(row, column, sum)` for each of the calling thread's results.
template <class E, class Use>
__device__ __forceinline__ void each_result(const float (&sums)[16], const Use& use) {
    const bool AS_80 = CYANEA_CODE_PATH >= 80 || sizeof(E) == 4;
    int warp = threadIdx.x / 32, lane = warp_lane();
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        int row = AS_80 ? lane / 4 + (i & 2) * 4 : sum_row(i % 8);
        int column = AS_80 ? (i & 4) * 2 + lane % 4 * 2 + (i & 1) : sum_column(i % 8);
        use(warp % 4 * 16 + row, warp / 4 * 32 + i / 8 * 16 + column, sums[i]);
    }
}

template <class E>
__global__ void __launch_bounds__(THREADS) row_linear_fwd(RowLinears p) {
    int layer = layer_of(p, blockIdx.x), channels = p.channels[layer];
    int first = (blockIdx.x - p.first_tile[layer]) * SIDE, first_row = blockIdx.y * SIDE;
    RowLayer own = p.each[layer];
    long long width = p.width;
    Operand<E, true> x(p.x + first_row * width, p.width, p.batch - first_row, p.width, p.wide);
    Operand<E, true> weight(own.weight + first * width, p.width, channels - first, p.width, p.wide);
    float sums[16] = {};
    add_products(x, weight, sums);
    each_result<E>(sums, [&](int row, int c, float sum) {
        row += first_row, c += first;
        if (row < p.batch && c < channels)
            own.y[static_cast<long long>(row) * channels + c] = sum + own.bias[c];
    });
}

template <class E>
__global__ void __launch_bounds__(THREADS) row_linear_dgrad(RowLinears p) {
    int layer = blockIdx.z, channels = p.channels[layer];
    int first = blockIdx.x * SIDE, first_row = blockIdx.y * SIDE;
    RowLayer own = p.each[layer];
    const float* from = own.y + static_cast<long long>(first_row) * channels;
    Operand<E, true> dy(from, channels, p.batch - first_row, channels, p.wide, GradientScale<E>::DOWN);
    Operand<E, false> weight(own.weight + first, p.width, p.width - first, channels, false);
    float sums[16] = {};
    add_products(dy, weight, sums);
    int tile = blockIdx.y * gridDim.x + blockIdx.x;
    float* partials = p.partials + static_cast<long long>(tile) * p.count * 16 * THREADS;
    if (p.count > 1 && !join_slices<THREADS>(sums, partials, p.tickets + tile, layer, p.count)) return;
    each_result<E>(sums, [&](int row, int column, float sum) {
        row += first_row, column += first;
        if (row < p.batch && column < p.width)
            p.x[static_cast<long long>(row) * p.width + column] = sum * GradientScale<E>::UP;
    });
}

template <class E>
__global__ void __launch_bounds__(THREADS) row_linear_wgrad(RowLinears p) {
    int layer = layer_of(p, blockIdx.x), channels = p.channels[layer];
    int first = (blockIdx.x - p.first_tile[layer]) * SIDE, first_column = blockIdx.y * SIDE;
    RowLayer own = p.each[layer];
    Operand<E, false> dy(own.y + first, channels, channels - first, p.batch, false, GradientScale<E>::DOWN);
    Operand<E, false> x(p.x + first_column, p.width, p.width - first_column, p.batch, false);
    float sums[16] = {};
    add_products(dy, x, sums);
    each_result<E>(sums, [&](int c, int column, float sum) {
        c += first, column += first_column;
        if (c < channels && column < p.width)
            own.weight[static_cast<long long>(c) * p.width + column] = sum * GradientScale<E>::UP;
    });
    int c = first + threadIdx.x;
    if (blockIdx.y > 0 || threadIdx.x >= SIDE || c >= channels) return;
    float total = 0.0f;
#pragma unroll 8
    for (int row = 0; row < p.batch; ++row) total += own.y[static_cast<long long>(row) * channels + c];
    own.bias[c] = total;
}
