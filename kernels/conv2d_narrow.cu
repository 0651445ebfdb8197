// Convolutions to few channels, as the last one of a network, in float16: 8 x 8 pixels a block.
//
// Tensor cores make no fewer than 16 columns, so that tap by tap they would work on zeros, and read each source pixel
// once a tap. Here all taps of all output channels are columns of one product: a source pixel gives each tap's part of
// a result, to whichever result that belongs. These parts pass through shared memory, where a thread adds those of its
// result. The weight is packed for that (NARROW in conv2d_pack.cu): column tap c_out + channel.
#include "common/conv2d_region.cuh"
#include "common/conv2d_result.cuh"

template <int COLUMNS>
__global__ void __launch_bounds__(256, 2) conv2d_narrow(Conv2d<__half> p) {
    typedef __half E;
    typedef ResultLayout<E> Layout;
    // A warp has 16 pixels of the region, of which it holds MOST pieces of channels at a time; neighbouring threads
    // bring those of a pixel, BATCH pixels each under way at once, which are all of a 3 x 3 kernel.
    const int THREADS = 256, SIZE = 8, MOST = 16, STEP = THREADS / MOST, BATCH = 7, TILE = 8;
    const int NT = COLUMNS / 16, WEIGHTS = MOST * COLUMNS / THREADS, PITCH = COLUMNS + 4;
    CYANEA_DYNAMIC_SHARED(float4, shared);
    CYANEA_SHARED(float, row, 16);  // what results of a channel get added

    TileOrigin of = tile_origin<false, TilePixels<64>>(p, blockIdx.x);
    int pieces = (p.c1 + p.c2 + 2 * SIZE - 1) / (2 * SIZE) * 2;
    // An odd pitch: 8 lanes store pieces of one pixel without bank conflicts.
    int pixels = p.region_height * p.region_width, plane = (pixels | 1) * SIZE;
    bool normalises = p.affine || p.gamma;
    int channels = normalises ? p.chunks * p.chunk * SIZE : 0;
    float2* affine = reinterpret_cast<float2*>(shared);
    E* weights = reinterpret_cast<E*>(affine + channels);  // [piece][column]
    E* region = weights + p.chunk * COLUMNS * SIZE;        // [piece][pixel]
    float* parts = reinterpret_cast<float*>(weights);      // [pixel][column], when both have been read

    int piece = threadIdx.x % MOST, pixel = threadIdx.x / MOST;
    auto source_of = [&](int chunk) { return ChunkSource<E>(p, of.sample, true, (chunk * p.chunk + piece) * SIZE); };
    RegionPieces<E, STEP, BATCH> arriving;
    uint4 coming[WEIGHTS];
    auto request = [&](int chunk) {
        ChunkSource<E> source = source_of(chunk);
        if (source.wide && piece < p.chunk) arriving.load(p, source, of.base_y, of.base_x, pixel);
        const uint4* image = reinterpret_cast<const uint4*>(p.weight[0]) + chunk * p.chunk * WEIGHT_BLOCK;
#pragma unroll
        for (int i = 0; i < WEIGHTS; ++i) {
            int at = threadIdx.x + i * THREADS, own = min(at / COLUMNS, pieces - 1 - chunk * p.chunk);
            coming[i] = image[own * WEIGHT_BLOCK + at % COLUMNS];
        }
    };
    auto store = [&](int chunk) {
#pragma unroll
        for (int i = 0; i < WEIGHTS; ++i) {
            int at = threadIdx.x + i * THREADS;
            if (at / COLUMNS < p.chunk) reinterpret_cast<uint4*>(weights)[at] = coming[i];
        }
        if (piece >= p.chunk) return;
        ChunkSource<E> source = source_of(chunk);
        const float2* own = normalises ? affine + AffinePlace<E>::of_piece(source.c / SIZE) : nullptr;
        E* to = region + (piece * plane + pixel * SIZE);
        store_arrived<1>(p, source, arriving, of.base_y, of.base_x, pixel, own, AffinePlace<E>::pitch(channels), to);
    };

    ChannelAffine<E, true> own_affine = {};
    bool has_channel = warp_has_channels(0, channels);
    if (has_channel) own_affine.load(p, of.sample, threadIdx.x);
    request(0);
    int c = threadIdx.x;
    AddedRow added(p, p.bias[0], of.sample, c, c < p.c_out);
    if (has_channel) {
        bool keeps = p.own_affine && of.first_x == 0 && of.first_y == 0;
        fill_affine(p, of.sample, own_affine, 0, channels, affine, keeps);
    }
    if (c < p.c_out) row[c] = added.sum();

    // The warp's pixels; the last of a region again beyond its end.
    int first = threadIdx.x / 32 * 16, own = min(first + a_row(), pixels - 1);
    float sums[NT * 8] = {};
#pragma unroll 1
    for (int chunk = 0; chunk < p.chunks; ++chunk) {
        __syncthreads();
        store(chunk);
        __syncthreads();
        if (chunk + 1 < p.chunks) request(chunk + 1);
        if (first >= pixels) continue;
        int count = min(p.chunk, pieces - chunk * p.chunk);
#pragma unroll(COLUMNS > 32 ? 1 : 2)
        for (int k = 0; k < count; k += 2) {
            unsigned a[FRAGMENT(16)];
            load_a<16>(a, region + (k * plane + own * SIZE), plane);
#pragma unroll
            for (int n = 0; n < NT; ++n) {
                unsigned b[FRAGMENT(16)];
                load_b<16>(b, weights + (k * COLUMNS + n * 16 + b_column<16>()) * SIZE, COLUMNS * SIZE);
                multiply<16, false, false>(sums + n * 8, a, b);
            }
        }
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 2; ++k) {
        int at = first + Layout::row() + k * Layout::STEP;
        if (at >= pixels) continue;
#pragma unroll
        for (int n = 0; n < NT; ++n) {
            float value[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) value[i] = sums[Layout::template sum<NT>(k, n, i)];
            *reinterpret_cast<float4*>(parts + at * PITCH + n * 16 + Layout::channel()) =
                make_float4(value[0], value[1], value[2], value[3]);
        }
    }
    __syncthreads();
    // LANES neighbouring threads have the results of a pixel.
    const int LANES = THREADS / (TILE * TILE);
    int result = threadIdx.x / LANES, y = result / TILE, x = result % TILE;
    int out_y = of.first_y + y, out_x = of.first_x + x;
    if (out_y >= p.out_height || out_x >= p.out_width) return;
#pragma unroll 1
    for (int channel = threadIdx.x % LANES; channel < p.c_out; channel += LANES) {
        int at = ((of.sample * p.out_height + out_y) * p.out_width + out_x) * p.c_out + channel;
        float residual = p.residual ? get(p.residual + at) : 0.0f, value = row[channel];
        const float* from = parts + (y * p.region_width + x) * PITCH + channel;
        int down = p.region_width * PITCH, next = p.c_out, across = PITCH + next;
        if (p.kh == 3 && p.kw == 3) {
#pragma unroll
            for (int tap = 0; tap < 9; ++tap) value += from[tap / 3 * (down + 3 * next) + tap % 3 * across];
        } else {
            for (int ky = 0; ky < p.kh; ++ky, from += down + p.kw * next)
                for (int kx = 0; kx < p.kw; ++kx) value += from[kx * across];
        }
        put(p.y[0] + at, within(fmaf(p.residual_scale, residual, value), p.limit));
    }
}
