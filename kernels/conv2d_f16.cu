// Convolutions on tensor cores; common/conv2d_tile.cuh says how. The weight is a packed image that
// conv2d_pack makes when weights change.
#include "common/conv2d_tile.cuh"

struct Conv2dPack {
    const __half* weight;  // [c_out, c_in, taps]; transposed: [c_in, c_out, taps]
    __half* packed;        // [c_out / 64][tap][octet of c_in, an even number][64][8], zeros beyond
    int c_out, c_in, taps, transposed;
};

__global__ void __launch_bounds__(256) conv2d_pack_fwd_nhwc_f16(Conv2dPack p) {
    int octets = (p.c_in + 15) / 16 * 2, blocks = (p.c_out + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK;
    long long count = static_cast<long long>(blocks) * p.taps * octets * WEIGHT_BLOCK * 8;
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    int c = static_cast<int>(i % 8), out = static_cast<int>(i / 8 % WEIGHT_BLOCK);
    long long rest = i / (8 * WEIGHT_BLOCK);
    c += static_cast<int>(rest % octets) * 8;
    rest /= octets;
    int tap = static_cast<int>(rest % p.taps);
    out += static_cast<int>(rest / p.taps) * WEIGHT_BLOCK;
    float value = 0.0f;
    if (c < p.c_in && out < p.c_out) {
        long long row = p.transposed ? static_cast<long long>(c) * p.c_out + out
                                     : static_cast<long long>(out) * p.c_in + c;
        value = get(p.weight + (row * p.taps + tap));
    }
    put(p.packed + i, value);
}

// 64 pixels x 64 channels: for images with few tiles.
template <bool TRANSPOSED>
__global__ void __launch_bounds__(128) conv2d_small(Conv2dHalf p) {
    conv2d_tile<TRANSPOSED, 2, 2, 2, 2>(p, blockIdx.x, blockIdx.y, blockIdx.z);
}

// 128 pixels x 128 channels.
template <bool TRANSPOSED>
__global__ void __launch_bounds__(256) conv2d_large(Conv2dHalf p) {
    conv2d_tile<TRANSPOSED, 2, 4, 4, 2>(p, blockIdx.x, blockIdx.y, blockIdx.z);
}
