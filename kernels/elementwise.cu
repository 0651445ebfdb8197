// What moves, combines or converts elements of NHWC tensors without reducing over pixels. One thread
// an element of the result (a pool's have a piece, where channels are whole pieces); neighbouring threads touch
// neighbouring elements. E is the elements' type.
#include "common/half.cuh"
#include "common/noise.cuh"
#include "common/piece.cuh"
#include "common/preconditioned.cuh"

// y = scale_a * a + scale_b * b, or a * b. `b` has the shape of `a` (rows 0), or `rows` rows of `channels` elements, of
// which each sample of `sample` elements uses one for all of its pixels. Rows are float32.
template <class E, class B>
struct Combine {
    const E* a;
    const B* b;
    E* y;
    long long elements, sample;
    int channels, rows;
    float scale_a, scale_b;
};

template <bool PRODUCT, class E, class B>
__global__ void __launch_bounds__(256) combine(Combine<E, B> p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= p.elements) return;
    long long j = p.rows == 0 ? i : i / p.sample % p.rows * p.channels + i % p.channels;
    float a = get(p.a + i), b = get(p.b + j);
    put(p.y + i, PRODUCT ? a * b : p.scale_a * a + p.scale_b * b);
}

// y = c_skip * x + c_out * output, float32 of an output in E. The factors are `rows` rows of `channels`, of which
// each sample of `sample` elements uses one for all of its pixels.
template <class E>
struct Preconditioned {
    const float* x;
    const E* output;
    const float* c_skip;
    const float* c_out;
    float* y;
    long long elements, sample;
    int channels, rows;
};

template <class E>
__global__ void __launch_bounds__(256) preconditioned(Preconditioned<E> p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= p.elements) return;
    long long j = i / p.sample % p.rows * p.channels + i % p.channels;
    p.y[i] = preconditioned_output(p.c_skip[j], p.x[i], p.c_out[j], get(p.output + i));
}

// y = scale * x + offset, rounded after the product as everywhere.
template <class E>
struct ScaleAdd {
    const E* x;
    E* y;
    long long elements;
    float scale, offset;
};

template <class E>
__global__ void __launch_bounds__(256) scale_add(ScaleAdd<E> p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < p.elements) put(p.y + i, get(p.x + i) * p.scale + p.offset);
}

// y = x * scale, or 0 where the element's word of Philox is below the threshold; src/ops/dropout.
template <class E>
struct Dropout {
    const E* x;
    const unsigned* state;
    E* y;
    int batch, pixels, channels;
    unsigned purpose, threshold;
    float scale;
};

template <class E>
__global__ void __launch_bounds__(256) dropout(Dropout<E> p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    int size = p.pixels * p.channels, sample = static_cast<int>(i / size);
    if (sample >= p.batch) return;
    unsigned element = nchw_element(static_cast<int>(i % size), p.pixels, p.channels);
    uint4 words = stream_words(run_stream(p.state, sample, p.purpose), element);
    unsigned low = element & 1 ? words.y : words.x, high = element & 1 ? words.w : words.z;
    bool stays = (element & 2 ? high : low) >= p.threshold;
    put(p.y + i, stays ? get(p.x + i) * p.scale : 0.0f);
}

// Bit patterns from one place to another: float32 or integers.
struct Copy {
    const unsigned* x;
    unsigned* y;
    long long elements;
};

__global__ void __launch_bounds__(256) copy_fwd_nhwc_b32(Copy p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < p.elements) p.y[i] = p.x[i];
}

// The same elements in another type.
template <class From, class To>
struct Cast {
    const From* x;
    To* y;
    long long elements;
};

template <class From, class To>
__global__ void __launch_bounds__(256) cast(Cast<From, To> p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < p.elements) put(p.y + i, get(p.x + i));
}

// Channels `from` and following of x, `width` of them, times `scale` become channels `to` and
// following of y, for each of `pixels` pixels. With `fill` all other channels of y become `value`,
// else they stay.
template <class E>
struct MoveChannels {
    const E* x;
    E* y;
    long long pixels;
    int x_channels, y_channels, from, to, width, fill;
    float scale, value;
};

template <class E>
__global__ void __launch_bounds__(256) move_channels(MoveChannels<E> p) {
    int columns = p.fill ? p.y_channels : p.width;
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    long long pixel = i / columns;
    if (pixel >= p.pixels) return;
    int c = static_cast<int>(i % columns) + (p.fill ? 0 : p.to);
    bool inside = c >= p.to && c < p.to + p.width;
    float value = p.value;
    if (inside) value = p.scale * get(p.x + (pixel * p.x_channels + c - p.to + p.from));
    put(p.y + (pixel * p.y_channels + c), value);
}

// Nearest upsampling by `factor`, and its transpose, the sum over squares; both times `scale`.
// [rows, width, channels] is the smaller image; rows counts over the batch.
template <class E>
struct Resample {
    const E* x;
    E* y;
    long long rows;
    int width, channels, factor;
    float scale;
    int wide, unused;  // pool: whether channels are whole pieces, of which a thread has one
};

template <class E>
__global__ void __launch_bounds__(256) upsample(Resample<E> p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    int c = static_cast<int>(i % p.channels), wide = p.width * p.factor;
    int column = static_cast<int>(i / p.channels % wide);
    long long row = i / p.channels / wide;
    if (row >= p.rows * p.factor) return;
    long long from = (row / p.factor * p.width + column / p.factor) * p.channels + c;
    put(p.y + i, p.scale * get(p.x + from));
}

template <class E>
__global__ void __launch_bounds__(256) pool(Resample<E> p) {
    const int SIZE = Piece<E>::SIZE;
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    int each = p.wide ? p.channels / SIZE : p.channels;
    int c = static_cast<int>(i % each), column = static_cast<int>(i / each % p.width);
    long long row = i / each / p.width;
    if (row >= p.rows) return;
    float sum[SIZE] = {};
    for (int h = 0; h < p.factor; ++h) {
        long long first = ((row * p.factor + h) * p.width + column) * p.factor;
        for (int w = 0; w < p.factor; ++w) {
            const E* from = p.x + (first + w) * p.channels;
            if (!p.wide) {
                sum[0] += get(from + c);
                continue;
            }
            float x[SIZE];
            unpack(reinterpret_cast<const uint4*>(from)[c], x);
#pragma unroll
            for (int k = 0; k < SIZE; ++k) sum[k] += x[k];
        }
    }
#pragma unroll
    for (int k = 0; k < SIZE; ++k) sum[k] *= p.scale;
    if (p.wide) reinterpret_cast<uint4*>(p.y)[i] = pack(sum);
    else put(p.y + i, sum[0]);
}
