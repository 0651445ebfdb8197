// A tile of a convolution's weight gradient: rows are output channels, columns are input channels with
// all their taps, and the terms of each sum are pixels.
//
// A block makes M rows x N columns x TAPS of a slice of the pixels. It walks over tiles of output pixels,
// `pixels` at a time, of one sample or of several small ones, and keeps of each in shared memory (a) dy
// and (b) the part of x that the taps reach, normalised, both in planes of pieces [piece][pixel][16 bytes]
// of an odd pitch, with zeros outside the image. It works on one tile while the next is on its way
// through registers into a second buffer.
//
//   TAPS 9   3x3 kernels: all taps read (b) at shifted places. with a stride, columns of pixels of (b) are
//            sorted by their place modulo the stride, so that neighbouring outputs read neighbours.
//            PLAIN: no stride in rows; x and dy are read 16 bytes at a time and stored as they are.
//            NORMALISED: the same, but x is scaled, shifted and goes through SiLU on its way.
//   TAPS 1   others: a column is an input channel and a tap, and (b) has a pixel for every output pixel.
//
// Slices are joined by tickets. The blocks of the first columns also sum dy for the bias.
#pragma once
#include "common/conv2d_wgrad_source.cuh"
#include "common/slices.cuh"
#include "common/wgrad_step.cuh"

// MT x NT products of 16 x 16 and each tap a warp, WM x WN warps a block; a thread has HX pieces of x and
// HY of dy under way at a time.
template <class E, int TAPS, WgradWay WAY, int WM, int WN, int MT, int NT, int HX, int HY>
__device__ __forceinline__ void conv2d_wgrad_tile(const Conv2dWeights<E>& p) {
    const int M = WM * MT * 16, N = WN * NT * 16, THREADS = WM * WN * 32, SIZE = Piece<E>::SIZE;
    const int UM = M / SIZE, UN = N / SIZE, SUMS = TAPS * MT * NT * 8;
    CYANEA_DYNAMIC_SHARED(uint4, shared);
    const E* type = nullptr;
    int thread = threadIdx.x, warp = thread / 32, warp_m = warp / WN * MT * 16, warp_n = warp % WN * NT * 16;
    int column_tile = blockIdx.x, row_tile = blockIdx.z, sibling = 0;
    if (TAPS == 1) sibling = row_tile / p.row_tiles, row_tile -= sibling * p.row_tiles;
    const E* dy = sibling == 0 ? p.dy[0] : sibling == 1 ? p.dy[1] : p.dy[2];
    int taps = p.kh * p.kw, columns = (p.c1 + p.c2) * (TAPS == 1 ? taps : 1);

    // Tiles of pixels; a place k in one is (sample, row, column) from the highest bits to the lowest.
    int width_log = p.tile_width_log, height_log = p.tile_height_log, size_log = width_log + height_log;
    int slice = blockIdx.y, tile = p.tiles * slice / p.slices, last = p.tiles * (slice + 1) / p.slices;
    auto tile_at = [&](int index) {
        int row = index / p.tiles_x, group = row / p.tiles_y;
        return WgradTile{group * p.samples, (row - group * p.tiles_y) << height_log,
                         (index - row * p.tiles_x) << width_log};
    };
    auto sample_of = [&](int k) { return k >> size_log; };
    auto row_of = [&](int k) { return k >> width_log & ((1 << height_log) - 1); };
    auto column_of = [&](int k) { return k & ((1 << width_log) - 1); };

    int x_plane = p.region | 1, dy_plane = p.pixels | 1, buffer_pieces = UN * x_plane + UM * dy_plane;

    // What a thread brings: always the same piece, of every (THREADS / UN)-th pixel.
    int x_piece = thread % UN, x_first = thread / UN, x_rounds = (p.region + THREADS / UN - 1) / (THREADS / UN);
    int y_piece = thread % UM, y_first = thread / UM, y_rounds = (p.pixels + THREADS / UM - 1) / (THREADS / UM);
    auto x_pixel = [&](int round) { return x_first + round * (THREADS / UN); };
    auto y_pixel = [&](int round) { return y_first + round * (THREADS / UM); };
    auto x_place = [&](uint4* buffer, int round) { return buffer + (x_piece * x_plane + x_pixel(round)); };
    auto y_place = [&](uint4* buffer, int round) {
        return buffer + (UN * x_plane + y_piece * dy_plane + y_pixel(round));
    };
    // Where pixel `pixel` of (b) comes from.
    auto source_of = [&](const WgradTile& of, int pixel) {
        WgradTile from = {of.sample, of.oy * p.stride_h - p.pad_top, of.ox * p.stride_w - p.pad_left};
        if (TAPS == 1) {
            from.sample += sample_of(pixel);
            from.oy += row_of(pixel) * p.stride_h;
            from.ox += column_of(pixel) * p.stride_w;
            return from;
        }
        int row = pixel * p.row_factor >> 20, place = pixel - row * p.region_width;
        if (p.samples > 1) {
            int other = row / p.region_height;
            row -= other * p.region_height;
            from.sample += other;
        }
        if (WAY == GENERAL && p.stride_w > 1) {
            int phase = place / p.sub_width;
            place = (place - phase * p.sub_width) * p.stride_w + phase;
        }
        from.oy += row;
        from.ox += place;
        return from;
    };
    // No tensor has more than 2^31 elements. Unsigned, what is negative is too large as well.
    auto in_source = [&](const WgradTile& from) {
        return from.sample < p.batch && static_cast<unsigned>(from.oy) < static_cast<unsigned>(p.height << p.upsample) &&
               static_cast<unsigned>(from.ox) < static_cast<unsigned>(p.width << p.upsample);
    };
    auto source_index = [&](const WgradTile& from) {
        return (from.sample * p.height + (from.oy >> p.upsample)) * p.width + (from.ox >> p.upsample);
    };
    int column = column_tile * N + x_piece * SIZE, out = row_tile * M + y_piece * SIZE;
    // The same as `column`, computed again where registers are too short for what follows from it.
    auto x_channel = [&]() {
        bool again = WAY == NORMALISED && CYANEA_CODE_PATH < 80;
        return again ? column_tile * N + thread_again() % UN * SIZE : column;
    };
    auto fetch_x = [&](uint4* buffer, const WgradTile& of, int round, WgradPiece& piece) {
        int pixel = x_pixel(round);
        WgradTile from = source_of(of, pixel);
        if (WAY != GENERAL) {
            bool inside = pixel < p.region && column < columns && in_source(from);
            // The thread's channels lie in one source.
            int c = x_channel();
            const E* source = c < p.c1 ? p.x + c : p.x2 + (c - p.c1);
            const E* at = source + source_index(from) * (c < p.c1 ? p.c1 : p.c2);
            if (WAY == PLAIN) {
                fetch_plain(piece, x_place(buffer, round), at, inside, pixel < p.region);
                return;
            }
            piece.value = make_uint4(0, 0, 0, 0);
            if (inside) piece.value = *reinterpret_cast<const uint4*>(at);
            piece.sample = inside ? from.sample : -1;
            return;
        }
        piece.value = make_uint4(0, 0, 0, 0);
        piece.sample = -1;
        if (pixel >= p.region) return;
        if (TAPS == 1 && taps > 1) {
            if (from.sample >= p.batch) return;
#pragma unroll 1
            for (int i = 0; i < SIZE && column + i < columns; ++i) {
                int c = (column + i) / taps, tap = column + i - c * taps, ky = tap / p.kw;
                E value;
                put(&value, source_value(p, from.sample, from.oy + ky, from.ox + tap - ky * p.kw, c));
                set_element(piece.value, i, value);
            }
        } else if (in_source(from)) {
            piece.value = source_piece(p.x, p.x2, p.c1, p.c2, p.flags & WIDE, source_index(from), column);
            piece.sample = TAPS == 1 && p.affine && p.sample_pixels ? from.ox / p.sample_pixels : from.sample;
        }
    };
    auto land_x = [&](uint4* buffer, int round, WgradPiece& piece) {
        if (WAY == PLAIN) {
            land_plain(piece, x_place(buffer, round), x_pixel(round) < p.region);
            return;
        }
        if (piece.sample >= 0 && (p.affine || p.silu)) {
            // Registers are short where there are many taps.
            if (WAY == NORMALISED || (TAPS == 1 && p.flags & WIDE && column < columns)) {
                piece.value = normalised(p, piece.value, piece.sample, x_channel());
            } else {
                float value[SIZE];
                unpack(piece.value, value);
#pragma unroll
                for (int i = 0; i < SIZE; ++i) value[i] = normalised(p, value[i], piece.sample, column + i);
                piece.value = pack(value);
            }
        }
        if (x_pixel(round) < p.region) *x_place(buffer, round) = piece.value;
    };
    auto fetch_y = [&](uint4* buffer, const WgradTile& of, int round, WgradPiece& piece) {
        int k = y_pixel(round);
        int sample = of.sample + sample_of(k), oy = of.oy + row_of(k), ox = of.ox + column_of(k);
        bool inside = k < p.pixels && sample < p.batch && oy < p.out_height && ox < p.out_width;
        int pixel = (sample * p.out_height + oy) * p.out_width + ox;
        if (WAY != GENERAL) {
            inside = inside && out < p.c_out;
            fetch_plain(piece, y_place(buffer, round), dy + (pixel * p.c_out + out), inside, k < p.pixels);
            return;
        }
        piece.value = make_uint4(0, 0, 0, 0);
        if (inside) piece.value = source_piece<E>(dy, nullptr, p.c_out, 0, p.flags & WIDE_DY, pixel, out);
    };
    auto land_y = [&](uint4* buffer, int round, const WgradPiece& piece) {
        if (WAY != GENERAL) land_plain(piece, y_place(buffer, round), y_pixel(round) < p.pixels);
        else if (y_pixel(round) < p.pixels) *y_place(buffer, round) = piece.value;
    };
    // The rounds from `x_round` and `y_round` on, with nothing else to do meanwhile.
    auto bring = [&](uint4* buffer, const WgradTile& of, int x_round, int y_round) {
#pragma unroll 1
        for (; x_round < x_rounds; ++x_round) {
            WgradPiece piece;
            fetch_x(buffer, of, x_round, piece);
            land_x(buffer, x_round, piece);
        }
#pragma unroll 1
        for (; y_round < y_rounds; ++y_round) {
            WgradPiece piece;
            fetch_y(buffer, of, y_round, piece);
            land_y(buffer, y_round, piece);
        }
        if (WAY != GENERAL) await_plain();
    };

    // For the bias a thread sums one word of each PARTS-th pixel of dy, which is one channel or two.
    const int WORDS = M * static_cast<int>(sizeof(E)) / 4, PARTS = THREADS / WORDS, EACH = M / WORDS;
    bool has_bias = p.dbias[0] && column_tile == 0;
    float bias[EACH] = {};
    auto add_bias = [&](const uint4* plane) {
        int again = thread_again(), word = again % WORDS;
        const unsigned* words = reinterpret_cast<const unsigned*>(plane + word / 4 * dy_plane) + word % 4;
#pragma unroll 4
        for (int k = again / WORDS; k < p.pixels; k += PARTS) {
            float value[EACH];
            unpack(words[4 * k], value);
#pragma unroll
            for (int i = 0; i < EACH; ++i) bias[i] += value[i];
        }
    };

    auto place = [&](int k) {
        if (TAPS == 1) return k;
        return (sample_of(k) * p.region_height + row_of(k) * p.stride_h) * p.region_width + column_of(k);
    };
    // How much further in a row a tap reads.
    auto shift = [&](int kx) {
        if (kx == 0) return 0;
        if (WAY != GENERAL) return kx;
        return kx == 1 ? p.second_tap : p.third_tap;
    };

    float sums[SUMS + 1];
#pragma unroll
    for (int i = 0; i <= SUMS; ++i) sums[i] = 0.0f;
    uint4* buffer = shared;
    uint4* other = shared + buffer_pieces;
    bring(buffer, tile_at(tile), 0, 0);
    __syncthreads();
    for (; tile < last; ++tile) {
        bool more = tile + 1 < last;
        WgradTile next = tile_at(tile + 1);
        const uint4* right = buffer + warp_n / SIZE * x_plane;
        const uint4* left = buffer + UN * x_plane + warp_m / SIZE * dy_plane;
        int steps = p.pixels / 16;
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            WgradPiece held_x[HX], held_y[HY];
            if (more) {
#pragma unroll
                for (int h = 0; h < HX; ++h) fetch_x(other, next, step * HX + h, held_x[h]);
#pragma unroll
                for (int h = 0; h < HY; ++h) fetch_y(other, next, step * HY + h, held_y[h]);
            }
            wgrad_step<TAPS, MT, NT>(sums, type, left, dy_plane, right, x_plane, step * 16, place,
                                     p.region_width, shift);
            if (more) {
#pragma unroll
                for (int h = 0; h < HY; ++h) land_y(other, step * HY + h, held_y[h]);
#pragma unroll
                for (int h = 0; h < HX; ++h) land_x(other, step * HX + h, held_x[h]);
            }
        }
        if (more) bring(other, next, steps * HX, steps * HY);
        if (has_bias) add_bias(buffer + UN * x_plane);
        __syncthreads();
        uint4* swapped = buffer;
        buffer = other;
        other = swapped;
    }

    thread = thread_again();
    warp = thread / 32;
    if (has_bias) {
        // [PARTS][M]
        float* of_parts = reinterpret_cast<float*>(shared);
#pragma unroll
        for (int i = 0; i < EACH; ++i) of_parts[thread / WORDS * M + thread % WORDS * EACH + i] = bias[i];
        __syncthreads();
        if (thread < M)
            for (int i = 0; i < PARTS; ++i) sums[SUMS] += of_parts[i * M + thread];
    }
    int block = blockIdx.z * gridDim.x + blockIdx.x;
    float* partials = p.partials + static_cast<long long>(block) * p.parts * (SUMS + 1) * THREADS;
    if (!join_groups<THREADS>(sums, partials, p.tickets + block * p.groups, slice, p.slices, p.fan)) return;
    float* dw = sibling == 0 ? p.dw[0] : sibling == 1 ? p.dw[1] : p.dw[2];
    float* dbias = sibling == 0 ? p.dbias[0] : sibling == 1 ? p.dbias[1] : p.dbias[2];
    if (has_bias && thread < M && row_tile * M + thread < p.c_out) dbias[row_tile * M + thread] = sums[SUMS];
    int first_out = row_tile * M + warp / WN * MT * 16, first_column = column_tile * N + warp % WN * NT * 16;
#pragma unroll
    for (int i = 0; i < SUMS; ++i) {
        WgradPlace place = wgrad_place<MT, NT>(type, i);
        int row = first_out + place.row, to = first_column + place.column;
        if (row >= p.c_out || to >= columns) continue;
        dw[(static_cast<long long>(row) * columns + to) * TAPS + place.tap] = sums[i];
    }
}
