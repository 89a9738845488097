// One CUTLASS device-level GEMM, chosen by -DCONFIG=<a struct below>, behind plain pointers and sizes:
// D = clamp or cast(alpha * A B + beta * C). The kernel's parameters are built on the device; the rest is CUTLASS's.

#include <cutlass/cutlass.h>
#include <cutlass/epilogue/thread/linear_combination_clamp.h>
#include <cutlass/epilogue/thread/linear_combination_gelu.h>
#include <cutlass/epilogue/thread/linear_combination_relu.h>
#include <cutlass/gemm/device/gemm.h>

using namespace cutlass;
using Row = layout::RowMajor;
using Column = layout::ColumnMajor;
using Simt = arch::OpClassSimt;
using Tensor = arch::OpClassTensorOp;
using Multiply = arch::OpMultiplyAdd;
using Saturate = arch::OpMultiplyAddSaturate;
template <int M, int N, int K> using Tile = gemm::GemmShape<M, N, K>;
template <class Out, int Count, class Total, class Scale>
using Linear = epilogue::thread::LinearCombination<Out, Count, Total, Scale>;
using Order = gemm::threadblock::GemmIdentityThreadblockSwizzle<>;
using Strips = gemm::threadblock::GemmIdentityThreadblockSwizzle<4>;

template <class A, class LayoutA, class B, class LayoutB, class C, class Total, class Class, class Arch, class Block,
          class Warp, class Instruction, class Epilogue, int Stages, int AlignA, int AlignB, bool SplitK = false,
          class Operator = Multiply, class Swizzle = Order>
using Gemm = gemm::device::Gemm<A, LayoutA, B, LayoutB, C, Row, Total, Class, Arch, Block, Warp, Instruction, Epilogue,
                                Swizzle, Stages, AlignA, AlignB, SplitK, Operator>;

using F16 = half_t;
using BF16 = bfloat16_t;
using S8 = int8_t;
using U8 = uint8_t;
using S32 = int32_t;
template <class Out, class Total, class Scale, int Count = 128 / sizeof_bits<Out>::value>
using Clamp = epilogue::thread::LinearCombinationClamp<Out, Count, Total, Scale>;

using f16_sm80 = Gemm<F16, Row, F16, Column, F16, float, Tensor, arch::Sm80, Tile<64, 64, 32>, Tile<32, 32, 32>,
                      Tile<16, 8, 16>, Linear<F16, 8, float, float>, 3, 8, 8>;
using f16_rows_sm80 = Gemm<F16, Column, F16, Row, float, float, Tensor, arch::Sm80, Tile<64, 128, 32>, Tile<32, 64, 32>,
                           Tile<16, 8, 16>, Linear<float, 4, float, float>, 4, 8, 8, false, Multiply, Strips>;
using f16_f16_sm80 = Gemm<F16, Row, F16, Column, F16, F16, Tensor, arch::Sm80, Tile<64, 64, 64>, Tile<32, 32, 64>,
                          Tile<16, 8, 16>, Linear<F16, 8, F16, F16>, 3, 2, 2>;
using f16_split_sm80 = Gemm<F16, Row, F16, Column, F16, float, Tensor, arch::Sm80, Tile<64, 64, 32>, Tile<32, 32, 32>,
                            Tile<16, 8, 16>, Linear<F16, 8, float, float>, 3, 8, 8, true>;
using bf16_sm80 = Gemm<BF16, Row, BF16, Column, BF16, float, Tensor, arch::Sm80, Tile<128, 64, 32>, Tile<64, 32, 32>,
                       Tile<16, 8, 16>, Linear<BF16, 8, float, float>, 3, 8, 8>;
using tf32_sm80 = Gemm<float, Row, float, Column, float, float, Tensor, arch::Sm80, Tile<64, 64, 16>, Tile<32, 32, 16>,
                       Tile<16, 8, 8>, Linear<float, 4, float, float>, 3, 4, 4>;
using tf32x3_sm80 = Gemm<float, Row, float, Column, float, float, Tensor, arch::Sm80, Tile<64, 64, 16>, Tile<32, 32, 16>,
                         Tile<16, 8, 8>, Linear<float, 4, float, float>, 3, 4, 4, false, arch::OpMultiplyAddFastF32>;
using s8_sm80 = Gemm<S8, Row, S8, Column, S32, S32, Tensor, arch::Sm80, Tile<64, 64, 64>, Tile<32, 32, 64>,
                     Tile<16, 8, 32>, Linear<S32, 4, S32, S32>, 3, 16, 16, false, Saturate>;
using s8_clamp_sm80 = Gemm<S8, Row, S8, Column, S8, S32, Tensor, arch::Sm80, Tile<128, 128, 64>, Tile<64, 64, 64>,
                           Tile<16, 8, 32>, Clamp<S8, S32, float>, 3, 16, 16, false, Saturate>;
using u8_sm80 = Gemm<U8, Row, S8, Column, S32, S32, Tensor, arch::Sm80, Tile<64, 64, 64>, Tile<32, 32, 64>,
                     Tile<16, 8, 32>, Linear<S32, 4, S32, S32>, 3, 16, 16, false, Saturate>;
using s4_sm80 = Gemm<int4b_t, Row, int4b_t, Column, S32, S32, Tensor, arch::Sm80, Tile<64, 64, 128>, Tile<32, 32, 128>,
                     Tile<16, 8, 64>, Linear<S32, 4, S32, S32>, 3, 32, 32, false, Saturate>;
using b1_xor_sm80 = Gemm<uint1b_t, Row, uint1b_t, Column, S32, S32, Tensor, arch::Sm80, Tile<64, 64, 512>,
                         Tile<32, 32, 512>, Tile<16, 8, 256>, Linear<S32, 4, S32, S32>, 3, 128, 128, false, arch::OpXorPopc>;
using b1_and_sm80 = Gemm<uint1b_t, Row, uint1b_t, Column, S32, S32, Tensor, arch::Sm80, Tile<64, 64, 512>,
                         Tile<32, 32, 512>, Tile<16, 8, 256>, Linear<S32, 4, S32, S32>, 3, 128, 128, false, arch::OpAndPopc>;
using f64_sm80 = Gemm<double, Row, double, Column, double, double, Tensor, arch::Sm80, Tile<32, 32, 16>, Tile<16, 16, 16>,
                      Tile<8, 8, 4>, Linear<double, 1, double, double>, 3, 1, 1>;
using simt_sm80 = Gemm<float, Row, float, Row, float, float, Simt, arch::Sm80, Tile<64, 64, 8>, Tile<32, 32, 8>,
                       Tile<1, 1, 1>, Linear<float, 1, float, float>, 3, 1, 1>;
using simt_sm75 = Gemm<float, Column, float, Row, float, float, Simt, arch::Sm50, Tile<64, 64, 8>, Tile<32, 32, 8>,
                       Tile<1, 1, 1>, epilogue::thread::LinearCombinationRelu<float, 1, float, float>, 2, 1, 1>;
using dp4a_sm75 = Gemm<S8, Row, S8, Column, S32, S32, Simt, arch::Sm61, Tile<64, 64, 32>, Tile<32, 32, 32>,
                       Tile<1, 1, 4>, Linear<S32, 1, S32, S32>, 2, 4, 4>;
using s8_sm75 = Gemm<S8, Row, S8, Column, S32, S32, Tensor, arch::Sm75, Tile<64, 64, 64>, Tile<32, 32, 64>,
                     Tile<8, 8, 16>, Linear<S32, 4, S32, S32>, 2, 16, 16, false, Saturate>;
using s4_sm75 = Gemm<int4b_t, Row, int4b_t, Column, S32, S32, Tensor, arch::Sm75, Tile<64, 64, 128>, Tile<32, 32, 128>,
                     Tile<8, 8, 32>, Linear<S32, 4, S32, S32>, 2, 32, 32, false, Saturate>;
using b1_sm75 = Gemm<uint1b_t, Row, uint1b_t, Column, S32, S32, Tensor, arch::Sm75, Tile<64, 64, 512>, Tile<32, 32, 512>,
                     Tile<8, 8, 128>, Linear<S32, 4, S32, S32>, 2, 128, 128, false, arch::OpXorPopc>;
using f16_sm75 = Gemm<F16, Row, F16, Column, F16, float, Tensor, arch::Sm75, Tile<64, 64, 32>, Tile<32, 32, 32>,
                      Tile<16, 8, 8>, epilogue::thread::LinearCombinationGELU<F16, 8, float, float>, 2, 8, 8>;
using e4m3_sm89 = Gemm<float_e4m3_t, Row, float_e4m3_t, Column, F16, float, Tensor, arch::Sm89, Tile<64, 64, 64>,
                       Tile<32, 32, 64>, Tile<16, 8, 32>, Linear<F16, 8, float, float>, 3, 16, 16>;
using e5m2_sm89 = Gemm<float_e5m2_t, Row, float_e4m3_t, Column, float, float, Tensor, arch::Sm89, Tile<64, 64, 64>,
                       Tile<32, 32, 64>, Tile<16, 8, 32>, Linear<float, 4, float, float>, 3, 16, 16, false,
                       arch::OpMultiplyAddFastAccum>;

using Chosen = CONFIG;
using Work = Chosen::GemmKernel;
using Scale = Chosen::EpilogueOutputOp::ElementCompute;

__device__ gemm::GemmCoord tiles_of(int m, int n, int k, int splits) {
  using Tile = Chosen::ThreadblockShape;
  return Chosen::ThreadblockSwizzle::get_tiled_shape({m, n, k}, {Tile::kM, Tile::kN, Tile::kK}, splits);
}

// What a launch needs: bytes of shared memory, threads, the grid.
extern "C" __global__ void launch_shape(int m, int n, int k, int splits, int *out) {
  const dim3 grid = Chosen::ThreadblockSwizzle::get_grid_shape(tiles_of(m, n, k, splits));
  out[0] = sizeof(Work::SharedStorage);
  out[1] = Work::kThreadCount;
  out[2] = grid.x;
  out[3] = grid.y;
  out[4] = grid.z;
}

// `splits`: parts of K, which take turns at a tile of D by its semaphore.
extern "C" __global__ void __launch_bounds__(Work::kThreadCount) gemm_kernel(
    Chosen::ElementA *a, Chosen::ElementB *b, Chosen::ElementC *c, Chosen::ElementC *d, int m, int n, int k, int lda,
    int ldb, float alpha, float beta, int splits, int *semaphore) {
  extern __shared__ int4 dynamic[];
  Work::Params params({m, n, k}, tiles_of(m, n, k, splits), {a, lda}, {b, ldb}, {c, n}, {d, n},
                      {Scale(alpha), Scale(beta)}, semaphore);
  Work work;
  work(params, *reinterpret_cast<Work::SharedStorage *>(dynamic));
}
