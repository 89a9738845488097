// Matrix products through nvcuda::wmma: one warp to a tile, whole rows of tiles per block.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

using namespace nvcuda;

// c = a b + c for row-major a (m, k), column-major or row-major b, tiles of M x N x K.
template <int M, int N, int K, class In, class Out, class Order, class Stored = In>
__device__ void product(const Stored *a, const Stored *b, Out *c, int n, int k) {
  const int row = blockIdx.y * M, column = (blockIdx.x * blockDim.x / 32 + threadIdx.x / 32) * N;
  if (column >= n) return;
  wmma::fragment<wmma::matrix_a, M, N, K, In, wmma::row_major> left;
  wmma::fragment<wmma::matrix_b, M, N, K, In, Order> right;
  wmma::fragment<wmma::accumulator, M, N, K, Out> total;
  wmma::load_matrix_sync(total, c + row * n + column, n, wmma::mem_row_major);
  constexpr bool columns = std::is_same_v<Order, wmma::col_major>;
  for (int step = 0; step < k; step += K) {
    wmma::load_matrix_sync(left, a + row * k + step, k);
    wmma::load_matrix_sync(right, columns ? b + column * k + step : b + step * n + column, columns ? k : n);
#if __CUDA_ARCH__ >= 800
    if constexpr (std::is_same_v<In, wmma::precision::tf32>) {
      for (int i = 0; i < left.num_elements; ++i) left.x[i] = wmma::__float_to_tf32(left.x[i]);
      for (int i = 0; i < right.num_elements; ++i) right.x[i] = wmma::__float_to_tf32(right.x[i]);
    }
#endif
    wmma::mma_sync(total, left, right, total);
  }
  wmma::store_matrix_sync(c + row * n + column, total, n, wmma::mem_row_major);
}

#define PRODUCT(name, M, N, K, In, Out, Order, Stored)                                                \
  extern "C" __global__ void name(const Stored *a, const Stored *b, Out *c, int n, int k) {           \
    product<M, N, K, In, Out, wmma::Order, Stored>(a, b, c, n, k);                                    \
  }
PRODUCT(f16_16x16x16, 16, 16, 16, __half, float, col_major, __half)
PRODUCT(f16_16x16x16_rows, 16, 16, 16, __half, float, row_major, __half)
PRODUCT(f16_32x8x16, 32, 8, 16, __half, float, col_major, __half)
PRODUCT(f16_8x32x16, 8, 32, 16, __half, __half, row_major, __half)
PRODUCT(s8_16x16x16, 16, 16, 16, signed char, int, col_major, signed char)
PRODUCT(u8_32x8x16, 32, 8, 16, unsigned char, int, row_major, unsigned char)
PRODUCT(s8_8x32x16, 8, 32, 16, signed char, int, col_major, signed char)
#if __CUDA_ARCH_LIST__ >= 800
PRODUCT(bf16_16x16x16, 16, 16, 16, __nv_bfloat16, float, col_major, __nv_bfloat16)
PRODUCT(bf16_8x32x16, 8, 32, 16, __nv_bfloat16, float, row_major, __nv_bfloat16)
PRODUCT(tf32_16x16x8, 16, 16, 8, wmma::precision::tf32, float, col_major, float)
PRODUCT(f64_8x8x4, 8, 8, 4, double, double, row_major, double)
#endif

// Four and one bits: 32 and 128 of K to a tile; operands as words, k in elements.
extern "C" __global__ void s4_8x8x32(const int *a, const int *b, int *c, int n, int k) {
  wmma::fragment<wmma::matrix_a, 8, 8, 32, wmma::experimental::precision::s4, wmma::row_major> left;
  wmma::fragment<wmma::matrix_b, 8, 8, 32, wmma::experimental::precision::s4, wmma::col_major> right;
  wmma::fragment<wmma::accumulator, 8, 8, 32, int> total;
  wmma::fill_fragment(total, 0);
  const int row = blockIdx.y * 8, column = blockIdx.x * 8;
  for (int step = 0; step < k; step += 32) {
    wmma::load_matrix_sync(left, a + (row * k + step) / 8, k);
    wmma::load_matrix_sync(right, b + (column * k + step) / 8, k);
    wmma::mma_sync(total, left, right, total);
  }
  wmma::store_matrix_sync(c + row * n + column, total, n, wmma::mem_row_major);
}

extern "C" __global__ void b1_8x8x128(const int *a, const int *b, int *c, int *d, int n, int k) {
  wmma::fragment<wmma::matrix_a, 8, 8, 128, wmma::experimental::precision::b1, wmma::row_major> left;
  wmma::fragment<wmma::matrix_b, 8, 8, 128, wmma::experimental::precision::b1, wmma::col_major> right;
  wmma::fragment<wmma::accumulator, 8, 8, 128, int> differing, common;
  wmma::fill_fragment(differing, 0);
  wmma::fill_fragment(common, 0);
  const int row = blockIdx.y * 8, column = blockIdx.x * 8;
  for (int step = 0; step < k; step += 128) {
    wmma::load_matrix_sync(left, a + (row * k + step) / 32, k);
    wmma::load_matrix_sync(right, b + (column * k + step) / 32, k);
    wmma::bmma_sync(differing, left, right, differing, wmma::experimental::bmmaBitOpXOR);
#if __CUDA_ARCH__ >= 800
    wmma::bmma_sync(common, left, right, common, wmma::experimental::bmmaBitOpAND);
#endif
  }
  wmma::store_matrix_sync(c + row * n + column, differing, n, wmma::mem_row_major);
  wmma::store_matrix_sync(d + row * n + column, common, n, wmma::mem_col_major);
}

// Through shared memory, with what an epilogue does to fragments.
extern "C" __global__ void f16_shared(const __half *a, const __half *b, float *c, int m, int n, int k, float alpha) {
  __shared__ __align__(32) __half left_tile[32][16 + 8], right_tile[16][32 + 8];
  __shared__ __align__(32) float result[32][32 + 4];
  const int warp = threadIdx.x / 32, row = blockIdx.y * 32, column = blockIdx.x * 32;
  wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::row_major> left;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, __half, wmma::row_major> right;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> total;
  wmma::fill_fragment(total, 0.0f);
  for (int step = 0; step < k; step += 16) {
    for (int i = threadIdx.x; i < 32 * 16; i += blockDim.x) {
      const int r = i / 16, s = i % 16;
      left_tile[r][s] = row + r < m && step + s < k ? a[(row + r) * k + step + s] : __half(0);
      right_tile[s][r] = column + r < n && step + s < k ? b[(step + s) * n + column + r] : __half(0);
    }
    __syncthreads();
    wmma::load_matrix_sync(left, &left_tile[warp / 2 * 16][0], 16 + 8);
    wmma::load_matrix_sync(right, &right_tile[0][warp % 2 * 16], 32 + 8);
    wmma::mma_sync(total, left, right, total);
    __syncthreads();
  }
  for (int i = 0; i < total.num_elements; ++i) total.x[i] *= alpha;
  wmma::store_matrix_sync(&result[warp / 2 * 16][warp % 2 * 16], total, 32 + 4, wmma::mem_row_major);
  __syncthreads();
  for (int i = threadIdx.x; i < 32 * 32; i += blockDim.x)
    if (row + i / 32 < m && column + i % 32 < n) c[(row + i / 32) * n + column + i % 32] = result[i / 32][i % 32];
}
