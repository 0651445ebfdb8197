// A small tile of a convolution in float16: 64 pixels x 16 to 64 output channels, for images with few tiles.
//
// A block alone on a multiprocessor waits for whatever it does next, so it does little besides products. A warp
// has 16 output channels of its own, so that its weights go straight from memory to registers, DEPTH taps ahead,
// and no barrier stands between taps. What all warps read, the region (see conv2d_tile.cuh), is of up to four
// pieces of input channels at a time; while they multiply, the next pieces are on their way to a second buffer.
#pragma once
#include "common/conv2d_region.cuh"
#include "common/conv2d_result.cuh"

// Products of a warp, [MT 16 pixels] x [16 channels], with the weights of a tap in registers, of up to PAIRS pairs
// of pieces.
template <int MT>
struct SmallProduct {
    static const int PAIRS = 2;
#if CYANEA_CODE_PATH >= 80
    // What a lane holds of b as m16n8k16 takes it: 4 bytes of a piece, the pieces of 8 columns side by side.
    typedef unsigned Load;
    static const int LOADS = 4;

    __device__ static __forceinline__ int lane_offset() { return warp_lane(); }
    __device__ static __forceinline__ int load_offset(int i) { return (i % 2 * WEIGHT_BLOCK + i / 2 * 8) * 4; }
    __device__ static __forceinline__ int row_offset(int plane) { return warp_lane() / 16 * plane; }
    template <int NOW>
    __device__ static __forceinline__ void add(float* sums, const Load* b, const __half* row, int step, int plane) {
        SharedRow at = shared_row(row);
#pragma unroll
        for (int m = 0; m < MT; ++m) {
            unsigned a[NOW][4];
#pragma unroll
            for (int pair = 0; pair < NOW; ++pair) ldmatrix_at<false>(a[pair], moved(at, m * step + 2 * pair * plane));
#pragma unroll
            for (int pair = 0; pair < NOW; ++pair) multiply<16, false, false>(sums + m * 8, a[pair], b + pair * LOADS);
        }
    }
#else
    // 16 bytes of a column.
    typedef uint4 Load;
    static const int LOADS = 2;

    __device__ static __forceinline__ int lane_offset() { return b_column<16>(); }
    __device__ static __forceinline__ int load_offset(int i) { return i * WEIGHT_BLOCK; }
    __device__ static __forceinline__ int row_offset(int) { return 0; }
    template <int NOW>
    __device__ static __forceinline__ void add(float* sums, const Load* loads, const __half* row, int step, int plane) {
#pragma unroll
        for (int pair = 0; pair < NOW; ++pair) one(sums, loads + pair * LOADS, row + 2 * pair * plane, step, plane);
    }
    __device__ static __forceinline__ void one(float* sums, const Load* loads, const __half* row, int step, int plane) {
        unsigned b[8] = {loads[0].x, loads[0].y, loads[0].z, loads[0].w, loads[1].x, loads[1].y, loads[1].z, loads[1].w};
#pragma unroll
        for (int m = 0; m < MT; ++m) {
            unsigned a[8];
            load_a<16>(a, row + m * step, plane);
            multiply<16, false, false>(sums + m * 8, a, b);
        }
    }
#endif
};

// The taps of a chunk, row by row: their weights, and what of the region they read.
template <bool TRANSPOSED, int MT>
struct SmallTaps {
    typedef SmallProduct<MT> Product;
    typedef typename Product::Load Load;
    static const int DEPTH = 3, PAIRS = Product::PAIRS, LOADS = Product::LOADS;
    static const int EACH = 16 / sizeof(Load);  // loads of a piece of a column

    Load weights[DEPTH][PAIRS * LOADS];
    const Load* from;   // of the next tap, the lane's first
    int pair;           // loads to the second pair of pieces, 0 without
    int across, down;   // loads to the next tap of a row, and to the first of the next row
    int columns, left;  // taps of a row, and how many are left of the one that is loaded
    int count, loaded;  // taps of the chunk, and how many are loaded
    int place;          // of the next tap that is multiplied: its row << 16 | column

    __device__ __forceinline__ void fetch(int stage) {
        const Load* pairs[] = {from, from + pair};
#pragma unroll
        for (int i = 0; i < PAIRS * LOADS; ++i)
            weights[stage][i] = pairs[i / LOADS][Product::load_offset(i % LOADS)];
        // The last tap again beyond it, which is cheaper than a branch.
        int further = --left == 0 ? down : across;
        if (left == 0) left = columns;
        from += ++loaded < count ? further : 0;
    }
    // `image` has the warp's columns of the chunk's first piece for the first of `tap_rows` x `tap_columns` taps, the
    // next column of taps begins `next_column` pieces of columns further, the next row `next_row`.
    __device__ __forceinline__ void start(const uint4* image, int pieces, int tap_rows, int tap_columns, int next_row,
                                          int next_column, int first_place) {
        columns = left = tap_columns, count = tap_rows * tap_columns, loaded = 0, place = first_place;
        pair = pieces > 2 ? 2 * WEIGHT_BLOCK * EACH : 0;
        across = next_column * EACH, down = (next_row - (columns - 1) * next_column) * EACH;
        from = reinterpret_cast<const Load*>(image) + Product::lane_offset();
#pragma unroll
        for (int i = 0; i < DEPTH; ++i) fetch(i);
    }
    // `own` is the lane's pixel in the region for the first tap: row << 16 | column, before upsampling.
    template <int NOW>
    __device__ __forceinline__ void multiply_tap(const Conv2d<__half>& p, float* sums, int stage, const __half* region,
                                                 int own, int step, int plane) {
        int at = TRANSPOSED ? own - place : own + place;
        int pixel = ((at >> 16) >> p.upsample) * p.region_width + ((at & 0xffff) >> p.upsample);
        const __half* row = region + (pixel * 8 + Product::row_offset(plane));
        Product::template add<NOW>(sums, weights[stage], row, step, plane);
        bool turns = (place & 0xffff) + 1 == columns;
        place += turns ? 0x10001 - columns : 1;
    }
    template <int NOW>
    __device__ __forceinline__ void multiply_all(const Conv2d<__half>& p, float* sums, const __half* region, int own,
                                                 int step, int plane) {
        int tap = 0;
#pragma unroll 1
        for (; tap + DEPTH <= count; tap += DEPTH) {
#pragma unroll
            for (int i = 0; i < DEPTH; ++i) {
                multiply_tap<NOW>(p, sums, i, region, own, step, plane);
                fetch(i);
            }
        }
#pragma unroll
        for (int i = 0; i < DEPTH; ++i)
            if (tap + i < count) multiply_tap<NOW>(p, sums, i, region, own, step, plane);
    }
    __device__ __forceinline__ void multiply_chunk(const Conv2d<__half>& p, float* sums, const __half* region, int own,
                                                   int step, int plane) {
        if (pair) multiply_all<2>(p, sums, region, own, step, plane);
        else multiply_all<1>(p, sums, region, own, step, plane);
    }
};

// WM x WN warps of 64 / WM pixels x 16 channels. `column` counts the tiles of channels of all siblings.
template <bool TRANSPOSED, int WM, int WN>
__device__ __forceinline__ void conv2d_small_tile(const Conv2d<__half>& p, int tile, int column, int slice) {
    typedef __half E;
    typedef SmallTaps<TRANSPOSED, 4 / WM> Taps;
    const int MT = 4 / WM, M = 64, N = WN * 16, THREADS = WM * WN * 32, SIZE = 8;
    // Most pieces of a chunk; the pixels that a thread fills stand STEP apart, of a 3x3 it has BATCH at most.
    const int MOST = 2 * Taps::PAIRS, STEP = THREADS / MOST, BATCH = 4;
    CYANEA_DYNAMIC_SHARED(E, shared);
    CYANEA_SHARED(float4, row_quads, N / 4);
    // What the sums of slice 0 begin with where results are stored in quads; else zeros.
    float* row = reinterpret_cast<float*>(row_quads);

    TileOrigin of = tile_origin<TRANSPOSED>(p, tile, 6 - p.tile_width_log);
    Axis<TRANSPOSED> rows = {of.first_y, of.phase_y, p.stride_h, p.pad_top, p.kh};
    Axis<TRANSPOSED> columns = {of.first_x, of.phase_x, p.stride_w, p.pad_left, p.kw};
    int tap_rows = rows.count(), tap_columns = columns.count();
    int column_tiles = (p.c_out + N - 1) / N, sibling = column / column_tiles;
    int column_tile = column - sibling * column_tiles;
    int warp = threadIdx.x / 32, warp_m = warp / WN * MT * 16, warp_n = warp % WN * 16;
    int first_column = column_tile * N + warp_n;

    // Chunks of input channels, then those of the shortcut.
    int pieces = (p.c1 + p.c2 + 2 * SIZE - 1) / (2 * SIZE) * 2;
    int more_pieces = (p.shortcut1 + p.shortcut2 + 2 * SIZE - 1) / (2 * SIZE) * 2;
    int chunk = 0, last_chunk = p.chunks;
    if (p.slices > 1) {
        chunk = divided(p.chunks * slice, p.slices_reciprocal);
        last_chunk = divided(p.chunks * (slice + 1), p.slices_reciprocal);
    }
    // A phase of a transposed convolution may have no tap.
    if (tap_rows <= 0 || tap_columns <= 0) last_chunk = chunk;
    // A pitch of 2 or 6 modulo 8 pieces: pieces of two pixels are stored without bank conflicts.
    int plane = ((p.region_height * p.region_width + 1) / 4 * 4 + 2) * SIZE;
    E* region = shared;
    E* next_region = p.buffers > 1 ? shared + p.chunk * plane : shared;
    float2* affine = reinterpret_cast<float2*>(shared + p.buffers * p.chunk * plane);

    int piece = threadIdx.x % MOST, pixel = threadIdx.x / MOST;
    auto is_own = [&](int chunk) { return chunk < p.main_chunks; };
    auto first_piece = [&](int chunk) { return (is_own(chunk) ? chunk : chunk - p.main_chunks) * p.chunk; };
    auto source_of = [&](int chunk) {
        return ChunkSource<E>(p, of.sample, is_own(chunk), (first_piece(chunk) + piece) * SIZE);
    };
    RegionPieces<E, STEP, BATCH> arriving;
    Taps taps;
    auto request_pieces = [&](int chunk) {
        ChunkSource<E> source = source_of(chunk);
        if (source.wide && piece < p.chunk) arriving.load(p, source, of.base_y, of.base_x, pixel);
    };
    auto request_weights = [&](int chunk) {
        bool own = is_own(chunk);
        int first = first_piece(chunk), all = own ? pieces : more_pieces;
        const E* packed = sibling == 0 ? p.weight[0] : sibling == 1 ? p.weight[1] : p.weight[2];
        const uint4* image = reinterpret_cast<const uint4*>(own ? packed : p.shortcut_weight);
        int tap = own ? rows.first_tap() * p.kw + columns.first_tap() : 0;
        int block = first_column / WEIGHT_BLOCK * (own ? p.kh * p.kw : 1) + tap;
        image += (block * all + first) * WEIGHT_BLOCK + first_column % WEIGHT_BLOCK;
        int next_column = columns.steps() * all * WEIGHT_BLOCK, next_row = rows.steps() * p.kw * all * WEIGHT_BLOCK;
        // A shortcut has the tap in the middle alone.
        int place = own ? 0 : p.pad_top << 16 | p.pad_left;
        taps.start(image, min(p.chunk, all - first), own ? tap_rows : 1, own ? tap_columns : 1, next_row, next_column,
                   place);
    };
    bool normalises = p.affine || p.gamma;
    int first_channel = chunk * p.chunk * SIZE, end = min(last_chunk, p.main_chunks) * p.chunk * SIZE;
    // What has arrived, and what of the chunk was not requested.
    auto store_pieces = [&](int chunk, E* to) {
        if (piece >= p.chunk) return;
        ChunkSource<E> source = source_of(chunk);
        to += piece * plane + pixel * SIZE;
        int rest = source.wide ? pixel + BATCH * STEP : pixel;
        E* rest_to = to + (rest - pixel) * SIZE;
        if (is_own(chunk) && (normalises || p.silu)) {
            Normalisation<E> normalisation(normalises ? affine + (source.c - first_channel) : nullptr, p.silu);
            auto convert = [&](const uint4& value) { return normalisation.of(value); };
            if (source.wide) arriving.store(p, pixel, to, convert);
            fill_pieces<E, STEP, BATCH>(p, source, of.base_y, of.base_x, rest, rest_to, convert);
        } else {
            auto convert = [](const uint4& value) { return value; };
            if (source.wide) arriving.store(p, pixel, to, convert);
            fill_pieces<E, STEP, BATCH>(p, source, of.base_y, of.base_x, rest, rest_to, convert);
        }
    };

    // What takes longest to come is asked for first.
    ChannelAffine<E> own_affine = {};
    if (normalises) own_affine.load(p, of.sample, first_channel + threadIdx.x);
    if (chunk < last_chunk) request_pieces(chunk), request_weights(chunk);
    const float* bias = sibling == 0 ? p.bias[0] : sibling == 1 ? p.bias[1] : p.bias[2];
    int own_column = column_tile * N + threadIdx.x;
    bool adds = threadIdx.x < N && own_column < p.c_out && (p.flags & QUADS) && slice == 0;
    AddedRow added(p, bias, of.sample, own_column, adds);
    if (normalises) {
        bool keeps = p.own_affine && of.first_x == 0 && of.first_y == 0 && column == 0;
        fill_affine(p, of.sample, own_affine, first_channel, end, affine, keeps);
    }
    if (threadIdx.x < N) row[threadIdx.x] = added.sum();

    // What the lane's row of the first 16 reads of the region by the first tap. Since a tile is 8 wide or one row,
    // the next 16 lie at a fixed distance.
    int tile_width = 1 << p.tile_width_log, own_row = warp_m + a_row();
    int ry = rows.place(own_row >> p.tile_width_log) + rows.offset() - (of.base_y << p.upsample);
    int rx = columns.place(own_row & (tile_width - 1)) + columns.offset() - (of.base_x << p.upsample);
    int step = p.tile_width_log > 3 ? columns.scale() * 16 : (rows.scale() * 2 >> p.upsample) * p.region_width;
    float sums[MT * 8];
    __syncthreads();
    begin_sums<E, MT, 1>(sums, row + warp_n);
    if (chunk < last_chunk) store_pieces(chunk, region);
    __syncthreads();
#pragma unroll 1
    for (; chunk < last_chunk; ++chunk) {
        bool more = chunk + 1 < last_chunk;
        if (more) request_pieces(chunk + 1);
        taps.multiply_chunk(p, sums, region, ry << 16 | rx, step * SIZE, plane);
        if (!more) break;
        request_weights(chunk + 1);
        if (p.buffers == 1) __syncthreads();
        E* free = region;
        store_pieces(chunk + 1, next_region);
        region = next_region, next_region = p.buffers > 1 ? free : region;
        __syncthreads();
    }

    if (p.slices > 1) {
        int at = tile * gridDim.y + column;
        float* partials = p.partials + static_cast<long long>(at) * p.slices * M * N;
        if (!join_slices<THREADS>(sums, partials, p.tickets + at, slice, p.slices)) return;
    }
    E* y = sibling == 0 ? p.y[0] : sibling == 1 ? p.y[1] : p.y[2];
    typedef ResultLayout<E> Layout;
    int result = warp_m + Layout::row();
    ResultPlaces<E, MT> to(p, of.sample, rows.output(result >> p.tile_width_log),
                           columns.output(result & (tile_width - 1)), rows.steps(), columns.steps(),
                           first_column + Layout::channel());
    if (p.flags & QUADS) {
        store_quads<E, MT, 1>(p, sums, y, to);
    } else {
        __syncthreads();
        float* staged = reinterpret_cast<float*>(shared) + warp * Stage<1>::SIZE;
        stage_results<E, MT, 1>(sums, staged, [&](int m, float* stage) {
            store_elements<E, 1>(p, bias, y, of, rows.steps(), columns.steps(), warp_m + m * 16, first_column, stage);
        });
    }
    if (!TRANSPOSED && p.own_moments)
        leave_moments<E, WM, WN, MT, 1>(p, sums, to.valid, of, column_tile, reinterpret_cast<float*>(shared));
}
