// Sums and scans as CUDA code commonly has them: shuffles, votes, shared memory, fences between blocks.

#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>
#include <cuda_runtime.h>

namespace cg = cooperative_groups;

__device__ float warp_sum(float value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
  return value;
}

__device__ float block_sum(float value) {
  __shared__ float partial[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  value = warp_sum(value);
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  value = threadIdx.x < blockDim.x / 32 ? partial[lane] : 0.0f;
  return warp == 0 ? warp_sum(value) : value;
}

// One sum per block, then the last block to finish adds them up.
__device__ unsigned finished = 0;

extern "C" __global__ void fence_sum(const float *x, volatile float *partial, float *out, int n) {
  __shared__ bool last;
  float total = 0.0f;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) total += x[i];
  total = block_sum(total);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = total;
    __threadfence();
    last = atomicInc(&finished, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  total = 0.0f;
  for (int i = threadIdx.x; i < gridDim.x; i += blockDim.x) total += partial[i];
  __syncthreads();
  total = block_sum(total);
  if (threadIdx.x == 0) *out = total;
}

extern "C" __global__ void tree_sum(const int *x, int *out, int n) {
  extern __shared__ int values[];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  values[threadIdx.x] = i < n ? x[i] : 0;
  __syncthreads();
  for (int width = blockDim.x / 2; width > 0; width /= 2) {
    if (threadIdx.x < width) values[threadIdx.x] += values[threadIdx.x + width];
    __syncthreads();
  }
  if (threadIdx.x == 0) atomicAdd(out, values[0]);
}

// Hillis and Steele's inclusive scan within warps, then of the warps' totals.
extern "C" __global__ void block_scan(const int *x, int *y) {
  __shared__ int totals[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int value = x[threadIdx.x];
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int other = __shfl_up_sync(~0u, value, offset);
    if (lane >= offset) value += other;
  }
  if (lane == 31) totals[warp] = value;
  __syncthreads();
  if (warp == 0) {
    int total = lane < blockDim.x / 32 ? totals[lane] : 0;
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(~0u, total, offset);
      if (lane >= offset) total += other;
    }
    totals[lane] = total;
  }
  __syncthreads();
  y[threadIdx.x] = value + (warp > 0 ? totals[warp - 1] : 0);
}

// Keeps the positive values in order: ballot, popc, and one atomic per warp.
extern "C" __global__ void compact(const int *x, int *y, int *count, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const bool keep = i < n && x[i] > 0;
  const unsigned kept = __ballot_sync(~0u, keep);
  const int lane = threadIdx.x % 32;
  int start = 0;
  if (lane == 0) start = atomicAdd(count, __popc(kept));
  start = __shfl_sync(~0u, start, 0);
  if (keep) y[start + __popc(kept & ((1u << lane) - 1))] = x[i];
}

// Warp votes and matches of a part of the warp, one result per lane and row.
extern "C" __global__ void votes(const int *x, unsigned *out) {
  const int lane = threadIdx.x;
  const int value = x[lane];
  out[lane] = __any_sync(~0u, value == 3);
  out[32 + lane] = __all_sync(~0u, value < 3);
  out[64 + lane] = __ballot_sync(~0u, value & 1);
  out[96 + lane] = __match_any_sync(~0u, value);
  int all;
  out[128 + lane] = __match_all_sync(~0u, value / 100, &all);
  out[160 + lane] = all;
  unsigned active = 0;
  if (value & 1) active = __activemask();
  out[192 + lane] = active;
  out[224 + lane] = __shfl_xor_sync(~0u, value, 5, 8);
  if (lane < 16) out[256 + lane] = __shfl_sync(0xffffu, value, lane + 3, 16);
#if __CUDA_ARCH__ >= 800
  out[288 + lane] = __reduce_add_sync(~0u, value);
  out[320 + lane] = __reduce_max_sync(~0u, value - 5);
  out[352 + lane] = __reduce_xor_sync(~0u, unsigned(value));
#endif
}

extern "C" __global__ void groups(const int *x, int *sums, int *scans, int *parts, int *largest) {
  auto block = cg::this_thread_block();
  auto warp = cg::tiled_partition<32>(block);
  auto eight = cg::tiled_partition<8>(warp);
  const int rank = block.thread_rank();
  const int value = x[rank];
  sums[rank] = cg::reduce(eight, value, cg::plus<int>());
  scans[rank] = cg::inclusive_scan(warp, value, cg::plus<int>());
  largest[rank] = cg::reduce(warp, value, cg::greater<int>());
  int part = 0;
  if (value % 3 == 0) {
    auto together = cg::coalesced_threads();
    part = together.size() * 100 + together.thread_rank();
  }
  block.sync();
  parts[rank] = part;
}

// All blocks wait for each other between two phases; they must be resident at once.
__device__ unsigned arrived = 0;

extern "C" __global__ void phases(const int *x, int *middle, int *out, int n) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) middle[i] = 3 * x[i];
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(&arrived, 1);
    while (atomicAdd(&arrived, 0) < gridDim.x) {
    }
    __threadfence();
  }
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) out[i] = middle[n - 1 - i] + x[i];
}
