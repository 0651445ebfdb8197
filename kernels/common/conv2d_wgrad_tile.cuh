// A tile of a convolution's weight gradient: rows are output channels, columns are input channels with
// all their taps, and the terms of each sum are pixels.
//
// A block makes M rows x N columns x TAPS of a slice of the pixels. It walks over tiles of output pixels,
// `pixels` at a time, of one sample or of several small ones, and keeps of each in shared memory (a) dy
// and (b) the part of x that the taps reach, normalised, both in planes of pieces [piece][pixel][16 bytes]
// of an odd pitch, with zeros outside the image. It works on one tile while the next is on its way into a
// second buffer, brought by warps of their own or, where these would leave too few registers for the sums,
// between the products (see WgradLoaders).
//
//   TAPS 9   3x3 kernels: all taps read (b) at shifted places. with a stride, columns of pixels of (b) are
//            sorted by their place modulo the stride, so that neighbouring outputs read neighbours.
//            PLAIN: no stride in rows; x and dy are read 16 bytes at a time and stored as they are.
//            NORMALISED: the same, but x is scaled, shifted and goes through SiLU on its way.
//            STRIDED: as PLAIN, with a stride of two in rows.
//   TAPS 1   others: a column is an input channel and a tap, and (b) has a pixel for every output pixel. PLAIN and
//            NORMALISED: 1x1 kernels, as above.
//
// Slices are joined by tickets. The blocks of the first columns also sum dy for the bias.
#pragma once
#include "common/conv2d_wgrad_loader.cuh"
#include "common/pair_sums.cuh"
#include "common/slices.cuh"
#include "common/wgrad_step.cuh"

// MT x NT products of 16 x 16 and each tap a warp, WM x WN warps a block and those that load; a thread that does
// both has HX pieces of x and HY of dy under way at a time. Of two GROUPS of so many warps each takes every second
// 16 pixels, and half of the sums in the end.
template <class E, int TAPS, WgradWay WAY, int WM, int WN, int MT, int NT, int HX, int HY, int GROUPS = 1>
__device__ __forceinline__ void conv2d_wgrad_tile(const Conv2dWeights<E>& p) {
    const int M = WM * MT * 16, N = WN * NT * 16, WARPS = WM * WN, THREADS = WARPS * GROUPS * 32;
    const int APART = WgradLoaders<WAY>::THREADS, OWN_MT = MT / GROUPS;
    const int SIZE = Piece<E>::SIZE, UN = N / SIZE, SUMS = TAPS * OWN_MT * NT * 8;
    static_assert(GROUPS == 1 || (GROUPS == 2 && TAPS == 1), "halves of the sums are rows");
    typedef WgradLoader<E, TAPS, WAY, M, N, APART ? APART : THREADS> Loader;
    CYANEA_DYNAMIC_SHARED(uint4, shared);
    const E* type = nullptr;
    int thread = threadIdx.x, warp;
    int row_tile = blockIdx.z, sibling = 0;
    if (TAPS == 1) sibling = row_tile / p.row_tiles, row_tile -= sibling * p.row_tiles;
    const E* dy = sibling == 0 ? p.dy[0] : sibling == 1 ? p.dy[1] : p.dy[2];
    int slice = blockIdx.y, tile = p.tiles * slice / p.slices, last = p.tiles * (slice + 1) / p.slices;
    bool has_bias = p.dbias[0] && blockIdx.x == 0;
    float* bias_parts = reinterpret_cast<float*>(shared);
    int x_plane = p.region | 1, dy_plane = p.pixels | 1, buffer_pieces = UN * x_plane + M / SIZE * dy_plane;
    int at = 0;  // of the tile that is worked on
    // Those that multiply and those that load come here from different branches, in whole warps and equally often: the
    // hardware's barrier counts warps, wherever they stand (PTX, bar.sync).
    auto swap = [&]() {
        __syncthreads();
        at = buffer_pieces - at;
    };
    auto buffer = [&]() { return shared + at; };
    auto other = [&]() { return shared + (buffer_pieces - at); };
    auto place = [&](int k) {
        if (TAPS == 1) return k;
        int row = sample_of(p, k) * p.region_height + row_of(p, k) * p.stride_h;
        return row * p.region_width + column_of(p, k);
    };
    // How much further in a row a tap reads.
    auto shift = [&](int kx) {
        if (kx == 0) return 0;
        if (WAY == PLAIN || WAY == NORMALISED) return kx;
        return kx == 1 ? p.second_tap : p.third_tap;
    };

    typedef PairSums<TAPS * MT * NT, WARPS, false> Products;
    Products products;
    if (!APART || thread < THREADS) {
#pragma unroll
        for (int i = 0; i < SUMS * GROUPS; ++i) products.sums[i] = 0.0f;
        Loader loader(p, dy, thread, row_tile * M, blockIdx.x * N);
        WgradTile next = wgrad_tile(p, tile);
        if (!APART) loader.bring(other(), next, 0, 0);
        swap();
        for (int count = last - tile; count > 0; --count) {
            bool more = count > 1;
            next = wgrad_tile_behind<Loader::FLAT>(p, next, last - count + 1);
            warp = threadIdx.x / 32;
            int group = GROUPS > 1 ? warp / WARPS : 0;
            const uint4* right = buffer() + warp % WN * NT * 16 / SIZE * x_plane;
            const uint4* left = buffer() + UN * x_plane + warp / WN % WM * MT * 16 / SIZE * dy_plane;
            int round = 0;  // of pieces of the next tile
#pragma unroll 1
            for (int step = group; step * 16 < p.pixels; step += GROUPS, ++round) {
                WgradPiece x[HX], of_dy[HY];
                auto during = [&](int tap) {
                    if (APART) return;
#pragma unroll
                    for (int h = 0; h < HX; ++h) {
                        if (tap == 0) loader.fetch_x(other(), next, round * HX + h, more, x[h]);
                        if (tap == max(TAPS - 3, 1)) loader.normalise_x(x[h], 0);
                        if (tap == max(TAPS - 1, 1)) loader.normalise_x(x[h], 1);
                        if (tap == TAPS) loader.store_x(other(), round * HX + h, more, x[h]);
                    }
#pragma unroll
                    for (int h = 0; h < HY; ++h) {
                        if (tap == 0) loader.fetch_y(other(), next, round * HY + h, more, of_dy[h]);
                        if (tap == max(TAPS - 3, 1)) loader.store_y(other(), round * HY + h, more, of_dy[h]);
                    }
                };
                wgrad_step<TAPS, MT, NT>(products.sums, type, left, dy_plane, right, x_plane, step * 16, place,
                                         p.region_width, shift, during);
            }
            if (!APART) {
                if (more) loader.bring(other(), next, round * HX, round * HY);
                if (has_bias) loader.add_bias(buffer());
            }
            swap();
        }
        if (!APART && has_bias) loader.store_bias(bias_parts);
    } else {
#if CYANEA_CODE_PATH >= 80
        Loader loader(p, dy, thread - THREADS, row_tile * M, blockIdx.x * N);
        WgradTile next = wgrad_tile(p, tile);
        loader.stream(other(), next, [] {});
        swap();
        while (tile < last) {
            auto bias = [&]() {
                if (has_bias) loader.add_bias(buffer());
            };
            next = wgrad_tile_behind<Loader::FLAT>(p, next, ++tile);
            if (tile < last) loader.stream(other(), next, bias);
            else bias();
            swap();
        }
        if (has_bias) loader.store_bias(bias_parts);
#endif
    }

    thread = thread_again(), warp = thread / 32;
    float sums[SUMS + 1];
    sums[SUMS] = 0.0f;
    if (has_bias) {
        __syncthreads();
        if (thread < M)
            for (int i = 0; i < Loader::PARTS; ++i) sums[SUMS] += bias_parts[i * M + thread];
        if (GROUPS > 1) __syncthreads();
    }
    if (GROUPS > 1) {
        float4* exchanged = reinterpret_cast<float4*>(shared);
        if (thread < THREADS) products.give(exchanged);
        __syncthreads();
        if (thread < THREADS) products.template take<false>(sums, exchanged);
    } else {
#pragma unroll
        for (int i = 0; i < SUMS; ++i) sums[i] = products.sums[i];
    }
    int block = blockIdx.z * gridDim.x + blockIdx.x;
    float* partials = p.partials + static_cast<long long>(block) * p.parts * (SUMS + 1) * THREADS;
    float* dw = sibling == 0 ? p.dw[0] : sibling == 1 ? p.dw[1] : p.dw[2];
    float* dbias = sibling == 0 ? p.dbias[0] : sibling == 1 ? p.dbias[1] : p.dbias[2];
    int first_out = row_tile * M + (warp / WN % WM * GROUPS + warp / WARPS) * OWN_MT * 16;
    int first_column = blockIdx.x * N + warp % WN * NT * 16;
    // Which output channel a row is, and which tap of its patch.
    auto channel_of = [&](int row) { return TAPS == 1 ? p.row_taps.quotient(row) : row; };
    auto tap_of = [&](int row, int channel) { return row - channel * p.row_taps.divisor; };
    auto store = [&](int i, float sum) {
        if (i == SUMS) {
            int row = row_tile * M + thread, channel = channel_of(row);
            bool all = has_bias && thread < M && row < p.rows && (TAPS > 1 || tap_of(row, channel) == p.bias_tap);
            if (all) dbias[channel] = sum;
            return;
        }
        WgradPlace place = wgrad_place<OWN_MT, NT>(type, i);
        int row = first_out + place.row, to = first_column + place.column;
        if (row >= p.rows || to >= p.columns) return;
        int channel = channel_of(row), at = channel * p.columns + to;
        if (TAPS == 1) dw[at * p.row_taps.divisor + tap_of(row, channel)] = sum;
        else dw[at * TAPS + place.tap] = sum;
    };
    join_groups<THREADS>(sums, partials, p.tickets + block * p.groups, slice, p.slices, p.fan, store);
}
