// The step state, 16 words of device memory that hold whatever changes from step to step; words as
// in src/ops/state.rs.
#pragma once

enum {
    STATE_STEP = 0,
    STATE_ROW = 1,
    STATE_LEARNING_RATE = 2,
    STATE_BIAS1 = 3,
    STATE_BIAS2 = 4,
    STATE_LOSS_SCALE = 5,
    STATE_SEED_LOW = 6,
    STATE_SEED_HIGH = 7,
    STATE_SAMPLE = 8,
    STATE_EMA_DECAY = 9,
    STATE_SKIPPED = 10,
    STATE_FIRST_BAD = 11,
};

// Bits of a NaN, which marks what should not have been asked for.
__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fc00000u); }
