// A cluster of one block, by cooperative groups: its barrier, whole and split, and its shared memory.

#include <cooperative_groups.h>
#include <cuda_runtime.h>

namespace cg = cooperative_groups;

extern "C" __global__ void __cluster_dims__(1) reversed(const int *x, int *y, unsigned *facts) {
  __shared__ int own[256];
  cg::cluster_group cluster = cg::this_cluster();
  const int n = blockDim.x, i = threadIdx.x, at = blockIdx.x * n;
  int *shared = cluster.map_shared_rank(own, cluster.block_rank());
  for (int round = 0; round < 3; ++round) {
    shared[i] = x[at + i] + round;
    cluster.sync();
    const int taken = own[n - 1 - i];
    auto token = cluster.barrier_arrive();
    y[(round * gridDim.x + blockIdx.x) * n + i] = taken;
    cluster.barrier_wait(static_cast<cg::cluster_group::arrival_token &&>(token));
  }
  if (i == 0) {
    facts[4 * blockIdx.x] = cluster.num_blocks();
    facts[4 * blockIdx.x + 1] = cluster.block_rank();
    facts[4 * blockIdx.x + 2] = cluster.query_shared_rank(own + 1);
    unsigned is_explicit;
    asm("{ .reg .pred p; mov.pred p, %%is_explicit_cluster; selp.u32 %0, 1, 0, p; }" : "=r"(is_explicit));
    facts[4 * blockIdx.x + 3] = cluster.num_threads() + is_explicit;
  }
}
