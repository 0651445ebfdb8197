// The channels of a block of 256 threads, of which each has a piece of 16 bytes of every so manyth pixel.
#pragma once
#include "common/piece.cuh"
#include "common/reduce.cuh"
#include "common/source.cuh"

// The channels `first` .. `end` of a block, of which the calling thread has a piece in each window of 256
// pieces: that from channel `c`, of the pixels from `row` on in steps of `rows`. Threads without any start
// behind the last pixel.
template <class E>
struct Slab {
    int first, end, columns, rows, c, row;
    int from, to;  // channels of the window

    __device__ __forceinline__ Slab(int slab, int channels, int pixels, int window) {
        const int SIZE = Piece<E>::SIZE;
        int thread = threadIdx.x;
        first = blockIdx.x * slab;
        end = min(first + slab, channels);
        from = first + window * 256 * SIZE;
        to = min(from + 256 * SIZE, end);
        columns = min((slab + SIZE - 1) / SIZE - window * 256, 256);
        rows = 256 / columns;
        c = from + thread % columns * SIZE;
        row = thread / columns < rows && c < to ? thread / columns : pixels;
    }
    __device__ static __forceinline__ int windows(int slab) {
        return (slab + 256 * Piece<E>::SIZE - 1) / (256 * Piece<E>::SIZE);
    }
};

// Sums over all pixels of a block: N for each channel of the window, of which `value` [N][SIZE] holds those
// of the calling thread. They lie in `totals` [N][channels of the slab] when all threads are back.
template <int N, class E, int COUNT>
__device__ __forceinline__ void total_pixels(const Slab<E>& slab, const float (&value)[COUNT], float* parts,
                                             float* totals) {
    const int SIZE = COUNT / N;
    int width = slab.to - slab.from, stride = slab.end - slab.first;
    totals += slab.from - slab.first;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) parts[i * 256 + threadIdx.x] = value[i];
    __syncthreads();
    auto part = [&](int o, int row) {
        int c = o % width;
        return parts[(o / width * SIZE + c % SIZE) * 256 + row * slab.columns + c / SIZE];
    };
    block_totals(N * width, slab.rows, part,
                 [&](int o, float total) { totals[o / width * stride + o % width] = total; });
    __syncthreads();
}

// Stores those of a piece's channels that are below `end`.
template <class E, int SIZE>
__device__ __forceinline__ void store_piece(E* y, E* y2, int c1, int c2, bool wide, long long pixel, int c,
                                            int end, const float (&value)[SIZE]) {
    if (wide) {
        E* at = c < c1 ? y + (pixel * c1 + c) : y2 + (pixel * c2 + (c - c1));
        *reinterpret_cast<uint4*>(at) = pack(value);
        return;
    }
#pragma unroll
    for (int i = 0; i < SIZE; ++i)
        if (c + i < end) store(y, y2, pixel, c + i, c1, c2, value[i]);
}

// Of each channel of a thread's piece the normalisation: scale (x - mean) + shift.
template <int SIZE>
struct ChannelNorm {
    float mean[SIZE], scale[SIZE], shift[SIZE];

    // From those of the slab's groups and channels; `width` channels a group.
    template <class E>
    __device__ __forceinline__ ChannelNorm(const Slab<E>& slab, const float* stats, const float* gamma,
                                           const float* beta, int width) {
#pragma unroll
        for (int i = 0; i < SIZE; ++i) {
            int c = min(slab.c + i, slab.end - 1) - slab.first, group = c / width;
            mean[i] = stats[2 * group];
            scale[i] = stats[2 * group + 1] * gamma[c];
            shift[i] = beta[c];
        }
    }
};
