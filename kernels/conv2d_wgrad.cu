// Weight and bias gradients of convolutions; common/conv2d_wgrad_tile.cuh says how. float16 goes to tensor
// cores; sums are float32 in either type.
#include "common/conv2d_wgrad_tile.cuh"

// The last arguments of conv2d_wgrad_tile are the pieces of x and dy that a thread has under way while 16
// pixels are summed: about as many as the next 16 need.

// 3x3 kernels: 64 output channels x 64 input channels x 9 taps.
template <WgradWay WAY, class E>
__global__ void __launch_bounds__(256 + WgradLoaders<WAY>::THREADS, 1) conv2d_wgrad_taps(Conv2dWeights<E> p) {
    // With a stride there is more of x.
    conv2d_wgrad_tile<E, 9, WAY, 2, 4, 2, 1, WAY == STRIDED ? 2 : sizeof(E) / 2, 1>(p);
}

// Other kernels: 128 output channels x 128 pairs of an input channel and a tap.
template <class E>
__global__ void __launch_bounds__(256, 1) conv2d_wgrad_columns(Conv2dWeights<E> p) {
    conv2d_wgrad_tile<E, 1, GENERAL, 2, 4, 4, 2, sizeof(E) / 2, sizeof(E) / 2>(p);
}

// 1x1 kernels in float16 whose channels are read 16 bytes at a time: as many results. A warp makes 64 x 64 of them, so
// that an operand that it loads serves four products, of every second 16 pixels.
template <WgradWay WAY>
__global__ void __launch_bounds__(256 + WgradLoaders<WAY>::THREADS, 1) conv2d_wgrad_pointwise(Conv2dWeights<__half> p) {
    conv2d_wgrad_tile<__half, 1, WAY, 2, 2, 4, 4, 2, 2, 2>(p);
}
