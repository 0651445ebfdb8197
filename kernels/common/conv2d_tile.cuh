// A tile of a convolution as a matrix product: float32 sums of float16 operands on tensor cores, or of
// float32 operands with FMA.
//
// A block makes M output pixels x N output channels. Of some input channels at a time it keeps in shared
// memory (a) the part of the source that the tile's taps reach, normalised, once, in planes of pieces
// [piece][pixel][16 bytes] of an odd pitch, with zeros outside the image, and (b) the weights of one
// tap, while those of the next are on their way. All taps read (a) at shifted places. A shortcut (a 1x1
// convolution that is added) continues the sum with sources and weights of its own. In the end the sums
// pass through the same memory, so that what is added and stored is read and written 16 bytes at a time.
//
// Transposed, a tile has outputs of one phase (place modulo stride) on each axis, so that it needs a
// fixed subset of the taps and reads neighbouring source pixels.
#pragma once
#include "common/conv2d_result.cuh"
#include "common/slices.cuh"

// Most pieces of input channels in shared memory at a time: on sm_70 fewer, so that two blocks of float16
// fit a multiprocessor.
template <class E>
struct Chunk {
    static const int MOST = CYANEA_CODE_PATH < 80 && sizeof(E) == 2 ? 4 : 8;
};

// The place of a tile on one axis: output = (first + i) step + phase. Its taps are `first_tap`,
// `first_tap` + `steps`, …; tap number t reads the source at (first + i) scale + offset(t).
template <bool TRANSPOSED>
struct Axis {
    int first, phase, stride, pad, size;  // size: taps of the kernel

    __device__ __forceinline__ int first_tap() const { return TRANSPOSED ? (phase + pad) % stride : 0; }
    // From one of its taps to the next, or from one of its outputs.
    __device__ __forceinline__ int steps() const { return TRANSPOSED ? stride : 1; }
    // Taps, 0 or less for none.
    __device__ __forceinline__ int count() const {
        return TRANSPOSED ? (size - first_tap() + stride - 1) / stride : size;
    }
    __device__ __forceinline__ int scale() const { return TRANSPOSED ? 1 : stride; }
    __device__ __forceinline__ int place(int i) const { return (first + i) * scale(); }
    // What the first tap adds to a place; each further tap adds one more, or transposed one less.
    __device__ __forceinline__ int offset() const {
        return TRANSPOSED ? (phase + pad) / stride : -pad;
    }
    __device__ __forceinline__ int output(int i) const {
        return TRANSPOSED ? (first + i) * stride + phase : first + i;
    }
    // The lowest place that any tap reads.
    __device__ __forceinline__ int base() const {
        if (!TRANSPOSED) return first * stride - pad;
        int lowest = phase + pad - size + 1;
        return first + (lowest >= 0 ? lowest / stride : -((stride - 1 - lowest) / stride));
    }
};

// The tap that a block is at: how many rows and columns of taps came before it.
struct Tap {
    int row, column;
};

// Weights of one tap on their way to shared memory: cp.async, or through registers on sm_70.
template <int CHUNK, int COUNT, int THREADS>
struct WeightStage {
#if CYANEA_CODE_PATH < 80
    uint4 held[COUNT];
#endif
    // `blocks` blocks of `pieces` pieces of WEIGHT_BLOCK columns, `pitch` bytes apart.
    __device__ __forceinline__ void fetch(unsigned char* to, const unsigned char* from, int pieces,
                                          int blocks, long long pitch) {
        from += threadIdx.x * 16;
        to += threadIdx.x * 16;
        if (pieces == CHUNK && blocks == BLOCKS) each<true>(to, from, pieces, blocks, pitch);
        else each<false>(to, from, pieces, blocks, pitch);
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
            if (!has(INSIDE, pieces) || BLOCK >= blocks) continue;
            *reinterpret_cast<uint4*>(to + AT * 16) = held[i];
        }
#endif
    }

private:
    static const int BLOCKS = COUNT * THREADS / (CHUNK * WEIGHT_BLOCK);
    // ALL: no block and no piece is missing.
    template <bool ALL>
    __device__ __forceinline__ void each(unsigned char* to, const unsigned char* from, int pieces, int blocks,
                                         long long pitch) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const int AT = i * THREADS, BLOCK = AT / BLOCK_PIECES, INSIDE = AT % BLOCK_PIECES;
            if (!ALL && (!has(INSIDE, pieces) || BLOCK >= blocks)) continue;
            const unsigned char* source = from + (BLOCK * pitch + INSIDE * 16);
#if CYANEA_CODE_PATH >= 80
            copy_async(to + AT * 16, source);
#else
            held[i] = *reinterpret_cast<const uint4*>(source);
#endif
        }
    }
    static const int BLOCK_PIECES = CHUNK * WEIGHT_BLOCK;
    static_assert(BLOCK_PIECES % THREADS == 0, "a thread stays in one block");
    __device__ __forceinline__ static bool has(int inside, int pieces) {
        return inside + static_cast<int>(threadIdx.x) < pieces * WEIGHT_BLOCK;
    }
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

// MT x NT products of 16 x 16 a warp, WM x WN warps a block. `column` counts the tiles of channels of
// all siblings.
template <class E, bool TRANSPOSED, int WM, int WN, int MT, int NT>
__device__ __forceinline__ void conv2d_tile(const Conv2d<E>& p, int tile, int column, int slice) {
    typedef WarpProduct<E> Product;
    const int M = WM * MT * 16, N = WN * NT * 16, THREADS = WM * WN * 32, BLOCKS = N / WEIGHT_BLOCK;
    const int CHUNK = Chunk<E>::MOST, SIZE = Piece<E>::SIZE, ROWS = Product::ROWS;
    const int WEIGHTS = BLOCKS * CHUNK * WEIGHT_BLOCK * SIZE;
    CYANEA_DYNAMIC_SHARED(E, shared);
    E* weights = shared;
    E* region = shared + 2 * WEIGHTS;

    // Where the tile lies.
    int tile_width = 1 << p.tile_width_log, tile_height = M >> p.tile_width_log;
    int steps_h = TRANSPOSED ? p.stride_h : 1, steps_w = TRANSPOSED ? p.stride_w : 1;
    int tiles_x = ((p.out_width + steps_w - 1) / steps_w + tile_width - 1) >> p.tile_width_log;
    int tiles_y = ((p.out_height + steps_h - 1) / steps_h + tile_height - 1) / tile_height;
    int rest = tile;
    int first_x = rest % tiles_x * tile_width;
    rest /= tiles_x;
    int first_y = rest % tiles_y * tile_height;
    rest /= tiles_y;
    int phase_x = rest % steps_w;
    rest /= steps_w;
    int phase_y = rest % steps_h, sample = rest / steps_h;
    Axis<TRANSPOSED> rows = {first_y, phase_y, p.stride_h, p.pad_top, p.kh};
    Axis<TRANSPOSED> columns = {first_x, phase_x, p.stride_w, p.pad_left, p.kw};
    int base_y = rows.base() >> p.upsample, base_x = columns.base() >> p.upsample;
    CYANEA_SHARED(TileOrigin, origin, 1);
    if (threadIdx.x == 0) origin[0] = {sample, first_y, first_x, phase_y, phase_x, base_y, base_x};
    // The first tap, and which way the source moves from one to the next.
    int first_tap = rows.first_tap() * p.kw + columns.first_tap(), turn = TRANSPOSED ? -1 : 1;
    int tap_rows = rows.count(), tap_columns = columns.count();

    int column_tiles = (p.c_out + N - 1) / N, sibling = column / column_tiles;
    int column_tile = column - sibling * column_tiles;
    const E* packed = sibling == 0 ? p.weight[0] : sibling == 1 ? p.weight[1] : p.weight[2];

    // Chunks of input channels, then those of the shortcut.
    int region_pixels = p.region_height * p.region_width, plane = (region_pixels | 1) * SIZE;
    int taps = p.kh * p.kw;
    int pieces = (p.c1 + p.c2 + 2 * SIZE - 1) / (2 * SIZE) * 2;
    int more_pieces = (p.shortcut1 + p.shortcut2 + 2 * SIZE - 1) / (2 * SIZE) * 2;
    int main_chunks = (pieces + p.chunk - 1) / p.chunk;
    int chunks = main_chunks + (more_pieces + p.chunk - 1) / p.chunk;
    int chunk = chunks * slice / p.slices, last_chunk = chunks * (slice + 1) / p.slices;
    int weight_blocks = min(BLOCKS, (p.c_out + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK - column_tile * BLOCKS);

    int warp = threadIdx.x / 32, warp_m = warp / WN * MT * 16, warp_n = warp % WN * NT * 16;
    float sums[MT * NT * 8];
#pragma unroll
    for (int i = 0; i < MT * NT * 8; ++i) sums[i] = 0.0f;

    auto pieces_of = [&](int chunk) {
        return chunk < main_chunks ? min(p.chunk, pieces - chunk * p.chunk)
                                   : min(p.chunk, more_pieces - (chunk - main_chunks) * p.chunk);
    };
    WeightStage<CHUNK, WEIGHTS / SIZE / THREADS, THREADS> stage;
    auto buffer_at = [&](int buffer) { return reinterpret_cast<unsigned char*>(weights + buffer * WEIGHTS); };
    auto fetch = [&](int chunk, Tap tap, int buffer) {
        bool own = chunk < main_chunks;
        int all = own ? taps * pieces : more_pieces;
        int number = first_tap + tap.row * rows.steps() * p.kw + tap.column * columns.steps();
        int at = own ? number * pieces + chunk * p.chunk : (chunk - main_chunks) * p.chunk;
        const E* from = (own ? packed : p.shortcut_weight) + (column_tile * BLOCKS * all + at) * WEIGHT_BLOCK * SIZE;
        stage.fetch(buffer_at(buffer), reinterpret_cast<const unsigned char*>(from), pieces_of(chunk),
                    weight_blocks, static_cast<long long>(all) * WEIGHT_BLOCK * 16);
    };
    auto land = [&](int chunk, int buffer) {
        stage.land(buffer_at(buffer), pieces_of(chunk), weight_blocks);
    };
    float2* affine = nullptr;
    if (p.affine || p.gamma) {
        affine = reinterpret_cast<float2*>(region + p.chunk * plane);
        bool keeps = p.own_affine && first_x == 0 && first_y == 0 && column == 0 && slice == 0;
        fill_affine(p, sample, affine, pieces * SIZE, keeps);
        __syncthreads();
    }
    auto fill = [&](int chunk) {
        bool own = chunk < main_chunks;
        int c = (own ? chunk : chunk - main_chunks) * p.chunk * SIZE;
        fill_region<E, THREADS>(p, ChunkSource<E>(p, origin[0].sample, own, c), origin[0].base_y, origin[0].base_x,
                                pieces_of(chunk), affine, region, plane);
    };
    // A shortcut has the tap in the middle alone.
    auto first_of = [&](int chunk) {
        Tap first = {0, 0}, middle = {p.pad_top, p.pad_left};
        return chunk < main_chunks ? first : middle;
    };

    // What the lane's rows of the first 16 read of the region by the first tap, before upsampling: row and
    // column in one register. Since a tile is 8 wide or one row, the next 16 lie at a fixed distance.
    int places[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        int pixel = warp_m + Product::row(i);
        int ry = rows.place(pixel >> p.tile_width_log) + rows.offset() - (base_y << p.upsample);
        int rx = columns.place(pixel & (tile_width - 1)) + columns.offset() - (base_x << p.upsample);
        places[i] = ry << 16 | rx;
    }
    int step = p.tile_width_log > 3 ? columns.scale() * 16 : (rows.scale() * 2 >> p.upsample) * p.region_width;
    step *= SIZE;
    // The tap whose weights are next, and the one that is multiplied with; `loaded` is the chunk in the
    // region. A phase of a transposed convolution may have no tap.
    Tap next = first_of(chunk), tap = next;
    int loaded = -1, buffer = 1;
    bool more = chunk < last_chunk && tap_rows > 0 && tap_columns > 0;
    while (true) {
        if (more) fetch(chunk, next, buffer ^ 1);
        if (loaded >= 0) {
            const E* a[ROWS];
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                int ry = ((places[i] >> 16) + turn * tap.row) >> p.upsample;
                int rx = ((places[i] & 0xffff) + turn * tap.column) >> p.upsample;
                a[i] = region + (ry * p.region_width + rx) * SIZE;
            }
            const E* b = weights + buffer * WEIGHTS +
                         (warp_n / WEIGHT_BLOCK * CHUNK * WEIGHT_BLOCK + warp_n % WEIGHT_BLOCK) * SIZE;
            Product::template add<MT, NT>(sums, a, step, plane, b, pieces_of(loaded));
        }
        if (!more) break;
        land(chunk, buffer ^ 1);
        if (chunk != loaded) {
            __syncthreads();
            fill(chunk);
        }
        __syncthreads();
        buffer ^= 1;
        tap = next;
        loaded = chunk;
        next = {tap.row, tap.column + 1};
        if (next.column >= tap_columns) next = {tap.row + 1, 0};
        if (chunk >= main_chunks || next.row >= tap_rows) next = first_of(++chunk);
        more = chunk < last_chunk;
    }

    if (p.slices > 1) {
        int at = tile * gridDim.y + column;
        float* partials = p.partials + static_cast<long long>(at) * p.slices * M * N;
        if (!join_slices<MT * NT * 8, THREADS>(sums, partials, p.tickets + at, slice, p.slices)) return;
    }
    __syncthreads();
    sibling = column / column_tiles;
    const float* bias = sibling == 0 ? p.bias[0] : sibling == 1 ? p.bias[1] : p.bias[2];
    E* y = sibling == 0 ? p.y[0] : sibling == 1 ? p.y[1] : p.y[2];
    TileOrigin of = origin[0];
    Axis<TRANSPOSED> down = {of.first_y, of.phase_y, p.stride_h, p.pad_top, p.kh};
    Axis<TRANSPOSED> across = {of.first_x, of.phase_x, p.stride_w, p.pad_left, p.kw};
    typedef ResultLayout<E, NT> Layout;
    int first_column = column_tile * N + warp_n + Layout::column(), pixel = warp_m + Layout::row();
    ResultPlaces<E, NT> to(p, MT, of.sample, down.output(pixel >> p.tile_width_log),
                           across.output(pixel & (tile_width - 1)), down.steps(), across.steps(), first_column);
    float* staged = reinterpret_cast<float*>(shared) + warp * Layout::STAGE;
    if (p.flags & PIECES) store_results<E, true, MT, NT>(p, sums, bias, y, of.sample, first_column, staged, to);
    else store_results<E, false, MT, NT>(p, sums, bias, y, of.sample, first_column, staged, to);
    if (!TRANSPOSED && p.own_moments)
        store_moments<E, WM, WN, MT, NT>(p, sums, to.valid, of, column_tile, reinterpret_cast<float*>(shared));
}
