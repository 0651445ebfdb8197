// What it costs to go from one kernel to the next: in a graph, in the body of a WHILE node, and across
// a barrier inside one kernel. Each kernel counts, so that the host can tell that all of it ran in order.

// Every block works as long as a launch's fill, a few loads and stores, takes; the first counts.
static __device__ void work(unsigned *counter, float *lines) {
    float *mine = lines + (blockIdx.x * blockDim.x + threadIdx.x);
    *mine = *mine + 1.0f;
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        counter[0] = counter[0] + 1;
    }
}

extern "C" __global__ void tick(unsigned *counter, float *lines) { work(counter, lines); }

// For launches with programmatic stream serialisation: the next kernel may start when this one has; it
// waits before it touches memory.
extern "C" __global__ void tick_early(unsigned *counter, float *lines) {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
    work(counter, lines);
}

// The driver supplies it when it loads the image.
extern "C" __device__ void cudaGraphSetConditional(unsigned long long handle, unsigned value);

// Last kernel of a WHILE body: another round until so many ticks are counted.
extern "C" __global__ void tick_and_loop(unsigned *counter, float *lines, unsigned last,
                                         unsigned long long handle) {
    work(counter, lines);
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        cudaGraphSetConditional(handle, counter[0] < last);
    }
}

// All blocks meet `rounds` times by one counter; all of them must be resident.
extern "C" __global__ void meet(unsigned *counter, unsigned rounds) {
    for (unsigned round = 1; round <= rounds; round++) {
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence();
            atomicAdd(counter, 1);
            while (*(volatile unsigned *)counter < round * gridDim.x) {
            }
            __threadfence();
        }
        __syncthreads();
    }
}
