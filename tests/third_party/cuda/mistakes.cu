// Mistakes as people make them, one a kernel; -DCLEAN compiles what was meant. The line that is to be found ends with
// the kernel's name.

#include <cooperative_groups.h>
#include <cuda/atomic>
#include <cuda_pipeline.h>

namespace cg = cooperative_groups;
#ifdef CLEAN
#define MISTAKE(meant, made) meant
#else
#define MISTAKE(meant, made) made
#endif
#define KERNEL extern "C" __global__ void

// A buffer is used again before all have read it.
KERNEL reused(const float *x, float *y) {
  __shared__ float part[4];
  for (int round = 0; round < 3; round++) {
    float value = x[round * 128 + threadIdx.x];
    for (int offset = 16; offset; offset /= 2) value += __shfl_down_sync(~0u, value, offset);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = value; // @reused
    __syncthreads();
    if (threadIdx.x == 0) y[round] = part[0] + part[1] + part[2] + part[3]; // @reused
    MISTAKE(__syncthreads();, )
  }
}

// A mask that names lanes of another branch.
KERNEL foreign_mask(const int *x, int *y) {
  int value = x[threadIdx.x];
  if (threadIdx.x % 2 == 0) value = __shfl_sync(MISTAKE(0x55555555u, 0x0F0F0F0Fu), value, 0); // @foreign_mask
  y[threadIdx.x] = value;
}

// A shuffle from a lane that does not take part.
KERNEL absent_lane(const int *x, int *y) {
  auto tile = cg::tiled_partition<16>(cg::this_thread_block());
  int value = x[threadIdx.x];
  if (tile.meta_group_rank() == 0)
    value = __shfl_sync(0xFFFFu, value, MISTAKE(15, 31) - tile.thread_rank()); // @absent_lane
  y[threadIdx.x] = value;
}

// One copy too many may be in flight.
KERNEL early_read(const int4 *x, int4 *y, int tiles) {
  __shared__ int4 slots[2][32];
  __pipeline_memcpy_async(&slots[0][threadIdx.x], x + threadIdx.x, 16);
  __pipeline_commit();
  for (int tile = 0; tile < tiles; tile++) {
    if (tile + 1 < tiles)
      __pipeline_memcpy_async(&slots[(tile + 1) % 2][threadIdx.x], x + (tile + 1) * 32 + threadIdx.x, 16);
    __pipeline_commit();
    __pipeline_wait_prior(MISTAKE(1, 2));
    __syncwarp();
    y[tile * 32 + threadIdx.x] = slots[tile % 2][31 - threadIdx.x]; // @early_read
    __syncwarp();
  }
}

// A sum that nobody set to zero.
KERNEL unset_sum(const int *x, int *y) {
  __shared__ int total;
  MISTAKE(if (threadIdx.x == 0) total = 0;, )
  __syncthreads();
  atomicAdd(&total, x[threadIdx.x]); // @unset_sum
  __syncthreads();
  if (threadIdx.x == 0) *y = total;
}

// A barrier in a loop that some threads leave sooner: the second warp; half of it.
KERNEL shorter_loop(const int *x, int *y, int rounds, int first) {
  __shared__ int values[64];
  int sum = 0;
  for (int round = 0; round < MISTAKE(rounds, rounds - (threadIdx.x >= first)); round++) {
    values[threadIdx.x] = x[round * 64 + threadIdx.x];
    __syncthreads(); // @shorter_loop
    sum += values[63 - threadIdx.x];
    __syncthreads(); // @shorter_loop
  }
  y[threadIdx.x] = sum;
}

// A flag whose scope is the block, between blocks.
KERNEL narrow_scope(cuda::atomic<int, MISTAKE(cuda::thread_scope_device, cuda::thread_scope_block)> *flag, int *data,
                    int *out) {
  if (blockIdx.x == 0) {
    data[0] = 7; // @narrow_scope
    flag->store(1, cuda::memory_order_release); // @narrow_scope
  } else {
    while (!flag->load(cuda::memory_order_acquire)) { // @narrow_scope
    }
    out[0] = data[0]; // @narrow_scope
  }
}

// The lock is given up before what it guards is there for others.
KERNEL early_release(int *lock, int *total) {
  if (threadIdx.x) return;
  while (atomicCAS(lock, 0, 1)) {
  }
  __threadfence();
  *total += blockIdx.x; // @early_release
  MISTAKE(__threadfence();, )
  atomicExch(lock, 0);
}
