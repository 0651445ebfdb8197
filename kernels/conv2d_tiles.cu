// Convolutions and transposed ones, which are input gradients; common/conv2d_tile.cuh and conv2d_small_tile.cuh say
// how. The weight is a packed image that conv2d_pack makes when weights change.
#include "common/conv2d_small_tile.cuh"
#include "common/conv2d_tile.cuh"

template <class E>
struct Conv2dPack {
    // [c_out, c_in, taps]; transposed: [c_in, c_out, taps]. The second, where there is one, has half of c_in.
    const float* weight[2];
    E* packed;            // [c_out / 64][tap][piece of c_in, an even number][64, of 16 each in the order of
                          // ResultLayout][16 bytes], zeros beyond
    int c_out, c_in, taps, transposed;
};

// Weights that one launch packs: a network has hundreds, and all change together.
#define MOST_PACKS 92

template <class E>
struct Conv2dPacks {
    Conv2dPack<E> each[MOST_PACKS];
    int first_block[MOST_PACKS];
    int count, unused;
};

template <class E>
__global__ void __launch_bounds__(256) conv2d_pack(Conv2dPacks<E> packs) {
    int block = blockIdx.x, which = 0;
    for (int step = 64; step > 0; step /= 2)
        if (which + step < packs.count && packs.first_block[which + step] <= block) which += step;
    const Conv2dPack<E>& p = packs.each[which];
    const int SIZE = Piece<E>::SIZE;
    int pieces = (p.c_in + 2 * SIZE - 1) / (2 * SIZE) * 2;
    int blocks = (p.c_out + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK;
    long long count = static_cast<long long>(blocks) * p.taps * pieces * WEIGHT_BLOCK * SIZE;
    long long i = static_cast<long long>(block - packs.first_block[which]) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    int c = static_cast<int>(i % SIZE), out = static_cast<int>(i / SIZE % WEIGHT_BLOCK);
    long long rest = i / (SIZE * WEIGHT_BLOCK);
    c += static_cast<int>(rest % pieces) * SIZE;
    rest /= pieces;
    int tap = static_cast<int>(rest % p.taps);
    out = (out & ~15) + ResultLayout<E>::channel_of(out & 15) + static_cast<int>(rest / p.taps) * WEIGHT_BLOCK;
    float value = 0.0f;
    if (c < p.c_in && out < p.c_out) {
        int each = p.weight[1] ? p.c_in / 2 : p.c_in;
        const float* weight = c < each ? p.weight[0] : p.weight[1];
        if (c >= each) c -= each;
        long long row = p.transposed ? static_cast<long long>(c) * p.c_out + out
                                     : static_cast<long long>(out) * each + c;
        value = weight[row * p.taps + tap];
    }
    put(p.packed + i, value);
}

// 64 pixels x 64 channels, in float32: for images with few tiles.
template <class E, bool TRANSPOSED>
__global__ void __launch_bounds__(128, 2) conv2d_small(Conv2d<E> p) {
    conv2d_tile<E, TRANSPOSED, 2, 2, 2, 2>(p, blockIdx.x, blockIdx.y, blockIdx.z);
}

// 64 pixels x 16 WN channels, in float16. A narrow forward tile leaves room for three blocks a multiprocessor.
template <class E, bool TRANSPOSED, int WN>
__global__ void __launch_bounds__(128, WN == 1 && !TRANSPOSED ? 3 : 2) conv2d_small_half(Conv2d<E> p) {
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
