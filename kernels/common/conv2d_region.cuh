// How a tile of a convolution fills its region: the part of the source that its taps reach, normalised, in
// planes of pieces [piece][pixel][16 bytes] of an odd pitch, with zeros outside the image.
#pragma once
#include "common/conv2d_source.cuh"

// Most pieces of input channels in shared memory at a time: on sm_70 fewer, so that two blocks of float16
// fit a multiprocessor.
template <class E>
struct Chunk {
    static const int MOST = CYANEA_CODE_PATH < 80 && sizeof(E) == 2 ? 4 : 8;
};

// Fills `region` with `count` pieces of channels from `c` on of the source pixels from (y, x) on, zeros
// outside of the image. A thread stays with one piece, and has BATCH of them under way at a time;
// `load(place)` makes that of a pixel.
template <class E, int STEP, int BATCH, class Load>
__device__ __forceinline__ void fill_pixels(const Conv2d<E>& p, int y, int x, int pixel,
                                            const Normalisation<E>& normalisation, E* to, Load load) {
    int row = pixel / p.region_width, column = pixel - row * p.region_width;
    int more_rows = STEP / p.region_width, more_columns = STEP - more_rows * p.region_width;
    int pixels = p.region_height * p.region_width;
    y += row, x += column;
    int end = x - column + p.region_width;
#pragma unroll 1
    while (pixel < pixels) {
        uint4 value[BATCH];
        unsigned inside = 0;
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            value[i] = make_uint4(0, 0, 0, 0);
            // Unsigned, what is negative is too large as well.
            if (static_cast<unsigned>(y) < static_cast<unsigned>(p.height) &&
                static_cast<unsigned>(x) < static_cast<unsigned>(p.width) && pixel + i * STEP < pixels) {
                value[i] = load(y * p.width + x);
                inside |= 1u << i;
            }
            y += more_rows, x += more_columns;
            if (x >= end) x -= p.region_width, ++y;
        }
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            if (pixel + i * STEP >= pixels) continue;
            if (inside >> i & 1) value[i] = normalisation.of(value[i]);
            *reinterpret_cast<uint4*>(to + i * STEP * Piece<E>::SIZE) = value[i];
        }
        pixel += BATCH * STEP, to += BATCH * STEP * Piece<E>::SIZE;
    }
}

// Where pieces of channels from `c` on are read: of the convolution itself, or of its shortcut.
template <class E>
struct ChunkSource {
    const E *first, *second;
    int c1, c2, c, image;  // no tensor has more than 2^31 elements
    bool own, wide;

    __device__ __forceinline__ ChunkSource(const Conv2d<E>& p, int sample, bool of_itself, int channel) {
        own = of_itself, c = channel;
        first = own ? p.x : p.shortcut[0], second = own ? p.x2 : p.shortcut[1];
        c1 = own ? p.c1 : p.shortcut1, c2 = own ? p.c2 : p.shortcut2;
        image = sample * p.height * p.width;
        wide = p.flags & (own ? WIDE : WIDE_SHORTCUT);
    }
    // The channel in the first pixel of the sample, where it lies in a source.
    __device__ __forceinline__ const E* at() const {
        return c < c1 ? first + (image * c1 + c) : second + (image * c2 + (c - c1));
    }
    __device__ __forceinline__ int pitch() const { return c < c1 ? c1 : c2; }
    __device__ __forceinline__ bool beyond() const { return c >= c1 + c2; }
};

template <class E, int THREADS>
__device__ __forceinline__ void fill_region(const Conv2d<E>& p, ChunkSource<E> source, int y, int x, int count,
                                            const float2* affine, E* region, int plane) {
    const int SIZE = Piece<E>::SIZE, STEP = THREADS / Chunk<E>::MOST;
    int piece = threadIdx.x % Chunk<E>::MOST, pixel = threadIdx.x / Chunk<E>::MOST;
    if (piece >= count) return;
    source.c += piece * SIZE;
    Normalisation<E> normalisation(source.own && affine ? affine + source.c : nullptr, source.own && p.silu);
    E* to = region + (piece * plane + pixel * SIZE);
    if (source.wide) {
        // The piece lies in one source, or beyond both.
        bool beyond = source.beyond();
        int pitch = source.pitch();
        const E* from = source.at();
        fill_pixels<E, STEP, 4>(p, y, x, pixel, normalisation, to, [&](int place) {
            if (beyond) return make_uint4(0, 0, 0, 0);
            return *reinterpret_cast<const uint4*>(from + place * pitch);
        });
    } else {
        fill_pixels<E, STEP, 1>(p, y, x, pixel, normalisation, to, [&](int place) {
            return source_piece(source.first, source.second, source.c1, source.c2, false, source.image + place,
                                source.c);
        });
    }
}

// What a thread brings to L2 beside the products, so that DRAM need not wait until they have ended: with each
// tap 32 bytes of every second row of an area of pixels.
struct Ahead {
    static const int ROWS = 2, LANES = 64;  // of the block's threads

    unsigned long long at;
    int down;       // bytes to the next of its rows
    unsigned taps;  // the first that has a row << 16, and how many

    // The area is `rows` x `columns` pixels from (y, x) on, of which `lanes` threads share one. `first` is the
    // thread's part of the image's first pixel, or null; pixels have `pitch` elements.
    template <class E>
    __device__ __forceinline__ void aim(const E* first, int pitch, int height, int width, int y, int x, int rows,
                                        int columns, int lanes) {
        int row = threadIdx.x / LANES, column = threadIdx.x % LANES / lanes;
        y += row, x += column;
        int begin = (max(-y, 0) + 1) / ROWS, end = (min(rows - row, height - y) + 1) / ROWS;
        // Unsigned, what is negative is too large as well.
        bool inside = first && column < columns && static_cast<unsigned>(x) < static_cast<unsigned>(width);
        at = reinterpret_cast<unsigned long long>(first) +
             static_cast<long long>((y * width + x) * pitch) * static_cast<int>(sizeof(E));
        down = ROWS * width * pitch * static_cast<int>(sizeof(E));
        taps = inside && begin < end ? begin << 16 | (end - begin) : 0;
    }
    __device__ __forceinline__ void fetch(int tap) const {
        if (static_cast<unsigned>(tap) - (taps >> 16) < (taps & 0xffff))
            prefetch(reinterpret_cast<const void*>(at + static_cast<long long>(tap) * down));
    }
};
