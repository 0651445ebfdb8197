// Scaled dot-product attention over q [B, N, heads * D] and k, v [B, M, heads * D], and its
// gradient, without a matrix of scores.
//
// One thread a query (for dk and dv: a key) of one head; it keeps its rows of D values to itself
// and walks over all keys (queries), which the threads of a warp read together. DEPTH is the most
// that D may be; beyond 64 the rows lie in local memory. E is the type of q, k, v, y and their
// gradients.
#include "common/half.cuh"

template <class E>
struct Attention {
    const E* q;
    const E* k;
    const E* v;
    E* y;
    float* lse;  // [B, N, heads]: ln of the sum of exp(scores)
    int queries, keys, heads, depth;
    float scale;
    int unused;
};

template <int DEPTH, class E>
__device__ __forceinline__ void read_row(const E* from, int depth, float (&row)[DEPTH]) {
    for (int d = 0; d < DEPTH; ++d) row[d] = d < depth ? get(from + d) : 0.0f;
}

template <int DEPTH, class E>
__device__ __forceinline__ void write_row(E* to, int depth, const float (&row)[DEPTH],
                                          float factor) {
    for (int d = 0; d < DEPTH; ++d)
        if (d < depth) put(to + d, row[d] * factor);
}

template <int DEPTH, class E>
__device__ __forceinline__ float dot(const float (&row)[DEPTH], const E* other, int depth) {
    float sum = 0.0f;
    for (int d = 0; d < DEPTH; ++d)
        if (d < depth) sum = fmaf(row[d], get(other + d), sum);
    return sum;
}

template <int DEPTH, class E>
__device__ __forceinline__ void add_scaled(float (&row)[DEPTH], float factor, const E* other,
                                           int depth) {
    for (int d = 0; d < DEPTH; ++d)
        if (d < depth) row[d] = fmaf(factor, get(other + d), row[d]);
}

template <int DEPTH, class E>
__global__ void __launch_bounds__(64) attention_fwd(Attention<E> p) {
    int query = blockIdx.x * 64 + threadIdx.x, head = blockIdx.y;
    if (query >= p.queries) return;
    long long sample = blockIdx.z, stride = static_cast<long long>(p.heads) * p.depth;
    long long own = (sample * p.queries + query) * stride + head * p.depth;
    long long keys = sample * p.keys * stride + head * p.depth;
    float q[DEPTH], sum[DEPTH] = {};
    read_row(p.q + own, p.depth, q);
    // The first key sets the maximum.
    float top = 0.0f, weight = 0.0f;
    for (int key = 0; key < p.keys; ++key) {
        long long at = keys + key * stride;
        float score = p.scale * dot(q, p.k + at, p.depth);
        if (key == 0) top = score;
        if (score > top) {
            float shrink = expf(top - score);
            weight *= shrink;
            for (int d = 0; d < DEPTH; ++d) sum[d] *= shrink;
            top = score;
        }
        float probability = expf(score - top);
        weight += probability;
        add_scaled(sum, probability, p.v + at, p.depth);
    }
    write_row(p.y + own, p.depth, sum, 1.0f / weight);
    p.lse[(sample * p.queries + query) * p.heads + head] = top + logf(weight);
}

template <class E>
struct AttentionBackward {
    const E* dy;
    const E* q;
    const E* k;
    const E* v;
    const E* y;
    const float* lse;
    E* dq;
    E* dk;
    E* dv;
    float* delta;  // [B, N, heads]: sum of dy * y; the first kernel writes it for the second
    int queries, keys, heads, depth;
    float scale;
    int unused;
};

template <int DEPTH, class E>
__global__ void __launch_bounds__(64) attention_dgrad_q(AttentionBackward<E> p) {
    int query = blockIdx.x * 64 + threadIdx.x, head = blockIdx.y;
    if (query >= p.queries) return;
    long long sample = blockIdx.z, stride = static_cast<long long>(p.heads) * p.depth;
    long long own = (sample * p.queries + query) * stride + head * p.depth;
    long long keys = sample * p.keys * stride + head * p.depth;
    long long row = (sample * p.queries + query) * p.heads + head;
    float q[DEPTH], dy[DEPTH], dq[DEPTH] = {};
    read_row(p.q + own, p.depth, q);
    read_row(p.dy + own, p.depth, dy);
    float delta = dot(dy, p.y + own, p.depth), lse = p.lse[row];
    p.delta[row] = delta;
    for (int key = 0; key < p.keys; ++key) {
        long long at = keys + key * stride;
        float probability = expf(p.scale * dot(q, p.k + at, p.depth) - lse);
        float ds = probability * (dot(dy, p.v + at, p.depth) - delta);
        add_scaled(dq, ds, p.k + at, p.depth);
    }
    write_row(p.dq + own, p.depth, dq, p.scale);
}

template <int DEPTH, class E>
__global__ void __launch_bounds__(64) attention_dgrad_kv(AttentionBackward<E> p) {
    int key = blockIdx.x * 64 + threadIdx.x, head = blockIdx.y;
    if (key >= p.keys) return;
    long long sample = blockIdx.z, stride = static_cast<long long>(p.heads) * p.depth;
    long long own = (sample * p.keys + key) * stride + head * p.depth;
    float k[DEPTH], v[DEPTH], dk[DEPTH] = {}, dv[DEPTH] = {};
    read_row(p.k + own, p.depth, k);
    read_row(p.v + own, p.depth, v);
    for (int query = 0; query < p.queries; ++query) {
        long long row = (sample * p.queries + query) * p.heads + head;
        long long at = row * p.depth;
        float probability = expf(p.scale * dot(k, p.q + at, p.depth) - p.lse[row]);
        float ds = probability * (dot(v, p.dy + at, p.depth) - p.delta[row]);
        add_scaled(dv, probability, p.dy + at, p.depth);
        add_scaled(dk, ds, p.q + at, p.depth);
    }
    write_row(p.dk + own, p.depth, dk, p.scale);
    write_row(p.dv + own, p.depth, dv, 1.0f);
}
