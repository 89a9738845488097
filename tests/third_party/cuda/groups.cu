// Groups of threads that are not warps: by label, of those that are active, of several warps.

#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>

namespace cg = cooperative_groups;

extern "C" __global__ void labelled(const int *x, int *sizes, int *ranks, int *sums, int *smallest) {
  auto warp = cg::tiled_partition<32>(cg::this_thread_block());
  const int i = threadIdx.x;
  auto alike = cg::labeled_partition(warp, x[i] % 5);
  sizes[i] = alike.size();
  ranks[i] = alike.thread_rank();
  sums[i] = cg::reduce(alike, x[i], cg::plus<int>());
  auto parity = cg::binary_partition(warp, x[i] & 1);
  smallest[i] = cg::reduce(parity, x[i], cg::less<int>());
}

// Groups within groups of whoever comes by.
extern "C" __global__ void nested(const int *x, int *scans, int *votes) {
  const int i = threadIdx.x;
  scans[i] = votes[i] = -1;
  if (x[i] > 0) {
    auto some = cg::coalesced_threads();
    scans[i] = cg::inclusive_scan(some, x[i]);
    if (x[i] > 40) {
      auto fewer = cg::coalesced_threads();
      votes[i] = fewer.shfl(x[i], 0) + fewer.size() * 1000 + (fewer.any(x[i] > 90) ? 100000 : 0);
    }
    some.sync();
  }
}

// A tile of two warps: from sm_80 on it meets in the shared memory that the system reserves.
extern "C" __global__ void wide_tiles(const int *x, int *sums, int *firsts, int *scans) {
  __shared__ cg::block_tile_memory<256> memory;
  auto block = cg::this_thread_block(memory);
  auto tile = cg::tiled_partition<64>(block);
  const int i = block.thread_rank();
  sums[i] = cg::reduce(tile, x[i], cg::plus<int>());
  tile.sync();
  firsts[i] = tile.shfl(x[i], 3);
  scans[i] = cg::exclusive_scan(tile, x[i], cg::plus<int>());
}

// nvcc divides 128 bits by adding the carry that a chain of subtractions leaves.
extern "C" __global__ void wide_division(const unsigned long long *x, unsigned long long *y) {
  const int i = threadIdx.x;
  const unsigned __int128 a = x[i], b = x[i + 32], product = a * b;
  const unsigned __int128 quotient = (product + a) / (b | 1), rest = (product << 13 ^ product >> 7) % (b + 1);
  y[4 * i] = product, y[4 * i + 1] = product >> 64, y[4 * i + 2] = quotient, y[4 * i + 3] = rest;
}
