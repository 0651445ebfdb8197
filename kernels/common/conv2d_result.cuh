// What a convolution does with the sums of a tile: adds, rounds, stores, and leaves moments.
#pragma once
#include "common/conv2d_source.cuh"
#include "common/warp_product.cuh"

// Where a tile's pixels lie in the output.
struct TilePlace {
    int sample, first_y, first_x;
};

// Moments of 64 pixels at a time, of slices of channels: the number of elements, their mean and the sum
// of their squared deviations from it, in two passes over the values as they were stored.
//
// `values` are the results of the calling lane in the layout of WarpProduct, `valid` a bit for each of
// its pixels. The tiles of 64 pixels are 8 x 8, or in a row where a tile of the product is. `shared` is
// free when all warps are here.
template <class E, int WM, int WN, int MT, int NT>
__device__ __forceinline__ void store_moments(const Conv2d<E>& p, const float* values, unsigned valid,
                                              TilePlace place, int column_tile, float* shared) {
    typedef WarpProduct<E> Product;
    const int N = WN * NT * 16, TILES = WM * MT * 16 / 64, PARTS = WM / TILES;
    int warp = threadIdx.x / 32, warp_row = warp / WN, warp_n = warp % WN * NT * 16;
    float* parts = shared;  // [WM][N][2]
    float* counts = shared + WM * N * 2;  // [WM]
    int own = 0;
#pragma unroll
    for (int i = 0; i < 2 * MT; ++i) own += valid >> i & 1;
    float count = Product::over_rows(static_cast<float>(own));
    __syncthreads();
    if (warp % WN == 0 && warp_lane() == 0) counts[warp_row] = count;
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            // Places of column j % 2 + 8 (j / 2) of the calling lane: i = 4 (j / 2) + j % 2 and two on.
            float total = 0.0f;
#pragma unroll
            for (int r = 0; r < 2 * MT; ++r) {
                int i = (r / 2 * NT + n) * 8 + j / 2 * 4 + r % 2 * 2 + j % 2;
                if (valid >> r & 1) total += values[i];
            }
            total = Product::over_rows(total);
            float mean = count > 0.0f ? total / count : 0.0f, squares = 0.0f;
#pragma unroll
            for (int r = 0; r < 2 * MT; ++r) {
                int i = (r / 2 * NT + n) * 8 + j / 2 * 4 + r % 2 * 2 + j % 2;
                float distance = values[i] - mean;
                if (valid >> r & 1) squares = fmaf(distance, distance, squares);
            }
            squares = Product::over_rows(squares);
            if (!Product::first_row()) continue;
            float* to = parts + (warp_row * N + warp_n + n * 16 + Product::sum_column(j / 2 * 4 + j % 2)) * 2;
            to[0] = mean;
            to[1] = squares;
        }
    __syncthreads();
    bool row = p.tile_width_log > 3;
    int across = row ? (p.out_width + 63) / 64 : (p.out_width + 7) / 8;
    int down = row ? 1 : (p.out_height + 7) / 8, slices = p.c_out / p.own_slice;
    for (int i = threadIdx.x; i < TILES * (N / p.own_slice); i += blockDim.x) {
        int tile = i / (N / p.own_slice), first = i % (N / p.own_slice) * p.own_slice;
        int x = row ? place.first_x / 64 + tile : place.first_x / 8;
        int y = row ? 0 : place.first_y / 8 + tile, slice = (column_tile * N + first) / p.own_slice;
        if (x >= across || y >= down || slice >= slices) continue;
        float elements = 0.0f, total = 0.0f, squares = 0.0f;
        for (int part = tile * PARTS; part < (tile + 1) * PARTS; ++part)
            for (int c = first; c < first + p.own_slice; ++c) {
                elements += counts[part];
                total = fmaf(counts[part], parts[(part * N + c) * 2], total);
            }
        float mean = total / elements;
        for (int part = tile * PARTS; part < (tile + 1) * PARTS; ++part)
            for (int c = first; c < first + p.own_slice; ++c) {
                float distance = parts[(part * N + c) * 2] - mean;
                squares += fmaf(counts[part] * distance, distance, parts[(part * N + c) * 2 + 1]);
            }
        long long at = (static_cast<long long>(place.sample) * down + y) * across + x;
        float* to = p.own_moments + at * 3 * slices + slice;
        to[0] = elements;
        to[slices] = mean;
        to[2 * slices] = squares;
    }
}

// Everything that is added to a sum, for the pair of channels from `out`.
template <class E>
__device__ __forceinline__ float2 added(const Conv2d<E>& p, const float* bias, long long sample,
                                        long long at, int out) {
    bool pair = out + 1 < p.c_out;
    float2 value = make_float2(0.0f, 0.0f);
    auto add = [&](const float* row) {
        value.x += row[out];
        if (pair) value.y += row[out + 1];
    };
    if (bias) add(bias);
    if (p.shortcut_bias) add(p.shortcut_bias);
    if (p.shift) add(p.shift + sample * p.shift_stride);
    if (p.residual) {
        if (p.flags & PAIRS) {
            float2 other = get_pair(p.residual + at);
            value.x += other.x;
            value.y += other.y;
        } else {
            value.x += get(p.residual + at);
            if (pair) value.y += get(p.residual + (at + 1));
        }
    }
    return value;
}
