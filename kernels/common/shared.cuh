// Shared memory. A kernel declares it with these two macros alone, so that the emulator can give
// each block memory of its own, filled with NaN before the block starts.
#pragma once

#ifndef CYANEA_EMULATED
// A static array: CYANEA_SHARED(float, partial, 32);
#define CYANEA_SHARED(type, name, count) __shared__ type name[count]
// The memory whose size the launch gives: CYANEA_DYNAMIC_SHARED(float, tile);
#define CYANEA_DYNAMIC_SHARED(type, name)                                       \
    extern __shared__ __align__(16) unsigned char cyanea_dynamic_shared[];      \
    type* name = reinterpret_cast<type*>(cyanea_dynamic_shared)
#endif
