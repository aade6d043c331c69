// Tensor cores as sm_90a has them: four warps multiply tiles that lie in shared memory.
//
// wgmma d (64, N) += a (64, 16) * b (N, 16)^T with f32 sums in the registers of a warpgroup, warps 4i .. 4i + 3 of a
// block. Both operands are slices of rows of 128 bytes (64 elements), whose 16-byte chunks are permuted by the row
// number within groups of eight rows: what the copy engine writes with a swizzle of 128 bytes. Slices start at
// multiples of 1024 bytes.
//
// Sums of thread 32w + 4g + t of the warpgroup: d[4c], d[4c + 1] are row 16w + g, columns 8c + 2t and 8c + 2t + 1;
// d[4c + 2], d[4c + 3] the same of row 16w + g + 8.

#pragma once

#include "common.cuh"

// How the instruction finds an operand: its address, 1024 bytes between groups of eight rows, the swizzle.
__device__ __forceinline__ uint64_t wgmma_slice(uint32_t smem) {
    return (uint64_t(1) << 62) | (uint64_t(1024 / 16) << 32) | (uint64_t(1) << 16) | (smem & 0x3ffff) / 16;
}

// The same operand from element 16 * step of its rows on. The swizzle permutes address bits, so this is an addition.
__device__ __forceinline__ uint64_t wgmma_step(uint64_t slice, int step) { return slice + step * (32 / 16); }

// Before the first instruction of a group that adds to registers which anything else has touched.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most `kPending` groups are in flight. Nothing may touch the sums of a group in flight.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// d = a * b^T, plus d where `add` is not 0.
template <typename T, int kColumns>
struct Wgmma;

// An instruction lists its registers one by one, four for eight columns: in its text, and as operands.
#define WGMMA_TEXT_1 "%0, %1, %2, %3"
#define WGMMA_TEXT_2 WGMMA_TEXT_1 ", " "%4, %5, %6, %7"
#define WGMMA_TEXT_3 WGMMA_TEXT_2 ", " "%8, %9, %10, %11"
#define WGMMA_TEXT_4 WGMMA_TEXT_3 ", " "%12, %13, %14, %15"
#define WGMMA_TEXT_5 WGMMA_TEXT_4 ", " "%16, %17, %18, %19"
#define WGMMA_TEXT_6 WGMMA_TEXT_5 ", " "%20, %21, %22, %23"
#define WGMMA_TEXT_7 WGMMA_TEXT_6 ", " "%24, %25, %26, %27"
#define WGMMA_TEXT_8 WGMMA_TEXT_7 ", " "%28, %29, %30, %31"
#define WGMMA_TEXT_9 WGMMA_TEXT_8 ", " "%32, %33, %34, %35"
#define WGMMA_TEXT_10 WGMMA_TEXT_9 ", " "%36, %37, %38, %39"
#define WGMMA_TEXT_11 WGMMA_TEXT_10 ", " "%40, %41, %42, %43"
#define WGMMA_TEXT_12 WGMMA_TEXT_11 ", " "%44, %45, %46, %47"
#define WGMMA_TEXT_13 WGMMA_TEXT_12 ", " "%48, %49, %50, %51"
#define WGMMA_TEXT_14 WGMMA_TEXT_13 ", " "%52, %53, %54, %55"
#define WGMMA_TEXT_15 WGMMA_TEXT_14 ", " "%56, %57, %58, %59"
#define WGMMA_TEXT_16 WGMMA_TEXT_15 ", " "%60, %61, %62, %63"
#define WGMMA_TEXT_17 WGMMA_TEXT_16 ", " "%64, %65, %66, %67"
#define WGMMA_TEXT_18 WGMMA_TEXT_17 ", " "%68, %69, %70, %71"
#define WGMMA_TEXT_19 WGMMA_TEXT_18 ", " "%72, %73, %74, %75"
#define WGMMA_TEXT_20 WGMMA_TEXT_19 ", " "%76, %77, %78, %79"
#define WGMMA_TEXT_21 WGMMA_TEXT_20 ", " "%80, %81, %82, %83"
#define WGMMA_TEXT_22 WGMMA_TEXT_21 ", " "%84, %85, %86, %87"
#define WGMMA_TEXT_23 WGMMA_TEXT_22 ", " "%88, %89, %90, %91"
#define WGMMA_TEXT_24 WGMMA_TEXT_23 ", " "%92, %93, %94, %95"
#define WGMMA_TEXT_25 WGMMA_TEXT_24 ", " "%96, %97, %98, %99"
#define WGMMA_TEXT_26 WGMMA_TEXT_25 ", " "%100, %101, %102, %103"
#define WGMMA_TEXT_27 WGMMA_TEXT_26 ", " "%104, %105, %106, %107"
#define WGMMA_TEXT_28 WGMMA_TEXT_27 ", " "%108, %109, %110, %111"
#define WGMMA_TEXT_29 WGMMA_TEXT_28 ", " "%112, %113, %114, %115"
#define WGMMA_TEXT_30 WGMMA_TEXT_29 ", " "%116, %117, %118, %119"
#define WGMMA_TEXT_31 WGMMA_TEXT_30 ", " "%120, %121, %122, %123"
#define WGMMA_TEXT_32 WGMMA_TEXT_31 ", " "%124, %125, %126, %127"

#define WGMMA_FOUR(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_SUMS_1 WGMMA_FOUR(0)
#define WGMMA_SUMS_2 WGMMA_SUMS_1, WGMMA_FOUR(4)
#define WGMMA_SUMS_3 WGMMA_SUMS_2, WGMMA_FOUR(8)
#define WGMMA_SUMS_4 WGMMA_SUMS_3, WGMMA_FOUR(12)
#define WGMMA_SUMS_5 WGMMA_SUMS_4, WGMMA_FOUR(16)
#define WGMMA_SUMS_6 WGMMA_SUMS_5, WGMMA_FOUR(20)
#define WGMMA_SUMS_7 WGMMA_SUMS_6, WGMMA_FOUR(24)
#define WGMMA_SUMS_8 WGMMA_SUMS_7, WGMMA_FOUR(28)
#define WGMMA_SUMS_9 WGMMA_SUMS_8, WGMMA_FOUR(32)
#define WGMMA_SUMS_10 WGMMA_SUMS_9, WGMMA_FOUR(36)
#define WGMMA_SUMS_11 WGMMA_SUMS_10, WGMMA_FOUR(40)
#define WGMMA_SUMS_12 WGMMA_SUMS_11, WGMMA_FOUR(44)
#define WGMMA_SUMS_13 WGMMA_SUMS_12, WGMMA_FOUR(48)
#define WGMMA_SUMS_14 WGMMA_SUMS_13, WGMMA_FOUR(52)
#define WGMMA_SUMS_15 WGMMA_SUMS_14, WGMMA_FOUR(56)
#define WGMMA_SUMS_16 WGMMA_SUMS_15, WGMMA_FOUR(60)
#define WGMMA_SUMS_17 WGMMA_SUMS_16, WGMMA_FOUR(64)
#define WGMMA_SUMS_18 WGMMA_SUMS_17, WGMMA_FOUR(68)
#define WGMMA_SUMS_19 WGMMA_SUMS_18, WGMMA_FOUR(72)
#define WGMMA_SUMS_20 WGMMA_SUMS_19, WGMMA_FOUR(76)
#define WGMMA_SUMS_21 WGMMA_SUMS_20, WGMMA_FOUR(80)
#define WGMMA_SUMS_22 WGMMA_SUMS_21, WGMMA_FOUR(84)
#define WGMMA_SUMS_23 WGMMA_SUMS_22, WGMMA_FOUR(88)
#define WGMMA_SUMS_24 WGMMA_SUMS_23, WGMMA_FOUR(92)
#define WGMMA_SUMS_25 WGMMA_SUMS_24, WGMMA_FOUR(96)
#define WGMMA_SUMS_26 WGMMA_SUMS_25, WGMMA_FOUR(100)
#define WGMMA_SUMS_27 WGMMA_SUMS_26, WGMMA_FOUR(104)
#define WGMMA_SUMS_28 WGMMA_SUMS_27, WGMMA_FOUR(108)
#define WGMMA_SUMS_29 WGMMA_SUMS_28, WGMMA_FOUR(112)
#define WGMMA_SUMS_30 WGMMA_SUMS_29, WGMMA_FOUR(116)
#define WGMMA_SUMS_31 WGMMA_SUMS_30, WGMMA_FOUR(120)
#define WGMMA_SUMS_32 WGMMA_SUMS_31, WGMMA_FOUR(124)

// The operands after the sums are numbered 4c, 4c + 1 and 4c + 2, for c = columns / 8.
#define WGMMA_OF(T, type, columns, c, n0, n1, n2)                                                      \
    template <>                                                                                        \
    struct Wgmma<T, columns> {                                                                         \
        static __device__ __forceinline__ void run(float (&d)[4 * c], uint64_t a, uint64_t b, int add) { \
            asm volatile(                                                                              \
                "{\n\t"                                                                                \
                ".reg .pred add;\n\t"                                                                  \
                "setp.ne.b32 add, %" #n2 ", 0;\n\t"                                                    \
                "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type " {" WGMMA_TEXT_##c \
                "}, %" #n0 ", %" #n1 ", add, 1, 1, 0, 0;\n\t"                                          \
                "}"                                                                                    \
                : WGMMA_SUMS_##c                                                                       \
                : "l"(a), "l"(b), "r"(add));                                                           \
        }                                                                                              \
    };
#define WGMMA(columns, c, n0, n1, n2)                  \
    WGMMA_OF(__half, "f16", columns, c, n0, n1, n2)    \
    WGMMA_OF(__nv_bfloat16, "bf16", columns, c, n0, n1, n2)

WGMMA(32, 4, 16, 17, 18)
WGMMA(64, 8, 32, 33, 34)
WGMMA(80, 10, 40, 41, 42)
WGMMA(96, 12, 48, 49, 50)
WGMMA(128, 16, 64, 65, 66)
WGMMA(152, 19, 76, 77, 78)
WGMMA(168, 21, 84, 85, 86)
WGMMA(184, 23, 92, 93, 94)
WGMMA(216, 27, 108, 109, 110)
WGMMA(256, 32, 128, 129, 130)
