// A small tile of a convolution in float16: 64 or 80 pixels x 16 to 64 output channels, for images with few tiles.
//
// A block alone on a multiprocessor waits for whatever it does next, so it does little besides products. Weights
// go straight from memory to registers, those of some taps ahead, so that no barrier stands between taps. What all
// warps read, the region (see conv2d_tile.cuh), is of some pairs of pieces of input channels at a time; while they
// multiply, the next pieces are on their way to a second buffer. Groups of two warps multiply a pair of pieces each,
// so that what a warp loads of the region serves as many channels as registers allow; in the end all add what the
// groups have. Two groups leave room for a second block, four are for a block alone. Of a chunk of fewer pairs, as the
// last one may be, the last groups have nothing to multiply. A shortcut follows, whose units the groups share
// (conv2d_pointwise.cuh).
#pragma once
#include "common/conv2d_pointwise.cuh"
#include "common/conv2d_region.cuh"
#include "common/conv2d_result.cuh"
#include "common/pair_sums.cuh"

// Products of a warp, [MT 16 pixels] x [NT 16 channels], of a pair of pieces, with the weights of a tap in registers.
template <int MT, int NT>
struct SmallProduct {
#if CYANEA_CODE_PATH >= 80
    // What a lane holds of b as m16n8k16 takes it: 4 bytes of a piece, the pieces of 8 columns side by side.
    typedef unsigned Load;
    // Loads of 16 columns, and rows of taps that there are registers for.
    static const int EACH = 4, ROWS = 3;

    __device__ static __forceinline__ int lane_offset() { return warp_lane(); }
    __device__ static __forceinline__ int load_offset(int i) { return (i % 2 * WEIGHT_BLOCK + i / 2 * 8) * 4; }
    __device__ static __forceinline__ int row_offset(int plane) { return warp_lane() / 16 * plane; }
    __device__ static __forceinline__ void add(float* sums, const Load* loads, const __half* row, int step, int) {
        SharedRow at = shared_row(row);
        unsigned a[MT][4];
#pragma unroll
        for (int m = 0; m < MT; ++m) ldmatrix_at<false>(a[m], moved(at, m * step));
#pragma unroll
        for (int m = 0; m < MT; ++m)
#pragma unroll
            for (int n = 0; n < NT; ++n) multiply<16, false, false>(sums + (m * NT + n) * 8, a[m], loads + n * EACH);
    }
#else
    // 16 bytes of a column.
    typedef uint4 Load;
    static const int EACH = 2, ROWS = 1;

    __device__ static __forceinline__ int lane_offset() { return b_column<16>(); }
    __device__ static __forceinline__ int load_offset(int i) { return i % 2 * WEIGHT_BLOCK + i / 2 * 16; }
    __device__ static __forceinline__ int row_offset(int) { return 0; }
    __device__ static __forceinline__ void add(float* sums, const Load* loads, const __half* row, int step, int plane) {
#pragma unroll
        for (int m = 0; m < MT; ++m) {
            unsigned a[8];
            load_a<16>(a, row + m * step, plane);
#pragma unroll
            for (int n = 0; n < NT; ++n) {
                const Load* of = loads + n * EACH;
                unsigned b[8] = {of[0].x, of[0].y, of[0].z, of[0].w, of[1].x, of[1].y, of[1].z, of[1].w};
                multiply<16, false, false>(sums + (m * NT + n) * 8, a, b);
            }
        }
    }
#endif
};

// The taps of a pair of pieces, up to ROWS x COLUMNS neighbours at a time. As soon as some are multiplied, the weights
// of the next ones come in their place.
template <bool TRANSPOSED, int MT, int NT, bool ALONE>
struct SmallTaps {
    typedef SmallProduct<MT, NT> Product;
    typedef typename Product::Load Load;
    // A row is enough for eight warps, of which one multiplies while another waits. Of four, an input gradient of 64
    // channels has no registers for more.
    static const int ROWS = ALONE || (TRANSPOSED && MT == 4) ? 1 : Product::ROWS;
    static const int COLUMNS = 3, LOADS = NT * Product::EACH;
    static const int OF_PIECE = 16 / sizeof(Load);  // loads of a column of a piece

    // The first one's row and column, and how many of both.
    struct Batch {
        int y, x, rows, columns;
        __device__ __forceinline__ bool whole() const { return rows == ROWS && columns == COLUMNS; }
        __device__ __forceinline__ bool has(int row, int column) const { return row < rows && column < columns; }
    };
    Load weights[ROWS][COLUMNS][LOADS];
    Batch now, next;            // what is there, and what comes then
    const Load* image;          // of the next, the lane's
    int down, across;           // loads to the next row of taps, and to the next of a row
    int end_y, end_x;           // of the taps

    // `first` has the warp's columns of the first piece for the first of `rows` x `columns` taps.
    __device__ __forceinline__ void aim(const uint4* first, int rows, int columns, int next_row, int next_column) {
        down = next_row * OF_PIECE, across = next_column * OF_PIECE, end_y = rows, end_x = columns;
        image = reinterpret_cast<const Load*>(first) + Product::lane_offset();
        next = {0, 0, min(rows, ROWS), min(columns, COLUMNS)};
    }
    __device__ __forceinline__ void fetch(Load (&to)[LOADS], int row, int column) const {
        const Load* tap = image + ((next.y + row) * down + (next.x + column) * across);
#pragma unroll
        for (int i = 0; i < LOADS; ++i) to[i] = tap[Product::load_offset(i)];
    }
    // What there is of the next.
    __device__ __forceinline__ void fetch_some() {
        if (next.rows == 0) return;
#pragma unroll
        for (int row = 0; row < ROWS; ++row)
#pragma unroll
            for (int column = 0; column < COLUMNS; ++column)
                if (next.has(row, column)) fetch(weights[row][column], row, column);
    }
    __device__ __forceinline__ void advance() {
        now = next;
        bool turns = next.x + COLUMNS >= end_x;
        next.x = turns ? 0 : next.x + COLUMNS, next.y += turns ? ROWS : 0;
        next.rows = max(min(end_y - next.y, ROWS), 0), next.columns = min(end_x - next.x, COLUMNS);
    }
    // `own` is the lane's pixel in the region for the first tap: row << 16 | column, before upsampling.
    __device__ __forceinline__ void multiply(const Conv2d<__half>& p, float* sums, const __half* region, int own,
                                             int step, int plane) {
        const int SIGN = TRANSPOSED ? -1 : 1;
        int y = (own >> 16) + SIGN * now.y, x = (own & 0xffff) + SIGN * now.x;
        auto tap = [&](int row, int column) {
            int own_x = x + SIGN * column, at = ((y + SIGN * row) >> p.upsample) * p.region_width;
            // See region_column; upsampled sources are not split.
            at += own_x >> (p.upsample + p.split);
            if (!TRANSPOSED) at += (own_x & p.split) * p.even_columns;
            Product::add(sums, weights[row][column], region + at * 8, step, plane);
        };
        bool again = now.whole() && next.whole();
        if (now.whole()) {
#pragma unroll
            for (int row = 0; row < ROWS; ++row) {
#pragma unroll
                for (int column = 0; column < COLUMNS; ++column) {
                    tap(row, column);
                    // No other row's products lie between these and the next use.
                    if (ROWS == 1 && again) fetch(weights[row][column], row, column);
                }
                if (ROWS == 1 || !again) continue;
#pragma unroll
                for (int column = 0; column < COLUMNS; ++column) fetch(weights[row][column], row, column);
            }
        } else {
#pragma unroll
            for (int row = 0; row < ROWS; ++row)
#pragma unroll
                for (int column = 0; column < COLUMNS; ++column)
                    if (now.has(row, column)) tap(row, column);
        }
        if (!again) fetch_some();
        advance();
    }
};

// WM x WN warps, which have a part of the pixels x 16 channels of the results; until then neighbours have parts of the
// same sums, and so have of eight warps those that are four apart. The pixels are SIXTEENS of 16: four, or five that lie
// below each other, of which the second half of the warps has two. `column` counts the tiles of channels of all siblings.
template <bool TRANSPOSED, int WM, int WN, int SIXTEENS = 4>
__device__ __forceinline__ void conv2d_small_tile(const Conv2d<__half>& p, int tile, int column, int slice) {
    typedef __half E;
    typedef TilePixels<SIXTEENS * 16> Pixels;
    const int MT = (SIXTEENS + WM - 1) / WM, M = Pixels::PIXELS, N = WN * 16, THREADS = WM * WN * 32, SIZE = 8;
    // Groups of two warps that share the input channels, and what a warp multiplies: half of the tile, which lies beside
    // the other or below it.
    const int GROUPS = WM * WN / 2;
    const bool BESIDE = WN > 2;
    static_assert(SIXTEENS == 4 || (BESIDE && GROUPS > 2 && !TRANSPOSED), "80 pixels are for blocks alone, forward");
    const int HALF_MT = BESIDE ? SIXTEENS : SIXTEENS / 2, HALF_NT = BESIDE ? 2 : WN;
    typedef SmallTaps<TRANSPOSED, HALF_MT, HALF_NT, (GROUPS > 2)> Taps;
    // Most pieces of a chunk; the pixels that a thread fills stand STEP apart, of a 3x3 it has four at most, for which
    // more than 64 pixels leave no registers on sm_70.
    const int MOST = 2 * GROUPS, STEP = THREADS / MOST, BATCH = CYANEA_CODE_PATH < 80 && M > 64 ? 2 : 4;
    // Of a stride of 2 a thread has nine or ten: of 64 pixels eight warps have registers for all others at once.
    const int REST = GROUPS > 2 && M == 64 ? 6 : BATCH;
    CYANEA_DYNAMIC_SHARED(E, shared);
    CYANEA_SHARED(float4, row_quads, N / 4);
    // What is added to the sums of slice 0 where results are stored in quads; else zeros.
    float* row = reinterpret_cast<float*>(row_quads);

    TileOrigin of = tile_origin<TRANSPOSED, Pixels>(p, tile);
    Axis<TRANSPOSED> rows = {of.first_y, of.phase_y, p.stride_h, p.pad_top, p.kh};
    Axis<TRANSPOSED> columns = {of.first_x, of.phase_x, p.stride_w, p.pad_left, p.kw};
    int tap_rows = rows.count(), tap_columns = columns.count();
    ColumnTile of_columns(column, (p.c_out + N - 1) / N);
    int sibling = of_columns.sibling, column_tile = of_columns.tile;
    int warp = threadIdx.x / 32, warp_m = warp / WN * MT * 16, warp_n = warp % WN * 16;
    // Neighbours multiply different channels.
    int group = GROUPS > 2 ? warp % 2 + warp / 4 * 2 : warp % 2, which = GROUPS > 2 ? warp / 2 % 2 : warp / 2;
    int half_m = BESIDE ? 0 : which * 32, half_column = column_tile * N + (BESIDE ? which * 32 : 0);

    // Chunks of input channels.
    int pieces = (p.c1 + p.c2 + 2 * SIZE - 1) / (2 * SIZE) * 2;
    const bool SPLITS = SIXTEENS == 4;
    const SlicePart chunks(p, slice, SPLITS, p.main_chunks);
    // A phase of a transposed convolution may have no tap.
    int chunk = chunks.begin, last_chunk = tap_rows <= 0 || tap_columns <= 0 ? chunk : chunks.end;
    // 8 lanes store MOST pieces of 8 / MOST pixels: with a pitch of 2 or 6 modulo 8 pieces, or an odd one, without bank
    // conflicts.
    int pixels = p.region_height * p.region_width, plane = (GROUPS == 2 ? (pixels + 1) / 4 * 4 + 2 : pixels | 1) * SIZE;
    // The sums that warps exchange. Those of a block alone lie in front of the regions, so that no warp waits for the
    // products of others; else they take the place of regions, since weights need the rest for a cache.
    const int EXCHANGED = THREADS * HALF_MT * HALF_NT, EXCHANGED_AGAIN = THREADS * 2 * MT;
    const bool IN_FRONT = GROUPS > 2;
    float4* exchanged = reinterpret_cast<float4*>(shared);
    E* const regions = IN_FRONT ? reinterpret_cast<E*>(exchanged + EXCHANGED + EXCHANGED_AGAIN) : shared;
    E* region = regions;
    E* next_region = p.buffers > 1 ? region + p.chunk * plane : region;
    float2* affine = reinterpret_cast<float2*>(region + p.buffers * p.chunk * plane);

    int piece = threadIdx.x % MOST, pixel = threadIdx.x / MOST;
    auto source_of = [&](int chunk) {
        return ChunkSource<E>(p, of.sample, true, (chunk * p.chunk + piece) * SIZE);
    };
    RegionPieces<E, STEP, BATCH, !TRANSPOSED> arriving;
    Taps taps;
    auto request_pieces = [&](int chunk) {
        ChunkSource<E> source = source_of(chunk);
        if (source.wide && piece < p.chunk) arriving.load(p, source, of.base_y, of.base_x, pixel);
    };
    auto request_weights = [&](int chunk) {
        int first = chunk * p.chunk;
        const uint4* image = reinterpret_cast<const uint4*>(of_sibling<const E*>(p.weight, sibling));
        int block = half_column / WEIGHT_BLOCK * (p.kh * p.kw) + rows.first_tap() * p.kw + columns.first_tap();
        image += (block * pieces + first + group * 2) * WEIGHT_BLOCK + half_column % WEIGHT_BLOCK;
        // Of a chunk of fewer pairs of pieces the last groups have none.
        int count = min(p.chunk, pieces - first) > group * 2 ? tap_rows : 0;
        int across = columns.steps() * pieces * WEIGHT_BLOCK, down = rows.steps() * p.kw * pieces * WEIGHT_BLOCK;
        taps.aim(image, count, tap_columns, down, across);
    };
    bool normalises = !TRANSPOSED && (p.affine || p.gamma);
    int first_channel = chunk * p.chunk * SIZE, end = chunks.end * p.chunk * SIZE;
    typedef AffinePlace<E> Place;
    // What has arrived, and what of the chunk was not requested.
    auto store_pieces = [&](int chunk, E* to) {
        if (piece >= p.chunk) return;
        ChunkSource<E> source = source_of(chunk);
        const float2* own = normalises ? affine + Place::of_piece((source.c - first_channel) / SIZE) : nullptr;
        store_arrived<REST>(p, source, arriving, of.base_y, of.base_x, pixel, own, Place::pitch(end - first_channel),
                            to + (piece * plane + pixel * SIZE));
    };

    // What takes longest to come is asked for first.
    ChannelAffine<E, SIXTEENS == 4> own_affine = {};
    bool has_channel = normalises && warp_has_channels(first_channel, end);
    if (has_channel) own_affine.load(p, of.sample, first_channel + threadIdx.x);
    if (chunk < last_chunk) request_pieces(chunk);
    const float* bias = of_sibling<const float*>(p.bias, sibling);
    int own_column = column_tile * N + threadIdx.x;
    bool adds = threadIdx.x < N && own_column < p.c_out && (p.flags & QUADS) && slice == 0;
    AddedRow added(p, bias, of.sample, own_column, adds);
    if (has_channel) {
        bool keeps = p.own_affine && of.first_x == 0 && of.first_y == 0 && column == 0;
        fill_affine(p, of.sample, own_affine, first_channel, end, affine, keeps);
    }
    if (threadIdx.x < N) row[threadIdx.x] = added.sum();
    // Only now, since a wait for any of these would be one for all.
    if (chunk < last_chunk) request_weights(chunk), taps.fetch_some(), taps.advance();

    // What the lane's row of the first 16 reads of the region by the first tap. Since a tile is 8 or 16 wide or one row,
    // the next 16 lie at a fixed distance; where sources are upsampled no tile is 16 wide.
    int tile_width = 1 << p.tile_width_log, own_row = half_m + a_row();
    int ry = rows.place(own_row >> p.tile_width_log) + rows.offset() - (of.base_y << p.upsample);
    int rx = columns.place(own_row & (tile_width - 1)) + columns.offset() - (of.base_x << p.upsample);
    int step = p.tile_width_log > Pixels::WIDTH_LOG ? 16
                                 : (rows.scale() * (16 / Pixels::WIDTH) >> p.upsample) * p.region_width;
    PairSums<HALF_MT * HALF_NT, 1, (WN > 1)> half = {};
#pragma unroll 1
    for (int first = chunk; chunk < last_chunk; ++chunk) {
        if (chunk == first || p.buffers == 1) __syncthreads();
        store_pieces(chunk, region);
        __syncthreads();
        bool more = chunk + 1 < last_chunk;
        if (more) request_pieces(chunk + 1);
        const E* own_region = region + (group * 2 * plane + Taps::Product::row_offset(plane));
        bool ends;
#pragma unroll 1
        do {
            ends = taps.next.rows == 0;
            if (ends && more) request_weights(chunk + 1);
            taps.multiply(p, half.sums, own_region, ry << 16 | rx, step * SIZE, plane);
        } while (!ends);
        E* free = region;
        region = next_region, next_region = free;
    }
    if (!TRANSPOSED && p.shortcut_weight) {
        PointwiseProduct<HALF_MT, HALF_NT> shortcut(p, of.first_y, of.first_x, half_m, half_column);
        SlicePart units(p, slice, SPLITS, shortcut.units());
        shortcut.add(p, of.sample, half.sums, units.begin + group, units.end, GROUPS);
    }
    if (!IN_FRONT) __syncthreads();
    half.give(exchanged);
    __syncthreads();
    float sums[MT * 8];
    begin_sums<E, MT, 1>(sums, row + warp_n);
    if (GROUPS == 2) {
        half.template take<true>(sums, exchanged);
    } else {
        PairSums<HALF_MT * HALF_NT / 2, 4, false> quarter;
        half.template take<false>(quarter.sums, exchanged);
        exchanged += EXCHANGED;
        quarter.give(exchanged);
        __syncthreads();
        quarter.template take<true>(sums, exchanged);
    }

    // Found again, so that nothing of it had to wait in registers.
    ColumnTile results(column, (p.c_out + N - 1) / N);
    E* y = of_sibling<E*>(p.y, results.sibling);
    int first_column = results.tile * N + warp_n;
    typedef ResultLayout<E> Layout;
    int result = warp_m + Layout::row();
    const bool EVEN = SIXTEENS % WM == 0;  // all warps have as many
    ResultPlaces<E, MT, Pixels> to(p, of.sample, rows.output(result >> p.tile_width_log),
                                   columns.output(result & (tile_width - 1)), rows.steps(), columns.steps(),
                                   first_column + Layout::channel(), EVEN ? M : M - warp_m);
    // It comes while the sums of other slices do.
    ResidualQuads<E, MT> residual(p, to, 0);
    // Channels of 80 pixels are not split.
    if (EVEN && p.slices > 1) {
        int at = tile * gridDim.y + column;
        float* partials = p.partials + static_cast<long long>(at) * p.slices * M * N;
        if (!join_slices<THREADS>(sums, partials, p.tickets + at, slice, p.slices)) return;
    }
    if (p.flags & QUADS) {
        store_quads<E, MT, 1>(p, sums, y, to, residual);
    } else {
        __syncthreads();
        float* staged = reinterpret_cast<float*>(shared) + warp * Stage<1>::SIZE;
        stage_results<E, MT, 1>(sums, staged, [&](int m, float* stage) {
            if (EVEN || warp_m + m * 16 < M)
                store_elements<E, 1>(p, of_sibling<const float*>(p.bias, results.sibling), y, of, rows.steps(),
                                     columns.steps(), warp_m + m * 16, first_column, stage);
        });
    }
    if (!TRANSPOSED && p.own_moments)
        leave_moments<E, Pixels, WM, WN, MT, 1, IN_FRONT>(p, sums, to.valid, of, results.tile,
                                                          reinterpret_cast<float*>(regions));
}
