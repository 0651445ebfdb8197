// What the compiler calls before each access to memory when kernels are built for checked mode
// (-fsanitize=thread,bounds-strict,alignment). No sanitizer library is linked: these functions hand
// the access to the scheduler, which knows the block's shared memory, the launch's views and who
// has synchronised with whom. A lane whose access is at fault does not come back from there.
// Built without those flags.
#include "host/emulated.h"

namespace {

// The last two are the ends of an asynchronous copy.
enum Kind { READ = 0, WRITE = 1, ATOMIC = 2, COPY = 3, COPY_SOURCE = 4 };

// Outside of a lane (constructors of the objects) there is nothing to check.
inline void access(const void* at, size_t bytes, Kind kind, void* caller) {
    if (cyanea_lane) cyanea_lane->block->access(cyanea_lane, at, bytes, kind, caller);
}

// The layouts of GCC's undefined-behaviour sanitizer.
struct Location {
    const char* file;
    unsigned line, column;
};
struct OutOfBounds {
    Location at;
    const void* array_type;
    const void* index_type;
};
struct TypeMismatch {
    Location at;
    const void* type;
    unsigned char log_alignment, kind;
};

}  // namespace

#define CALLER __builtin_return_address(0)
#define ACCESS(name, bytes, kind) \
    void __tsan_##name(void* at) { access(at, bytes, kind, CALLER); }

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

ACCESS(read1, 1, READ)
ACCESS(read2, 2, READ)
ACCESS(read4, 4, READ)
ACCESS(read8, 8, READ)
ACCESS(read16, 16, READ)
ACCESS(write1, 1, WRITE)
ACCESS(write2, 2, WRITE)
ACCESS(write4, 4, WRITE)
ACCESS(write8, 8, WRITE)
ACCESS(write16, 16, WRITE)
ACCESS(volatile_read4, 4, READ)
ACCESS(volatile_write4, 4, WRITE)
void __tsan_read_range(void* at, size_t bytes) { access(at, bytes, READ, CALLER); }
void __tsan_write_range(void* at, size_t bytes) { access(at, bytes, WRITE, CALLER); }

void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

unsigned __tsan_atomic32_load(const unsigned* at, int) {
    access(at, 4, ATOMIC, CALLER);
    return __atomic_load_n(at, __ATOMIC_SEQ_CST);
}
void __tsan_atomic32_store(unsigned* at, unsigned value, int) {
    access(at, 4, ATOMIC, CALLER);
    __atomic_store_n(at, value, __ATOMIC_SEQ_CST);
}
int __tsan_atomic32_compare_exchange_strong(unsigned* at, unsigned* expected, unsigned value, int, int) {
    access(at, 4, ATOMIC, CALLER);
    return __atomic_compare_exchange_n(at, expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
#define ATOMIC_UPDATE(name)                                             \
    unsigned __tsan_atomic32_##name(unsigned* at, unsigned value, int) { \
        access(at, 4, ATOMIC, CALLER);                                  \
        return __atomic_##name(at, value, __ATOMIC_SEQ_CST);            \
    }
ATOMIC_UPDATE(fetch_add)
ATOMIC_UPDATE(fetch_sub)
ATOMIC_UPDATE(fetch_or)
ATOMIC_UPDATE(fetch_and)
ATOMIC_UPDATE(fetch_xor)
unsigned __tsan_atomic32_exchange(unsigned* at, unsigned value, int) {
    access(at, 4, ATOMIC, CALLER);
    return __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST);
}

void cyanea_copy_async(void* to, const void* from) {
    access(from, 16, COPY_SOURCE, CALLER);
    access(to, 16, COPY, CALLER);
    memcpy(to, from, 16);
}
void cyanea_copy_commit() { cyanea_lane->block->copies(cyanea_lane, -1, CALLER); }
void cyanea_copy_wait(int pending) { cyanea_lane->block->copies(cyanea_lane, pending, CALLER); }

void __ubsan_handle_out_of_bounds(OutOfBounds* what, size_t index) {
    if (cyanea_lane)
        cyanea_lane->block->out_of_bounds(cyanea_lane, index, what->at.file,
                                          static_cast<int>(what->at.line));
}

void __ubsan_handle_type_mismatch_v1(TypeMismatch* what, const void* at) {
    if (cyanea_lane)
        cyanea_lane->block->misaligned(cyanea_lane, at, size_t{1} << what->log_alignment,
                                       what->at.file, static_cast<int>(what->at.line));
}

}  // extern "C"
