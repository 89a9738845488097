// Asynchronous copies and the barriers that wait for them, through CUDA's own interfaces.

#include <cooperative_groups.h>
#include <cooperative_groups/memcpy_async.h>
#include <cuda/barrier>
#include <cuda/pipeline>
#include <cuda_pipeline.h>

namespace cg = cooperative_groups;
using Barrier = cuda::barrier<cuda::thread_scope_block>;

__device__ int chew(const int *tile, int i, int width) { return tile[i] * 2 + tile[(i + 1) % width]; }

// Two buffers filled in turn by the primitive functions.
extern "C" __global__ void primitives(const int4 *x, int *y, int tiles) {
  __shared__ int4 buffers[2][64];
  const int i = threadIdx.x;
  __pipeline_memcpy_async(&buffers[0][i], x + i, 16);
  __pipeline_commit();
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) __pipeline_memcpy_async(&buffers[(tile + 1) % 2][i], x + (tile + 1) * 64 + i, 16);
    __pipeline_commit();
    __pipeline_wait_prior(1);
    __syncthreads();
    const int *words = reinterpret_cast<const int *>(buffers[tile % 2]);
    for (int j = i; j < 256; j += 64) y[tile * 256 + j] = chew(words, j, 256);
    __syncthreads();
  }
}

// With zero fill at the end, four bytes at a time.
extern "C" __global__ void ragged(const int *x, int *y, int n) {
  __shared__ int tile[128];
  const int i = blockIdx.x * 128 + threadIdx.x;
  __pipeline_memcpy_async(&tile[threadIdx.x], x + (i < n ? i : 0), 4, i < n ? 0 : 4);
  __pipeline_commit();
  __pipeline_wait_prior(0);
  __syncthreads();
  if (i < n) y[i] = chew(tile, threadIdx.x, 128);
}

extern "C" __global__ void block_pipeline(const int *x, int *y, int tiles) {
  __shared__ int buffers[4][256];
  __shared__ cuda::pipeline_shared_state<cuda::thread_scope_block, 4> state;
  auto block = cg::this_thread_block();
  auto pipeline = cuda::make_pipeline(block, &state);
  int filled = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    for (; filled < tiles && filled < tile + 4; ++filled) {
      pipeline.producer_acquire();
      cuda::memcpy_async(block, buffers[filled % 4], x + filled * 256, sizeof(int) * 256, pipeline);
      pipeline.producer_commit();
    }
    pipeline.consumer_wait();
    for (int j = threadIdx.x; j < 256; j += blockDim.x) y[tile * 256 + j] = chew(buffers[tile % 4], j, 256);
    pipeline.consumer_release();
  }
}

extern "C" __global__ void barrier_copy(const int *x, int *y, int tiles) {
  __shared__ alignas(16) int tile[256];
  __shared__ Barrier barrier;
  auto block = cg::this_thread_block();
  if (threadIdx.x == 0) init(&barrier, blockDim.x);
  block.sync();
  for (int t = 0; t < tiles; ++t) {
    cuda::memcpy_async(block, tile, x + t * 256, cuda::aligned_size_t<16>(sizeof(int) * 256), barrier);
    barrier.arrive_and_wait();
    for (int j = threadIdx.x; j < 256; j += blockDim.x) y[t * 256 + j] = chew(tile, j, 256);
    barrier.arrive_and_wait();
  }
}

// Half of the block makes what the other half uses: two barriers, one for each direction.
extern "C" __global__ void specialised(const int *x, int *y, int rounds) {
  __shared__ int slot[128];
  __shared__ Barrier full, empty;
  if (threadIdx.x == 0) {
    init(&full, blockDim.x);
    init(&empty, blockDim.x);
  }
  __syncthreads();
  const int i = threadIdx.x % 128;
  if (threadIdx.x < 128) {
    for (int round = 0; round < rounds; ++round) {
      empty.arrive_and_wait();
      slot[i] = x[round * 128 + i] * 5;
      (void)full.arrive();
    }
  } else {
    (void)empty.arrive();
    for (int round = 0; round < rounds; ++round) {
      full.arrive_and_wait();
      y[round * 128 + i] = slot[127 - i];
      if (round + 1 < rounds) (void)empty.arrive();
    }
  }
}

// Named barriers, as inline assembly has them: producers arrive, consumers wait.
extern "C" __global__ void named(const int *x, int *y, int rounds) {
  __shared__ int slot[64];
  const int i = threadIdx.x % 64;
  for (int round = 0; round < rounds; ++round) {
    if (threadIdx.x < 64) {
      asm volatile("bar.sync 2, 128;" ::: "memory");
      slot[i] = x[round * 64 + i] + round;
      asm volatile("bar.arrive 1, 128;" ::: "memory");
    } else {
      asm volatile("bar.arrive 2, 128;" ::: "memory");
      asm volatile("barrier.sync 1, 128;" ::: "memory");
      y[round * 64 + i] = slot[63 - i];
    }
  }
}

// Counting and voting at a barrier.
extern "C" __global__ void counted(const int *x, int *y) {
  const int value = x[threadIdx.x];
  y[threadIdx.x] = __syncthreads_count(value > 0);
  y[blockDim.x + threadIdx.x] = __syncthreads_and(value > -50);
  y[2 * blockDim.x + threadIdx.x] = __syncthreads_or(value == 7);
}
