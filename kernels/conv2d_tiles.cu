// Convolutions and transposed ones, which are input gradients; common/conv2d_tile.cuh and conv2d_small_tile.cuh say
// how. The weight is a packed image that conv2d_pack.cu makes when weights change.
#include "common/conv2d_small_tile.cuh"
#include "common/conv2d_tile.cuh"

// 64 pixels x 64 channels, in float32: for images with few tiles.
template <class E, bool TRANSPOSED>
__global__ void __launch_bounds__(128, 2) conv2d_small(Conv2d<E> p) {
    conv2d_tile<E, TRANSPOSED, 2, 2, 2, 2>(p, blockIdx.x, blockIdx.y, blockIdx.z);
}

// 64 pixels x 16 WN channels, in float16.
template <class E, bool TRANSPOSED, int WN>
__global__ void __launch_bounds__(128, 2) conv2d_small_half(Conv2d<E> p) {
    conv2d_small_tile<TRANSPOSED, 4 / WN, WN>(p, blockIdx.x, blockIdx.y, blockIdx.z);
}

// 16 SIXTEENS pixels x 64 channels, in float16, by twice as many warps: where blocks have a multiprocessor each.
template <class E, bool TRANSPOSED, int SIXTEENS>
__global__ void __launch_bounds__(256, 1) conv2d_alone(Conv2d<E> p) {
    conv2d_small_tile<TRANSPOSED, 2, 4, SIXTEENS>(p, blockIdx.x, blockIdx.y, blockIdx.z);
}

// 128 pixels x 128 channels. In float16 a warp makes 64 x 64 of them, so that an operand that it loads
// serves four products; in float32 half of that.
template <class E>
struct Large {
    static const int WN = sizeof(E) == 2 ? 2 : 4, NT = 8 / WN, THREADS = 64 * WN, BLOCKS = 4 / WN;
};
template <class E, bool TRANSPOSED>
__global__ void __launch_bounds__(Large<E>::THREADS, Large<E>::BLOCKS) conv2d_large(Conv2d<E> p) {
    conv2d_tile<E, TRANSPOSED, 2, Large<E>::WN, 4, Large<E>::NT>(p, blockIdx.x, blockIdx.y, 0);
}
