// Thread block clusters: the blocks of one cluster run at the same time and can write to each other's shared memory.
// Before sm_90 there are none, and a block is a cluster of its own.
//
// A mailbox is an mbarrier that opens when a known number of bytes has been sent to its block. Sending is asynchronous and
// needs no fence, which a cluster barrier does: one that waits for everything that the block has written anywhere.
//
// A block must not end while others may still write to it. It may when its mailbox has opened, provided that the mailbox
// counts every byte that anyone sends to the block; whether the senders still run does not matter.

#pragma once

#include "mma.cuh"
#include "tma.cuh"

using Mailbox = uint64_t;

#if __CUDA_ARCH__ >= 900

__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t r;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}

// A barrier of all threads of the cluster in two halves, for who runs, not for what was written: only mailboxes that were
// made before are seen after.
__device__ __forceinline__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }

// By one warp, before cluster_arrive. Only that the barrier exists must be seen by others before they send, which is what
// the fence is for: bytes that were counted off before they were announced are no harm, because the arrival that announces
// them is the one that the barrier waits for. (Lane 0 alone makes it and arrives. Between the two the warp meets because
// racecheck takes the one instruction that makes it for one of all lanes.)
__device__ __forceinline__ void make_mailbox(Mailbox* box, uint32_t bytes) {
    const uint32_t at = smem_address(box);
    const bool first = threadIdx.x % kWarpSize == 0;
    if (first) barrier_init(at, 1), barrier_init_fence();
    __syncwarp();
    if (first) barrier_expect(at, bytes);
    __syncwarp();
}

// The address in block `rank` of a shared variable of this block.
__device__ __forceinline__ uint32_t cluster_address(const void* p, uint32_t rank) {
    uint32_t at;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(smem_address(p)), "r"(rank));
    return at;
}

// To the place of `to`, with the mailbox at the place of `box`, in block `rank`; after cluster_wait.
__device__ __forceinline__ void send(float* to, float v, Mailbox* box, uint32_t rank) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(
                     cluster_address(to, rank)),
                 "f"(v), "r"(cluster_address(box, rank))
                 : "memory");
}
__device__ __forceinline__ void send(float2* to, float2 v, Mailbox* box, uint32_t rank) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
                     cluster_address(to, rank)),
                 "f"(v.x), "f"(v.y), "r"(cluster_address(box, rank))
                 : "memory");
}

// Until all bytes are there, for this thread to read. Once for a mailbox.
__device__ __forceinline__ void wait_for(Mailbox* box) {
    uint32_t open = 0;
    while (!open) {
        asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], 0;\n"
            "selp.u32 %0, 1, 0, p;\n"
            "}"
            : "=r"(open)
            : "r"(smem_address(box))
            : "memory");
    }
}

#else

__device__ __forceinline__ uint32_t cluster_rank() { return 0; }
__device__ __forceinline__ void cluster_arrive() {}
__device__ __forceinline__ void cluster_wait() {}
__device__ __forceinline__ void make_mailbox(Mailbox*, uint32_t) {}
template <typename V>
__device__ __forceinline__ void send(V* to, V v, Mailbox*, uint32_t) {
    *to = v;
}
__device__ __forceinline__ void wait_for(Mailbox*) { __syncthreads(); }

#endif
