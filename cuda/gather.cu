// What:   y[i, first_col .. first_col + cols] = x[index[i]]; the rest of y stays as it is.
// Layout: x (any, cols); y (rows, y_cols); index (rows), each a row of x.
// Grid:   x = row of y; one block a row, best one thread for eight columns, at most 1024.
// Limits: any cols >= 1 with first_col + cols <= y_cols. 16-byte accesses where a row's ends are 16-byte aligned.
// Bound:  memory; 18432 rows of 1024 in f16 move 3.0 TB/s (25 us); 576 take 3.6 us, as one does, which is the launch
//         (H200, driver 580.159, 2026-11-22).

#include "copy_row.cuh"
#include "params.cuh"

template <typename T>
__device__ __forceinline__ void gather(const GatherParams& p) {
    pdl_launch_dependents();
    pdl_wait();
    const size_t row = blockIdx.x, from = p.index[row];
    T* y = static_cast<T*>(p.y) + row * p.y_cols + p.first_col;
    copy_row(y, static_cast<const T*>(p.x) + from * p.cols, p.cols);
}

extern "C" __global__ void __launch_bounds__(1024) gather_f16(const __grid_constant__ GatherParams p) {
    gather<__half>(p);
}
extern "C" __global__ void __launch_bounds__(1024) gather_bf16(const __grid_constant__ GatherParams p) {
    gather<__nv_bfloat16>(p);
}
EXPORT_PARAMS(gather, GatherParams)
