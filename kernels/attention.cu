// Scaled dot-product attention over q [B, N, heads * D] and k, v [B, M, heads * D], and its gradient,
// without a matrix of scores, for D up to 64; attention_wide.cu takes wider heads.
//
// Grid: (parts of the rows, heads, B). A warp has 16 rows of its own (queries; for dk and dv: keys) with
// all their sums in registers, and walks over all rows of the other side, which the warps of a block
// read together, a tile at a time, from shared memory. Where one tile holds them all, it stays there
// for several passes, each with other own rows. Probabilities go from the sums of one product
// to the operand of the next in registers. Forward, the softmax is rescaled when a row's largest score
// rises; backward, probabilities come from the log-sum-exp. DEPTH is the most that D may be: the head
// is padded with zeros, in shared memory alone.
#include "common/attention_rows.cuh"

// How a block is laid out.
template <class E, int DEPTH, int WARPS>
struct Layout {
    static const int ROWS = 16 * WARPS, THREADS = 32 * WARPS;
    // Rows of the other side in shared memory, and those that are worked on together, in sixteens.
    static const int TILE = DEPTH == 8 ? 256 : (sizeof(E) == 2 ? 4096 : 2048) / DEPTH;
    static const int TOGETHER = 2;
    // The next tile is on its way while one is worked on, where asynchronous copies bring it.
    static const int BUFFERS = CYANEA_CODE_PATH >= 80 && sizeof(E) == 2 && DEPTH > 8 ? 2 : 1;
    static const int MATRIX = area<E>(TILE, DEPTH), OWN = area<E>(16, DEPTH);
    // Blocks that the registers of a multiprocessor are shared out to, at least.
    static __device__ constexpr int resident(bool backward) {
        return DEPTH > 8 || sizeof(E) == 4 ? 1 : backward ? 4 : 7;
    }
    // Matrices of own rows of a warp that stay in shared memory, and its 16-byte words in all.
    static __device__ constexpr int rooms(bool backward) { return backward && sizeof(E) == 4 ? 2 : 1; }
    static __device__ constexpr int words(bool backward) {
        return (2 * BUFFERS * MATRIX + WARPS * rooms(backward) * OWN) / unit<E>();
    }
};

// 16 queries of a warp: the softmax over the keys so far. Probabilities are relative to `top`, a
// product of query and key: the largest with the first keys, and again when a later one is so much
// larger that its probability might leave the range of float16.
template <class E, int DEPTH>
struct Queries {
    typedef Product<E> P;
    typedef typename Sums<E, DEPTH>::Left Left;
    Own<E, DEPTH> rows;
    Sums<E, DEPTH> sums;
    float top[2], base[2], total[2];
    // A step with fewer keys left than this is the first or the last.
    int ordinary;

    template <bool NORMALISE>
    __device__ __forceinline__ void start(E* room, const Tokens<E>& q, int first, unsigned flip) {
        rows.template fetch<NORMALISE>(room, q, first, flip);
        sums.clear();
        total[0] = total[1] = 0.0f;
        ordinary = 0x7fffffff;
    }
    // Products with 16 N keys.
    template <int N>
    __device__ __forceinline__ void find(float (&scores)[N][8], const E* keys, int plane) const {
#pragma unroll
        for (int i = 0; i < 8 * N; ++i) scores[i / 8][i % 8] = 0.0f;
        rows.dot(scores, keys, plane);
    }
    // The first `live` of them are there.
    template <int N>
    __device__ __forceinline__ void mask(float (&scores)[N][8], int live) const {
        if (live >= 16 * N) return;
#pragma unroll
        for (int i = 0; i < 8 * N; ++i)
            if (i / 8 * 16 + Own<E, DEPTH>::other_row(i % 8) >= live) scores[i / 8][i % 8] = -infinity();
    }
    // FIRST: nothing has been summed yet. SPLIT: as split_rounding says.
    template <bool SPLIT, bool FIRST, int N>
    __device__ __forceinline__ void rebase(const float (&scores)[N][8], float factor) {
        float high[2] = {FIRST ? -infinity() : top[0], FIRST ? -infinity() : top[1]}, shrink[2];
#pragma unroll
        for (int i = 0; i < 8 * N; ++i)
            high[P::side(i % 8)] = fmaxf(high[P::side(i % 8)], scores[i / 8][i % 8]);
#pragma unroll
        for (int side = 0; side < 2; ++side) {
            high[side] = row_max<E>(high[side]);
            if (!FIRST) {
                shrink[side] = exp2_approx((top[side] - high[side]) * factor);
                total[side] *= shrink[side];
            }
            top[side] = high[side];
            base[side] = lift<E>(false) - lowered<E>(SPLIT) - high[side] * factor;
        }
        if (!FIRST) sums.scale(shrink[0], shrink[1]);
    }
    // Scores become probabilities, and without SPLIT weights of values too; that is done before anyone knows whether
    // they can stay, so that packing goes on beside exp. `part` is their sums, from -0: adding that is no instruction.
    template <bool SPLIT, int N>
    __device__ __forceinline__ void exponentiate(float (&scores)[N][8], float (&part)[2], Left (&left)[N],
                                                 float factor) const {
        part[0] = part[1] = -0.0f;
#pragma unroll
        for (int i = 0; i < 8 * N; ++i) {
            float& score = scores[i / 8][i % 8];
            score = exp2_approx(fmaf(score, factor, base[P::side(i % 8)]));
            part[P::side(i % 8)] += score;
        }
        if (SPLIT) return;
#pragma unroll
        for (int n = 0; n < N; ++n) left[n].template round<SMALLER>(scores[n]);
    }
    // With 16 N keys; `live` are left in the tile, these included.
    template <int N, bool SPLIT>
    __device__ __forceinline__ void step(const E* keys, const E* values, int plane, int live, float factor) {
        float scores[N][8], part[2];
        Left left[N];
        find(scores, keys, plane);
        if (live < ordinary) {
            mask(scores, live);
            if (ordinary > 16 * N) rebase<SPLIT, true>(scores, factor);
            ordinary = 16 * N;
        }
        exponentiate<SPLIT>(scores, part, left, factor);
        const float most = 32768.0f / power_of_two(lowered<E>(SPLIT));
        if (__any_sync(0xffffffffu, !(part[0] <= most && part[1] <= most))) {
            find(scores, keys, plane);
            mask(scores, live);
            rebase<SPLIT, false>(scores, factor);
            exponentiate<SPLIT>(scores, part, left, factor);
        }
        total[0] += part[0];
        total[1] += part[1];
        if (SPLIT) {
            add_weighted<POSITIVE>(sums, scores, values, plane, true);
            return;
        }
#pragma unroll
        for (int n = 0; n < N; ++n) sums.add(left[n], values + 16 * n * unit<E>(), plane);
    }
    // A tile of which `live` keys are there.
    template <int N, bool SPLIT>
    __device__ __forceinline__ void steps(const E* keys, const E* values, int plane, int live, float factor) {
        for (; live > 0; live -= 16 * N, keys += 16 * N * unit<E>(), values += 16 * N * unit<E>())
            step<N, SPLIT>(keys, values, plane, live, factor);
    }
};

// PACKED: q, k and v are parts of one tensor, and normalised (attention_packed.cuh).
template <class E, int DEPTH, int WARPS, bool PACKED>
__global__ void __launch_bounds__(32 * WARPS, (Layout<E, DEPTH, WARPS>::resident(false)))
    attention_fwd(Attention<E> p) {
    typedef Layout<E, DEPTH, WARPS> L;
    typedef Product<E> P;
    CYANEA_SHARED(uint4, shared, L::words(false));
    E* tiles = reinterpret_cast<E*>(shared);
    int warp = static_cast<int>(threadIdx.x) / 32;
    E* own = tiles + (2 * L::BUFFERS * L::MATRIX + warp * L::OWN);
    Tokens<E> q = rows_of<PACKED>(p, p.q, p.queries);
    Tokens<E> k = rows_of<PACKED>(p, p.k, p.keys), v = rows_of<PACKED>(p, p.v, p.keys);
    int tile_count = (p.keys + L::TILE - 1) / L::TILE;

    // Where the log-sum-exp of the first query lies.
    int head_rows = static_cast<int>(blockIdx.z * p.queries * p.heads + blockIdx.y);
    // The largest product of a row gives its largest score, for which the scale must be positive.
    unsigned signs = p.scale < 0.0f ? sizeof(E) == 2 ? 0x80008000u : 0x80000000u : 0u;
    float factor = fmaxf(fabsf(p.scale), 1e-30f) * LOG2E;
    bool split = split_rounding<E>(p.keys);
    auto begin = [&](int tile) {
        E* to = tiles + tile % L::BUFFERS * 2 * L::MATRIX;
        fill<L::TILE, DEPTH, L::THREADS, true>(to, k, tile * L::TILE, 0, 0u);
        fill<L::TILE, DEPTH, L::THREADS, true>(to + L::MATRIX, v, tile * L::TILE, 0, 0u);
        fill_commit();
    };
    for (int pass = 0; pass < p.passes; ++pass) {
        int first = (static_cast<int>(blockIdx.x) * p.passes + pass) * L::ROWS + warp * 16;
        // Several passes are made only where one tile has the whole other side, which then stays.
        bool resident = pass > 0;
        Queries<E, DEPTH> rows;
        rows.template start<PACKED>(own, q, first, signs);
        if (!resident) begin(0);
        for (int tile = 0; tile < tile_count; ++tile) {
            E* keys = tiles + tile % L::BUFFERS * 2 * L::MATRIX;
            if (!resident) {
                fill_wait();
                __syncthreads();
                if (L::BUFFERS == 2 && tile + 1 < tile_count) begin(tile + 1);
                if (PACKED) {
                    normalise_rows<L::TILE, DEPTH, L::THREADS>(keys, p.depth);
                    normalise_rows<L::TILE, DEPTH, L::THREADS>(keys + L::MATRIX, p.depth);
                    __syncthreads();
                }
            }
            int live = min(L::TILE, p.keys - tile * L::TILE);
            // One product at a time where both parts of probabilities take up registers.
            if (split) rows.template steps<1, true>(keys, keys + L::MATRIX, plane<E>(L::TILE), live, factor);
            else rows.template steps<L::TOGETHER, false>(keys, keys + L::MATRIX, plane<E>(L::TILE), live, factor);
            if (L::BUFFERS == 1 && tile + 1 < tile_count) {
                __syncthreads();
                begin(tile + 1);
            }
        }

        float inverse[2];
        E* to[2];
        bool live[2];
        rows.sums.finish();
#pragma unroll
        for (int side = 0; side < 2; ++side) {
            int query = first + P::row(side);
            live[side] = query < p.queries;
            to[side] = p.y + (head_start(p, p.queries) + query * (p.heads * p.depth));
            float total = row_sum<E>(rows.total[side]) * (split ? 1.0f : power_of_two(lowered<E>(false)));
            inverse[side] = reciprocal_approx(total);
            // From `base` as it was rounded, so that this shows here no more than in y.
            if (live[side] && row_member<E>() == 0)
                p.lse[head_rows + query * p.heads] =
                    (log2_approx(total) - (rows.base[side] + (split ? 0.0f : lowered<E>(false)))) * LN2;
        }
        rows.sums.each([&](int side, int channel, float low, float high) {
            if (!live[side] || channel >= p.depth) return;
            put_pair(to[side] + channel, low * inverse[side], high * inverse[side]);
        });
    }
}

// dq, with rows of queries against tiles of keys, or (KEYS) dk and dv, with rows of keys against tiles
// of queries: with probabilities P and dS = P (dy v^T - delta), dq = scale dS k, dk = scale dS^T q,
// dv = P^T dy.
template <class E, int DEPTH, int WARPS, bool KEYS>
__global__ void __launch_bounds__(32 * WARPS, (Layout<E, DEPTH, WARPS>::resident(true)))
    attention_dgrad(Attention<E> p) {
    typedef Layout<E, DEPTH, WARPS> L;
    typedef Product<E> P;
    const int N = 2, SIZE = unit<E>();
    CYANEA_SHARED(uint4, shared, L::words(true));
    CYANEA_SHARED(float2, columns, KEYS ? L::BUFFERS * L::TILE : 1);
    E* tiles = reinterpret_cast<E*>(shared);
    int warp = static_cast<int>(threadIdx.x) / 32;
    E* own = tiles + (2 * L::BUFFERS * L::MATRIX + L::rooms(true) * warp * L::OWN);
    Tokens<E> q = tokens(p, p.q, p.queries), dy = tokens(p, p.dy, p.queries);
    Tokens<E> k = tokens(p, p.k, p.keys), v = tokens(p, p.v, p.keys);
    const Tokens<E>&own0 = KEYS ? k : q, &own1 = KEYS ? v : dy;
    const Tokens<E>&other0 = KEYS ? q : k, &other1 = KEYS ? dy : v;
    int tile_count = (other0.count + L::TILE - 1) / L::TILE;
    float factor = p.scale * LOG2E;
    bool split = split_rounding<E>(other0.count);
    // Where the log-sum-exp and delta of the first query lie.
    int head_rows = static_cast<int>(blockIdx.z * p.queries * p.heads + blockIdx.y);
    auto begin = [&](int tile) {
        E* to = tiles + tile % L::BUFFERS * 2 * L::MATRIX;
        fill<L::TILE, DEPTH, L::THREADS, true>(to, other0, tile * L::TILE, 0, 0u);
        fill<L::TILE, DEPTH, L::THREADS, true>(to + L::MATRIX, other1, tile * L::TILE, 0, 0u);
        fill_commit();
        if (!KEYS) return;
        for (int i = threadIdx.x; i < L::TILE; i += L::THREADS) {
            int query = tile * L::TILE + i;
            int row = head_rows + query * p.heads;
            float2 of = make_float2(-infinity(), 0.0f);
            if (query < p.queries) of = make_float2(lift<E>(true) - p.lse[row] * LOG2E, p.delta[row]);
            columns[tile % L::BUFFERS * L::TILE + i] = of;
        }
    };
    for (int pass = 0; pass < p.passes; ++pass) {
        int first = (static_cast<int>(blockIdx.x) * p.passes + pass) * L::ROWS + warp * 16;
        // Several passes are made only where one tile has the whole other side, which then stays.
        bool resident = pass > 0;
        if (!resident) begin(0);
        Own<E, DEPTH> rows0, rows1;
        rows0.template fetch<false>(own, own0, first, 0u);
        rows1.template fetch<false>(own + (L::rooms(true) - 1) * L::OWN, own1, first, 0u);
        // Of own queries: -log2 of the sum of exp, lifted, and delta.
        float base[2], delta[2];
#pragma unroll
        for (int side = 0; side < 2; ++side) {
            if (KEYS) continue;
            int row = first + P::row(side);
            delta[side] = 0.0f;
            base[side] = -infinity();
            if (row < p.queries) {
                const E* y = p.y + head_start(p, p.queries);
                bool whole = p.depth % SIZE == 0;
                for (int channel = row_member<E>() * SIZE; channel < p.depth; channel += 4 * SIZE) {
                    int from = row * q.stride + channel;
                    delta[side] += dot_unit(y, read_unit(dy.at + from, p.depth - channel, whole),
                                            read_unit(y + from, p.depth - channel, whole));
                }
            }
            delta[side] = row_sum<E>(delta[side]);
            if (row < p.queries) {
                int at = head_rows + row * p.heads;
                base[side] = lift<E>(true) - p.lse[at] * LOG2E;
                if (row_member<E>() == 0) p.delta[at] = delta[side];
            }
        }
        Sums<E, DEPTH> gradient, weighted;
        gradient.clear();
        if (KEYS) weighted.clear();
        Range range;
        for (int tile = 0; tile < tile_count; ++tile) {
            if (!resident) {
                fill_wait();
                __syncthreads();
                if (L::BUFFERS == 2 && tile + 1 < tile_count) begin(tile + 1);
            }
            const E* others = tiles + tile % L::BUFFERS * 2 * L::MATRIX;
            const float2* of_columns = columns + (KEYS ? tile % L::BUFFERS * L::TILE : 0);
            int live = min(L::TILE, other0.count - tile * L::TILE);
            for (int at = 0; at < live; at += 16 * N) {
                float weight[N][8] = {}, slope[N][8] = {}, size = 0.0f;
                rows0.dot(weight, others + at * SIZE, plane<E>(L::TILE));
                rows1.dot(slope, others + L::MATRIX + at * SIZE, plane<E>(L::TILE));
                // What lies beyond the ends has no weight; -inf sees to that for queries.
                bool edge = KEYS ? first + 16 > p.keys : at + 16 * N > live;
#pragma unroll
                for (int i = 0; i < 8 * N; ++i) {
                    int column = at + i / 8 * 16 + Own<E, DEPTH>::other_row(i % 8), side = P::side(i % 8);
                    float2 of = KEYS ? of_columns[column] : make_float2(base[side], delta[side]);
                    float value = exp2_approx(fmaf(weight[i / 8][i % 8], factor, of.x));
                    if (edge && (KEYS ? first + P::row(side) >= p.keys : column >= live)) value = 0.0f;
                    weight[i / 8][i % 8] = value;
                    slope[i / 8][i % 8] = value * (slope[i / 8][i % 8] - of.y);
                    size += fabsf(slope[i / 8][i % 8]);
                }
                if (sizeof(E) == 2) {
                    if (__any_sync(0xffffffffu, !(size <= range.limit))) {
                        bool broken = __any_sync(0xffffffffu, !(size < infinity()));
                        float ratio = range.follow(broken ? infinity() : warp_max(size));
                        gradient.scale(ratio, ratio);
                        if (KEYS && broken) weighted.scale(ratio, ratio);
                    }
#pragma unroll
                    for (int i = 0; i < 8 * N; ++i) slope[i / 8][i % 8] *= range.factor;
                }
                const E* from = others + at * SIZE;
                add_weighted<SIGNED>(gradient, slope, from, plane<E>(L::TILE), split);
                if (KEYS) add_weighted<POSITIVE>(weighted, weight, from + L::MATRIX, plane<E>(L::TILE), split);
            }
            if (L::BUFFERS == 1 && tile + 1 < tile_count) {
                __syncthreads();
                begin(tile + 1);
            }
        }

        float lowered = exp2_approx(-lift<E>(true)), inverse = range.inverse(), scale = p.scale * lowered;
        auto write = [&](Sums<E, DEPTH>& sums, E* tensor, float first_factor, float second_factor) {
            E* to = tensor + (head_start(p, own0.count) + first * own0.stride);
            sums.finish();
            sums.each([&](int side, int channel, float low, float high) {
                int row = P::row(side);
                if (first + row >= own0.count || channel >= p.depth) return;
                put_pair(to + (row * own0.stride + channel), low * first_factor * second_factor,
                         high * first_factor * second_factor);
            });
        };
        write(gradient, KEYS ? p.dk : p.dq, inverse, scale);
        if (KEYS) write(weighted, p.dv, lowered, 1.0f);
    }
}
