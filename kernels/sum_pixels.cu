// Sums of x [B, P, C] over pixels: [B, C], or over samples too, in their order: [C]; float32
// of float16, too.
//
// One block takes 32 channels, of one sample or of all; each of its eight warps every eighth pixel.
#include "common/half.cuh"
#include "common/shared.cuh"

template <class E>
struct SumPixels {
    const E* x;
    float* y;
    int batch, pixels, channels, all_samples;
};

template <class E>
__global__ void __launch_bounds__(256) sum_pixels(SumPixels<E> p) {
    CYANEA_SHARED(float, partial, 256);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
    int first = p.all_samples ? 0 : blockIdx.y;
    int last = p.all_samples ? p.batch : first + 1;
    float total = 0.0f;
    for (int sample = first; sample < last; ++sample) {
        const E* x = p.x + static_cast<long long>(sample) * p.pixels * p.channels;
        float sum = 0.0f;
        if (c < p.channels)
            for (int i = warp; i < p.pixels; i += 8) sum += get(x + (static_cast<long long>(i) * p.channels + c));
        partial[threadIdx.x] = sum;
        __syncthreads();
        if (warp == 0) {
            float of_sample = 0.0f;
            for (int w = 0; w < 8; ++w) of_sample += partial[32 * w + lane];
            total += of_sample;
        }
        __syncthreads();
    }
    if (warp == 0 && c < p.channels) p.y[static_cast<long long>(first) * p.channels + c] = total;
}
