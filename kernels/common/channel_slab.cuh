// The channels of a block, of which each thread has a piece of 16 bytes of every so manyth pixel.
#pragma once
#include "common/piece.cuh"
#include "common/reduce.cuh"
#include "common/source.cuh"

// The channels `first` .. `end` of a block, of which the calling thread has a piece in each window of as many
// pieces as there are threads: that from channel `c`, of the pixels from `row` on in steps of `rows`. Threads
// without any start behind the last pixel.
template <class E>
struct Slab {
    int first, end, columns, rows, c, row;
    int from, to;  // channels of the window

    __device__ __forceinline__ Slab(int slab, int channels, int pixels, int window) {
        const int SIZE = Piece<E>::SIZE;
        int thread = threadIdx.x, threads = blockDim.x;
        first = blockIdx.x * slab;
        end = min(first + slab, channels);
        from = first + window * threads * SIZE;
        to = min(from + threads * SIZE, end);
        columns = min((slab + SIZE - 1) / SIZE - window * threads, threads);
        rows = threads / columns;
        c = from + thread % columns * SIZE;
        row = thread / columns < rows && c < to ? thread / columns : pixels;
    }
    __device__ static __forceinline__ int windows(int slab) {
        int window = static_cast<int>(blockDim.x) * Piece<E>::SIZE;
        return (slab + window - 1) / window;
    }
};

// Where `parts` holds number `i` of the channels of the piece that a row of threads has, for a channel of the
// window.
template <class E>
__device__ __forceinline__ int part_of(const Slab<E>& slab, int i, int row, int channel) {
    return i * blockDim.x + row * slab.columns + channel / Piece<E>::SIZE;
}

// Sums over all pixels of a block: N for each channel of the window, of which `value` [N][SIZE] holds those
// of the calling thread; `parts` has room for COUNT of each thread. They lie in `totals` [N][channels of the
// slab] when all threads are back.
template <int N, class E, int COUNT>
__device__ __forceinline__ void total_pixels(const Slab<E>& slab, const float (&value)[COUNT], float* parts,
                                             float* totals) {
    const int SIZE = COUNT / N;
    int width = slab.to - slab.from, stride = slab.end - slab.first;
    totals += slab.from - slab.first;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) parts[i * blockDim.x + threadIdx.x] = value[i];
    __syncthreads();
    auto part = [&](int o, int row) {
        int c = o % width;
        return parts[part_of(slab, o / width * SIZE + c % SIZE, row, c)];
    };
    block_totals(N * width, slab.rows, part,
                 [&](int o, float total) { totals[o / width * stride + o % width] = total; });
    __syncthreads();
}

// Mean and squared deviations of each channel of the window over all `pixels`, from those of the calling
// thread's. They lie in `moments` [channels of the slab] when all threads are back; `parts` as above.
template <class E, int SIZE>
__device__ __forceinline__ void merge_pixels(const Slab<E>& slab, const float (&mean)[SIZE],
                                             const float (&squares)[SIZE], int pixels, float* parts,
                                             float2* moments) {
    int whole = pixels / slab.rows, rest = pixels % slab.rows;
    float fewer = static_cast<float>(whole), more = static_cast<float>(whole + 1);
    moments += slab.from - slab.first;
#pragma unroll
    for (int i = 0; i < SIZE; ++i) {
        parts[i * blockDim.x + threadIdx.x] = mean[i];
        parts[(SIZE + i) * blockDim.x + threadIdx.x] = squares[i];
    }
    __syncthreads();
    auto part = [&](int c, int row) {
        const float* at = parts + part_of(slab, c % SIZE, row, c);
        return make_float3(row < rest ? more : fewer, at[0], at[SIZE * blockDim.x]);
    };
    block_moments(slab.to - slab.from, slab.rows, pixels, part, [&](int c, float mean, float squares, int lane, int) {
        if (lane == 0) moments[c] = make_float2(mean, squares);
    });
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
