// One of CUTLASS's device-level GEMMs with a sparse A, chosen by -DCONFIG=<a name below>: D = A B + C.

#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm_sparse.h>

using namespace cutlass;
template <int M, int N, int K> using Tile = gemm::GemmShape<M, N, K>;
template <class A, class C, class Block, class Warp, class Instruction, class Operator>
using Sparse = gemm::device::SparseGemm<A, layout::RowMajor, A, layout::ColumnMajor, C, layout::RowMajor, C,
                                        arch::OpClassTensorOp, arch::Sm80, Block, Warp, Instruction,
                                        epilogue::thread::LinearCombination<C, 128 / sizeof_bits<C>::value, C, C>,
                                        gemm::threadblock::GemmIdentityThreadblockSwizzle<>, 3,
                                        128 / sizeof_bits<A>::value, 128 / sizeof_bits<A>::value, false, Operator>;

using f16 = Sparse<half_t, float, Tile<64, 64, 64>, Tile<32, 32, 64>, Tile<16, 8, 32>, arch::OpMultiplyAdd>;
using tf32 = Sparse<float, float, Tile<64, 64, 32>, Tile<32, 32, 32>, Tile<16, 8, 16>, arch::OpMultiplyAdd>;
using s8 = Sparse<int8_t, int32_t, Tile<64, 64, 128>, Tile<32, 32, 128>, Tile<16, 8, 64>, arch::OpMultiplyAddSaturate>;
using s4 = Sparse<int4b_t, int32_t, Tile<64, 64, 256>, Tile<32, 32, 256>, Tile<16, 8, 128>, arch::OpMultiplyAddSaturate>;

using Chosen = CONFIG;
using Work = Chosen::GemmKernel;
using Scale = Chosen::EpilogueOutputOp::ElementCompute;

__device__ gemm::GemmCoord tiles_of(int m, int n, int k) {
  using Tile = Chosen::ThreadblockShape;
  return Chosen::ThreadblockSwizzle::get_tiled_shape({m, n, k}, {Tile::kM, Tile::kN, Tile::kK}, 1);
}

// What a launch needs: bytes of shared memory, threads, the grid, bytes of an element of the metadata.
extern "C" __global__ void launch_shape(int m, int n, int k, int *out) {
  const dim3 grid = Chosen::ThreadblockSwizzle::get_grid_shape(tiles_of(m, n, k));
  out[0] = sizeof(Work::SharedStorage);
  out[1] = Work::kThreadCount;
  out[2] = grid.x;
  out[3] = grid.y;
  out[4] = grid.z;
  out[5] = sizeof(Chosen::ElementE);
}

extern "C" __global__ void __launch_bounds__(Work::kThreadCount)
    sparse_gemm(Chosen::ElementA *a, Chosen::ElementB *b, Chosen::ElementC *c, Chosen::ElementC *d, Chosen::ElementE *e,
                int m, int n, int k) {
  extern __shared__ int4 dynamic[];
  Work::Params params({m, n, k}, tiles_of(m, n, k), {a, k / 2}, {b, k}, {c, n}, {d, n},
                      {e, Chosen::LayoutE::packed({m, k / 2 / Chosen::kElementsPerElementE})}, {Scale(1), Scale(1)},
                      nullptr);
  Work work;
  work(params, *reinterpret_cast<Work::SharedStorage *>(dynamic));
}
