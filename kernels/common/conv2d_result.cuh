// What a convolution does with the sums of a tile: adds, rounds, stores, and leaves moments.
#pragma once
#include "common/conv2d_place.cuh"
#include "common/slices.cuh"
#include "common/warp_product.cuh"

// How the results of a warp are stored: 16 bytes of neighbouring channels a lane, pixels one after another.
template <class E, int NT>
struct ResultLayout {
    static const int SIZE = Piece<E>::SIZE, LANES = NT * 16 / SIZE, STEP = 32 / LANES, STEPS = 16 / STEP;
    // Sums of 16 rows in shared memory, with a gap after 32 columns: without bank conflicts.
    static const int PITCH = NT * 16 + (CYANEA_CODE_PATH >= 80 ? 8 : 4), STAGE = 16 * PITCH;

    __device__ static __forceinline__ int staged(int row, int column) {
        return row * PITCH + column + column / 32 * 4;
    }
    // The row of the lane's first piece, the next lie STEP further on each; and the first column of all.
    __device__ static __forceinline__ int row() { return warp_lane() / LANES; }
    __device__ static __forceinline__ int column() { return warp_lane() % LANES * SIZE; }
    // The sum over the lanes that have the same columns, and whether the calling one is their first.
    __device__ static __forceinline__ float over_rows(float value) {
#pragma unroll
        for (int bit = LANES; bit < 32; bit *= 2) value += __shfl_xor_sync(0xffffffffu, value, bit);
        return value;
    }
    __device__ static __forceinline__ bool first_row() { return warp_lane() < LANES; }
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

// A result from what its residual is added to.
template <class E>
__device__ __forceinline__ float finished(const Conv2d<E>& p, float sum, float residual) {
    return within(fmaf(p.residual_scale, residual, sum), p.limit);
}

// Where a lane's pieces lie in the output, from its first on: tiles are 8 wide or one row.
template <class E, int NT>
struct ResultPlaces {
    int x, at, across, down;  // of the first; elements to the next pixel, and to the one 8 pixels further on
    unsigned valid;           // a bit for each piece that lies in the image

    // The first is at (x, y), and neighbours lie (steps_x, steps_y) apart. `groups`: of 16 rows.
    __device__ __forceinline__ ResultPlaces(const Conv2d<E>& p, int groups, int sample, int y, int first_x, int steps_y,
                                            int steps_x, int column) {
        typedef ResultLayout<E, NT> Layout;
        bool in_row = p.tile_width_log > 3;
        x = first_x;
        at = ((sample * p.out_height + y) * p.out_width + x) * p.c_out + column;
        across = steps_x * p.c_out;
        down = in_row ? 8 * across : steps_y * p.out_width * p.c_out;
        valid = 0;
#pragma unroll
        for (int k = 0; k < groups * Layout::STEPS; ++k) {
            int more = k * Layout::STEP, beside = in_row ? more : more % 8, below = in_row ? 0 : more / 8;
            if (x + beside * steps_x < p.out_width && y + below * steps_y < p.out_height) valid |= 1u << k;
        }
        if (column >= p.c_out) valid = 0;
    }
    __device__ __forceinline__ int place(int k) const {
        int rows = k * ResultLayout<E, NT>::STEP;
        return at + rows / 8 * down + rows % 8 * across;
    }
};

// Adds and stores one element after another, where results are no multiple of pieces, or neighbouring
// pixels may belong to different samples: 16 rows, from `pixel` of the tile on, of a warp's columns from
// `column` on. `stage` has the sums, and then what was stored.
template <class E, int NT>
__device__ __forceinline__ void store_elements(const Conv2d<E>& p, const float* bias, E* y, const TileOrigin& tile,
                                               int steps_y, int steps_x, int pixel, int column, float* stage) {
    const int COLUMNS = NT * 16;
    int tile_width = 1 << p.tile_width_log;
#pragma unroll 1
    for (int i = warp_lane(); i < 16 * COLUMNS; i += 32) {
        int row = i / COLUMNS, c = column + i % COLUMNS;
        int out_y = (tile.first_y + ((pixel + row) >> p.tile_width_log)) * steps_y + tile.phase_y;
        int out_x = (tile.first_x + ((pixel + row) & (tile_width - 1))) * steps_x + tile.phase_x;
        if (out_y >= p.out_height || out_x >= p.out_width || c >= p.c_out) continue;
        int at = ((tile.sample * p.out_height + out_y) * p.out_width + out_x) * p.c_out + c;
        float& value = stage[ResultLayout<E, NT>::staged(row, i % COLUMNS)];
        value += AddedRow(p, bias, p.sample_pixels ? out_x / p.sample_pixels : tile.sample, c, true).sum();
        value = finished(p, value, p.residual ? get(p.residual + at) : 0.0f);
        put(y + at, value);
        value = rounded(value, y);
    }
    __syncwarp(0xffffffffu);
}

// Adds to the sums of a warp what is to be added, and stores them. Leaves in `sums` what was stored, in the
// order of ResultLayout. `stage` is shared memory of the warp's own. `one_by_one(m, stage)` stores the 16
// rows `m` where that is not done 16 bytes at a time.
template <class E, int MT, int NT, class OneByOne>
__device__ __forceinline__ void store_results(const Conv2d<E>& p, float* sums, E* y, const float4* added_row,
                                              float* stage, const ResultPlaces<E, NT>& places, OneByOne one_by_one) {
    typedef WarpProduct<E> Product;
    typedef ResultLayout<E, NT> Layout;
    const int SIZE = Layout::SIZE;
    bool pieces = p.flags & PIECES;
    float row[SIZE];
#pragma unroll
    for (int i = 0; i < SIZE; i += 4) {
        float4 part = added_row[i / 4];
        row[i] = part.x, row[i + 1] = part.y, row[i + 2] = part.z, row[i + 3] = part.w;
    }
    // The residual of so many 16 rows is under way at a time.
    const int AHEAD = CYANEA_CODE_PATH >= 80 ? MT : 2;
    uint4 other[AHEAD][Layout::STEPS];
    auto fetch = [&](int m) {
#pragma unroll
        for (int step = 0; step < Layout::STEPS; ++step) {
            int k = m * Layout::STEPS + step;
            uint4& piece = other[m % AHEAD][step];
            piece = make_uint4(0, 0, 0, 0);
            if (pieces && p.residual && places.valid >> k & 1)
                piece = *reinterpret_cast<const uint4*>(p.residual + places.place(k));
        }
    };
#pragma unroll
    for (int m = 0; m < AHEAD && m < MT; ++m) fetch(m);
#pragma unroll
    for (int m = 0; m < MT; ++m) {
        __syncwarp(0xffffffffu);
#pragma unroll
        for (int i = 0; i < 8 * NT; i += 2) {
            int to = Layout::staged(Product::sum_row(i % 8), i / 8 * 16 + Product::sum_column(i % 8));
            *reinterpret_cast<float2*>(stage + to) = make_float2(sums[m * 8 * NT + i], sums[m * 8 * NT + i + 1]);
        }
        __syncwarp(0xffffffffu);
        if (!pieces) one_by_one(m, stage);
#pragma unroll
        for (int k = m * Layout::STEPS; k < (m + 1) * Layout::STEPS; ++k) {
            float value[SIZE], added[SIZE];
#pragma unroll
            for (int i = 0; i < SIZE; i += 4) {
                int from = Layout::staged(Layout::row() + k % Layout::STEPS * Layout::STEP, Layout::column() + i);
                float4 part = *reinterpret_cast<const float4*>(stage + from);
                value[i] = part.x, value[i + 1] = part.y, value[i + 2] = part.z, value[i + 3] = part.w;
            }
            // One by one all of this adds zeros to what is rounded already.
            unpack(other[m % AHEAD][k % Layout::STEPS], added);
#pragma unroll
            for (int i = 0; i < SIZE; ++i) value[i] = finished(p, value[i] + row[i], added[i]);
            uint4 piece = pack(value);
            unpack(piece, value);
            if (pieces && places.valid >> k & 1) *reinterpret_cast<uint4*>(y + places.place(k)) = piece;
#pragma unroll
            for (int i = 0; i < SIZE; ++i) sums[k * SIZE + i] = value[i];
        }
        if (m + AHEAD < MT) fetch(m + AHEAD);
    }
}

// The 64 pixels at a time of a sample that moments are of: 8 x 8, or in a row where a tile of the product is.
struct MomentTiles {
    bool in_row;
    int across, down;

    template <class E>
    __device__ __forceinline__ explicit MomentTiles(const Conv2d<E>& p) {
        in_row = p.tile_width_log > 3;
        across = in_row ? (p.out_width + 63) / 64 : (p.out_width + 7) / 8;
        down = in_row ? 1 : (p.out_height + 7) / 8;
    }
};

// Of the values of a lane in ResultLayout, of G neighbouring channels at a time and over the warp's pixels: their
// mean and the sum of their squared deviations from it, to `parts`, [channels / G][2]. `valid` has a bit for each
// of the lane's pieces, `count` of them lie in the same channels of the warp.
template <class E, int MT, int NT, int G>
__device__ __forceinline__ void warp_moments(const float* values, unsigned valid, float count, float* parts) {
    typedef ResultLayout<E, NT> Layout;
    const int COUNT = MT * Layout::STEPS;
    float inverse = count > 0.0f ? 1.0f / (count * G) : 0.0f;
#pragma unroll
    for (int first = 0; first < Layout::SIZE; first += G) {
        float total = 0.0f, squares = 0.0f;
#pragma unroll
        for (int i = 0; i < COUNT * G; ++i)
            if (valid >> i / G & 1) total += values[i / G * Layout::SIZE + first + i % G];
        float mean = Layout::over_rows(total) * inverse;
#pragma unroll
        for (int i = 0; i < COUNT * G; ++i) {
            float distance = values[i / G * Layout::SIZE + first + i % G] - mean;
            if (valid >> i / G & 1) squares = fmaf(distance, distance, squares);
        }
        squares = Layout::over_rows(squares);
        float* to = parts + (Layout::column() + first) / G * 2;
        if (Layout::first_row()) *reinterpret_cast<float2*>(to) = make_float2(mean, squares);
    }
}

// Moments of the tiles, of slices of channels: the number of elements, their mean and the sum of their squared
// deviations from it, in two passes over the values as they were stored. They go to `moments`, [tile][3][slice]
// a sample.
//
// `values` are the results of the calling lane in ResultLayout, `valid` a bit for each of its pieces.
template <class E, int WM, int WN, int MT, int NT>
__device__ __forceinline__ void store_moments(const Conv2d<E>& p, const float* values, unsigned valid,
                                              const TileOrigin& place, int column_tile, float* moments, float* shared) {
    typedef ResultLayout<E, NT> Layout;
    const int N = WN * NT * 16, TILES = WM * MT * 16 / 64, PARTS = WM / TILES, G = 4;
    int warp = threadIdx.x / 32, warp_row = warp / WN, warp_n = warp % WN * NT * 16;
    float* parts = shared;                // [WM][N / channels that a warp takes together][2]
    float* counts = shared + WM * N * 2;  // [WM]: pixels
    float count = Layout::over_rows(static_cast<float>(__popc(valid)));
    int log = __ffs(p.own_slice) - 1, slices = p.c_out >> log, together = log >= 2 ? 2 : 0, width = N >> together;
    __syncthreads();
    if (warp % WN == 0 && warp_lane() == 0) counts[warp_row] = count;
    float* own_parts = parts + (warp_row * width + (warp_n >> together)) * 2;
    if (together) warp_moments<E, MT, NT, G>(values, valid, count, own_parts);
    else warp_moments<E, MT, NT, 1>(values, valid, count, own_parts);
    __syncthreads();
    // A slice is the work of as many neighbouring lanes as there are parts of it.
    static_assert(PARTS * (N < 64 ? N : 64) / G <= 32, "at most a warp, since slices have at most 64 channels");
    int each = log - together, lanes = PARTS << each, lanes_log = __ffs(lanes) - 1;
    int count_of_slices = TILES * N >> log, thread = threadIdx.x, lane = thread & (lanes - 1);
    MomentTiles tiles(p);
    for (int base = 0; base < count_of_slices; base += WM * WN * 32 >> lanes_log) {
        // All lanes of a warp take part in the sums.
        int wanted = base + (thread >> lanes_log), own = min(wanted, count_of_slices - 1);
        int tile = (own << log) / N, first = (own << log) % N, row = tile * PARTS + (lane >> each);
        int column = (first >> together) + (lane & ((1 << each) - 1));
        float2 part = *reinterpret_cast<const float2*>(parts + (row * width + column) * 2);
        float own_elements = counts[row] * static_cast<float>(1 << together);
        float elements = lanes_sum(own_elements, lanes);
        float mean = lanes_sum(own_elements * part.x, lanes) / elements, distance = part.x - mean;
        float squares = lanes_sum(fmaf(own_elements * distance, distance, part.y), lanes);
        int x = tiles.in_row ? place.first_x / 64 + tile : place.first_x / 8;
        int y = tiles.in_row ? 0 : place.first_y / 8 + tile, slice = (column_tile * N + first) >> log;
        if (lane > 0 || wanted > own || x >= tiles.across || y >= tiles.down || slice >= slices) continue;
        long long at = (static_cast<long long>(place.sample) * tiles.down + y) * tiles.across + x;
        float* to = moments + at * 3 * slices + slice;
        to[0] = elements;
        to[slices] = mean;
        to[2 * slices] = squares;
    }
}

// The block that comes last of a sample and a tile of channels merges the moments of all tiles, so that their
// readers, which are many, need not.
template <class E, int N, int THREADS>
__device__ __forceinline__ void merge_moments(const Conv2d<E>& p, int sample, int column_tile) {
    int log = __ffs(p.own_slice) - 1, slices = p.c_out >> log;
    unsigned* ticket = p.tickets + p.moment_tickets + sample * gridDim.y + column_tile;
    if (!comes_last(ticket, gridDim.x / p.batch)) return;
    MomentTiles area(p);
    int tiles = area.across * area.down;
    // Neighbouring lanes share a slice.
    int lanes_log = min(log + __ffs(THREADS / N) - 1, 5), lanes = 1 << lanes_log, lane = threadIdx.x & (lanes - 1);
    int width = N >> log, own = threadIdx.x >> lanes_log, slice = column_tile * width + own;
    bool has = own < width && slice < slices;
    // Of a lane's tiles BATCH at a time are taken together, and joined with those before (Chan, Golub & LeVeque
    // 1979, eq. 2.1).
    const int BATCH = 4;
    float count = 0.0f, mean = 0.0f, squares = 0.0f;
    const float* from = p.partials + p.tile_moments + 3ll * sample * tiles * slices + slice;
#pragma unroll 1
    for (int first = has ? lane : tiles; first < tiles; first += BATCH * lanes) {
        float elements[BATCH], means[BATCH], spread[BATCH], all = count, total = count * mean;
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            int tile = first + i * lanes;
            const float* of = from + 3 * tile * slices;
            elements[i] = means[i] = spread[i] = 0.0f;
            if (tile >= tiles) continue;
            elements[i] = __ldcg(of), means[i] = __ldcg(of + slices), spread[i] = __ldcg(of + 2 * slices);
        }
#pragma unroll
        for (int i = 0; i < BATCH; ++i) all += elements[i], total = fmaf(elements[i], means[i], total);
        float next = total / all, moved = mean - next;
        squares = fmaf(count * moved, moved, squares);
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            float distance = means[i] - next;
            squares += fmaf(elements[i] * distance, distance, spread[i]);
        }
        count = all, mean = next;
    }
    float all = static_cast<float>(p.out_height * p.out_width) * static_cast<float>(p.own_slice);
    float whole = lanes_sum(count * mean, lanes) / all, distance = mean - whole;
    squares = lanes_sum(fmaf(count * distance, distance, squares), lanes);
    if (lane > 0 || !has) return;
    float* to = p.own_moments + 3ll * sample * slices + slice;
    to[0] = all;
    to[slices] = whole;
    to[2 * slices] = squares;
}

// What a tile leaves of its results for normalisations that read them. `shared` is free when all warps are here.
template <class E, int WM, int WN, int MT, int NT>
__device__ __forceinline__ void leave_moments(const Conv2d<E>& p, const float* values, unsigned valid,
                                              const TileOrigin& place, int column_tile, float* shared) {
    bool several = p.tile_moments >= 0;
    float* moments = several ? p.partials + p.tile_moments : p.own_moments;
    store_moments<E, WM, WN, MT, NT>(p, values, valid, place, column_tile, moments, shared);
    if (several) merge_moments<E, WN * NT * 16, WM * WN * 32>(p, place.sample, column_tile);
}
