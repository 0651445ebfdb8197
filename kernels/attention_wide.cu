// Attention as in attention.cu for heads of more than 64 channels, up to DEPTH.
//
// Eight warps share a block's rows. Scores: each warp makes one 16 x 16 product (backward: of q k^T or
// of dy v^T), over slices of channels that pass through shared memory. Probabilities, and backward the
// gradients of scores, go through shared memory as operands. Sums: each warp has all the block's rows
// and an eighth of the channels in registers, and adds slices of rows of the other side. All slices
// form one stream through a buffer, or two where asynchronous copies fill them.
#include "common/attention_slices.cuh"

template <class E, int DEPTH>
struct WideForward : Wide<E, DEPTH, sizeof(E) == 2 ? 4 : 2, sizeof(E) == 2 ? 2 : 4> {
    typedef Wide<E, DEPTH, sizeof(E) == 2 ? 4 : 2, sizeof(E) == 2 ? 2 : 4> Base;
    static const int COLUMN_TILES = Base::COLUMNS / 16;
    static const int CHUNK = area<E>(Base::COLUMNS, Base::CHANNELS);
    static const int STAGE = CHUNK > Base::SLICE_AREA ? CHUNK : Base::SLICE_AREA;
    static const int OWN = area<E>(Base::ROWS, DEPTH);
};

// Dynamic shared memory: own rows, weights, stages, and for each own row a largest score of each
// column tile, the factor that sums shrink by, and the sums of each column tile. PACKED: q, k and v are
// parts of one tensor, and normalised (attention_packed.cuh); then also what scores of each key are
// multiplied by.
template <class E, int DEPTH, bool PACKED>
__global__ void __launch_bounds__(256, 1) attention_wide_fwd(Attention<E> p) {
    typedef WideForward<E, DEPTH> W;
    typedef Product<E> P;
    const int ROWS = W::ROWS, COLUMNS = W::COLUMNS, PER_TILE = W::CHUNKS + W::SLICES;
    CYANEA_DYNAMIC_SHARED(E, own);
    E* weights = own + W::OWN;
    E* stages = weights + W::WEIGHTS;
    float* peaks = reinterpret_cast<float*>(stages + W::BUFFERS * W::STAGE);
    float* shrinks = peaks + W::COLUMN_TILES * ROWS;
    float* key_scales = shrinks + ROWS;
    Tokens<E> q = rows_of<PACKED>(p, p.q, p.queries);
    Tokens<E> k = rows_of<PACKED>(p, p.k, p.keys), v = rows_of<PACKED>(p, p.v, p.keys);
    int first = blockIdx.x * ROWS, warp = threadIdx.x / 32;
    int row_tile = warp / W::COLUMN_TILES, column_tile = warp % W::COLUMN_TILES;
    int stage_count = (p.keys + COLUMNS - 1) / COLUMNS * PER_TILE;

    unsigned signs = sizeof(E) == 2 ? 0x80008000u : 0x80000000u;
    fill<ROWS, DEPTH, W::THREADS, false>(own, q, first, 0, p.scale < 0.0f ? signs : 0u);
    if (PACKED) {
        __syncthreads();
        normalise_rows<ROWS, DEPTH, W::THREADS>(own, p.depth);
    }
    float factor = fmaxf(fabsf(p.scale), 1e-30f) * LOG2E;

    auto begin = [&](int stage) {
        if (stage >= stage_count) return;
        E* to = stages + stage % W::BUFFERS * W::STAGE;
        int tile = stage / PER_TILE, part = stage % PER_TILE;
        if (part < W::CHUNKS)
            fill<COLUMNS, W::CHANNELS, W::THREADS, true>(to, k, tile * COLUMNS, part * W::CHANNELS, 0u);
        else
            fill<W::SLICE, DEPTH, W::THREADS, true>(to, v, tile * COLUMNS + (part - W::CHUNKS) * W::SLICE, 0, 0u);
        fill_commit();
    };
    auto stream = stream_of<W>(stages, begin);

    float top[2] = {-infinity(), -infinity()}, total[2] = {0.0f, 0.0f};
    float sums[ROWS / 16][W::TILES][8] = {};
    begin(0);
    for (int tile = 0; stream.at < stage_count; ++tile) {
        float scores[8] = {};
        Squares<E, COLUMNS, W::CHANNELS> squares;
        squares.clear();
        for (int chunk = 0; chunk < W::CHUNKS; ++chunk) {
            const E* keys = stream.arrive();
            if (PACKED) squares.add(keys);
            W::dot(scores, own + (chunk * (W::CHANNELS / unit<E>()) * plane<E>(ROWS) + row_tile * 16 * unit<E>()),
                   plane<E>(ROWS), keys + column_tile * 16 * unit<E>(), plane<E>(COLUMNS));
            stream.leave();
        }
        if (PACKED) {
            squares.finish(key_scales, p.depth);
            __syncthreads();
#pragma unroll
            for (int i = 0; i < 8; ++i) scores[i] *= key_scales[column_tile * 16 + P::score_column(i)];
        }
        float high[2] = {top[0], top[1]}, base[2];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            if (tile * COLUMNS + column_tile * 16 + P::score_column(i) >= p.keys) scores[i] = -infinity();
            high[P::side(i)] = fmaxf(high[P::side(i)], scores[i]);
        }
#pragma unroll
        for (int side = 0; side < 2; ++side) {
            high[side] = row_max<E>(high[side]);
            if (row_member<E>() == 0) peaks[column_tile * ROWS + row_tile * 16 + P::row(side)] = high[side];
        }
        __syncthreads();
#pragma unroll
        for (int side = 0; side < 2; ++side) {
            int row = row_tile * 16 + P::row(side);
            for (int column = 0; column < W::COLUMN_TILES; ++column)
                high[side] = fmaxf(high[side], peaks[column * ROWS + row]);
            float shrink = exp2_approx((top[side] - high[side]) * factor);
            if (column_tile == 0 && row_member<E>() == 0) shrinks[row] = shrink;
            total[side] *= shrink;
            top[side] = high[side];
            base[side] = lift<E>(false) - high[side] * factor;
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            float weight = exp2_approx(fmaf(scores[i], factor, base[P::side(i)]));
            total[P::side(i)] += weight;
            put(weights + W::weight_at(row_tile, column_tile, i), weight);
        }
        for (int slice = 0; slice < W::SLICES; ++slice) {
            E* values = stream.arrive();
            if (PACKED) {
                normalise_rows<W::SLICE, DEPTH, W::THREADS>(values, p.depth);
                __syncthreads();
            }
            if (slice == 0) {
#pragma unroll
                for (int m = 0; m < ROWS / 16; ++m)
                    W::scale(sums, m, shrinks[m * 16 + P::row(0)], shrinks[m * 16 + P::row(1)]);
            }
            W::add(sums, weights + slice * (W::SLICE / unit<E>()) * plane<E>(ROWS), values);
            stream.leave();
        }
    }

    // Totals take the place of the peaks, which all warps have read since the values arrived, and what sums are
    // multiplied by that of the factors.
#pragma unroll
    for (int side = 0; side < 2; ++side) {
        total[side] = row_sum<E>(total[side]);
        if (row_member<E>() == 0) peaks[column_tile * ROWS + row_tile * 16 + P::row(side)] = total[side];
    }
    __syncthreads();
    if (column_tile == 0 && row_member<E>() == 0) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
            int row = row_tile * 16 + P::row(side);
            float sum = 0.0f;
            for (int column = 0; column < W::COLUMN_TILES; ++column) sum += peaks[column * ROWS + row];
            shrinks[row] = reciprocal_approx(sum);
            int query = static_cast<int>(blockIdx.z) * p.queries + first + row;
            if (first + row < p.queries)
                p.lse[query * p.heads + blockIdx.y] =
                    (top[side] * factor - lift<E>(false) + log2_approx(sum)) * LN2;
        }
    }
    __syncthreads();
    E* y = p.y + head_start(p, p.queries);
    W::each(sums, [&](int row, int channel, float low, float high) {
        if (first + row >= p.queries || channel >= p.depth) return;
        put_pair(y + ((first + row) * (p.heads * p.depth) + channel), low * shrinks[row], high * shrinks[row]);
    });
}

template <class E, int DEPTH>
struct WideBackward : Wide<E, DEPTH, 2, 2> {
    typedef Wide<E, DEPTH, 2, 2> Base;
    // Own rows and rows of the other side, of either product.
    static const int PART = area<E>(32, Base::CHANNELS), CHUNK = 4 * PART;
    static const int STAGE = CHUNK > Base::SLICE_AREA ? CHUNK : Base::SLICE_AREA;
};

// As attention_dgrad. Dynamic shared memory: two operands of weights, stages, 1,024 slopes on their way
// to the warps with the probabilities, two values of each of 32 queries, and four magnitudes.
template <class E, int DEPTH, bool KEYS>
__global__ void __launch_bounds__(256, 1) attention_wide_dgrad(Attention<E> p) {
    typedef WideBackward<E, DEPTH> W;
    typedef Product<E> P;
    const int ROWS = 32, COLUMNS = 32, SLICES = KEYS ? 2 * W::SLICES : W::SLICES;
    const int PER_TILE = W::CHUNKS + SLICES;
    CYANEA_DYNAMIC_SHARED(E, gradients);
    E* probabilities = gradients + W::WEIGHTS;
    E* stages = probabilities + W::WEIGHTS;
    float* slopes = reinterpret_cast<float*>(stages + W::BUFFERS * W::STAGE);
    float2* queries = reinterpret_cast<float2*>(slopes + 1024);
    float* sizes = reinterpret_cast<float*>(queries + 32);
    Tokens<E> q = tokens(p, p.q, p.queries), dy = tokens(p, p.dy, p.queries);
    Tokens<E> k = tokens(p, p.k, p.keys), v = tokens(p, p.v, p.keys);
    const Tokens<E>&own0 = KEYS ? k : q, &own1 = KEYS ? v : dy;
    const Tokens<E>&other0 = KEYS ? q : k, &other1 = KEYS ? dy : v;
    int first = blockIdx.x * ROWS, warp = threadIdx.x / 32, lane = warp_lane();
    int row_tile = warp / 2 % 2, column_tile = warp % 2;
    int stage_count = (other0.count + COLUMNS - 1) / COLUMNS * PER_TILE;
    int head_rows = static_cast<int>(blockIdx.z * p.queries * p.heads + blockIdx.y);
    float factor = p.scale * LOG2E;

    if (!KEYS) {
        // Eight lanes a row.
        int row = static_cast<int>(threadIdx.x) / 8;
        float delta = 0.0f;
        if (first + row < p.queries) {
            Tokens<E> y = tokens(p, static_cast<const E*>(p.y), p.queries);
            bool whole = p.depth % unit<E>() == 0;
            for (int channel = lane % 8 * unit<E>(); channel < p.depth; channel += 8 * unit<E>()) {
                int from = (first + row) * y.stride + channel;
                delta += dot_unit(y.at, read_unit(dy.at + from, p.depth - channel, whole),
                                  read_unit(y.at + from, p.depth - channel, whole));
            }
        }
        for (int bits = 4; bits > 0; bits /= 2) delta += __shfl_xor_sync(0xffffffffu, delta, bits);
        if (lane % 8 == 0) {
            int at = head_rows + (first + row) * p.heads;
            bool live = first + row < p.queries;
            queries[row] = make_float2(live ? lift<E>(true) - p.lse[at] * LOG2E : -infinity(), delta);
            if (live) p.delta[at] = delta;
        }
    }

    auto begin = [&](int stage) {
        if (stage >= stage_count) return;
        E* to = stages + stage % W::BUFFERS * W::STAGE;
        int tile = stage / PER_TILE, part = stage % PER_TILE, row = tile * COLUMNS;
        if (part < W::CHUNKS) {
            int channel = part * W::CHANNELS;
            fill<32, W::CHANNELS, W::THREADS, true>(to, own0, first, channel, 0u);
            fill<32, W::CHANNELS, W::THREADS, true>(to + W::PART, other0, row, channel, 0u);
            fill<32, W::CHANNELS, W::THREADS, true>(to + 2 * W::PART, own1, first, channel, 0u);
            fill<32, W::CHANNELS, W::THREADS, true>(to + 3 * W::PART, other1, row, channel, 0u);
        } else {
            int slice = part - W::CHUNKS;
            row += slice % W::SLICES * W::SLICE;
            Tokens<E> other = other0;
            if (KEYS && slice >= W::SLICES) other.at = other1.at;
            fill<W::SLICE, DEPTH, W::THREADS, true>(to, other, row, 0, 0u);
        }
        fill_commit();
    };
    auto stream = stream_of<W>(stages, begin);

    float gradient[2][W::TILES][8] = {}, weighted[2][W::TILES][8] = {};
    Range range;
    begin(0);
    for (int tile = 0; stream.at < stage_count; ++tile) {
        float product[8] = {};
        for (int chunk = 0; chunk < W::CHUNKS; ++chunk) {
            const E* parts = stream.arrive() + warp / 4 * 2 * W::PART;
            W::dot(product, parts + row_tile * 16 * unit<E>(), plane<E>(32),
                   parts + (W::PART + column_tile * 16 * unit<E>()), plane<E>(32));
            stream.leave();
        }
        if (KEYS && threadIdx.x < 32) {
            int query = tile * COLUMNS + lane;
            int from = head_rows + query * p.heads;
            float2 of = make_float2(-infinity(), 0.0f);
            if (query < p.queries) of = make_float2(lift<E>(true) - p.lse[from] * LOG2E, p.delta[from]);
            queries[lane] = of;
        }
        if (warp >= 4) {
#pragma unroll
            for (int i = 0; i < 8; ++i) slopes[((warp - 4) * 8 + i) * 32 + lane] = product[i];
        }
        __syncthreads();
        float weight[8], slope[8];
        if (warp < 4) {
            float size = 0.0f;
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                int row = row_tile * 16 + P::row(P::side(i)), column = column_tile * 16 + P::score_column(i);
                float2 of = queries[KEYS ? column : row];
                weight[i] = exp2_approx(fmaf(product[i], factor, of.x));
                int key = KEYS ? first + row : tile * COLUMNS + column;
                if (key >= p.keys) weight[i] = 0.0f;
                slope[i] = weight[i] * (slopes[(warp * 8 + i) * 32 + lane] - of.y);
                size += fabsf(slope[i]);
            }
            bool broken = __any_sync(0xffffffffu, !(size < infinity()));
            size = warp_max(size);
            if (lane == 0) sizes[warp] = broken ? infinity() : size;
        }
        __syncthreads();
        if (sizeof(E) == 2) {
            float largest = fmaxf(fmaxf(sizes[0], sizes[1]), fmaxf(sizes[2], sizes[3]));
            if (!(largest <= range.limit)) {
                float ratio = range.follow(largest);
#pragma unroll
                for (int m = 0; m < 2; ++m) {
                    W::scale(gradient, m, ratio, ratio);
                    if (KEYS && !(largest < infinity())) W::scale(weighted, m, ratio, ratio);
                }
            }
        }
        if (warp < 4) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                put(gradients + W::weight_at(row_tile, column_tile, i), slope[i] * range.factor);
                if (KEYS) put(probabilities + W::weight_at(row_tile, column_tile, i), weight[i]);
            }
        }
        for (int slice = 0; slice < SLICES; ++slice) {
            const E* rows = stream.arrive();
            int from = slice % W::SLICES * (W::SLICE / unit<E>()) * plane<E>(ROWS);
            if (!KEYS || slice < W::SLICES) W::add(gradient, gradients + from, rows);
            else W::add(weighted, probabilities + from, rows);
            stream.leave();
        }
    }

    float lowered = exp2_approx(-lift<E>(true)), inverse = range.inverse(), scale = p.scale * lowered;
    auto write = [&](E* to, int row, int channel, float low, float high) {
        if (first + row >= own0.count || channel >= p.depth) return;
        put_pair(to + (head_start(p, own0.count) + (first + row) * own0.stride + channel), low, high);
    };
    W::each(gradient, [&](int row, int channel, float low, float high) {
        write(KEYS ? p.dk : p.dq, row, channel, low * inverse * scale, high * inverse * scale);
    });
    if (!KEYS) return;
    W::each(weighted, [&](int row, int channel, float low, float high) {
        write(p.dv, row, channel, low * lowered, high * lowered);
    });
}
