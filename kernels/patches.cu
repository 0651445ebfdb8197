// The neighbourhoods of pixels as channels, in float16, for convolutions of few channels; src/ops/patches. E is the
// type of the source.
#include "common/half.cuh"
#include "common/piece.cuh"

template <class E>
struct Patches {
    const E* x;   // [B, height, width, c1]
    const E* x2;  // [B, height, width, c2], or null
    __half* y;    // [B, out_height, out_width, 8 pieces]
    int pixels;   // of y
    int height, width, c1, c2, out_height, out_width;
    int pieces;   // of a patch
    int each;     // pixels that a block makes at a time
    int rounds;   // times that it does so
    int kh, kw, stride_h, stride_w, top, left;
    int turned;   // taps count from the kernel's end
    int unused;   // it fills the last 8 bytes
};

// A thread stays with one piece, and so with eight pairs of a channel and a tap; neighbours write neighbouring pieces.
template <class E>
__global__ void __launch_bounds__(256) patches(Patches<E> p) {
    const int SIZE = Piece<__half>::SIZE;
    int piece = threadIdx.x % p.pieces, own = threadIdx.x / p.pieces, taps = p.kh * p.kw;
    if (own >= p.each) return;
    int down[SIZE], across[SIZE], channel[SIZE];
#pragma unroll
    for (int k = 0; k < SIZE; ++k) {
        int at = piece * SIZE + k, c = at / taps, tap = at - c * taps, ky = tap / p.kw, kx = tap - ky * p.kw;
        down[k] = (p.turned ? p.kh - 1 - ky : ky) - p.top;
        across[k] = (p.turned ? p.kw - 1 - kx : kx) - p.left;
        channel[k] = c < p.c1 + p.c2 ? c : -1;
    }
    int pixel = blockIdx.x * p.rounds * p.each + own;
#pragma unroll 1
    for (int round = 0; round < p.rounds && pixel < p.pixels; ++round, pixel += p.each) {
        int row = pixel / p.out_width, sample = row / p.out_height;
        int y = (row - sample * p.out_height) * p.stride_h, x = (pixel - row * p.out_width) * p.stride_w;
        long long image = static_cast<long long>(sample) * p.height * p.width;
        float value[SIZE];
#pragma unroll
        for (int k = 0; k < SIZE; ++k) {
            // Unsigned, what is negative is too large as well.
            int at_y = y + down[k], at_x = x + across[k], c = channel[k];
            bool inside = static_cast<unsigned>(at_y) < static_cast<unsigned>(p.height) &&
                          static_cast<unsigned>(at_x) < static_cast<unsigned>(p.width) && c >= 0;
            long long source = image + (at_y * p.width + at_x);
            const E* from = c < p.c1 ? p.x + (source * p.c1 + c) : p.x2 + (source * p.c2 + (c - p.c1));
            value[k] = inside ? get(from) : 0.0f;
        }
        *reinterpret_cast<uint4*>(p.y + static_cast<long long>(pixel * p.pieces + piece) * SIZE) = pack(value);
    }
}
