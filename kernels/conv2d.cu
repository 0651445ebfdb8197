// 2-D convolution of NHWC tensors as a matrix product that is never laid out: for each output
// pixel m and output channel n, the sum over k = (input channel, tap) of source(m, k) * weight(n, k).
//
//   forward      also the transposed convolution, which is the input gradient
//   wgrad        the weight's gradient: m is an output channel, n = (input channel, tap), k a pixel
//
// A block of 64 threads makes a tile of 32 x 32 results, 4 x 4 a thread, from slices of 32 values
// of k that it loads into shared memory. A slice is summed by itself before it is added to the
// total, which keeps long sums exact. Every image has the same order of sums in any batch. E is the
// type of sources, weight, residual and result.
#include "common/activation.cuh"
#include "common/shared.cuh"
#include "common/source.cuh"

#define TILE 32

template <class E>
struct Conv2d {
    Source<E> source;
    const float* affine;  // scale [C], shift [C], a sample each `affine_stride`; or null
    const E* weight;  // [c_out, C, kh, kw]; transposed: [C, c_out, kh, kw]
    const float* bias;    // [c_out], or null
    const float* shift;   // [c_out], a sample each `shift_stride`; or null
    const E* residual;  // as y, or null
    E* y;
    int batch, height, width, c1, c2;
    int out_height, out_width, c_out, kh, kw;
    int stride_h, stride_w, pad_top, pad_left;
    int upsample, silu, affine_stride, shift_stride;
};

// Where tap `tap` of the output at `out` reads along one axis; -1 where it reads nothing. `size`
// is the extent of the source as stored.
template <bool TRANSPOSED>
__device__ __forceinline__ int read_at(int out, int tap, int stride, int pad, int size, int up) {
    if (TRANSPOSED) {
        int at = out + pad - tap;
        if (at < 0 || at % stride != 0) return -1;
        return at / stride < size ? at / stride : -1;
    }
    int at = out * stride + tap - pad;
    return at >= 0 && at < (size << up) ? at >> up : -1;
}

// Adds the product of two slices, [TILE k][TILE m] and [TILE k][TILE n], to 4 x 4 totals.
__device__ __forceinline__ void add_slice(const float* a, const float* b, int m, int n,
                                          float (&total)[4][4]) {
    float sum[4][4] = {};
    for (int k = 0; k < TILE; ++k) {
        float left[4], right[4];
        for (int i = 0; i < 4; ++i) left[i] = a[k * TILE + m + i];
        for (int j = 0; j < 4; ++j) right[j] = b[k * TILE + n + j];
        for (int i = 0; i < 4; ++i)
            for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(left[i], right[j], sum[i][j]);
    }
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) total[i][j] += sum[i][j];
}

template <bool TRANSPOSED, class E>
__global__ void __launch_bounds__(64) conv2d(Conv2d<E> p) {
    CYANEA_SHARED(float, a, TILE * TILE);
    CYANEA_SHARED(float, b, TILE * TILE);
    int thread = threadIdx.x, channels = p.c1 + p.c2, taps = p.kh * p.kw, depth = channels * taps;
    long long pixels = static_cast<long long>(p.batch) * p.out_height * p.out_width;
    long long first_m = static_cast<long long>(blockIdx.x) * TILE;
    int first_n = blockIdx.y * TILE;
    // A thread loads one pixel, and every second k.
    long long pixel = first_m + thread % TILE;
    bool has_pixel = pixel < pixels;
    int ox = static_cast<int>(pixel % p.out_width);
    int oy = static_cast<int>(pixel / p.out_width % p.out_height);
    int sample = static_cast<int>(pixel / p.out_width / p.out_height);
    const float* affine = p.affine + static_cast<long long>(sample) * p.affine_stride;
    int m = thread / 8 * 4, n = thread % 8 * 4;
    float total[4][4] = {};
    for (int first_k = 0; first_k < depth; first_k += TILE) {
        for (int row = thread / TILE; row < TILE; row += 2) {
            int k = first_k + row, c = k / taps, tap = k % taps;
            float value = 0.0f;
            if (has_pixel && k < depth) {
                int iy = read_at<TRANSPOSED>(oy, tap / p.kw, p.stride_h, p.pad_top, p.height, p.upsample);
                int ix = read_at<TRANSPOSED>(ox, tap % p.kw, p.stride_w, p.pad_left, p.width, p.upsample);
                if (iy >= 0 && ix >= 0) {
                    long long at = (static_cast<long long>(sample) * p.height + iy) * p.width + ix;
                    value = load(p.source, at, c, p.c1, p.c2);
                    if (p.affine) value = fmaf(value, affine[c], affine[channels + c]);
                    if (p.silu) value = silu(value);
                }
            }
            a[row * TILE + thread % TILE] = value;
        }
        for (int i = thread; i < TILE * TILE; i += 64) {
            // Forward: neighbouring threads take neighbouring k, which lie side by side.
            int row = i % TILE, k = first_k + row, out = first_n + i / TILE;
            float value = 0.0f;
            if (out < p.c_out && k < depth) {
                long long at = TRANSPOSED
                    ? (static_cast<long long>(k / taps) * p.c_out + out) * taps + k % taps
                    : static_cast<long long>(out) * depth + k;
                value = get(p.weight + at);
            }
            b[row * TILE + i / TILE] = value;
        }
        __syncthreads();
        add_slice(a, b, m, n, total);
        __syncthreads();
    }
    for (int i = 0; i < 4; ++i) {
        long long to = first_m + m + i;
        if (to >= pixels) break;
        long long of = to / p.out_width / p.out_height;
        for (int j = 0; j < 4 && first_n + n + j < p.c_out; ++j) {
            int out = first_n + n + j;
            float value = total[i][j];
            if (p.bias) value += p.bias[out];
            if (p.shift) value += p.shift[of * p.shift_stride + out];
            if (p.residual) value += get(p.residual + (to * p.c_out + out));
            put(p.y + (to * p.c_out + out), value);
        }
    }
}

template <class E>
struct Conv2dWeights {
    const E* x;   // [B, height, width, c_in]
    const E* dy;  // [B, out_height, out_width, c_out]
    float* dw;        // [c_out, c_in, kh, kw]
    int batch, height, width, c_in;
    int out_height, out_width, c_out, kh, kw;
    int stride_h, stride_w, pad_top, pad_left, unused;
};

template <class E>
__global__ void __launch_bounds__(64) conv2d_wgrad(Conv2dWeights<E> p) {
    CYANEA_SHARED(float, a, TILE * TILE);
    CYANEA_SHARED(float, b, TILE * TILE);
    int thread = threadIdx.x, taps = p.kh * p.kw, columns = p.c_in * taps;
    long long pixels = static_cast<long long>(p.batch) * p.out_height * p.out_width;
    int first_m = blockIdx.x * TILE, first_n = blockIdx.y * TILE;
    // A thread loads one column of each slice, and every second k.
    int out = first_m + thread % TILE, column = first_n + thread % TILE;
    int c = column / taps, ky = column % taps / p.kw, kx = column % taps % p.kw;
    int m = thread / 8 * 4, n = thread % 8 * 4;
    float total[4][4] = {};
    for (long long first_k = 0; first_k < pixels; first_k += TILE) {
        for (int row = thread / TILE; row < TILE; row += 2) {
            long long k = first_k + row;
            float left = 0.0f, right = 0.0f;
            if (k < pixels) {
                int ox = static_cast<int>(k % p.out_width);
                int oy = static_cast<int>(k / p.out_width % p.out_height);
                long long sample = k / p.out_width / p.out_height;
                if (out < p.c_out) left = get(p.dy + (k * p.c_out + out));
                int iy = read_at<false>(oy, ky, p.stride_h, p.pad_top, p.height, 0);
                int ix = read_at<false>(ox, kx, p.stride_w, p.pad_left, p.width, 0);
                if (column < columns && iy >= 0 && ix >= 0)
                    right = get(p.x + (((sample * p.height + iy) * p.width + ix) * p.c_in + c));
            }
            a[row * TILE + thread % TILE] = left;
            b[row * TILE + thread % TILE] = right;
        }
        __syncthreads();
        add_slice(a, b, m, n, total);
        __syncthreads();
    }
    for (int i = 0; i < 4 && first_m + m + i < p.c_out; ++i)
        for (int j = 0; j < 4 && first_n + n + j < columns; ++j)
            p.dw[static_cast<long long>(first_m + m + i) * columns + first_n + n + j] = total[i][j];
}
