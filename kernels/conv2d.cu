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
