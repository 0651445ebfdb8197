// A tile of a convolution as a matrix product: float32 sums of float16 operands on tensor cores, or of
// float32 operands with FMA.
//
// A block makes M output pixels x N output channels. Of some input channels at a time it keeps in shared
// memory (a) the part of the source that the tile's taps reach, normalised, once, in planes of pieces
// [piece][pixel][16 bytes] of an odd pitch, with zeros outside the image, and (b) the weights of one
// tap, while those of the next are on their way. All taps read (a) at shifted places. A shortcut (a 1x1
// convolution that is added) continues the sum with sources and weights of its own.
//
// Transposed, a tile has outputs of one phase (place modulo stride) on each axis, so that it needs a
// fixed subset of the taps and reads neighbouring source pixels.
#pragma once
#include "common/conv2d_result.cuh"
#include "common/slices.cuh"

// Most pieces of input channels in shared memory at a time.
#define CHUNK 8

// The place of a tile on one axis: output = (first + i) step + phase; tap t of it reads the source at
// (first + i) scale + offset(t).
template <bool TRANSPOSED>
struct Axis {
    int first, phase, stride, pad, taps;

    __device__ __forceinline__ bool uses(int tap) const {
        return !TRANSPOSED || (phase + pad - tap) % stride == 0;
    }
    __device__ __forceinline__ int source(int i, int tap) const {
        return TRANSPOSED ? first + i + (phase + pad - tap) / stride : (first + i) * stride + tap - pad;
    }
    __device__ __forceinline__ int output(int i) const {
        return TRANSPOSED ? (first + i) * stride + phase : first + i;
    }
    // The lowest place that any tap reads.
    __device__ __forceinline__ int base() const {
        if (!TRANSPOSED) return first * stride - pad;
        int lowest = phase + pad - taps + 1;
        return first + (lowest >= 0 ? lowest / stride : -((stride - 1 - lowest) / stride));
    }
};

// Weights of one tap on their way to shared memory: cp.async, or through registers on sm_70.
template <int COUNT, int THREADS>
struct WeightStage {
#if CYANEA_CODE_PATH < 80
    uint4 held[COUNT];
#endif
    // `blocks` blocks of `pieces` pieces of WEIGHT_BLOCK columns, `pitch` bytes apart.
    __device__ __forceinline__ void fetch(unsigned char* to, const unsigned char* from, int pieces,
                                          int blocks, long long pitch) {
        int each = pieces * WEIGHT_BLOCK;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            int at = i * THREADS + static_cast<int>(threadIdx.x), block = at / (CHUNK * WEIGHT_BLOCK);
            int inside = at % (CHUNK * WEIGHT_BLOCK);
            if (inside >= each || block >= blocks) continue;
            const unsigned char* source = from + (block * pitch + inside * 16);
#if CYANEA_CODE_PATH >= 80
            copy_async(to + at * 16, source);
#else
            held[i] = *reinterpret_cast<const uint4*>(source);
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
        int each = pieces * WEIGHT_BLOCK;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            int at = i * THREADS + static_cast<int>(threadIdx.x), block = at / (CHUNK * WEIGHT_BLOCK);
            if (at % (CHUNK * WEIGHT_BLOCK) >= each || block >= blocks) continue;
            *reinterpret_cast<uint4*>(to + at * 16) = held[i];
        }
#endif
    }
};

// MT x NT products of 16 x 16 a warp, WM x WN warps a block. `column` counts the tiles of channels of
// all siblings.
template <class E, bool TRANSPOSED, int WM, int WN, int MT, int NT>
__device__ __forceinline__ void conv2d_tile(const Conv2d<E>& p, int tile, int column, int slice) {
    typedef WarpProduct<E> Product;
    const int M = WM * MT * 16, N = WN * NT * 16, THREADS = WM * WN * 32, BLOCKS = N / WEIGHT_BLOCK;
    const int SIZE = Piece<E>::SIZE, WEIGHTS = BLOCKS * CHUNK * WEIGHT_BLOCK * SIZE, ROWS = Product::ROWS;
    CYANEA_DYNAMIC_SHARED(E, shared);
    E* weights = shared;
    E* region = shared + 2 * WEIGHTS;

    // Where the tile lies.
    int tile_width = 1 << p.tile_width_log, tile_height = M >> p.tile_width_log;
    int steps_h = TRANSPOSED ? p.stride_h : 1, steps_w = TRANSPOSED ? p.stride_w : 1;
    int tiles_x = ((p.out_width + steps_w - 1) / steps_w + tile_width - 1) >> p.tile_width_log;
    int tiles_y = ((p.out_height + steps_h - 1) / steps_h + tile_height - 1) / tile_height;
    int rest = tile;
    TilePlace place;
    place.first_x = rest % tiles_x * tile_width;
    rest /= tiles_x;
    place.first_y = rest % tiles_y * tile_height;
    rest /= tiles_y;
    int phase_x = rest % steps_w;
    rest /= steps_w;
    int phase_y = rest % steps_h, sample = rest / steps_h;
    place.sample = sample;
    Axis<TRANSPOSED> rows = {place.first_y, phase_y, p.stride_h, p.pad_top, p.kh};
    Axis<TRANSPOSED> columns = {place.first_x, phase_x, p.stride_w, p.pad_left, p.kw};
    int base_y = rows.base() >> p.upsample, base_x = columns.base() >> p.upsample;

    int column_tiles = (p.c_out + N - 1) / N, sibling = column / column_tiles;
    int column_tile = column - sibling * column_tiles;
    const E* packed = sibling == 0 ? p.weight[0] : sibling == 1 ? p.weight[1] : p.weight[2];
    const float* bias = sibling == 0 ? p.bias[0] : sibling == 1 ? p.bias[1] : p.bias[2];
    E* y = sibling == 0 ? p.y[0] : sibling == 1 ? p.y[1] : p.y[2];

    // Chunks of input channels, then those of the shortcut.
    int region_pixels = p.region_height * p.region_width, plane = (region_pixels | 1) * SIZE;
    int taps = p.kh * p.kw, channels = p.c1 + p.c2;
    int pieces = (channels + 2 * SIZE - 1) / (2 * SIZE) * 2;
    int more_pieces = (p.shortcut1 + p.shortcut2 + 2 * SIZE - 1) / (2 * SIZE) * 2;
    int main_chunks = (pieces + p.chunk - 1) / p.chunk;
    int chunks = main_chunks + (more_pieces + p.chunk - 1) / p.chunk;
    int chunk = chunks * slice / p.slices, last_chunk = chunks * (slice + 1) / p.slices;
    int weight_blocks = min(BLOCKS, (p.c_out + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK - column_tile * BLOCKS);
    int centre = p.pad_top * p.kw + p.pad_left;

    float* affine = nullptr;
    if (p.affine || p.gamma) {
        affine = reinterpret_cast<float*>(region + p.chunk * plane);
        fill_affine(p, sample, affine);
        __syncthreads();
    }

    int warp = threadIdx.x / 32, warp_m = warp / WN * MT * 16, warp_n = warp % WN * NT * 16;
    float sums[MT * NT * 8];
#pragma unroll
    for (int i = 0; i < MT * NT * 8; ++i) sums[i] = 0.0f;

    auto used = [&](int tap) { return rows.uses(tap / p.kw) && columns.uses(tap % p.kw); };
    auto next_tap = [&](int tap) {
        while (tap < taps && !used(tap)) ++tap;
        return tap;
    };
    auto pieces_of = [&](int chunk) {
        return chunk < main_chunks ? min(p.chunk, pieces - chunk * p.chunk)
                                   : min(p.chunk, more_pieces - (chunk - main_chunks) * p.chunk);
    };
    WeightStage<WEIGHTS / SIZE / THREADS, THREADS> stage;
    auto buffer_at = [&](int buffer) { return reinterpret_cast<unsigned char*>(weights + buffer * WEIGHTS); };
    auto fetch = [&](int chunk, int tap, int buffer) {
        bool own = chunk < main_chunks;
        int all = own ? taps * pieces : more_pieces;
        long long at = own ? static_cast<long long>(tap) * pieces + chunk * p.chunk
                           : static_cast<long long>(chunk - main_chunks) * p.chunk;
        at += static_cast<long long>(column_tile) * BLOCKS * all;
        const E* from = (own ? packed : p.shortcut_weight) + at * WEIGHT_BLOCK * SIZE;
        stage.fetch(buffer_at(buffer), reinterpret_cast<const unsigned char*>(from), pieces_of(chunk),
                    weight_blocks, static_cast<long long>(all) * WEIGHT_BLOCK * 16);
    };
    auto land = [&](int chunk, int buffer) {
        stage.land(buffer_at(buffer), pieces_of(chunk), weight_blocks);
    };
    auto fill_region = [&](int chunk) {
        bool own = chunk < main_chunks;
        int count = pieces_of(chunk), total = count * region_pixels;
        for (int i = threadIdx.x; i < total; i += THREADS) {
            int piece = i % count, pixel = i / count;
            int iy = base_y + pixel / p.region_width, ix = base_x + pixel % p.region_width;
            uint4 value = make_uint4(0, 0, 0, 0);
            if (iy >= 0 && iy < p.height && ix >= 0 && ix < p.width) {
                long long at = (static_cast<long long>(sample) * p.height + iy) * p.width + ix;
                if (own) {
                    int c = (chunk * p.chunk + piece) * SIZE;
                    value = source_piece(p.x, p.x2, p.c1, p.c2, p.flags & WIDE, at, c);
                    value = normalised_piece<E>(value, affine, channels, c, p.silu);
                } else {
                    int c = ((chunk - main_chunks) * p.chunk + piece) * SIZE;
                    value = source_piece(p.shortcut[0], p.shortcut[1], p.shortcut1, p.shortcut2,
                                         p.flags & WIDE_SHORTCUT, at, c);
                }
            }
            *reinterpret_cast<uint4*>(region + piece * plane + pixel * SIZE) = value;
        }
    };

    int first_tap = next_tap(0), buffer = 0;
    // A phase of a transposed convolution may have no tap.
    auto first_of = [&](int chunk) { return chunk < main_chunks ? first_tap : centre; };
    int tap = first_of(chunk);
    bool more = chunk < last_chunk && tap < taps;
    if (more) {
        fetch(chunk, tap, 0);
        fill_region(chunk);
        land(chunk, 0);
        __syncthreads();
    }
    while (more) {
        int following = chunk < main_chunks ? next_tap(tap + 1) : taps, next_chunk = chunk;
        if (following == taps) {
            next_chunk = chunk + 1;
            following = first_of(next_chunk);
        }
        more = next_chunk < last_chunk;
        if (more) fetch(next_chunk, following, buffer ^ 1);

        const E* a[MT * ROWS];
#pragma unroll
        for (int m = 0; m < MT * ROWS; ++m) {
            int pixel = warp_m + m / ROWS * 16 + Product::row(m % ROWS);
            int ry = (rows.source(pixel >> p.tile_width_log, tap / p.kw) >> p.upsample) - base_y;
            int rx = (columns.source(pixel & (tile_width - 1), tap % p.kw) >> p.upsample) - base_x;
            a[m] = region + (ry * p.region_width + rx) * SIZE;
        }
        const E* b = weights + buffer * WEIGHTS +
                     (warp_n / WEIGHT_BLOCK * CHUNK * WEIGHT_BLOCK + warp_n % WEIGHT_BLOCK) * SIZE;
        Product::template add<MT * ROWS, NT>(sums, a, plane, b, pieces_of(chunk));
        if (more) {
            land(next_chunk, buffer ^ 1);
            if (next_chunk != chunk) {
                __syncthreads();
                fill_region(next_chunk);
            }
            __syncthreads();
        }
        buffer ^= 1;
        tap = following;
        chunk = next_chunk;
    }

    if (p.slices > 1) {
        int at = tile * gridDim.y + column;
        float* partials = p.partials + static_cast<long long>(at) * p.slices * M * N;
        if (!join_slices(sums, partials, p.tickets + at, slice, p.slices)) return;
    }
    unsigned valid = 0;
#pragma unroll
    for (int r = 0; r < 2 * MT; ++r) {
        int pixel = warp_m + r / 2 * 16 + Product::sum_row(r % 2 * 2);
        int oy = rows.output(pixel >> p.tile_width_log);
        int ox = columns.output(pixel & (tile_width - 1));
        if (oy >= p.out_height || ox >= p.out_width) continue;
        valid |= 1u << r;
        long long to = ((static_cast<long long>(sample) * p.out_height + oy) * p.out_width + ox) * p.c_out;
        long long of = p.sample_pixels ? ox / p.sample_pixels : sample;
#pragma unroll
        for (int pair = 0; pair < 2 * NT; ++pair) {
            int i = (r / 2 * NT + pair / 2) * 8 + pair % 2 * 4 + r % 2 * 2;
            int out = column_tile * N + warp_n + pair / 2 * 16 + Product::sum_column(pair % 2 * 4);
            if (out >= p.c_out) continue;
            float2 more = added(p, bias, of, to + out, out);
            float low = sums[i] += more.x, high = sums[i + 1] += more.y;
            if (p.flags & PAIRS) {
                put_pair(y + (to + out), low, high);
            } else {
                put(y + (to + out), low);
                if (out + 1 < p.c_out) put(y + (to + out + 1), high);
            }
            sums[i] = rounded(low, y);
            sums[i + 1] = rounded(high, y);
        }
    }
    if (!TRANSPOSED && p.own_moments)
        store_moments<E, WM, WN, MT, NT>(p, sums, valid, place, column_tile, reinterpret_cast<float*>(shared));
}
