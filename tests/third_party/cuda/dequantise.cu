// c[m, n] = a[m, k] @ dequantised w[n, k], four-bit weights, the way public kernels do it: cp.async into a ring of stages,
// ldmatrix for activations, codes decoded to halves by one lop3 each, mma m16n8k16, partial sums reduced in shared memory.
//
// Weights: tiles of 16 (k) x 8 (n), one 16-bit word per lane: the four codes of that lane's B fragment, in the order in
// which the decode takes them out. Scales and zero points for groups of 64 along k, (k / 64, n), halves.

#include <cuda_fp16.h>

constexpr int BM = 16, BN = 64, BK = 64, STAGES = 4, GROUP = 64;
constexpr int ROW = BK + 8;  // halves of a row of activations in shared memory, padded against conflicts

struct Stage {
  __half activations[BM][ROW];
  unsigned short weights[BK / 16][BN / 8][32];
};

__device__ void copy16(void *to, const void *from, bool inside) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(from), "r"(inside ? 16 : 0));
}

// Codes at bits 0-3 and 16-19 of (x >> 0) and of (x >> 4), as halves: 0x6400 is 1024, whose last place is 1.
__device__ void decode(unsigned codes, __half2 zero, __half2 scale, unsigned (&out)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    unsigned pair;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;\n" : "=r"(pair) : "r"(codes >> 4 * i), "n"(0x000f000f), "n"(0x64006400));
    __half2 value = __hsub2(*reinterpret_cast<__half2 *>(&pair), zero);
    value = __hmul2(value, scale);
    out[i] = *reinterpret_cast<unsigned *>(&value);
  }
}

__device__ void multiply(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ void load(Stage &stage, const __half *a, const unsigned short *w, int row, int column, int k, int m, int n,
                     int depth) {
  for (int i = threadIdx.x; i < BM * BK / 8; i += blockDim.x) {
    const int r = i / (BK / 8), s = i % (BK / 8) * 8;
    const bool inside = row + r < m;
    copy16(&stage.activations[r][s], a + (inside ? row + r : 0) * depth + k + s, inside);
  }
  for (int i = threadIdx.x; i < BK / 16 * BN / 8 * 4; i += blockDim.x) {
    const int tile = i / 4, part = i % 4 * 8;
    const unsigned short *from = w + ((k / 16 + tile / (BN / 8)) * (n / 8) + column / 8 + tile % (BN / 8)) * 32 + part;
    copy16(&stage.weights[tile / (BN / 8)][tile % (BN / 8)][part], from, true);
  }
  asm volatile("cp.async.commit_group;\n" ::);
}

// Eight warps: four across n, two that halve each stage's k.
extern "C" __global__ void __launch_bounds__(256)
    dequantise_matmul(const __half *a, const unsigned short *w, const __half *scales, const __half *zeros, __half *c,
                      int m, int n, int depth) {
  extern __shared__ __align__(16) unsigned char memory[];
  Stage *stages = reinterpret_cast<Stage *>(memory);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, across = warp % 4, half = warp / 4;
  const int row = blockIdx.y * BM, column = blockIdx.x * BN;
  float total[2][4] = {};
  const int steps = depth / BK;
  for (int s = 0; s < STAGES - 1; ++s) {
    if (s < steps) load(stages[s], a, w, row, column, s * BK, m, n, depth);
    else asm volatile("cp.async.commit_group;\n" ::);
  }
  for (int step = 0; step < steps; ++step) {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(STAGES - 2));
    __syncthreads();
    const int next = step + STAGES - 1;
    if (next < steps) load(stages[next % STAGES], a, w, row, column, next * BK, m, n, depth);
    else asm volatile("cp.async.commit_group;\n" ::);
    const Stage &stage = stages[step % STAGES];
    for (int k = half * 2; k < half * 2 + 2; ++k) {
      unsigned left[4];
      const void *at = &stage.activations[lane % 16][k * 16 + lane / 16 * 8];
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                   : "=r"(left[0]), "=r"(left[1]), "=r"(left[2]), "=r"(left[3])
                   : "r"(static_cast<unsigned>(__cvta_generic_to_shared(at))));
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int tile = across * 2 + j, group = step * BK / GROUP;
        const int place = group * n + column + tile * 8 + lane / 4;
        const unsigned word = stage.weights[k][tile][lane];
        unsigned right[2];
        decode(word & 0xff | (word & 0xff00) << 8, __half2half2(zeros[place] + __half(1024)), __half2half2(scales[place]), right);
        multiply(total[j], left, right);
      }
    }
  }
  asm volatile("cp.async.wait_all;\n" ::);
  __syncthreads();
  float *sums = reinterpret_cast<float *>(memory);
  for (int j = 0; j < 2; ++j)
    for (int i = 0; i < 4; ++i) {
      float *at = sums + (lane / 4 + i / 2 * 8) * BN + (across * 2 + j) * 8 + lane % 4 * 2 + i % 2;
      if (half == 1) *at = total[j][i];
    }
  __syncthreads();
  if (half == 1) return;
  for (int j = 0; j < 2; ++j)
    for (int i = 0; i < 4; i += 2) {
      const int r = lane / 4 + i / 2 * 8, s = (across * 2 + j) * 8 + lane % 4 * 2;
      const float2 other = *reinterpret_cast<float2 *>(sums + r * BN + s);
      const __half2 pair = __floats2half2_rn(total[j][i] + other.x, total[j][i + 1] + other.y);
      if (row + r < m) *reinterpret_cast<__half2 *>(c + (row + r) * n + column + s) = pair;
    }
}

// A matrix-vector product: a warp to an output, words of eight codes, partial sums by shuffles.
extern "C" __global__ void dequantise_vector(const __half *x, const uint4 *w, const __half *scales, const __half *zeros,
                                             __half *y, int n, int depth) {
  const int output = blockIdx.x * blockDim.y + threadIdx.y;
  if (output >= n) return;
  float total = 0.0f;
  for (int k = threadIdx.x * 32; k < depth; k += 32 * 32) {
    const uint4 words = __ldg(w + (output * depth + k) / 32);
    const float scale = __half2float(scales[k / GROUP * n + output]), zero = __half2float(zeros[k / GROUP * n + output]);
    const unsigned parts[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float code = static_cast<float>(parts[i] >> 4 * j & 15);
        total = fmaf((code - zero) * scale, __half2float(x[k + i * 8 + j]), total);
      }
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) total += __shfl_xor_sync(~0u, total, offset);
  if (threadIdx.x == 0) y[output] = __float2half(total);
}
