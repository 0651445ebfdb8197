// Twins of common/mma.cuh for the emulator: the last lane of a warp to arrive carries an instruction
// out for all. Products are summed in float32 with one rounding a term, in the order of k; the order
// inside a tensor core is not documented.
#pragma once

inline int thread_again() { return static_cast<int>(threadIdx.x); }

struct CyaneaMma {
    float* d;
    const unsigned* a;
    const unsigned* b;
};

// Element `index` of the float16 values in `registers`.
inline float cyanea_half_at(const unsigned* registers, int index) {
    return __half2float(__ushort_as_half(
        static_cast<unsigned short>(registers[index / 2] >> (index % 2 * 16) & 0xffffu)));
}

inline void cyanea_mma(float* d, const unsigned* a, const unsigned* b, CyaneaCollective execute,
                       int line) {
    CyaneaMma operand = {d, a, b};
    cyanea_collect(0xffffffffu, execute, &operand, __FILE__, line);
}

template <bool A_COLUMN, bool B_ROW>
void cyanea_m8n8k4(void** operands, unsigned) {
    for (int product = 0; product < 4; ++product) {
        float a[8][4], b[4][8];
        for (int part = 0; part < 8; ++part) {
            int lane = product * 4 + part % 4 + part / 4 * 16, high = part / 4 * 4;
            const CyaneaMma* own = static_cast<CyaneaMma*>(operands[lane]);
            for (int i = 0; i < 4; ++i) {
                if (A_COLUMN) a[i + high][lane % 4] = cyanea_half_at(own->a, i);
                else a[lane % 4 + high][i] = cyanea_half_at(own->a, i);
                if (B_ROW) b[lane % 4][i + high] = cyanea_half_at(own->b, i);
                else b[i][lane % 4 + high] = cyanea_half_at(own->b, i);
            }
        }
        for (int part = 0; part < 8; ++part) {
            int lane = product * 4 + part % 4 + part / 4 * 16;
            float* d = static_cast<CyaneaMma*>(operands[lane])->d;
            for (int i = 0; i < 8; ++i) {
                int row = (lane & 1) + (i & 2) + (lane >= 16 ? 4 : 0);
                int column = (i & 4) + (lane & 2) + (i & 1);
                for (int k = 0; k < 4; ++k) d[i] = fmaf(a[row][k], b[k][column], d[i]);
            }
        }
    }
}

template <bool A_COLUMN, bool B_ROW>
inline void mma_m8n8k4(float* d, const unsigned* a, const unsigned* b) {
    cyanea_mma(d, a, b, cyanea_m8n8k4<A_COLUMN, B_ROW>, __LINE__);
}

// m16n8k8 and m16n8k16: with g = lane / 4 and t = lane % 4, a[i] lies in row g (+ 8 where i & 2) and
// column 2 t + (i & 1) (+ 8 where i >= 4), b[i] in row 2 t + (i & 1) (+ 8 where i >= 2) and column g,
// d[i] in row g (+ 8 where i >= 2) and column 2 t + (i & 1).
template <int K>
void cyanea_m16n8(void** operands, unsigned) {
    float a[16][K], b[8][K];
    for (int lane = 0; lane < 32; ++lane) {
        const CyaneaMma* own = static_cast<CyaneaMma*>(operands[lane]);
        int group = lane / 4, pair = lane % 4 * 2;
        for (int i = 0; i < K / 2; ++i)
            a[group + (i & 2) * 4][pair + (i & 1) + i / 4 * 8] = cyanea_half_at(own->a, i);
        for (int i = 0; i < K / 4; ++i)
            b[group][pair + (i & 1) + i / 2 * 8] = cyanea_half_at(own->b, i);
    }
    for (int lane = 0; lane < 32; ++lane) {
        float* d = static_cast<CyaneaMma*>(operands[lane])->d;
        for (int i = 0; i < 4; ++i) {
            const float* row = a[lane / 4 + i / 2 * 8];
            const float* column = b[lane % 4 * 2 + (i & 1)];
            for (int k = 0; k < K; ++k) d[i] = fmaf(row[k], column[k], d[i]);
        }
    }
}

inline void mma_m16n8k16(float* d, const unsigned* a, const unsigned* b) {
    cyanea_mma(d, a, b, cyanea_m16n8<16>, __LINE__);
}
inline void mma_m16n8k8(float* d, const unsigned* a, const unsigned* b) {
    cyanea_mma(d, a, b, cyanea_m16n8<8>, __LINE__);
}

struct CyaneaLdmatrix {
    const __half* row;
    unsigned* r;
};

template <int COUNT, bool TRANSPOSED>
void cyanea_ldmatrix(void** operands, unsigned) {
    for (int lane = 0; lane < 32; ++lane) {
        for (int matrix = 0; matrix < COUNT; ++matrix) {
            auto at = [&](int row, int column) {
                const void* operand = operands[matrix * 8 + row];
                return static_cast<unsigned>(static_cast<const CyaneaLdmatrix*>(operand)->row[column].bits);
            };
            int major = lane / 4, minor = lane % 4 * 2;
            unsigned low = TRANSPOSED ? at(minor, major) : at(major, minor);
            unsigned high = TRANSPOSED ? at(minor + 1, major) : at(major, minor + 1);
            static_cast<CyaneaLdmatrix*>(operands[lane])->r[matrix] = low | high << 16;
        }
    }
}

template <int COUNT, bool TRANSPOSED>
inline void ldmatrix(unsigned* r, const __half* row) {
    static_assert(COUNT == 2 || COUNT == 4, "2 or 4 matrices");
    CyaneaLdmatrix operand = {row, r};
    cyanea_collect(0xffffffffu, cyanea_ldmatrix<COUNT, TRANSPOSED>, &operand, __FILE__, __LINE__);
}

typedef const __half* SharedRow;
inline SharedRow shared_row(const __half* row) { return row; }
inline SharedRow moved(SharedRow row, int elements) { return row + elements; }
template <bool TRANSPOSED>
inline void ldmatrix_at(unsigned* r, SharedRow row) { ldmatrix<4, TRANSPOSED>(r, row); }

// A copy is done when it is asked for; that a wait is missing is seen in checked mode alone.
#ifdef CYANEA_CHECKED
__forceinline__ inline void copy_async(void* to, const void* from) { cyanea_copy_async(to, from); }
__forceinline__ inline void copy_commit() { cyanea_copy_commit(); }
template <int PENDING>
__forceinline__ inline void copy_wait() { cyanea_copy_wait(PENDING); }
#else
inline void copy_async(void* to, const void* from) { memcpy(to, from, 16); }
inline void copy_commit() {}
template <int PENDING>
inline void copy_wait() {}
#endif

inline void copy_async_if(bool wanted, void* to, const void* from) {
    if (wanted) copy_async(to, from);
}
inline void copy_async_or_zero(bool wanted, bool inside, void* to, const void* from) {
    if (!wanted) return;
    if (inside) copy_async(to, from);
    else *static_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
}

inline void keep(int&) {}
inline void prefetch(const void*) {}

inline void device_fence() { __threadfence(); }

inline float exp2_approx(float x) {
    float y = exp2f(x);
    return y < 1.17549435e-38f ? 0.0f : y;
}
inline float log2_approx(float x) { return log2f(x); }
inline float reciprocal_approx(float x) { return 1.0f / x; }
inline float within(float x, float limit) { return x > limit ? limit : x < -limit ? -limit : x; }
