// How a block of a convolution's weight gradient brings x and dy into shared memory, a piece of 16 bytes at a
// time: (a) dy and (b) the part of x that the taps reach, of one tile of output pixels.
#pragma once
#include "common/conv2d_wgrad_source.cuh"

// On sm_80 warps of their own do that, while the others multiply: copies go past the registers, and x is
// normalised in shared memory. With so many threads each has 168 registers. That is too few on sm_70, where
// operands of products take more of them: there, and in general, the whole block does it between its products.
enum WgradWay { GENERAL, PLAIN, NORMALISED, STRIDED };
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

// The tile behind `tile`, which has this `index`. Of FLAT ones, of rows of pixels, without a division.
template <bool FLAT, class E>
__device__ __forceinline__ WgradTile wgrad_tile_behind(const Conv2dWeights<E>& p, WgradTile tile, int index) {
    if (!FLAT) return wgrad_tile(p, index);
    tile.ox += 1 << p.tile_width_log;
    if (tile.ox >= p.width) tile.ox = 0, tile.sample += p.samples;
    return tile;
}

// A piece on its way: its sample, -1 where nothing is left to be normalised.
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
    // A sample is a row of pixels, of x as of dy.
    static const bool FLAT = TAPS == 1 && WAY != GENERAL;
    // x is stored as it is loaded.
    static const bool COPIES = WAY == PLAIN || WAY == STRIDED;
    typedef WgradAffine<E, TAPS == 1> Affine;
    // For the bias a thread sums one word of each PARTS-th pixel of dy, which is one channel or two.
    static const int WORDS = M * static_cast<int>(sizeof(E)) / 4, PARTS = THREADS / WORDS, CHANNELS = M / WORDS;

    const Conv2dWeights<E>& p;
    const E* dy;
    int thread, x_plane, dy_plane, x_rounds, y_rounds, columns, column, out;
    const E* own_x;  // of the first pixel
    int own_pitch;
    float bias[CHANNELS];

    __device__ __forceinline__ WgradLoader(const Conv2dWeights<E>& params, const E* of_dy, int own, int first_out,
                                           int first_column)
        : p(params), dy(of_dy), thread(own), bias() {
        x_plane = p.region | 1, dy_plane = p.pixels | 1;
        x_rounds = (p.region + EACH_X - 1) / EACH_X, y_rounds = (p.pixels + EACH_Y - 1) / EACH_Y;
        columns = (p.c1 + p.c2) * (TAPS == 1 ? p.kh * p.kw : 1);
        column = first_column + thread % UN * SIZE, out = first_out + thread % UM * SIZE;
        // The thread's channels lie in one source.
        bool second = (column >= p.c1) & (column < columns);
        own_x = second ? p.x2 + (column - p.c1) : p.x + column, own_pitch = second ? p.c2 : p.c1;
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
        if (FLAT) return {tile.sample + sample_of(p, pixel), 0, tile.ox + column_of(p, pixel)};
        WgradTile from = {tile.sample, tile.oy * p.stride_h - p.pad_top, tile.ox * p.stride_w - p.pad_left};
        if (TAPS == 1) {
            from.sample += sample_of(p, pixel);
            from.oy += row_of(p, pixel) * p.stride_h;
            from.ox += column_of(p, pixel) * p.stride_w;
            return from;
        }
        int row = pixel * p.row_factor >> 20, place = pixel - row * p.region_width;
        int sample = row * p.sample_factor >> 20;
        if (WAY == STRIDED) {
            int phase = place >= p.sub_width;
            place = (place - phase * p.sub_width) * 2 + phase;
        } else if (WAY == GENERAL && p.stride_w > 1) {
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
        if (FLAT) return (from.sample < p.batch) & (from.ox < p.width);
        return (from.sample < p.batch) &
               (static_cast<unsigned>(from.oy) < static_cast<unsigned>(p.height << p.upsample)) &
               (static_cast<unsigned>(from.ox) < static_cast<unsigned>(p.width << p.upsample));
    }
    __device__ __forceinline__ int source_index(const WgradTile& from) const {
        if (FLAT) return from.sample * p.width + from.ox;
        return (from.sample * p.height + (from.oy >> p.upsample)) * p.width + (from.ox >> p.upsample);
    }

    // A piece of x is fetched, normalised in two parts and stored, so that there can be products between.
    // Apart from GENERAL there are no branches, which would keep the compiler from mixing them. Nothing is
    // done where there isn't `any`.
    __device__ __forceinline__ void fetch_x(uint4* buffer, const WgradTile& tile, int round, bool any,
                                            WgradPiece& piece) {
        int pixel = x_pixel(round);
        bool wanted = (pixel < p.region) & any;
        if (WAY != GENERAL) {
            WgradTile from = source_of(tile, pixel);
            bool inside = wanted & (column < columns) & in_source(from);
            // What is outside reads what is there for certain.
            const E* at = inside ? own_x + source_index(from) * own_pitch : p.x;
            piece.sample = inside ? from.sample : -1;
            if (COPIES || CYANEA_CODE_PATH >= 80) fetch_plain(piece, x_place(buffer, round), at, inside, wanted);
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
    // Part `part` of SIZE / 4.
    __device__ __forceinline__ void normalise_x(WgradPiece& piece, int part) const {
        if (part >= SIZE / 4) return;
        bool inside = piece.sample >= 0;
        bool whole = TAPS == 1 && p.flags & WIDE && column < columns;
        if (WAY == GENERAL && !(inside && (p.affine || p.silu))) return;
        if (WAY == NORMALISED || (WAY == GENERAL && whole)) {
            Affine affine;
            affine.load(p, part, inside ? piece.sample : 0, (inside ? column : 0) + part * 4);
            affine.normalise(part, p.silu, piece.value);
        } else if (WAY == GENERAL && part == 0) {
            // Registers are short where there are many taps.
            float value[SIZE];
            unpack(piece.value, value);
#pragma unroll
            for (int i = 0; i < SIZE; ++i) value[i] = normalised(p, value[i], piece.sample, column + i);
            piece.value = pack(value);
        }
    }
    __device__ __forceinline__ void store_x(uint4* buffer, int round, bool any, WgradPiece& piece) const {
        bool wanted = (x_pixel(round) < p.region) & any;
        if (COPIES) {
            store_plain(piece, x_place(buffer, round), wanted);
            return;
        }
        if (WAY == NORMALISED && piece.sample < 0) piece.value = make_uint4(0, 0, 0, 0);
        if (wanted) *x_place(buffer, round) = piece.value;
    }
    __device__ __forceinline__ void fetch_y(uint4* buffer, const WgradTile& tile, int round, bool any,
                                            WgradPiece& piece) {
        int k = y_pixel(round);
        int sample = tile.sample + sample_of(p, k), oy = tile.oy + row_of(p, k), ox = tile.ox + column_of(p, k);
        bool wanted = (k < p.pixels) & any;
        bool inside = wanted & (sample < p.batch) & (oy < p.out_height) & (ox < p.out_width);
        int pixel = (sample * p.out_height + oy) * p.out_width + ox;
        if (FLAT) {
            // The same as of x.
            WgradTile from = source_of(tile, k);
            inside = wanted & in_source(from), pixel = source_index(from);
        }
        if (WAY != GENERAL) {
            inside = inside & (out < p.c_out);
            fetch_plain(piece, y_place(buffer, round), inside ? dy + (pixel * p.c_out + out) : dy, inside, wanted);
            return;
        }
        piece.value = make_uint4(0, 0, 0, 0);
        if (inside) piece.value = source_piece<E>(dy, nullptr, p.c_out, 0, p.flags & WIDE_DY, pixel, out);
    }
    __device__ __forceinline__ void store_y(uint4* buffer, int round, bool any, const WgradPiece& piece) const {
        bool wanted = (y_pixel(round) < p.pixels) & any;
        if (WAY != GENERAL) store_plain(piece, y_place(buffer, round), wanted);
        else if (wanted) *y_place(buffer, round) = piece.value;
    }

    // The rounds from `x_round` and `y_round` on, with nothing else to do meanwhile.
    __device__ __forceinline__ void bring(uint4* buffer, const WgradTile& tile, int x_round, int y_round) {
#pragma unroll 1
        for (; x_round < x_rounds; ++x_round) {
            WgradPiece piece;
            fetch_x(buffer, tile, x_round, true, piece);
            normalise_x(piece, 0);
            normalise_x(piece, 1);
            store_x(buffer, x_round, true, piece);
        }
#pragma unroll 1
        for (; y_round < y_rounds; ++y_round) {
            WgradPiece piece;
            fetch_y(buffer, tile, y_round, true, piece);
            store_y(buffer, y_round, true, piece);
        }
    }
#if CYANEA_CODE_PATH >= 80
    // All of a tile, by threads that do nothing else: it is copied as it is, and x normalised where it lies. What
    // there is to do meanwhile is `during`.
    template <class During>
    __device__ __forceinline__ void stream(uint4* buffer, const WgradTile& tile, During during) {
        const int MOST = 32;  // rounds of which a thread remembers whether their pieces are inside
        for (int first = 0; first < x_rounds; first += MOST) {
            int end = min(first + MOST, x_rounds);
            unsigned inside = 0;
#pragma unroll 4
            for (int round = first; round < end; ++round) {
                WgradPiece piece;
                fetch_x(buffer, tile, round, true, piece);
                inside |= piece.sample >= 0 ? 1u << (round - first) : 0;
            }
            copy_commit();
            if (first == 0) {
#pragma unroll 4
                for (int round = 0; round < y_rounds; ++round) {
                    WgradPiece piece;
                    fetch_y(buffer, tile, round, true, piece);
                }
                copy_commit();
                during();
                copy_wait<1>();
            } else {
                copy_wait<0>();
            }
            if (WAY != NORMALISED) continue;
            Affine affine = {};
            if (p.samples == 1) {
                load_affine(affine, tile.sample);
                for (int round = first; round < end; round += 3)
                    normalise_rounds<3>(buffer, round, inside >> (round - first), affine);
            } else {
                for (int round = first; round < end; ++round) {
                    unsigned rest = inside >> (round - first);
                    load_affine(affine, rest & 1 ? source_of(tile, x_pixel(round)).sample : 0);
                    normalise_rounds<1>(buffer, round, rest, affine);
                }
            }
        }
        copy_wait<0>();
    }
    __device__ __forceinline__ void load_affine(Affine& affine, int sample) const {
        int c = column < columns ? column : 0;
#pragma unroll
        for (int part = 0; part < SIZE / 4; ++part) affine.load(p, part, sample, c + part * 4);
    }
    // COUNT rounds together, so that each hides what the others wait for; `inside` has a bit for each.
    template <int COUNT>
    __device__ __forceinline__ void normalise_rounds(uint4* buffer, int round, unsigned inside,
                                                     const Affine& affine) {
        uint4 pieces[COUNT];
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            pieces[i] = make_uint4(0, 0, 0, 0);
            if (inside >> i & 1) pieces[i] = *x_place(buffer, round + i);
        }
#pragma unroll
        for (int part = 0; part < SIZE / 4; ++part) {
#pragma unroll
            for (int i = 0; i < COUNT; ++i) affine.normalise(part, p.silu, pieces[i]);
        }
#pragma unroll
        for (int i = 0; i < COUNT; ++i)
            if (inside >> i & 1) *x_place(buffer, round + i) = pieces[i];
    }
#endif

    __device__ __forceinline__ void add_bias(const uint4* buffer) {
        int word = thread % WORDS;
        const uint4* plane = buffer + (UN * x_plane + word / 4 * dy_plane);
        const unsigned* words = reinterpret_cast<const unsigned*>(plane + thread / WORDS) + word % 4;
        // A tile has a multiple of 16 pixels.
#pragma unroll 2
        for (int first = 0; first < p.pixels; first += 16) {
#pragma unroll
            for (int k = 0; k < 16; k += PARTS) {
                float value[CHANNELS];
                unpack(words[4 * (first + k)], value);
#pragma unroll
                for (int i = 0; i < CHANNELS; ++i) bias[i] += value[i];
            }
        }
    }
    // [PARTS][M]
    __device__ __forceinline__ void store_bias(float* to) const {
#pragma unroll
        for (int i = 0; i < CHANNELS; ++i) to[thread / WORDS * M + thread % WORDS * CHANNELS + i] = bias[i];
    }
};
