// A tile of a convolution as a matrix product on tensor cores: float16 operands, float32 sums.
//
// A block makes M output pixels x N output channels. Of `octets` x 8 input channels at a time it keeps
// in shared memory (a) the part of the source that the tile's taps reach, normalised, once, in planes of
// octets [octet][pixel][8] of an odd pitch, with zeros outside the image, and (b) the weights of one tap,
// while those of the next are on their way. All taps read (a) at shifted places.
//
// Transposed, a tile has outputs of one phase (place modulo stride) on each axis, so that it needs a
// fixed subset of the taps and reads neighbouring source pixels.
#pragma once
#include "common/activation.cuh"
#include "common/shared.cuh"
#include "common/slices.cuh"
#include "common/warp_tile.cuh"

struct Conv2dHalf {
    const __half* x;
    const __half* x2;        // null where there is one source
    const float* affine;     // scale [C], shift [C], a sample each `affine_stride`; or null
    const __half* weight;    // packed: [c_out / 64][tap][octet of C, an even number][64][8]
    const float* bias;       // [c_out], or null
    const float* shift;      // [c_out], a sample each `shift_stride`; or null
    const __half* residual;  // as y, or null
    __half* y;
    float* partials;         // [tile][slice][M N], where there are several slices
    unsigned* tickets;       // [tile], zero between launches
    int batch, height, width, c1, c2;
    int out_height, out_width, c_out, kh, kw;
    int stride_h, stride_w, pad_top, pad_left;
    int upsample, silu, affine_stride, shift_stride;
    int tile_width_log;          // of the M pixels of a tile
    int region_height, region_width;  // source pixels that a tile reaches
    int sample_pixels;           // of rows of pixels without an image; else 0
    int slices;                  // that the input channels are split into
    int flags;                   // 1: 16-byte loads; 2: 4-byte stores
};

// Input channels in shared memory at a time, in octets, and the width of a block of packed weights.
#define CHUNK 8
#define WEIGHT_BLOCK 64

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

__device__ __forceinline__ float half_of(const uint4& octet, int i) {
    unsigned pair = i < 2 ? octet.x : i < 4 ? octet.y : i < 6 ? octet.z : octet.w;
    return i % 2 ? high_half(pair) : low_half(pair);
}

// Eight channels from `c` of source pixel `pixel`, normalised for sample `sample`.
__device__ __forceinline__ uint4 source_octet(const Conv2dHalf& p, long long pixel, int sample, int c) {
    int channels = p.c1 + p.c2;
    uint4 octet = make_uint4(0, 0, 0, 0);
    float value[8];
    if (p.flags & 1) {
        if (c >= channels) return octet;
        const __half* from = c < p.c1 ? p.x + (pixel * p.c1 + c) : p.x2 + (pixel * p.c2 + (c - p.c1));
        octet = *reinterpret_cast<const uint4*>(from);
        if (!p.affine && !p.silu) return octet;
#pragma unroll
        for (int i = 0; i < 8; ++i) value[i] = half_of(octet, i);
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            int own = c + i;
            value[i] = 0.0f;
            if (own < p.c1) value[i] = get(p.x + (pixel * p.c1 + own));
            else if (own < channels) value[i] = get(p.x2 + (pixel * p.c2 + (own - p.c1)));
        }
    }
    if (p.affine) {
        const float* scale = p.affine + static_cast<long long>(sample) * p.affine_stride + c;
#pragma unroll
        for (int i = 0; i < 8; ++i)
            if (c + i < channels) value[i] = fmaf(value[i], scale[i], scale[channels + i]);
    }
    if (p.silu) {
#pragma unroll
        for (int i = 0; i < 8; ++i) value[i] = silu(value[i]);
    }
    return make_uint4(pack_half2(value[0], value[1]), pack_half2(value[2], value[3]),
                      pack_half2(value[4], value[5]), pack_half2(value[6], value[7]));
}

// Weights of one tap on their way to shared memory: cp.async, or through registers on sm_70.
template <int COUNT, int THREADS>
struct WeightStage {
#if CYANEA_CODE_PATH < 80
    uint4 held[COUNT];
#endif
    // `blocks` blocks of `octets` octets of WEIGHT_BLOCK x 8 values, `pitch` apart.
    __device__ __forceinline__ void fetch(__half* to, const __half* from, int octets, int blocks,
                                          long long pitch) {
        int each = octets * WEIGHT_BLOCK;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            int at = i * THREADS + static_cast<int>(threadIdx.x), block = at / (CHUNK * WEIGHT_BLOCK);
            int inside = at % (CHUNK * WEIGHT_BLOCK);
            if (inside >= each || block >= blocks) continue;
            const __half* source = from + (block * pitch + inside * 8);
#if CYANEA_CODE_PATH >= 80
            copy_async(to + at * 8, source);
#else
            held[i] = *reinterpret_cast<const uint4*>(source);
#endif
        }
#if CYANEA_CODE_PATH >= 80
        copy_commit();
#endif
    }
    __device__ __forceinline__ void land(__half* to, int octets, int blocks) {
#if CYANEA_CODE_PATH >= 80
        copy_wait<0>();
#else
        int each = octets * WEIGHT_BLOCK;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            int at = i * THREADS + static_cast<int>(threadIdx.x), block = at / (CHUNK * WEIGHT_BLOCK);
            if (at % (CHUNK * WEIGHT_BLOCK) >= each || block >= blocks) continue;
            *reinterpret_cast<uint4*>(to + at * 8) = held[i];
        }
#endif
    }
};

// MT x NT products of 16 x 16 a warp, WM x WN warps a block.
template <bool TRANSPOSED, int WM, int WN, int MT, int NT>
__device__ __forceinline__ void conv2d_tile(const Conv2dHalf& p, int tile, int column_tile, int slice) {
    const int M = WM * MT * 16, N = WN * NT * 16, THREADS = WM * WN * 32, BLOCKS = N / WEIGHT_BLOCK;
    const int WEIGHTS = BLOCKS * CHUNK * WEIGHT_BLOCK * 8;
    CYANEA_DYNAMIC_SHARED(__half, shared);
    __half* weights = shared;
    __half* region = shared + 2 * WEIGHTS;

    // Where the tile lies.
    int tile_width = 1 << p.tile_width_log, tile_height = M >> p.tile_width_log;
    int steps_h = TRANSPOSED ? p.stride_h : 1, steps_w = TRANSPOSED ? p.stride_w : 1;
    int tiles_x = ((p.out_width + steps_w - 1) / steps_w + tile_width - 1) >> p.tile_width_log;
    int tiles_y = ((p.out_height + steps_h - 1) / steps_h + tile_height - 1) / tile_height;
    int rest = tile, first_x = rest % tiles_x * tile_width;
    rest /= tiles_x;
    int first_y = rest % tiles_y * tile_height;
    rest /= tiles_y;
    int phase_x = rest % steps_w;
    rest /= steps_w;
    int phase_y = rest % steps_h, sample = rest / steps_h;
    Axis<TRANSPOSED> rows = {first_y, phase_y, p.stride_h, p.pad_top, p.kh};
    Axis<TRANSPOSED> columns = {first_x, phase_x, p.stride_w, p.pad_left, p.kw};
    int base_y = rows.base() >> p.upsample, base_x = columns.base() >> p.upsample;

    int region_pixels = p.region_height * p.region_width, plane = (region_pixels | 1) * 8;
    int taps = p.kh * p.kw, all_octets = (p.c1 + p.c2 + 15) / 16 * 2;
    int chunks = (all_octets + CHUNK - 1) / CHUNK;
    int chunk = chunks * slice / p.slices, last_chunk = chunks * (slice + 1) / p.slices;
    long long block_pitch = static_cast<long long>(taps) * all_octets * WEIGHT_BLOCK * 8;
    int weight_blocks = min(BLOCKS, (p.c_out + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK - column_tile * BLOCKS);
    const __half* packed = p.weight + column_tile * BLOCKS * block_pitch;

    int warp = threadIdx.x / 32, warp_m = warp / WN * MT * 16, warp_n = warp % WN * NT * 16;
    float sums[MT * NT * 8];
#pragma unroll
    for (int i = 0; i < MT * NT * 8; ++i) sums[i] = 0.0f;

    auto used = [&](int tap) { return rows.uses(tap / p.kw) && columns.uses(tap % p.kw); };
    auto next_tap = [&](int tap) {
        while (tap < taps && !used(tap)) ++tap;
        return tap;
    };
    auto octets_of = [&](int chunk) { return min(CHUNK, all_octets - chunk * CHUNK); };
    WeightStage<WEIGHTS / 8 / THREADS, THREADS> stage;
    auto fetch = [&](int chunk, int tap, int buffer) {
        long long at = static_cast<long long>(tap) * all_octets + chunk * CHUNK;
        stage.fetch(weights + buffer * WEIGHTS, packed + at * WEIGHT_BLOCK * 8, octets_of(chunk),
                    weight_blocks, block_pitch);
    };
    auto land = [&](int chunk, int buffer) {
        stage.land(weights + buffer * WEIGHTS, octets_of(chunk), weight_blocks);
    };
    auto fill_region = [&](int chunk) {
        int octets = octets_of(chunk), total = octets * region_pixels;
        for (int i = threadIdx.x; i < total; i += THREADS) {
            int octet = i % octets, pixel = i / octets;
            int iy = base_y + pixel / p.region_width, ix = base_x + pixel % p.region_width;
            uint4 value = make_uint4(0, 0, 0, 0);
            if (iy >= 0 && iy < p.height && ix >= 0 && ix < p.width) {
                long long at = (static_cast<long long>(sample) * p.height + iy) * p.width + ix;
                int of = p.sample_pixels ? ix / p.sample_pixels : sample;
                value = source_octet(p, at, of, (chunk * CHUNK + octet) * 8);
            }
            *reinterpret_cast<uint4*>(region + octet * plane + pixel * 8) = value;
        }
    };

    int first_tap = next_tap(0), tap = first_tap, buffer = 0;
    bool more = chunk < last_chunk && tap < taps;
    if (more) {
        fetch(chunk, tap, 0);
        fill_region(chunk);
        land(chunk, 0);
        __syncthreads();
    }
    while (more) {
        int following = next_tap(tap + 1), next_chunk = chunk;
        if (following == taps) {
            following = first_tap;
            next_chunk = chunk + 1;
        }
        more = next_chunk < last_chunk;
        if (more) fetch(next_chunk, following, buffer ^ 1);

        const __half* a[MT];
#pragma unroll
        for (int m = 0; m < MT; ++m) {
            int pixel = warp_m + m * 16 + a_row();
            int ry = (rows.source(pixel >> p.tile_width_log, tap / p.kw) >> p.upsample) - base_y;
            int rx = (columns.source(pixel & (tile_width - 1), tap % p.kw) >> p.upsample) - base_x;
            a[m] = region + (ry * p.region_width + rx) * 8;
        }
        const __half* b = weights + buffer * WEIGHTS + b_column<16>() * 8 +
                          (warp_n / WEIGHT_BLOCK * CHUNK * WEIGHT_BLOCK + warp_n % WEIGHT_BLOCK) * 8;
        int octets = octets_of(chunk);
        for (int octet = 0; octet < octets; octet += 2) {
            unsigned right[NT][FRAGMENT(16)];
#pragma unroll
            for (int n = 0; n < NT; ++n)
                load_b<16>(right[n], b + octet * WEIGHT_BLOCK * 8 + n * 16 * 8, WEIGHT_BLOCK * 8);
#pragma unroll
            for (int m = 0; m < MT; ++m) {
                unsigned left[FRAGMENT(16)];
                load_a<16>(left, a[m] + octet * plane, plane);
#pragma unroll
                for (int n = 0; n < NT; ++n)
                    multiply<16, false, false>(sums + (m * NT + n) * 8, left, right[n]);
            }
        }
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
        int place = tile * gridDim.y + column_tile;
        float* partials = p.partials + static_cast<long long>(place) * p.slices * M * N;
        if (!join_slices(sums, partials, p.tickets + place, slice, p.slices)) return;
    }
#pragma unroll
    for (int m = 0; m < MT; ++m) {
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
            int pixel = warp_m + m * 16 + sum_row(i);
            int oy = rows.output(pixel >> p.tile_width_log);
            int ox = columns.output(pixel & (tile_width - 1));
            if (oy >= p.out_height || ox >= p.out_width) continue;
            long long to = ((static_cast<long long>(sample) * p.out_height + oy) * p.out_width + ox) * p.c_out;
            long long of = p.sample_pixels ? ox / p.sample_pixels : sample;
#pragma unroll
            for (int n = 0; n < NT; ++n) {
                int out = column_tile * N + warp_n + n * 16 + sum_column(i);
                if (out >= p.c_out) continue;
                bool pair = out + 1 < p.c_out;
                float low = sums[(m * NT + n) * 8 + i], high = sums[(m * NT + n) * 8 + i + 1];
                if (p.bias) {
                    low += p.bias[out];
                    if (pair) high += p.bias[out + 1];
                }
                if (p.shift) {
                    low += p.shift[of * p.shift_stride + out];
                    if (pair) high += p.shift[of * p.shift_stride + out + 1];
                }
                if (p.flags & 2) {
                    if (p.residual) {
                        unsigned other = *reinterpret_cast<const unsigned*>(p.residual + (to + out));
                        low += low_half(other);
                        high += high_half(other);
                    }
                    *reinterpret_cast<unsigned*>(p.y + (to + out)) = pack_half2(low, high);
                } else {
                    if (p.residual) low += get(p.residual + (to + out));
                    put(p.y + (to + out), low);
                    if (!pair) continue;
                    if (p.residual) high += get(p.residual + (to + out + 1));
                    put(p.y + (to + out + 1), high);
                }
            }
        }
    }
}
