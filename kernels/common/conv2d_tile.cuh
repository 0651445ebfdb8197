// A tile of a convolution as a matrix product: float32 sums of float16 operands on tensor cores, or of
// float32 operands with FMA.
//
// A block makes M output pixels x N output channels. Of some input channels at a time it keeps in shared
// memory (a) the part of the source that the tile's taps reach, normalised, once, in planes of pieces
// [piece][pixel][16 bytes] of an odd pitch, with zeros outside the image, and (b) the weights of one
// tap, while those of the next are on their way. All taps read (a) at shifted places. A shortcut (a 1x1
// convolution that is added) continues the sum with sources and weights of its own.
#pragma once
#include "common/conv2d_region.cuh"
#include "common/conv2d_result.cuh"

// Weights of one tap on their way to shared memory: cp.async, or through registers on sm_70.
template <int CHUNK, int COUNT, int THREADS>
struct WeightStage {
#if CYANEA_CODE_PATH < 80
    uint4 held[COUNT];
#endif
    // `blocks` blocks of `pieces` pieces of WEIGHT_BLOCK columns, `pitch` bytes apart, if `wanted`; without
    // branches. `from` is the calling thread's first.
    __device__ __forceinline__ void fetch(unsigned char* to, const unsigned char* from, int pieces, int blocks,
                                          int pitch, bool wanted) {
        to += threadIdx.x * 16;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const int AT = i * THREADS, BLOCK = AT / BLOCK_PIECES, INSIDE = AT % BLOCK_PIECES;
            bool has = wanted && is_in(INSIDE, pieces) && BLOCK < blocks;
            const unsigned char* source = from + (BLOCK * pitch + INSIDE * 16);
#if CYANEA_CODE_PATH >= 80
            copy_async_if(has, to + AT * 16, source);
#else
            if (has) held[i] = *reinterpret_cast<const uint4*>(source);
#endif
        }
#if CYANEA_CODE_PATH >= 80
        copy_commit();
#endif
    }
    __device__ __forceinline__ void land(unsigned char* to, int pieces, int blocks) {
#if CYANEA_CODE_PATH >= 80
        copy_wait<0>();
#else
        to += threadIdx.x * 16;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const int AT = i * THREADS, BLOCK = AT / BLOCK_PIECES, INSIDE = AT % BLOCK_PIECES;
            if (!is_in(INSIDE, pieces) || BLOCK >= blocks) continue;
            *reinterpret_cast<uint4*>(to + AT * 16) = held[i];
        }
#endif
    }

private:
    static const int BLOCK_PIECES = CHUNK * WEIGHT_BLOCK;
    static_assert(BLOCK_PIECES % THREADS == 0, "a thread stays in one block");
    __device__ __forceinline__ static bool is_in(int inside, int pieces) {
        return inside + static_cast<int>(threadIdx.x) < pieces * WEIGHT_BLOCK;
    }
};

// MT x NT products of 16 x 16 a warp, WM x WN warps a block. `column` counts the tiles of channels of all
// siblings.
template <class E, bool TRANSPOSED, int WM, int WN, int MT, int NT>
__device__ __forceinline__ void conv2d_tile(const Conv2d<E>& p, int tile, int column, int slice) {
    typedef WarpProduct<E> Product;
    typedef TilePixels<WM * MT * 16> Pixels;
    const int M = Pixels::PIXELS, N = WN * NT * 16, THREADS = WM * WN * 32, BLOCKS = N / WEIGHT_BLOCK;
    const int CHUNK = Chunk<E>::MOST, SIZE = Piece<E>::SIZE, ROWS = Product::ROWS;
    const int TAP = BLOCKS * CHUNK * WEIGHT_BLOCK * SIZE;
    CYANEA_DYNAMIC_SHARED(E, shared);
    CYANEA_SHARED(TileOrigin, origin, 1);
    CYANEA_SHARED(float4, row_quads, N / 4);
    // What the sums of slice 0 begin with where results are stored in quads; else zeros.
    float* row = reinterpret_cast<float*>(row_quads);
    // Large tiles are at least as many as multiprocessors.
    const bool SPLITS = M == 64;
    // Large tiles of float16 are enough work for DRAM to be worth looking ahead.
    const bool AHEAD = M == 128 && THREADS == Ahead::ROWS * Ahead::LANES;
    CYANEA_SHARED(Ahead, ahead, AHEAD ? THREADS : 1);
    E* weights = shared;
    E* region = shared + 2 * TAP;

    TileOrigin of = tile_origin<TRANSPOSED, Pixels>(p, tile);
    if (threadIdx.x == 0) origin[0] = of;
    if (AHEAD) __syncthreads();
    Axis<TRANSPOSED> rows = {of.first_y, of.phase_y, p.stride_h, p.pad_top, p.kh};
    Axis<TRANSPOSED> columns = {of.first_x, of.phase_x, p.stride_w, p.pad_left, p.kw};
    int tap_rows = rows.count(), tap_columns = columns.count();

    ColumnTile of_columns(column, (p.c_out + N - 1) / N);
    int sibling = of_columns.sibling, column_tile = of_columns.tile;
    const E* packed = of_sibling<const E*>(p.weight, sibling);
    const float* bias = of_sibling<const float*>(p.bias, sibling);
    static_assert(N <= THREADS, "a thread each");
    int own_column = column_tile * N + threadIdx.x;
    bool adds = threadIdx.x < N && own_column < p.c_out && (p.flags & QUADS) && slice == 0;

    // Chunks of input channels, then those of the shortcut.
    int plane = ((p.region_height * p.region_width) | 1) * SIZE;
    int pieces = (p.c1 + p.c2 + 2 * SIZE - 1) / (2 * SIZE) * 2;
    int more_pieces = (p.shortcut1 + p.shortcut2 + 2 * SIZE - 1) / (2 * SIZE) * 2;
    const SliceChunks chunks(p, slice, SPLITS);
    int chunk = chunks.first, last_chunk = chunks.end;
    int weight_blocks = min(BLOCKS, (p.c_out + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK - column_tile * BLOCKS);

    // The next weights: the calling thread's first bytes of the tap, bytes to the next block, pieces of the
    // chunk, and how many rows and columns of taps came before, in one register. Then bytes to the next
    // tap of a row, and to the first of the next row. A phase of a transposed convolution may have no tap.
    const int PIECE_BYTES = WEIGHT_BLOCK * 16;
    const unsigned char* from = nullptr;
    int pitch = 0, count = 0, place = 0;
    bool own = true, more = chunk < last_chunk && tap_rows > 0 && tap_columns > 0;
    int across_taps = columns.steps() * pieces * PIECE_BYTES;
    int down_taps = rows.steps() * p.kw * pieces * PIECE_BYTES - (tap_columns - 1) * across_taps;
    auto channel_of = [&](int chunk) { return chunks.place(chunk) * p.chunk * SIZE; };
    auto start = [&]() {
        own = chunks.is_own(chunk);
        int c = channel_of(chunk) / SIZE, all = own ? p.kh * p.kw * pieces : more_pieces;
        // A shortcut has the tap in the middle alone.
        place = own ? 0 : p.pad_top << 16 | p.pad_left;
        count = min(p.chunk, (own ? pieces : more_pieces) - c);
        int first_tap = own ? rows.first_tap() * p.kw + columns.first_tap() : 0;
        const E* first = (own ? packed : p.shortcut_weight) +
                         (column_tile * BLOCKS * all + first_tap * pieces + c) * WEIGHT_BLOCK * SIZE;
        from = reinterpret_cast<const unsigned char*>(first) + threadIdx.x * 16;
        pitch = all * PIECE_BYTES;
    };
    // To the next tap, and whether it is of the next chunk.
    auto advance = [&]() {
        int below = (place & ~0xffff) + 0x10000;
        bool turned = (place & 0xffff) + 1 == tap_columns;
        place = turned ? below : place + 1;
        from += turned ? down_taps : across_taps;
        return !own || (turned && below >> 16 == tap_rows);
    };
    WeightStage<CHUNK, TAP / SIZE / THREADS, THREADS> stage;
    auto buffer_at = [&](int buffer) { return reinterpret_cast<unsigned char*>(weights + buffer * TAP); };

    // What the lane's rows of the first 16 read of the region by the first tap, before upsampling: row and
    // column in one register. Since a tile is 8 wide or one row, the next 16 lie at a fixed distance.
    int warp = threadIdx.x / 32, warp_m = warp / WN * MT * 16, warp_n = warp % WN * NT * 16;
    int tile_width = 1 << p.tile_width_log;
    int places[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        int pixel = warp_m + Product::row(i);
        int ry = rows.place(pixel >> p.tile_width_log) + rows.offset() - (of.base_y << p.upsample);
        int rx = columns.place(pixel & (tile_width - 1)) + columns.offset() - (of.base_x << p.upsample);
        places[i] = ry << 16 | rx;
    }
    int step = p.tile_width_log > 3 ? columns.scale() * 16 : (rows.scale() * 2 >> p.upsample) * p.region_width;
    step *= SIZE;
    int right = (warp_n / WEIGHT_BLOCK * CHUNK * WEIGHT_BLOCK + warp_n % WEIGHT_BLOCK) * SIZE;

    // Tap by tap: the weights of one are in `buffer`, those of the next on their way.
    int buffer = 1, arriving = 0, arriving_count = 0, arriving_place = 0;
    bool arrives = false, ended = false;
    typename Product::template Taps<MT, NT> taps, upcoming;
    // On sm_70 what a tap reads is found beside the products of the one before.
    auto aim = [&]() {
        const E* a[ROWS];
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            int at = TRANSPOSED ? places[i] - arriving_place : places[i] + arriving_place;
            a[i] = region + (((at >> 16) >> p.upsample) * p.region_width + ((at & 0xffff) >> p.upsample)) * SIZE;
        }
        upcoming.aim(a, step, plane, weights + (buffer ^ 1) * TAP + right);
    };
    auto fetch = [&]() {
        arrives = more, arriving = chunk, arriving_count = count, arriving_place = place;
        stage.fetch(buffer_at(buffer ^ 1), from, count, weight_blocks, pitch, arrives);
        if (CYANEA_CODE_PATH < 80) aim();
        if (AHEAD) ahead[threadIdx.x].fetch((place >> 16) * tap_columns + (place & 0xffff));
        ended = advance();
    };
    // What follows the chunk in memory that blocks read: the next one, or the residual.
    auto look_ahead = [&]() {
        const TileOrigin& o = origin[0];
        const int PART = 32 / static_cast<int>(sizeof(E));
        Ahead& next = ahead[AHEAD ? threadIdx.x : 0];
        if (chunk + 1 < last_chunk) {
            int part = threadIdx.x % 4 * PART;
            ChunkSource<E> source(p, o.sample, chunks.is_own(chunk + 1), channel_of(chunk + 1) + part);
            bool has = part < p.chunk * SIZE && !source.beyond();
            next.aim(has ? source.at() : nullptr, source.pitch(), p.height, p.width, o.base_y, o.base_x,
                     p.region_height, p.region_width, 4);
        } else {
            int c = column_tile * N + threadIdx.x % 8 * PART;
            bool has = p.residual && !TRANSPOSED && c < p.c_out;
            int image = o.sample * p.out_height * p.out_width * p.c_out;
            next.aim(has ? p.residual + (image + c) : nullptr, p.c_out, p.out_height, p.out_width, o.first_y,
                     o.first_x, M / 8, 8, 8);
        }
    };
    if (more) start();
    if (AHEAD) look_ahead();
    fetch();
    // The first weights are on their way.
    AddedRow added(p, bias, of.sample, own_column, adds);
    float2* affine = nullptr;
    if (!TRANSPOSED && (p.affine || p.gamma)) {
        affine = reinterpret_cast<float2*>(region + p.chunk * plane);
        bool keeps = p.own_affine && of.first_x == 0 && of.first_y == 0 && column == 0 && slice == 0;
        ChannelAffine<E, true> own_affine = {};
        own_affine.load(p, of.sample, threadIdx.x);
        fill_affine(p, of.sample, own_affine, 0, pieces * SIZE, affine, keeps);
    }
    if (threadIdx.x < N) row[threadIdx.x] = added.sum();

    float sums[MT * NT * 8];
    __syncthreads();
    begin_sums<E, MT, NT>(sums, row + warp_n);
    int loaded = -1;
    while (arrives) {
        stage.land(buffer_at(buffer ^ 1), arriving_count, weight_blocks);
        if (CYANEA_CODE_PATH >= 80) aim();
        if (arriving != loaded) {
            if (loaded >= 0) __syncthreads();
            ChunkSource<E> source(p, origin[0].sample, chunks.is_own(arriving), channel_of(arriving));
            // The region of a 3x3 convolution in one round; large tiles of float16 are short of registers.
            const int BATCH = M == 64 ? 7 : SIZE == 8 && (CYANEA_CODE_PATH >= 80 || TRANSPOSED) ? 4 : 6;
            fill_region<E, THREADS, BATCH>(p, source, origin[0].base_y, origin[0].base_x, arriving_count, affine,
                                           AffinePlace<E>::pitch(pieces * SIZE), region, plane);
        }
        __syncthreads();
        taps = upcoming;
        if (ended) {
            more = ++chunk < last_chunk;
            if (more) start();
            if (AHEAD) look_ahead();
        }
        buffer ^= 1;
        loaded = arriving;
        // Beside the products as far as registers allow.
        taps.template add<CHUNK>(sums, step, plane, arriving_count, fetch);
    }

    if (SPLITS && p.slices > 1) {
        int at = tile * gridDim.y + column;
        float* partials = p.partials + static_cast<long long>(at) * p.slices * M * N;
        if (!join_slices<THREADS>(sums, partials, p.tickets + at, slice, p.slices)) return;
    }
    E* y = of_sibling<E*>(p.y, sibling);
    of = origin[0];
    Axis<TRANSPOSED> down = {of.first_y, of.phase_y, p.stride_h, p.pad_top, p.kh};
    Axis<TRANSPOSED> across = {of.first_x, of.phase_x, p.stride_w, p.pad_left, p.kw};
    typedef ResultLayout<E> Layout;
    int pixel = warp_m + Layout::row(), first_column = column_tile * N + warp_n;
    ResultPlaces<E, MT, Pixels> to(p, of.sample, down.output(pixel >> p.tile_width_log),
                                   across.output(pixel & (tile_width - 1)), down.steps(), across.steps(),
                                   first_column + Layout::channel(), M);
    if (p.flags & QUADS) {
        store_quads<E, MT, NT>(p, sums, y, to, ResidualQuads<E, MT>(p, to, 0));
    } else {
        __syncthreads();
        float* staged = reinterpret_cast<float*>(shared) + warp * Stage<NT>::SIZE;
        stage_results<E, MT, NT>(sums, staged, [&](int m, float* stage) {
            store_elements<E, NT>(p, bias, y, of, down.steps(), across.steps(), warp_m + m * 16, first_column, stage);
        });
    }
    if (!TRANSPOSED && p.own_moments)
        leave_moments<E, Pixels, WM, WN, MT, NT, false>(p, sums, to.valid, of, column_tile,
                                                        reinterpret_cast<float*>(shared));
}
