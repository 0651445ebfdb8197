// Sine and cosine of angles up to a million, in double: results that float32 can't tell from exact ones,
// without the path for huge angles that the compiler's own functions keep in local memory.
#pragma once

// The angle less the nearest multiple of a quarter turn, which goes to `quarter` (modulo 4). A quarter turn
// is the sum of two doubles (Cody & Waite 1980, "Software Manual for the Elementary Functions").
__device__ __forceinline__ double quarter_turns(double angle, int& quarter) {
    double turns = rint(angle * 0.63661977236758134);
    quarter = static_cast<int>(turns) & 3;
    double rest = fma(turns, -1.5707963267948966, angle);
    return fma(turns, -6.123233995736766e-17, rest);
}

// Taylor series up to the 13th and 12th power: within 1e-12 for at most an eighth of a turn.
__device__ __forceinline__ double sine_or_cosine(double x, bool cosine) {
    double z = x * x;
    double s = fma(z, 1.0 / 6227020800.0, -1.0 / 39916800.0);
    s = fma(z, s, 1.0 / 362880.0);
    s = fma(z, s, -1.0 / 5040.0);
    s = fma(z, s, 1.0 / 120.0);
    s = fma(z, s, -1.0 / 6.0);
    s = fma(z * x, s, x);
    double c = fma(z, 1.0 / 479001600.0, -1.0 / 3628800.0);
    c = fma(z, c, 1.0 / 40320.0);
    c = fma(z, c, -1.0 / 720.0);
    c = fma(z, c, 1.0 / 24.0);
    c = fma(z, c, -0.5);
    c = fma(z, c, 1.0);
    return cosine ? c : s;
}

__device__ __forceinline__ double sine_of(double angle) {
    int quarter;
    double rest = quarter_turns(angle, quarter);
    double value = sine_or_cosine(rest, quarter & 1);
    return quarter & 2 ? -value : value;
}

__device__ __forceinline__ double cosine_of(double angle) {
    int quarter;
    double rest = quarter_turns(angle, quarter);
    double value = sine_or_cosine(rest, !(quarter & 1));
    return (quarter + 1) & 2 ? -value : value;
}
