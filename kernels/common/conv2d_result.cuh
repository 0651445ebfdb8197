// What a convolution does with the sums of a tile: adds, rounds, stores, and leaves moments.
#pragma once
#include "common/conv2d_place.cuh"
#include "common/slices.cuh"
#include "common/warp_product.cuh"

// Where the sums of a warp lie. A lane has four columns of two rows of each 16 x 16 product; weights are packed in
// such an order that the four are neighbouring channels, a quad, which is added to and stored as it is.
template <class E>
struct ResultLayout {
    // Lanes have the places of sm_80, or those of sm_70's tensor cores.
    static const bool AS_80 = CYANEA_CODE_PATH >= 80 || sizeof(E) == 4;
    // Rows between a lane's two, and the bits of lanes that differ in rows alone.
    static const int STEP = AS_80 ? 8 : 2, ROW_BITS = AS_80 ? 28 : 21;

    // The first of the lane's rows, and of the four channels of its quads, of 16.
    __device__ static __forceinline__ int row() { return AS_80 ? warp_lane() / 4 : sum_row(0); }
    __device__ static __forceinline__ int channel() {
        int lane = warp_lane();
        return AS_80 ? lane % 4 * 4 : (lane & 8) + (lane & 2) * 2;
    }
    // Which channel of 16 column `n` of packed weights is.
    __device__ static __forceinline__ int channel_of(int n) {
        return AS_80 ? (n & 6) << 1 | (n & 8) >> 2 | (n & 1) : (n & 9) | (n & 2) << 1 | (n & 4) >> 1;
    }
    // Which of the lane's sums is element `i` of quad `k` = 2 m + (the first or second of its rows) of products
    // [m][n] of NT columns.
    template <int NT>
    __device__ static __forceinline__ int sum(int k, int n, int i) {
        return (k / 2 * NT + n) * 8 + k % 2 * 2 + i / 2 * 4 + i % 2;
    }
    // The bits of lanes that differ in channels of `width` neighbours, at most 16: none within a quad.
    __device__ static __forceinline__ int channel_bits(int width) {
        return (width > 4 ? AS_80 ? 1 : 2 : 0) | (width > 8 ? AS_80 ? 2 : 8 : 0);
    }
    // Sums over the lanes that differ in rows or these bits, side by side.
    template <int COUNT>
    __device__ static __forceinline__ void over_lanes(float (&values)[COUNT], int bits) {
#pragma unroll
        for (int bit = 1; bit < 32; bit *= 2)
            if ((ROW_BITS | bits) & bit)
#pragma unroll
                for (int i = 0; i < COUNT; ++i) values[i] += __shfl_xor_sync(0xffffffffu, values[i], bit);
    }
};

// What pixels of a sample get added in channel `c`, where `wanted`: loaded here, and summed when it is needed.
struct AddedRow {
    float parts[3];

    template <class E>
    __device__ __forceinline__ AddedRow(const Conv2d<E>& p, const float* bias, int sample, int c, bool wanted) {
        parts[0] = parts[1] = parts[2] = 0.0f;
        if (!wanted) return;
        if (bias) parts[0] = bias[c];
        if (p.shortcut_bias) parts[1] = p.shortcut_bias[c];
        if (p.shift) parts[2] = p.shift[sample * p.shift_stride + c];
    }
    __device__ __forceinline__ float sum() const { return parts[0] + parts[1] + parts[2]; }
};

// Where a lane's quads lie in the output.
template <class E, int MT, class Pixels>
struct ResultPlaces {
    static const int WIDTH = Pixels::WIDTH;
    int at, across, down;  // elements of the first; to the next pixel, and to the one WIDTH pixels further on
    unsigned valid;        // a bit for each of the lane's rows that lies in the image
    int channels;          // from the lane's first to the last

    // The lane's first row is at (x, y), and neighbours lie (steps_x, steps_y) apart. The tile ends `rows` after the
    // warp's first.
    __device__ __forceinline__ ResultPlaces(const Conv2d<E>& p, int sample, int y, int x, int steps_y, int steps_x,
                                            int channel, int rows) {
        bool in_row = Pixels::is_row(p);
        at = ((sample * p.out_height + y) * p.out_width + x) * p.c_out + channel;
        channels = p.c_out - channel;
        across = steps_x * p.c_out;
        down = in_row ? WIDTH * across : steps_y * p.out_width * p.c_out;
        valid = 0;
#pragma unroll
        for (int k = 0; k < 2 * MT; ++k) {
            int more = rows_to(k), beside = in_row ? more : more % WIDTH, below = in_row ? 0 : more / WIDTH;
            if (x + beside * steps_x < p.out_width && y + below * steps_y < p.out_height && k / 2 * 16 < rows)
                valid |= 1u << k;
        }
    }
    // A bit for each quad of column `n` of products that exists.
    __device__ __forceinline__ unsigned quads(int n) const { return n * 16 < channels ? valid : 0u; }
    __device__ __forceinline__ int place(int k, int n) const {
        int rows = rows_to(k);
        return at + rows / WIDTH * down + rows % WIDTH * across + n * 16;
    }

private:
    __device__ static __forceinline__ int rows_to(int k) { return k / 2 * 16 + k % 2 * ResultLayout<E>::STEP; }
};

// Sums of 16 rows of a warp, where elements are stored one after another.
template <int NT>
struct Stage {
    static const int COLUMNS = NT * 16, PITCH = COLUMNS + 4, SIZE = 16 * PITCH;
};

// Adds and stores one element after another, where results are no multiple of pieces, or neighbouring
// pixels may belong to different samples: 16 rows, from `pixel` of the tile on, of a warp's columns from
// `column` on. `stage` has the sums, and then what was stored.
template <class E, int NT>
__device__ __forceinline__ void store_elements(const Conv2d<E>& p, const float* bias, E* y, const TileOrigin& tile,
                                               int steps_y, int steps_x, int pixel, int column, float* stage) {
    const int COLUMNS = Stage<NT>::COLUMNS;
    int tile_width = 1 << p.tile_width_log;
#pragma unroll 1
    for (int i = warp_lane(); i < 16 * COLUMNS; i += 32) {
        int row = i / COLUMNS, c = column + i % COLUMNS;
        int out_y = (tile.first_y + ((pixel + row) >> p.tile_width_log)) * steps_y + tile.phase_y;
        int out_x = (tile.first_x + ((pixel + row) & (tile_width - 1))) * steps_x + tile.phase_x;
        if (out_y >= p.out_height || out_x >= p.out_width || c >= p.c_out) continue;
        int at = ((tile.sample * p.out_height + out_y) * p.out_width + out_x) * p.c_out + c;
        float& value = stage[row * Stage<NT>::PITCH + i % COLUMNS];
        value += AddedRow(p, bias, p.sample_pixels ? out_x / p.sample_pixels : tile.sample, c, true).sum();
        if (p.residual) value = fmaf(p.residual_scale, get(p.residual + at), value);
        value = within(value, p.limit);
        put(y + at, value);
        value = rounded(value, y);
    }
}

// Passes the sums of a warp through `stage`, 16 rows at a time: `one_by_one`(m, stage) stores those of products [m].
// Leaves in `sums` what was stored.
template <class E, int MT, int NT, class OneByOne>
__device__ __forceinline__ void stage_results(float* sums, float* stage, OneByOne one_by_one) {
    typedef ResultLayout<E> Layout;
    float* own = stage + Layout::row() * Stage<NT>::PITCH + Layout::channel();
    const int COUNT = 8 * NT, NEXT_ROW = Layout::STEP * Stage<NT>::PITCH;
#pragma unroll
    for (int m = 0; m < MT; ++m) {
#pragma unroll
        for (int j = 0; j < COUNT; ++j)
            own[j / 4 % 2 * NEXT_ROW + j / 8 * 16 + j % 4] = sums[Layout::template sum<NT>(2 * m + j / 4 % 2, j / 8, j % 4)];
        __syncwarp(0xffffffffu);
        one_by_one(m, stage);
        __syncwarp(0xffffffffu);
#pragma unroll
        for (int j = 0; j < COUNT; ++j)
            sums[Layout::template sum<NT>(2 * m + j / 4 % 2, j / 8, j % 4)] = own[j / 4 % 2 * NEXT_ROW + j / 8 * 16 + j % 4];
    }
}

// Sums of a warp begin with what all pixels get added: `row`, from its first column on.
template <class E, int MT, int NT>
__device__ __forceinline__ void begin_sums(float* sums, const float* row) {
    typedef ResultLayout<E> Layout;
#pragma unroll
    for (int n = 0; n < NT; ++n) {
        float4 quad = *reinterpret_cast<const float4*>(row + n * 16 + Layout::channel());
        float value[4] = {quad.x, quad.y, quad.z, quad.w};
#pragma unroll
        for (int j = 0; j < 8 * MT; ++j) sums[Layout::template sum<NT>(j / 4, n, j % 4)] = value[j % 4];
    }
}

// The residual of a lane's quads of column `n` of products, zeros where there is none. Nothing is read where results
// are not stored in quads.
template <class E, int MT>
struct ResidualQuads {
    typename Quad<E>::Type value[2 * MT];

    template <class Places>
    __device__ __forceinline__ ResidualQuads(const Conv2d<E>& p, const Places& places, int n) {
        typedef typename Quad<E>::Type Bits;
        const E* from = p.flags & QUADS ? p.residual : nullptr;
        unsigned wanted = from ? places.quads(n) : 0u;
#pragma unroll
        for (int k = 0; k < 2 * MT; ++k) {
            value[k] = Bits();
            if (wanted >> k & 1) value[k] = *reinterpret_cast<const Bits*>(from + places.place(k, n));
        }
    }
};

// Adds the residual, of which that of column 0 is loaded, to the sums of a warp and stores them, 4 channels at a time.
// Leaves in `sums` what was stored.
template <class E, int MT, int NT, class Places>
__device__ __forceinline__ void store_quads(const Conv2d<E>& p, float* sums, E* y, const Places& places,
                                            ResidualQuads<E, MT> coming) {
    typedef ResultLayout<E> Layout;
    typedef typename Quad<E>::Type Bits;
#pragma unroll
    for (int n = 0; n < NT; ++n) {
        // That of the next column comes while this one is added.
        ResidualQuads<E, MT> residual = coming;
        if (n + 1 < NT) coming = ResidualQuads<E, MT>(p, places, n + 1);
        unsigned wanted = places.quads(n);
#pragma unroll
        for (int k = 0; k < 2 * MT; ++k) {
            float value[4], added[4];
            unpack(residual.value[k], added);
#pragma unroll
            for (int i = 0; i < 4; ++i)
                value[i] = fmaf(p.residual_scale, added[i], sums[Layout::template sum<NT>(k, n, i)]);
            Bits bits = Quad<E>::packed(value, p.limit);
            if (wanted >> k & 1) *reinterpret_cast<Bits*>(y + places.place(k, n)) = bits;
            unpack(bits, value);
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[Layout::template sum<NT>(k, n, i)] = value[i];
        }
    }
}

// The parts of a sample that moments are of: see TilePixels.
template <class Pixels>
struct MomentTiles {
    static const int WIDTH = Pixels::WIDTH, HEIGHT = Pixels::MOMENT_HEIGHT;
    bool in_row;
    int across, down;

    template <class E>
    __device__ __forceinline__ explicit MomentTiles(const Conv2d<E>& p) {
        in_row = Pixels::is_row(p);
        across = in_row ? (p.out_width + 63) / 64 : (p.out_width + WIDTH - 1) / WIDTH;
        down = in_row ? 1 : (p.out_height + HEIGHT - 1) / HEIGHT;
    }
};

__device__ __forceinline__ float sum_of(const float (&parts)[1]) { return parts[0]; }
__device__ __forceinline__ float sum_of(const float (&parts)[4]) { return (parts[0] + parts[1]) + (parts[2] + parts[3]); }

// Of the results of a warp, of `width` neighbouring channels at a time, 4 to 16, or 1 = G: their mean and the sum of
// their squared deviations from it, to `sink`(first channel, mean, sum) in one lane each. `valid` has a bit for each of
// the lane's rows, `count` are in the warp. Deviations are from the first value of all, so that both sums are made at
// once; what is subtracted in the end is less than n times what is left, of n values up to 1,024, and mostly much less.
template <class E, int MT, int NT, int G, class Sink>
__device__ __forceinline__ void moments_of_width(const float* values, unsigned valid, float count, int width, Sink sink) {
    typedef ResultLayout<E> Layout;
    const int COUNT = NT * 4 / G;
    // Few sums are made in several parts, whose additions don't wait for each other.
    const int PARTS = NT == 1 ? G : 1;
    float inverse = count > 0.0f ? reciprocal_approx(count * static_cast<float>(width)) : 0.0f;
    float centres[COUNT], sums[2 * COUNT];
    int bits = Layout::channel_bits(width), first_lane = warp_lane() & ~(Layout::ROW_BITS | bits);
    // Element `j` of those that the calling lane has of number `of`.
    auto value = [&](int of, int j) { return values[Layout::template sum<NT>(j / G, of * G / 4, of * G % 4 + j % G)]; };
#pragma unroll
    for (int of = 0; of < COUNT; ++of) {
        centres[of] = __shfl_sync(0xffffffffu, value(of, 0), first_lane);
        // What lies outside of the image might not be finite.
        if (count == 0.0f) centres[of] = 0.0f;
        float parts[PARTS] = {}, squares[PARTS] = {};
#pragma unroll
        for (int j = 0; j < 2 * MT * G; ++j) {
            float distance = valid >> j / G & 1 ? value(of, j) - centres[of] : 0.0f;
            parts[j % PARTS] += distance;
            squares[j % PARTS] = fmaf(distance, distance, squares[j % PARTS]);
        }
        sums[2 * of] = sum_of(parts), sums[2 * of + 1] = sum_of(squares);
    }
    Layout::over_lanes(sums, bits);
    if (warp_lane() & (Layout::ROW_BITS | bits)) return;
#pragma unroll
    for (int of = 0; of < COUNT; ++of) {
        float moved = sums[2 * of] * inverse, squares = fmaxf(fmaf(-sums[2 * of], moved, sums[2 * of + 1]), 0.0f);
        sink(of * G / 4 * 16 + Layout::channel() + of * G % 4, centres[of] + moved, squares);
    }
}

// The same of 1 or 4 to 16 channels, as the logarithm says.
template <class E, int MT, int NT, class Sink>
__device__ __forceinline__ void warp_moments(const float* values, unsigned valid, float count, int width_log, Sink sink) {
    if (width_log) moments_of_width<E, MT, NT, 4>(values, valid, count, 1 << width_log, sink);
    else moments_of_width<E, MT, NT, 1>(values, valid, count, 1, sink);
}

// Moments of the tiles, of slices of channels: the number of elements, their mean and the sum of their squared
// deviations from it, of the values as they were stored. They go to `moments`, [tile][3][slice] a sample; or, with the
// flag HALVES, [half of a tile][3][slice]: two warps that share the pixels leave theirs, else the second half is empty.
//
// `values` are the results of the calling lane in ResultLayout, `valid` has a bit for each of its rows. `shared` is FREE
// already, or when all warps are here.
template <class E, class Pixels, int WM, int WN, int MT, int NT, bool FREE>
__device__ __forceinline__ void store_moments(const Conv2d<E>& p, const float* values, unsigned valid,
                                              const TileOrigin& place, int column_tile, float* moments, float* shared) {
    typedef ResultLayout<E> Layout;
    const int N = WN * NT * 16, TILES = Pixels::PIXELS == 128 ? 2 : 1, PARTS = WM / TILES;
    int warp = threadIdx.x / 32, warp_row = warp / WN, warp_n = warp % WN * NT * 16;
    int log = p.own_slice_log, slices = p.c_out >> log, together = log < 2 ? 0 : min(log, 4);
    float count[1] = {static_cast<float>(__popc(valid))};
    Layout::over_lanes(count, 0);
    typedef MomentTiles<Pixels> Tiles;
    Tiles tiles(p);
    int halves = p.flags & HALVES ? 2 : 1;  // parts of a tile
    auto store = [&](int tile, int half, int channel, float elements, float mean, float squares) {
        int x = tiles.in_row ? place.first_x / 64 + tile : place.first_x / Tiles::WIDTH;
        int y = tiles.in_row ? 0 : place.first_y / Tiles::HEIGHT + tile, slice = (column_tile * N + channel) >> log;
        if (x >= tiles.across || y >= tiles.down || slice >= slices) return;
        int at = ((place.sample * tiles.down + y) * tiles.across + x) * halves + half;
        float* to = moments + (at * 3 * slices + slice);
        to[0] = elements, to[slices] = mean, to[2 * slices] = squares;
    };
    auto store_tile = [&](int tile, int channel, float elements, float mean, float squares) {
        store(tile, 0, channel, elements, mean, squares);
        if (halves > 1) store(tile, 1, channel, 0.0f, mean, 0.0f);
    };
    // In a small tile one warp most often has all of a slice, or two have halves of the pixels; else parts are merged.
    bool whole = NT == 1 && PARTS <= halves && log == together;
    int width_log = (__ffs(N) - 1) - together;
    float2* parts = reinterpret_cast<float2*>(shared);  // [WM][N / channels that a warp takes together]
    float* counts = shared + WM * N * 2;                // [WM]: pixels
    if (!whole) {
        if (!FREE) __syncthreads();
        if (warp % WN == 0 && warp_lane() == 0) counts[warp_row] = count[0];
    }
    warp_moments<E, MT, NT>(values, valid, count[0], together, [&](int channel, float mean, float squares) {
        channel += warp_n;
        float elements = count[0] * static_cast<float>(1 << log);
        if (whole && PARTS == 2) store(0, warp_row, channel, elements, mean, squares);
        else if (whole) store_tile(warp_row, channel, elements, mean, squares);
        else parts[(warp_row << width_log) + (channel >> together)] = make_float2(mean, squares);
    });
    if (whole) return;
    __syncthreads();
    int each_log = log - together, all = PARTS << each_log;
    for (int own = threadIdx.x; own < TILES * N >> log; own += WM * WN * 32) {
        int tile = (own << log) / N, channel = (own << log) % N;
        Moments merged;
        for (int begin = 0; begin < all; begin += Moments::Batch::SIZE) {
            Moments::Batch batch;
#pragma unroll
            for (int i = 0; i < Moments::Batch::SIZE; ++i) {
                int part = min(begin + i, all - 1), row = tile * PARTS + (part >> each_log);
                int column = (channel >> together) + (part & ((1 << each_log) - 1));
                float2 of = parts[(row << width_log) + column];
                batch.elements[i] = counts[row] * static_cast<float>(1 << together);
                batch.mean[i] = of.x, batch.squares[i] = of.y;
            }
            merged.add(batch, all - begin);
        }
        store_tile(tile, channel, merged.elements, merged.mean, merged.squares);
    }
}

// The block that comes last of a sample and a tile of channels merges the moments of all tiles, so that their
// readers, which are many, need not.
template <class E, class Pixels, int N, int THREADS>
__device__ __forceinline__ void merge_moments(const Conv2d<E>& p, int sample, int column_tile) {
    int log = p.own_slice_log, slices = p.c_out >> log;
    unsigned* ticket = p.tickets + p.moment_tickets + sample * gridDim.y + column_tile;
    if (!comes_last(ticket, gridDim.x / p.batch)) return;
    MomentTiles<Pixels> area(p);
    int tiles = area.across * area.down;
    // Neighbouring lanes share a slice.
    int lanes_log = min(log + __ffs(THREADS / N) - 1, 5), lanes = 1 << lanes_log, lane = threadIdx.x & (lanes - 1);
    int width = N >> log, own = threadIdx.x >> lanes_log, slice = column_tile * width + own;
    bool has = own < width && slice < slices;
    const int BATCH = Moments::Batch::SIZE;
    Moments moments;
    const float* from = p.partials + p.tile_moments + 3ll * sample * tiles * slices + slice;
    float centre = has ? __ldcg(from + slices) : 0.0f;
#pragma unroll 1
    for (int first = has ? lane : tiles; first < tiles; first += BATCH * lanes) {
        Moments::Batch batch;
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            int tile = first + i * lanes;
            const float* of = from + 3 * tile * slices;
            batch.elements[i] = batch.mean[i] = batch.squares[i] = 0.0f;
            if (tile >= tiles) continue;
            batch.elements[i] = __ldcg(of), batch.mean[i] = __ldcg(of + slices);
            batch.squares[i] = __ldcg(of + 2 * slices);
        }
        moments.add(batch, BATCH);
    }
    float2 whole = merged_lanes<32>(moments, centre, lanes_log);
    if (lane > 0 || !has) return;
    float* to = p.own_moments + 3ll * sample * slices + slice;
    float all = static_cast<float>(p.out_height * p.out_width) * static_cast<float>(1 << p.own_slice_log);
    to[0] = all;
    to[slices] = whole.x;
    to[2 * slices] = whole.y * all;
}

// What a tile leaves of its results for normalisations that read them.
template <class E, class Pixels, int WM, int WN, int MT, int NT, bool FREE>
__device__ __forceinline__ void leave_moments(const Conv2d<E>& p, const float* values, unsigned valid,
                                              const TileOrigin& place, int column_tile, float* shared) {
    bool several = p.tile_moments >= 0;
    float* moments = several ? p.partials + p.tile_moments : p.own_moments;
    store_moments<E, Pixels, WM, WN, MT, NT, FREE>(p, values, valid, place, column_tile, moments, shared);
    if (several) merge_moments<E, Pixels, WN * NT * 16, WM * WN * 32>(p, place.sample, column_tile);
}
