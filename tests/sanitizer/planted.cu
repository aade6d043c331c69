// Four bugs, one for each tool of compute-sanitizer: tools/sanitizer must see every one of them, or what the tools say
// about the real kernels is worth nothing.
//
//     planted memcheck|racecheck|initcheck|synccheck

#include <stdio.h>
#include <string.h>

constexpr int kThreads = 128;

// The array has one element less than the block has threads.
__global__ void write_out_of_bounds(int* x) { x[threadIdx.x] = 1; }

// Every warp reads what the next one may or may not have written yet: the barrier between is missing.
__global__ void race_in_shared_memory(int* x) {
    __shared__ int s[kThreads];
    s[threadIdx.x] = threadIdx.x;
    x[threadIdx.x] = s[(threadIdx.x + 32) % kThreads];
}

// `y` was allocated and never written.
__global__ void read_uninitialised(int* x, const int* y) { x[threadIdx.x] = y[threadIdx.x]; }

// Half of a warp waits at a barrier to which the other half never comes.
__global__ void diverge_at_barrier(int* x) {
    if (threadIdx.x % 32 < 16) __syncthreads();
    x[threadIdx.x] = 1;
}

int main(int argc, char** argv) {
    int *x = nullptr, *y = nullptr;
    const int length = argc == 2 && !strcmp(argv[1], "memcheck") ? kThreads - 1 : kThreads;
    if (argc != 2 || cudaMalloc(&x, length * sizeof(int)) != cudaSuccess ||
        cudaMalloc(&y, kThreads * sizeof(int)) != cudaSuccess) {
        fprintf(stderr, "usage: planted memcheck|racecheck|initcheck|synccheck, on a machine with a GPU\n");
        return 2;
    }
    if (!strcmp(argv[1], "memcheck")) {
        write_out_of_bounds<<<1, kThreads>>>(x);
    } else if (!strcmp(argv[1], "racecheck")) {
        race_in_shared_memory<<<1, kThreads>>>(x);
    } else if (!strcmp(argv[1], "initcheck")) {
        read_uninitialised<<<1, kThreads>>>(x, y);
    } else if (!strcmp(argv[1], "synccheck")) {
        diverge_at_barrier<<<1, kThreads>>>(x);
    } else {
        fprintf(stderr, "planted: no bug for a tool `%s`\n", argv[1]);
        return 2;
    }
    // A tool may stop the kernel where it finds the bug, which is an error here and none of ours.
    cudaDeviceSynchronize();
    return 0;
}
