// Kernels that take what they work on in one struct, by value: the device-level GEMM of CUTLASS as its own launcher
// calls it, and a struct with arrays and a nested struct.

#include <cutlass/cutlass.h>
#include <cutlass/device_kernel.h>
#include <cutlass/gemm/device/gemm.h>

using namespace cutlass;
using Chosen = gemm::device::Gemm<half_t, layout::RowMajor, half_t, layout::ColumnMajor, float, layout::RowMajor, float,
                                  arch::OpClassTensorOp, arch::Sm80, gemm::GemmShape<64, 64, 32>,
                                  gemm::GemmShape<32, 32, 32>, gemm::GemmShape<16, 8, 16>>;
using Work = Chosen::GemmKernel;

template __global__ void cutlass::Kernel<Work>(Work::Params);

// The bytes that CUTLASS's launcher would pass, and what it would launch: bytes of shared memory, threads, the grid.
extern "C" __global__ void make_params(half_t *a, half_t *b, float *c, float *d, int m, int n, int k, float alpha,
                                       float beta, Work::Params *params, int *launch) {
  using Tile = Chosen::ThreadblockShape;
  const gemm::GemmCoord tiles = Chosen::ThreadblockSwizzle::get_tiled_shape({m, n, k}, {Tile::kM, Tile::kN, Tile::kK}, 1);
  const dim3 grid = Chosen::ThreadblockSwizzle::get_grid_shape(tiles);
  *params = Work::Params({m, n, k}, tiles, {a, k}, {b, k}, {c, n}, {d, n}, {alpha, beta}, nullptr);
  launch[0] = sizeof(Work::SharedStorage);
  launch[1] = Work::kThreadCount;
  launch[2] = grid.x;
  launch[3] = grid.y;
  launch[4] = sizeof(Work::Params);
}

struct Strip {
  const float *x;
  int stride;
};

struct Job {
  char kind;
  Strip strips[2];
  int n;
  struct {
    float *y;
    double scale;
  } out;
};

extern "C" __global__ void weighted_sum(const __grid_constant__ Job job) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= job.n) return;
  float sum = 0;
  for (const Strip &strip : job.strips) sum += strip.x[i * strip.stride];
  job.out.y[i] = job.kind == 's' ? sum : float(sum * job.out.scale);
}
