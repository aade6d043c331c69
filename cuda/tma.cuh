// The copy engine of sm_90: tiles of matrices between global and shared memory, and the barriers that count their
// bytes.
//
// A tensor map says what a matrix looks like and how large a tile is; the host makes it. One thread starts a copy. A
// load ends by counting its bytes off a barrier in shared memory; a thread waits for all its stores at once. What
// lies behind the edges of the matrix is loaded as zeros, which count too, and is not stored.
//
// A barrier has two phases that take turns, named by a parity: waiting for parity 0 on a new barrier waits for the
// end of its first phase, waiting for parity 1 returns at once.

#pragma once

#include "common.cuh"

// Twin of CUtensorMap: 128 bytes that only the driver and the hardware read.
struct alignas(64) TensorMap {
    uint64_t opaque[16];
};

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async.shared::cta;" ::: "memory");
}

// Arrive, and let the phase end only when `bytes` more have been copied.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{\n\t"
        ".reg .pred done;\n"
        "again:\n\t"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
        "@!done bra again;\n\t"
        "}"
        :
        : "r"(barrier), "r"(parity)
        : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// The tile of a matrix whose first element is (x, y), x along rows.
__device__ __forceinline__ void tile_load(uint32_t smem, const TensorMap& map, uint32_t x, uint32_t y,
                                          uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
        "[%1, {%2, %3}], [%4];" ::"r"(smem),
        "l"(&map), "r"(x), "r"(y), "r"(barrier)
        : "memory");
}

// A tile of four dimensions from (x, 0, 0, w).
__device__ __forceinline__ void tile_load_4d(uint32_t smem, const TensorMap& map, uint32_t x, uint32_t w,
                                             uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
        "[%1, {%2, %3, %3, %4}], [%5];" ::"r"(smem),
        "l"(&map), "r"(x), "r"(0), "r"(w), "r"(barrier)
        : "memory");
}

// What this thread's ordinary stores left in shared memory is what later copies of other threads read.
__device__ __forceinline__ void copies_see_stores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void tile_store(const TensorMap& map, uint32_t x, uint32_t y, uint32_t smem) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map), "r"(x),
                 "r"(y), "r"(smem)
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Until this thread's stores have read their tiles, which may then be overwritten.
__device__ __forceinline__ void tile_stores_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// Until they have written them, too.
__device__ __forceinline__ void tile_stores_done() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
