// How a tile of a convolution fills its region: the part of the source that its taps reach, normalised, in
// planes of pieces [piece][pixel][16 bytes], with zeros outside the image.
#pragma once
#include "common/conv2d_source.cuh"

// Most pieces of input channels in shared memory at a time where weights are there, too: on sm_70 fewer, so that
// two blocks of float16 fit a multiprocessor.
template <class E>
struct Chunk {
    static const int MOST = CYANEA_CODE_PATH < 80 && sizeof(E) == 2 ? 4 : 8;
};

// A slice's part of what is split: from `begin` up to `end` of `all`.
struct SlicePart {
    int begin, end;

    template <class E>
    __device__ __forceinline__ SlicePart(const Conv2d<E>& p, int slice, bool splits, int all) {
        begin = 0, end = all;
        if (splits && p.slices > 1)
            begin = divided(all * slice, p.slices_reciprocal), end = divided(all * (slice + 1), p.slices_reciprocal);
    }
};

// The chunks of a slice where those of a shortcut follow the sources', one of these at least. Shortcuts have a single
// tap, so they are split for themselves.
struct SliceChunks {
    int first, own_end, end;  // those of the shortcut are numbered on from the sources'
    int shift;                // from the number of one of the shortcut to its place there

    template <class E>
    __device__ __forceinline__ SliceChunks(const Conv2d<E>& p, int slice, bool splits) {
        SlicePart own(p, slice, splits, p.main_chunks), more(p, slice, splits, p.chunks - p.main_chunks);
        first = own.begin, own_end = own.end;
        end = own_end + more.end - more.begin, shift = own_end - more.begin;
    }
    __device__ __forceinline__ bool is_own(int chunk) const { return chunk < own_end; }
    // Which of the sources' it is, or of the shortcut's.
    __device__ __forceinline__ int place(int chunk) const { return is_own(chunk) ? chunk : chunk - shift; }
};

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

// The column that lies at place `at` of a row of a region. Rows that are SPLIT have even ones first, so that lanes that
// read every second one don't meet in a bank: column c is at c / 2 + c % 2 even_columns.
template <bool SPLIT, class E>
__device__ __forceinline__ int region_column(const Conv2d<E>& p, int at) {
    return SPLIT ? (at << p.split) - (at >= p.even_columns ? 2 * p.even_columns - 1 : 0) : at;
}

// What a thread brings to a region: it stays with one piece, and takes every STEP-th pixel, BATCH of them under
// way at a time. The region begins at (y, x) of the source, and is zero outside of the image. SPLIT: its rows may be.
template <class E, int STEP, int BATCH, bool SPLIT = false>
struct RegionPieces {
    uint4 value[BATCH];
    unsigned inside;  // a bit each

    // Of the pixels from `pixel` on, of a source that is read a piece at a time.
    __device__ __forceinline__ void load(const Conv2d<E>& p, const ChunkSource<E>& source, int y, int x, int pixel) {
        int pixels = p.region_height * p.region_width, pitch = source.pitch();
        keep(pitch);
        // What is not there is read from the first pixel: without branches all are under way at once.
        bool beyond = source.beyond();
        const E* from = beyond ? source.first : source.at();
        inside = 0;
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            int own = pixel + i * STEP, row = divided(own, p.region_reciprocal);
            int at_y = y + row, at_x = x + region_column<SPLIT>(p, own - row * p.region_width);
            // Unsigned, what is negative is too large as well.
            bool has = static_cast<unsigned>(at_y) < static_cast<unsigned>(p.height) &&
                       static_cast<unsigned>(at_x) < static_cast<unsigned>(p.width) && own < pixels && !beyond;
            inside |= has ? 1u << i : 0u;
            value[i] = *reinterpret_cast<const uint4*>(from + (has ? (at_y * p.width + at_x) * pitch : 0));
        }
    }
    // `to` is the place of the first. `convert` makes what is stored of a piece. Where FEW threads have the last of the
    // batch, the others don't convert it.
    template <bool FEW = false, class Convert>
    __device__ __forceinline__ void store(const Conv2d<E>& p, int pixel, E* to, Convert convert) const {
        int pixels = p.region_height * p.region_width;
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            if (FEW && i == BATCH - 1 && pixel + i * STEP >= pixels) return;
            uint4 piece = convert(value[i]);
            if (!(inside >> i & 1)) piece = make_uint4(0, 0, 0, 0);
            if (pixel + i * STEP < pixels) *reinterpret_cast<uint4*>(to + i * STEP * Piece<E>::SIZE) = piece;
        }
    }
};

// All of a thread's pixels from `pixel` on.
template <bool SPLIT, int STEP, int BATCH, class E, class Convert>
__device__ __forceinline__ void fill_pieces(const Conv2d<E>& p, const ChunkSource<E>& source, int y, int x, int pixel,
                                            E* to, Convert convert) {
    const int SIZE = Piece<E>::SIZE;
    int pixels = p.region_height * p.region_width;
    if (source.wide) {
#pragma unroll 1
        for (; pixel < pixels; pixel += BATCH * STEP, to += BATCH * STEP * SIZE) {
            RegionPieces<E, STEP, BATCH, SPLIT> pieces;
            pieces.load(p, source, y, x, pixel);
            pieces.store(p, pixel, to, convert);
        }
        return;
    }
#pragma unroll 1
    for (; pixel < pixels; pixel += STEP, to += STEP * SIZE) {
        int row = divided(pixel, p.region_reciprocal);
        int at_y = y + row, at_x = x + region_column<SPLIT>(p, pixel - row * p.region_width);
        uint4 piece = make_uint4(0, 0, 0, 0);
        if (at_y >= 0 && at_y < p.height && at_x >= 0 && at_x < p.width)
            piece = convert(source_piece(source.first, source.second, source.c1, source.c2, false,
                                         source.image + at_y * p.width + at_x, source.c));
        *reinterpret_cast<uint4*>(to) = piece;
    }
}

// All of a thread's pixels from `pixel` on: of a source that is read a piece at a time what has arrived first, then the
// rest, REST of them under way at a time. `affine` has the coefficients of the thread's piece, as AffinePlace says, or
// is null.
template <int REST, class E, int STEP, int BATCH, bool SPLIT>
__device__ __forceinline__ void store_arrived(const Conv2d<E>& p, const ChunkSource<E>& source,
                                              const RegionPieces<E, STEP, BATCH, SPLIT>& arrived, int y, int x,
                                              int pixel, const float2* affine, int affine_pitch, E* to) {
    int rest = source.wide ? pixel + BATCH * STEP : pixel;
    E* rest_to = to + (rest - pixel) * Piece<E>::SIZE;
    if (affine || p.silu) {
        Normalisation<E> normalisation(affine, affine_pitch, p.silu);
        auto convert = [&](const uint4& value) { return normalisation.of(value); };
        if (source.wide) arrived.template store<true>(p, pixel, to, convert);
        fill_pieces<SPLIT, STEP, REST>(p, source, y, x, rest, rest_to, convert);
    } else {
        auto convert = [](const uint4& value) { return value; };
        if (source.wide) arrived.template store<true>(p, pixel, to, convert);
        fill_pieces<SPLIT, STEP, REST>(p, source, y, x, rest, rest_to, convert);
    }
}

// Fills `region` with `count` pieces of channels of `source`, of the source pixels from (y, x) on. BATCH: pixels
// that a thread has under way.
template <class E, int THREADS, int BATCH>
__device__ __forceinline__ void fill_region(const Conv2d<E>& p, ChunkSource<E> source, int y, int x, int count,
                                            const float2* affine, int affine_pitch, E* region, int plane) {
    const int SIZE = Piece<E>::SIZE, STEP = THREADS / Chunk<E>::MOST;
    int piece = threadIdx.x % Chunk<E>::MOST, pixel = threadIdx.x / Chunk<E>::MOST;
    if (piece >= count) return;
    source.c += piece * SIZE;
    E* to = region + (piece * plane + pixel * SIZE);
    if (source.own && (affine || p.silu)) {
        const float2* own = affine ? affine + AffinePlace<E>::of_piece(source.c / SIZE) : nullptr;
        Normalisation<E> normalisation(own, affine_pitch, p.silu);
        auto convert = [&](const uint4& value) { return normalisation.of(value); };
        fill_pieces<false, STEP, BATCH>(p, source, y, x, pixel, to, convert);
    } else {
        fill_pieces<false, STEP, BATCH>(p, source, y, x, pixel, to, [](const uint4& value) { return value; });
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
