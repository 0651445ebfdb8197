// What moves or combines elements of NHWC float32 tensors without reducing over pixels. One thread
// an element of the result; neighbouring threads touch neighbouring elements.

// y = a + b or a * b. `b` has the shape of `a` (rows 0), or `rows` rows of `channels` elements, of
// which each sample of `sample` elements uses one for all of its pixels.
struct Combine {
    const float* a;
    const float* b;
    float* y;
    long long elements, sample;
    int channels, rows;
};

template <bool PRODUCT>
__global__ void __launch_bounds__(256) combine(Combine p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= p.elements) return;
    long long j = p.rows == 0 ? i : i / p.sample % p.rows * p.channels + i % p.channels;
    p.y[i] = PRODUCT ? p.a[i] * p.b[j] : p.a[i] + p.b[j];
}

// y = scale * x + offset, rounded after the product as everywhere.
struct ScaleAdd {
    const float* x;
    float* y;
    long long elements;
    float scale, offset;
};

__global__ void __launch_bounds__(256) scale_add_fwd_nhwc_f32(ScaleAdd p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < p.elements) p.y[i] = p.x[i] * p.scale + p.offset;
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

// Channels `from` and following of x, `width` of them, become channels `to` and following of y,
// for each of `pixels` pixels. With `fill` all other channels of y become zero, else they stay.
struct MoveChannels {
    const float* x;
    float* y;
    long long pixels;
    int x_channels, y_channels, from, to, width, fill;
};

__global__ void __launch_bounds__(256) move_channels_fwd_nhwc_f32(MoveChannels p) {
    int columns = p.fill ? p.y_channels : p.width;
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    long long pixel = i / columns;
    if (pixel >= p.pixels) return;
    int c = static_cast<int>(i % columns) + (p.fill ? 0 : p.to);
    bool inside = c >= p.to && c < p.to + p.width;
    p.y[pixel * p.y_channels + c] = inside ? p.x[pixel * p.x_channels + c - p.to + p.from] : 0.0f;
}

// Nearest upsampling by `factor`, and its transpose, the sum over squares; both times `scale`.
// [rows, width, channels] is the smaller image; rows counts over the batch.
struct Resample {
    const float* x;
    float* y;
    long long rows;
    int width, channels, factor;
    float scale;
};

__global__ void __launch_bounds__(256) upsample_fwd_nhwc_f32(Resample p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    int c = static_cast<int>(i % p.channels), wide = p.width * p.factor;
    int column = static_cast<int>(i / p.channels % wide);
    long long row = i / p.channels / wide;
    if (row >= p.rows * p.factor) return;
    p.y[i] = p.scale * p.x[(row / p.factor * p.width + column / p.factor) * p.channels + c];
}

__global__ void __launch_bounds__(256) pool_fwd_nhwc_f32(Resample p) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    int c = static_cast<int>(i % p.channels), column = static_cast<int>(i / p.channels % p.width);
    long long row = i / p.channels / p.width;
    if (row >= p.rows) return;
    float sum = 0.0f;
    for (int h = 0; h < p.factor; ++h) {
        long long first = ((row * p.factor + h) * p.width + column) * p.factor;
        for (int w = 0; w < p.factor; ++w) sum += p.x[(first + w) * p.channels + c];
    }
    p.y[i] = p.scale * sum;
}
