"""A matrix multiplication with 4-bit weights as one writes it in TileLang: decoded once per block into shared memory.

The decode is the fast one that its users write in CUDA: two instructions for a pair of codes and the zero point (a LOP3
that makes 1024 + q or 1024 + 16 q, an addition or fused multiply-add), one for the scale.
"""

from typing import Any

import tilelang.language as T

# Nibble 4 h + r of a word is element 2 r + h of eight along k, so that each mask takes out a pair.
DECODE = r"""
#include <cuda_fp16.h>
__device__ __forceinline__ void decode_u4(const void* codes, void* weights, const void* scale, const void* zero) {
  unsigned word = *(const unsigned*)codes;
  unsigned* pairs = (unsigned*)weights;
  __half z = *(const __half*)zero;
  __half2 s = __half2half2(*(const __half*)scale);
  __half2 low_addend = __half2half2(__hsub(__float2half(-1024.f), z));
  __half2 high_addend = __half2half2(__hsub(__float2half(-64.f), z));
  __half2 sixteenth = __float2half2_rn(1.f / 16);
  #pragma unroll
  for (int i = 0; i < 2; i++) {
    unsigned low, high;
    asm("lop3.b32 %0, %1, 0x000f000f, 0x64006400, 0xea;" : "=r"(low) : "r"(word));
    asm("lop3.b32 %0, %1, 0x00f000f0, 0x64006400, 0xea;" : "=r"(high) : "r"(word));
    *(__half2*)(pairs + 2 * i) = __hmul2(__hadd2(*(__half2*)&low, low_addend), s);
    *(__half2*)(pairs + 2 * i + 1) = __hmul2(__hfma2(*(__half2*)&high, sixteenth, high_addend), s);
    word >>= 8;
  }
}
"""
M, N, K = 4096, 8192, 8192  # TileLang compiles for one size


def four_bit(bm: int, bn: int, bk: int, threads: int, stages: int, group: int) -> Any:
    """x f16 (M, K) times u4 (N, K / 2 bytes) with scales and zeros f16 (K / group, N)."""
    vector = 16  # bytes of codes that a thread decodes at a time

    @T.prim_func
    def main(
        x: T.Tensor((M, K), "float16"),
        codes: T.Tensor((N, K // 2), "uint8"),
        scales: T.Tensor((K // group, N), "float16"),
        zeros: T.Tensor((K // group, N), "float16"),
        y: T.Tensor((M, N), "float16"),
    ):
        with T.Kernel(T.ceildiv(N, bn), T.ceildiv(M, bm), threads=threads) as (bx, by):
            T.import_source(DECODE)
            x_tile = T.alloc_shared((bm, bk), "float16")
            code_tile = T.alloc_shared((bn, bk // 2), "uint8")
            scale_row = T.alloc_shared((bn,), "float16")
            zero_row = T.alloc_shared((bn,), "float16")
            decoded = T.alloc_shared((bn, bk), "float16")
            total = T.alloc_fragment((bm, bn), "float32")
            own_codes = T.alloc_local((vector,), "uint8")
            own_weights = T.alloc_local((2 * vector,), "float16")
            scale = T.alloc_local((1,), "float16")
            zero = T.alloc_local((1,), "float16")
            thread = T.get_thread_binding()
            T.clear(total)
            for k in T.Pipelined(K // bk, num_stages=stages):
                T.copy(x[by * bm, k * bk], x_tile)
                T.copy(codes[bx * bn, k * bk // 2], code_tile)
                T.copy(scales[k * bk // group, bx * bn], scale_row)
                T.copy(zeros[k * bk // group, bx * bn], zero_row)
                for i in T.serial(bn * bk // 2 // (threads * vector)):
                    first = (i * threads + thread) * vector
                    for v in T.vectorized(vector):
                        own_codes[v] = code_tile[(first + v) // (bk // 2), (first + v) % (bk // 2)]
                    scale[0] = scale_row[first // (bk // 2)]
                    zero[0] = zero_row[first // (bk // 2)]
                    for word in T.unroll(vector // 4):
                        T.call_extern(
                            "handle",
                            "decode_u4",
                            T.address_of(own_codes[4 * word]),
                            T.address_of(own_weights[8 * word]),
                            T.address_of(scale[0]),
                            T.address_of(zero[0]),
                        )
                    for part in T.serial(vector // 4):
                        for v in T.vectorized(8):
                            place = 2 * first + 8 * part + v
                            decoded[place // bk, place % bk] = own_weights[8 * part + v]
                T.gemm(x_tile, decoded, total, transpose_B=True)
            T.copy(total, y[by * bm, bx * bn])

    return main
