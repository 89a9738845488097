// Conversions to and from the narrow float types, by CUDA's own headers: instructions where the target has them.

#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <cuda_fp4.h>
#include <cuda_fp6.h>
#include <cuda_fp8.h>

#define CONVERSION(name, to_narrow, to_half)                                                        \
  extern "C" __global__ void name(const float *x, unsigned char *narrow, __half *back, int n) {     \
    const int i = blockIdx.x * blockDim.x + threadIdx.x;                                            \
    if (i >= n) return;                                                                             \
    const float value = x[i];                                                                       \
    const unsigned char code = to_narrow;                                                           \
    narrow[i] = code;                                                                               \
    back[i] = __half(to_half);                                                                      \
  }
#define FP8(kind) \
  CONVERSION(kind, __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_##kind), __nv_cvt_fp8_to_halfraw(code, __NV_##kind))
#define FP6(kind) \
  CONVERSION(kind, __nv_cvt_float_to_fp6(value, __NV_##kind, cudaRoundNearest), __nv_cvt_fp6_to_halfraw(code, __NV_##kind))
FP8(E4M3)
FP8(E5M2)
FP6(E2M3)
FP6(E3M2)
CONVERSION(E2M1, __nv_cvt_float_to_fp4(value, __NV_E2M1, cudaRoundNearest), __nv_cvt_fp4_to_halfraw(code, __NV_E2M1))

extern "C" __global__ void E8M0(const float *x, unsigned char *narrow, __nv_bfloat16 *back, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const unsigned char code = __nv_cvt_float_to_e8m0(x[i], __NV_SATFINITE, cudaRoundPosInf);
  narrow[i] = code;
  back[i] = __nv_bfloat16(__nv_cvt_e8m0_to_bf16raw(code));
}

// Pairs and fours, from and to packed registers.
extern "C" __global__ void packed(const float4 *x, unsigned *eights, unsigned *fours, float4 *back, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const __nv_fp8x4_e4m3 wide(x[i]);
  const __nv_fp4x4_e2m1 small(x[i]);
  eights[i] = wide.__x;
  fours[i] = small.__x;
  back[i] = static_cast<float4>(wide);
}

extern "C" __global__ void from_halves(const __half2 *x, unsigned short *e4m3, unsigned short *e5m2, __half2 *back, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  e4m3[i] = __nv_cvt_halfraw2_to_fp8x2(x[i], __NV_SATFINITE, __NV_E4M3);
  e5m2[i] = __nv_cvt_halfraw2_to_fp8x2(x[i], __NV_NOSAT, __NV_E5M2);
  back[i] = __half2(__nv_cvt_fp8x2_to_halfraw2(e4m3[i], __NV_E4M3));
}
