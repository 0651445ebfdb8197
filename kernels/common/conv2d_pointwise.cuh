// Products of pixels and the weights of a 1x1 convolution, both straight from memory: no other tap reads the same
// pixels, so they need no region, and no warp waits for another.
#pragma once
#include "common/conv2d_region.cuh"
#include "common/warp_product.cuh"

// What a lane has of a product of 16 pixels x 16 columns and a unit of four pieces: in each of ROUNDS two pieces of
// pixels, and two of columns. Channels may come in any order that is the same for all that meet in a product. Of 16
// pixels it has PLACES, which are DISTANCE apart.
struct PointwiseLane {
    static const int UNIT = 4;
#if CYANEA_CODE_PATH >= 80
    // A piece of two pixels, and of two columns; four lanes read neighbouring pieces.
    static const int ROUNDS = 1, PLACES = 2, DISTANCE = 8;

    __device__ static __forceinline__ int pixel() { return warp_lane() / 4; }
    __device__ static __forceinline__ int column(int i) { return warp_lane() / 4 + 8 * i; }
    __device__ static __forceinline__ int piece(int, int, bool) { return warp_lane() % 4; }
    __device__ static __forceinline__ void multiply(float* sums, const uint4 (&pixels)[2], const uint4 (&weights)[2]) {
        unsigned first[4] = {pixels[0].x, pixels[1].x, pixels[0].y, pixels[1].y};
        unsigned second[4] = {pixels[0].z, pixels[1].z, pixels[0].w, pixels[1].w};
        unsigned first_columns[4] = {weights[0].x, weights[0].y, weights[1].x, weights[1].y};
        unsigned second_columns[4] = {weights[0].z, weights[0].w, weights[1].z, weights[1].w};
        ::multiply<16, false, false>(sums, first, first_columns);
        ::multiply<16, false, false>(sums, second, second_columns);
    }
#else
    // Two pieces of a pixel, and of a column. The four products of an instruction needn't agree: two begin with the
    // second half of the unit, so that lanes read from different parts of lines, which the cache serves at once. Not
    // where a sample's pixels may lie anywhere in a tile, since the order of its sums would follow from that.
    static const int ROUNDS = 2, PLACES = 1, DISTANCE = 0;

    __device__ static __forceinline__ int pixel() { return a_row(); }
    __device__ static __forceinline__ int column(int) { return b_column<16>(); }
    __device__ static __forceinline__ int piece(int round, int i, bool in_place) {
        return 2 * (round ^ (in_place ? warp_lane() / 4 % 2 : 0)) + i;
    }
    __device__ static __forceinline__ void multiply(float* sums, const uint4 (&pixels)[2], const uint4 (&weights)[2]) {
        unsigned rows[8] = {pixels[0].x, pixels[0].y, pixels[0].z, pixels[0].w,
                            pixels[1].x, pixels[1].y, pixels[1].z, pixels[1].w};
        unsigned columns[8] = {weights[0].x, weights[0].y, weights[0].z, weights[0].w,
                               weights[1].x, weights[1].y, weights[1].z, weights[1].w};
        ::multiply<16, false, false>(sums, rows, columns);
    }
#endif
};

// Products of a warp, [MT 16 pixels] x [NT 16 columns], of units of a shortcut's sources. While it waits for what it
// loads of a round, others multiply.
template <int MT, int NT>
struct PointwiseProduct {
    typedef PointwiseLane Lane;
    static const int SIZE = Piece<__half>::SIZE;
    uint4 pixels[MT][2], weights[NT][2];
    int places[MT * Lane::PLACES];  // pixels of the sample; of one outside of the image the first
    const uint4* image;             // the warp's first column of the first piece of weights
    int pieces;                     // of the sources, an even number
    bool in_place;                  // a pixel of a sample has its place in a tile

    // The warp's pixels begin with number `first` of the tile at (y, x), its columns with `column`.
    __device__ __forceinline__ PointwiseProduct(const Conv2d<__half>& p, int y, int x, int first, int column) {
        pieces = (p.shortcut1 + p.shortcut2 + 2 * SIZE - 1) / (2 * SIZE) * 2;
        in_place = p.sample_pixels == 0;
#pragma unroll
        for (int i = 0; i < MT * Lane::PLACES; ++i) {
            int own = first + Lane::pixel() + i / Lane::PLACES * 16 + i % Lane::PLACES * Lane::DISTANCE;
            int own_y = y + (own >> p.tile_width_log), own_x = x + (own & ((1 << p.tile_width_log) - 1));
            places[i] = own_y < p.height && own_x < p.width ? own_y * p.width + own_x : 0;
        }
        image = reinterpret_cast<const uint4*>(p.shortcut_weight);
        image += column / WEIGHT_BLOCK * pieces * WEIGHT_BLOCK + column % WEIGHT_BLOCK;
    }
    __device__ __forceinline__ int units() const { return (pieces + Lane::UNIT - 1) / Lane::UNIT; }
    // What the lane has in a round; those of unit u are from u ROUNDS on.
    __device__ __forceinline__ int piece(int round, int i) const {
        return round / Lane::ROUNDS * Lane::UNIT + Lane::piece(round % Lane::ROUNDS, i, in_place);
    }
    // What lies beyond the last piece is read from the last (see clear).
    __device__ __forceinline__ void load_weights(int round) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint4* from = image + (min(piece(round, i), pieces - 1) * WEIGHT_BLOCK + Lane::column(i));
#pragma unroll
            for (int n = 0; n < NT; ++n) weights[n][i] = from[n * 16];
        }
    }
    // A piece of the first pixel, and how far it is to the next pixel's.
    struct Source {
        const __half* at;
        int pitch;
        __device__ __forceinline__ Source(const Conv2d<__half>& p, int sample, int piece) {
            ChunkSource<__half> of(p, sample, false, min(piece * SIZE, max(p.shortcut1 + p.shortcut2 - SIZE, 0)));
            at = of.at(), pitch = of.pitch();
        }
    };
    __device__ __forceinline__ void load_pixels(const Conv2d<__half>& p, int sample, int round) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            Source from(p, sample, piece(round, i));
#pragma unroll
            for (int m = 0; m < MT; ++m) {
                int place = places[m * Lane::PLACES + i % Lane::PLACES];
                pixels[m][i] = *reinterpret_cast<const uint4*>(from.at + place * from.pitch);
            }
        }
    }
    // Of all pixels, one channel after another.
    __device__ __forceinline__ void load_single(const Conv2d<__half>& p, int sample, int round) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            ChunkSource<__half> of(p, sample, false, piece(round, i) * SIZE);
#pragma unroll
            for (int m = 0; m < MT; ++m) {
                int place = of.image + places[m * Lane::PLACES + i % Lane::PLACES];
                pixels[m][i] = source_piece(of.first, of.second, of.c1, of.c2, false, place, of.c);
            }
        }
    }
    // What was read in place of what lies beyond the channels becomes zero, on both sides: either might not be finite.
    __device__ __forceinline__ void clear(const Conv2d<__half>& p, int round) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (piece(round, i) * SIZE < p.shortcut1 + p.shortcut2) continue;
#pragma unroll
            for (int m = 0; m < MT; ++m) pixels[m][i] = make_uint4(0, 0, 0, 0);
#pragma unroll
            for (int n = 0; n < NT; ++n) weights[n][i] = make_uint4(0, 0, 0, 0);
        }
    }
    __device__ __forceinline__ void load(const Conv2d<__half>& p, int sample, int round) {
        load_weights(round);
        if (p.flags & WIDE_SHORTCUT) load_pixels(p, sample, round);
        else load_single(p, sample, round);
        if ((round / Lane::ROUNDS + 1) * (Lane::UNIT * SIZE) > p.shortcut1 + p.shortcut2) clear(p, round);
    }
    // Adds the products of the units from `unit` up to `end`, of every `step`-th.
    __device__ __forceinline__ void add(const Conv2d<__half>& p, int sample, float* sums, int unit, int end, int step) {
#pragma unroll 1
        for (; unit < end; unit += step) {
#pragma unroll 1
            for (int round = unit * Lane::ROUNDS; round < (unit + 1) * Lane::ROUNDS; ++round) {
                load(p, sample, round);
#pragma unroll
                for (int m = 0; m < MT; ++m)
#pragma unroll
                    for (int n = 0; n < NT; ++n) Lane::multiply(sums + (m * NT + n) * 8, pixels[m], weights[n]);
            }
        }
    }
};
