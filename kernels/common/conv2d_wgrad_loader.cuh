// How a block of a convolution's weight gradient brings x and dy into shared memory, a piece of 16 bytes at a
// time: (a) dy and (b) the part of x that the taps reach, of one tile of output pixels.
#pragma once
#include "common/conv2d_wgrad_source.cuh"

// By the whole block between its products, or, where the chip copies past the registers and so leaves more of
// them, by warps of their own, which normalise at the same time as the others multiply.
enum WgradWay { GENERAL, PLAIN, NORMALISED };
template <WgradWay WAY>
struct WgradLoaders {
    static const int THREADS = WAY == GENERAL || CYANEA_CODE_PATH < 80 ? 0 : 128;
};

// First output pixel of a tile.
struct WgradTile {
    int sample, oy, ox;
};

template <class E>
__device__ __forceinline__ WgradTile wgrad_tile(const Conv2dWeights<E>& p, int index) {
    int row = index / p.tiles_x, group = row / p.tiles_y;
    return {group * p.samples, (row - group * p.tiles_y) << p.tile_height_log,
            (index - row * p.tiles_x) << p.tile_width_log};
}
// A place k of a tile is (sample, row, column) from the highest bits to the lowest.
template <class E>
__device__ __forceinline__ int sample_of(const Conv2dWeights<E>& p, int k) {
    return k >> (p.tile_width_log + p.tile_height_log);
}
template <class E>
__device__ __forceinline__ int row_of(const Conv2dWeights<E>& p, int k) {
    return k >> p.tile_width_log & ((1 << p.tile_height_log) - 1);
}
template <class E>
__device__ __forceinline__ int column_of(const Conv2dWeights<E>& p, int k) {
    return k & ((1 << p.tile_width_log) - 1);
}

// A piece on its way: its sample, -1 where it is outside of the image.
struct WgradPiece {
    uint4 value;
    int sample;
};

// A piece that is stored as it is loaded, zeros where it is not `inside`, nothing where it is not
// `wanted`: past the registers where the chip can.
template <class E>
__device__ __forceinline__ void fetch_plain(WgradPiece& piece, uint4* to, const E* from, bool inside, bool wanted) {
#if CYANEA_CODE_PATH >= 80
    copy_async_or_zero(wanted, inside, to, from);
#else
    piece.value = make_uint4(0, 0, 0, 0);
    if (inside) piece.value = *reinterpret_cast<const uint4*>(from);
#endif
}
__device__ __forceinline__ void store_plain(const WgradPiece& piece, uint4* to, bool wanted) {
#if CYANEA_CODE_PATH < 80
    if (wanted) *to = piece.value;
#endif
}
__device__ __forceinline__ void await_plain() {
#if CYANEA_CODE_PATH >= 80
    copy_commit();
    copy_wait<0>();
#endif
}

// A word of a piece.
__device__ __forceinline__ void unpack(unsigned word, float (&value)[2]) {
    value[0] = low_half(word);
    value[1] = high_half(word);
}
__device__ __forceinline__ void unpack(unsigned word, float (&value)[1]) { value[0] = __uint_as_float(word); }

// What one of THREADS threads brings: always the same piece, of every so many-th pixel, in rounds. M output
// channels, N columns.
template <class E, int TAPS, WgradWay WAY, int M, int N, int THREADS>
struct WgradLoader {
    static const int SIZE = Piece<E>::SIZE, UM = M / SIZE, UN = N / SIZE, EACH_X = THREADS / UN, EACH_Y = THREADS / UM;
    // For the bias a thread sums one word of each PARTS-th pixel of dy, which is one channel or two.
    static const int WORDS = M * static_cast<int>(sizeof(E)) / 4, PARTS = THREADS / WORDS, CHANNELS = M / WORDS;

    const Conv2dWeights<E>& p;
    const E* dy;
    int thread, x_plane, dy_plane, x_rounds, y_rounds, columns, column, out;
    float bias[CHANNELS];

    __device__ __forceinline__ WgradLoader(const Conv2dWeights<E>& params, const E* of_dy, int own, int first_out,
                                           int first_column)
        : p(params), dy(of_dy), thread(own), bias() {
        x_plane = p.region | 1, dy_plane = p.pixels | 1;
        x_rounds = (p.region + EACH_X - 1) / EACH_X, y_rounds = (p.pixels + EACH_Y - 1) / EACH_Y;
        columns = (p.c1 + p.c2) * (TAPS == 1 ? p.kh * p.kw : 1);
        column = first_column + thread % UN * SIZE, out = first_out + thread % UM * SIZE;
    }
    __device__ __forceinline__ int x_pixel(int round) const { return thread / UN + round * EACH_X; }
    __device__ __forceinline__ int y_pixel(int round) const { return thread / UM + round * EACH_Y; }
    __device__ __forceinline__ uint4* x_place(uint4* buffer, int round) const {
        return buffer + (thread % UN * x_plane + x_pixel(round));
    }
    __device__ __forceinline__ uint4* y_place(uint4* buffer, int round) const {
        return buffer + (UN * x_plane + thread % UM * dy_plane + y_pixel(round));
    }

    // Where pixel `pixel` of (b) comes from.
    __device__ __forceinline__ WgradTile source_of(const WgradTile& tile, int pixel) const {
        WgradTile from = {tile.sample, tile.oy * p.stride_h - p.pad_top, tile.ox * p.stride_w - p.pad_left};
        if (TAPS == 1) {
            from.sample += sample_of(p, pixel);
            from.oy += row_of(p, pixel) * p.stride_h;
            from.ox += column_of(p, pixel) * p.stride_w;
            return from;
        }
        int row = pixel * p.row_factor >> 20, place = pixel - row * p.region_width;
        int sample = row * p.sample_factor >> 20;
        if (WAY == GENERAL && p.stride_w > 1) {
            int phase = place / p.sub_width;
            place = (place - phase * p.sub_width) * p.stride_w + phase;
        }
        from.sample += sample;
        from.oy += row - sample * p.region_height;
        from.ox += place;
        return from;
    }
    // No tensor has more than 2^31 elements. Unsigned, what is negative is too large as well.
    __device__ __forceinline__ bool in_source(const WgradTile& from) const {
        return (from.sample < p.batch) & (static_cast<unsigned>(from.oy) < static_cast<unsigned>(p.height << p.upsample)) &
               (static_cast<unsigned>(from.ox) < static_cast<unsigned>(p.width << p.upsample));
    }
    __device__ __forceinline__ int source_index(const WgradTile& from) const {
        return (from.sample * p.height + (from.oy >> p.upsample)) * p.width + (from.ox >> p.upsample);
    }

    // A piece of x is fetched, normalised in two parts and stored, so that there can be products between.
    // Apart from GENERAL there are no branches, which would keep the compiler from mixing them. Nothing is
    // done beyond `rounds`.
    __device__ __forceinline__ void fetch_x(uint4* buffer, const WgradTile& tile, int round, int rounds, WgradPiece& piece) {
        int pixel = x_pixel(round);
        bool wanted = (pixel < p.region) & (round < rounds);
        if (WAY != GENERAL) {
            WgradTile from = source_of(tile, pixel);
            bool inside = wanted & (column < columns) & in_source(from);
            // The thread's channels lie in one source. What is outside reads what is there for certain.
            bool second = (column >= p.c1) & (column < columns);
            const E* at = second ? p.x2 : p.x;
            if (inside) at += source_index(from) * (second ? p.c2 : p.c1) + (second ? column - p.c1 : column);
            piece.sample = inside ? from.sample : -1;
            if (WAY == PLAIN) fetch_plain(piece, x_place(buffer, round), at, inside, wanted);
            else piece.value = *reinterpret_cast<const uint4*>(at);
            return;
        }
        piece.value = make_uint4(0, 0, 0, 0);
        piece.sample = -1;
        if (!wanted) return;
        WgradTile from = source_of(tile, pixel);
        int taps = p.kh * p.kw;
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
    }
    template <int PART>
    __device__ __forceinline__ void normalise_x(WgradPiece& piece) const {
        bool inside = piece.sample >= 0;
        if (WAY == NORMALISED) {
            normalise_part<PART>(p, piece.value, inside ? piece.sample : 0, inside ? column : 0);
        } else if (WAY == GENERAL && inside && (p.affine || p.silu)) {
            // Registers are short where there are many taps.
            if (TAPS == 1 && p.flags & WIDE && column < columns) {
                normalise_part<PART>(p, piece.value, piece.sample, column);
            } else if (PART == 0) {
                float value[SIZE];
                unpack(piece.value, value);
#pragma unroll
                for (int i = 0; i < SIZE; ++i) value[i] = normalised(p, value[i], piece.sample, column + i);
                piece.value = pack(value);
            }
        }
    }
    __device__ __forceinline__ void store_x(uint4* buffer, int round, int rounds, WgradPiece& piece) const {
        bool wanted = (x_pixel(round) < p.region) & (round < rounds);
        if (WAY == PLAIN) {
            store_plain(piece, x_place(buffer, round), wanted);
            return;
        }
        if (WAY == NORMALISED && piece.sample < 0) piece.value = make_uint4(0, 0, 0, 0);
        if (wanted) *x_place(buffer, round) = piece.value;
    }
    __device__ __forceinline__ void fetch_y(uint4* buffer, const WgradTile& tile, int round, int rounds, WgradPiece& piece) {
        int k = y_pixel(round);
        int sample = tile.sample + sample_of(p, k), oy = tile.oy + row_of(p, k), ox = tile.ox + column_of(p, k);
        bool wanted = (k < p.pixels) & (round < rounds);
        bool inside = wanted & (sample < p.batch) & (oy < p.out_height) & (ox < p.out_width);
        int pixel = (sample * p.out_height + oy) * p.out_width + ox;
        if (WAY != GENERAL) {
            inside = inside & (out < p.c_out);
            fetch_plain(piece, y_place(buffer, round), inside ? dy + (pixel * p.c_out + out) : dy, inside, wanted);
            return;
        }
        piece.value = make_uint4(0, 0, 0, 0);
        if (inside) piece.value = source_piece<E>(dy, nullptr, p.c_out, 0, p.flags & WIDE_DY, pixel, out);
    }
    __device__ __forceinline__ void store_y(uint4* buffer, int round, int rounds, const WgradPiece& piece) const {
        bool wanted = (y_pixel(round) < p.pixels) & (round < rounds);
        if (WAY != GENERAL) store_plain(piece, y_place(buffer, round), wanted);
        else if (wanted) *y_place(buffer, round) = piece.value;
    }

    // The rounds from `x_round` and `y_round` on, with nothing else to do meanwhile.
    __device__ __forceinline__ void bring(uint4* buffer, const WgradTile& tile, int x_round, int y_round) {
#pragma unroll 1
        for (; x_round < x_rounds; ++x_round) {
            WgradPiece piece;
            fetch_x(buffer, tile, x_round, x_rounds, piece);
            normalise_x<0>(piece);
            normalise_x<1>(piece);
            store_x(buffer, x_round, x_rounds, piece);
        }
#pragma unroll 1
        for (; y_round < y_rounds; ++y_round) {
            WgradPiece piece;
            fetch_y(buffer, tile, y_round, y_rounds, piece);
            store_y(buffer, y_round, y_rounds, piece);
        }
    }
    // All of a tile, with pieces of x under way while those before are normalised.
    __device__ __forceinline__ void stream(uint4* buffer, const WgradTile& tile) {
        const int AHEAD = 3, AT_A_TIME = 4;
        auto fetch = [&](WgradPiece (&pieces)[AHEAD], int round) {
#pragma unroll
            for (int i = 0; i < AHEAD; ++i) fetch_x(buffer, tile, round + i, x_rounds, pieces[i]);
        };
        auto store = [&](WgradPiece (&pieces)[AHEAD], int round) {
#pragma unroll
            for (int i = 0; i < AHEAD; ++i) {
                normalise_x<0>(pieces[i]);
                normalise_x<1>(pieces[i]);
                store_x(buffer, round + i, x_rounds, pieces[i]);
            }
        };
        WgradPiece pieces[2][AHEAD];
        fetch(pieces[0], 0);
#pragma unroll 1
        for (int round = 0; round < y_rounds; round += AT_A_TIME) {
            WgradPiece of_dy[AT_A_TIME];
#pragma unroll
            for (int i = 0; i < AT_A_TIME; ++i) fetch_y(buffer, tile, round + i, y_rounds, of_dy[i]);
#pragma unroll
            for (int i = 0; i < AT_A_TIME; ++i) store_y(buffer, round + i, y_rounds, of_dy[i]);
        }
#pragma unroll 1
        for (int round = 0; round < x_rounds; round += 2 * AHEAD) {
            fetch(pieces[1], round + AHEAD);
            store(pieces[0], round);
            fetch(pieces[0], round + 2 * AHEAD);
            store(pieces[1], round + AHEAD);
        }
        await_plain();
    }

    __device__ __forceinline__ void add_bias(const uint4* buffer) {
        int word = thread % WORDS;
        const uint4* plane = buffer + (UN * x_plane + word / 4 * dy_plane);
        const unsigned* words = reinterpret_cast<const unsigned*>(plane) + word % 4;
#pragma unroll 4
        for (int k = thread / WORDS; k < p.pixels; k += PARTS) {
            float value[CHANNELS];
            unpack(words[4 * k], value);
#pragma unroll
            for (int i = 0; i < CHANNELS; ++i) bias[i] += value[i];
        }
    }
    // [PARTS][M]
    __device__ __forceinline__ void store_bias(float* to) const {
#pragma unroll
        for (int i = 0; i < CHANNELS; ++i) to[thread / WORDS * M + thread % WORDS * CHANNELS + i] = bias[i];
    }
};
