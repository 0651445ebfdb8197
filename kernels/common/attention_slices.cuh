// The products of a block of attention_wide.cu, and the stream of slices that they are made of.
#pragma once
#include "common/attention_packed.cuh"

// ROW_TILES: of 16 own rows of a block; COLUMN_TILES: of rows of the other side worked on together.
template <class E, int DEPTH, int ROW_TILES, int COLUMN_TILES>
struct Wide {
    static const int THREADS = 256, ROWS = 16 * ROW_TILES, COLUMNS = 16 * COLUMN_TILES;
    static const int BUFFERS = CYANEA_CODE_PATH >= 80 ? 2 : 1;
    // Channels of a slice for scores, rows of one for sums.
    static const int CHANNELS = sizeof(E) == 2 ? 64 : 32, SLICE = sizeof(E) == 2 ? 16 : 8;
    static const int CHUNKS = DEPTH / CHANNELS, SLICES = COLUMNS / SLICE;
    static const int SLICE_AREA = area<E>(SLICE, DEPTH), WEIGHTS = area<E>(ROWS, COLUMNS);
    static const int TILES = DEPTH / 128;

    // sums += weights [ROWS x SLICE] . slice [SLICE x DEPTH], the warp's channels.
    static __device__ __forceinline__ void add(float (&sums)[ROW_TILES][TILES][8], const E* weights,
                                               const E* slice) {
        typedef Product<E> P;
        const E* own = slice + static_cast<int>(threadIdx.x) / 32 * (DEPTH / 8 / unit<E>()) * plane<E>(SLICE);
#pragma unroll
        for (int step = 0; step < SLICE / P::STEP; ++step) {
            typename P::Left a[ROW_TILES];
#pragma unroll
            for (int m = 0; m < ROW_TILES; ++m)
                P::left(a[m], weights + (step * (P::STEP / unit<E>()) * plane<E>(ROWS) + m * 16 * unit<E>()),
                        plane<E>(ROWS));
#pragma unroll
            for (int n = 0; n < TILES; ++n) {
                typename P::Right b;
                P::right_rows(b, own + (n * (16 / unit<E>()) * plane<E>(SLICE) + step * P::STEP * unit<E>()),
                              plane<E>(SLICE));
#pragma unroll
                for (int m = 0; m < ROW_TILES; ++m) P::add_rows(sums[m][n], a[m], b);
            }
        }
    }
    // scores [16 x 16] += rows . columns, a slice of channels of both.
    static __device__ __forceinline__ void dot(float* scores, const E* rows, int row_plane,
                                               const E* columns, int column_plane) {
        typedef Product<E> P;
#pragma unroll
        for (int at = 0; at < CHANNELS / P::STEP; ++at) {
            typename P::Left a;
            typename P::Right b;
            P::left(a, rows + at * (P::STEP / unit<E>()) * row_plane, row_plane);
            P::right(b, columns + at * (P::STEP / unit<E>()) * column_plane, column_plane);
            P::add(scores, a, b);
        }
    }
    // Where weight `i` of the calling lane lies, of the product at (row_tile, column_tile).
    static __device__ __forceinline__ int weight_at(int row_tile, int column_tile, int i) {
        int row = row_tile * 16 + Product<E>::row(Product<E>::side(i));
        int column = column_tile * 16 + Product<E>::score_column(i);
        return column / unit<E>() * plane<E>(ROWS) + row * unit<E>() + column % unit<E>();
    }
    static __device__ __forceinline__ void scale(float (&sums)[ROW_TILES][TILES][8], int m, float first,
                                                 float second) {
#pragma unroll
        for (int i = 0; i < 8 * TILES; ++i)
            sums[m][i / 8][i % 8] *= Product<E>::side(i % 8) ? second : first;
    }
    // f(row, channel, low, high) for all sums of the lane.
    template <class F>
    static __device__ __forceinline__ void each(const float (&sums)[ROW_TILES][TILES][8], F f) {
        int channel = static_cast<int>(threadIdx.x) / 32 * (DEPTH / 8);
#pragma unroll
        for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
            for (int i = 0; i < 8 * TILES; i += 2)
                f(m * 16 + Product<E>::row(Product<E>::side(i % 8)),
                  channel + i / 8 * 16 + Product<E>::column(i % 8), sums[m][i / 8][i % 8],
                  sums[m][i / 8][i % 8 + 1]);
    }
};

// The stream of slices of a kernel W; `begin` asks for one by its number.
template <class W, class E, class Begin>
struct SliceStream {
    E* stages;
    const Begin& begin;
    int at;

    // The next slice, when all warps have left the one before.
    __device__ __forceinline__ E* arrive() {
        fill_wait();
        __syncthreads();
        if (W::BUFFERS == 2) begin(at + 1);
        return stages + at % W::BUFFERS * W::STAGE;
    }
    // When a warp is done with it.
    __device__ __forceinline__ void leave() {
        if (W::BUFFERS == 1) {
            __syncthreads();
            begin(at + 1);
        }
        ++at;
    }
};
template <class W, class E, class Begin>
__device__ __forceinline__ SliceStream<W, E, Begin> stream_of(E* stages, const Begin& begin) {
    return {stages, begin, 0};
}
