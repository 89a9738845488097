// Arithmetic intrinsics: integers, packed halves, bytes in words, float and double functions. One result per row of out.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define ROW(number, value) out[(number) * n + i] = (value)

extern "C" __global__ void words(const unsigned *x, const unsigned *y, const unsigned *z, unsigned *out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const unsigned a = x[i], b = y[i], c = z[i];
  ROW(0, __dp4a(int(a), int(b), int(c)));
  ROW(1, __dp4a(a, b, c));
  ROW(2, __dp2a_lo(int(a), int(b), int(c)));
  ROW(3, __dp2a_hi(a, b, c));
  ROW(4, __popc(a));
  ROW(5, __clz(a));
  ROW(6, __ffs(a));
  ROW(7, __brev(a));
  ROW(8, __byte_perm(a, b, c));
  ROW(9, __funnelshift_l(a, b, c));
  ROW(10, __funnelshift_r(a, b, c));
  ROW(11, __funnelshift_lc(a, b, c));
  ROW(12, __funnelshift_rc(a, b, c));
  ROW(13, __mulhi(int(a), int(b)));
  ROW(14, __umulhi(a, b));
  ROW(15, __mul24(int(a), int(b)));
  ROW(16, __umul24(a, b));
  ROW(17, __sad(int(a), int(b), c));
  ROW(18, __usad(a, b, c));
  ROW(19, __hadd(int(a), int(b)));
  ROW(20, __urhadd(a, b));
  ROW(21, __vadd4(a, b));
  ROW(22, __vsubss4(a, b));
  ROW(23, __vmaxs4(a, b));
  ROW(24, __vcmpeq4(a, b));
  ROW(25, __vcmpgtu4(a, b));
  ROW(26, __vavgu2(a, b));
  ROW(27, __vmins2(a, b));
  ROW(28, min(int(a), int(b)) ^ max(a, b));
  ROW(29, a / (b | 1));
  ROW(30, int(a) % int(b | 1));
  ROW(31, __fns(a, 0, int(c & 7) + 1));
}

extern "C" __global__ void longs(const unsigned long long *x, const unsigned long long *y, unsigned long long *out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const unsigned long long a = x[i], b = y[i];
  ROW(0, a * b);
  ROW(1, __umul64hi(a, b));
  ROW(2, __mul64hi(a, b));
  ROW(3, a / (b | 1));
  ROW(4, a % (b >> 40 | 1));
  ROW(5, static_cast<long long>(a) / static_cast<long long>(b | 1));
  ROW(6, a << (b & 63));
  ROW(7, static_cast<long long>(a) >> (b & 63));
  ROW(8, __popcll(a));
  ROW(9, __clzll(a));
  ROW(10, __brevll(a));
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b + a;
  ROW(11, static_cast<unsigned long long>(product));
  ROW(12, static_cast<unsigned long long>(product >> 64));
  ROW(13, min(a, b));
  ROW(14, __ffsll(a));
}

extern "C" __global__ void singles(const float *x, const float *y, float *out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float a = x[i], b = y[i];
  ROW(0, expf(a));
  ROW(1, logf(b));
  ROW(2, sinf(a));
  ROW(3, cosf(a * 1.0e6f));
  ROW(4, tanf(a));
  ROW(5, powf(b, a));
  ROW(6, erff(a));
  ROW(7, tanhf(a));
  ROW(8, rsqrtf(b));
  ROW(9, a / b);
  ROW(10, sqrtf(b));
  ROW(11, cbrtf(a));
  ROW(12, atan2f(a, b));
  ROW(13, log1pf(b));
  ROW(14, expm1f(a));
  ROW(15, lgammaf(b));
  ROW(16, fmodf(a, b));
  ROW(17, ldexpf(a, 5));
  ROW(18, rintf(a));
  ROW(19, truncf(a));
  ROW(20, copysignf(b, a));
  ROW(21, fdimf(a, b));
  ROW(22, __fmaf_rz(a, b, a));
  ROW(23, __fadd_ru(a, b));
  ROW(24, __fmul_rd(a, b));
  ROW(25, __fdiv_rn(a, b));
  ROW(26, __frcp_rn(b));
  ROW(27, __fsqrt_rn(b));
  ROW(28, hypotf(a, b));
  ROW(29, normcdff(a));
  ROW(30, asinhf(a));
  ROW(31, nextafterf(a, b));
}

extern "C" __global__ void approximations(const float *x, const float *y, float *out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float a = x[i], b = y[i];
  ROW(0, __expf(a));
  ROW(1, __logf(b));
  ROW(2, __sinf(a));
  ROW(3, __cosf(a));
  ROW(4, __fdividef(a, b));
  ROW(5, __saturatef(a));
  ROW(6, __powf(b, a));
}

extern "C" __global__ void doubles(const double *x, const double *y, double *out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const double a = x[i], b = y[i];
  ROW(0, exp(a));
  ROW(1, log(b));
  ROW(2, sin(a));
  ROW(3, a / b);
  ROW(4, sqrt(b));
  ROW(5, pow(b, a));
  ROW(6, fma(a, b, a));
  ROW(7, floor(a));
  ROW(8, double(static_cast<long long>(a * 1000)));
  ROW(9, double(float(a)));
  ROW(10, rsqrt(b));
  ROW(11, tanh(a));
  ROW(12, __longlong_as_double(__double_as_longlong(a) ^ 1));
  ROW(13, fmax(a, b) - fmin(a, b));
  ROW(14, round(a));
}

extern "C" __global__ void conversions(const float *x, int *out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float a = x[i];
  ROW(0, int(a));
  ROW(1, __float2int_rn(a));
  ROW(2, __float2int_ru(a));
  ROW(3, __float2int_rd(a));
  ROW(4, int(__float2uint_rn(a)));
  ROW(5, static_cast<signed char>(int(a)));
  ROW(6, static_cast<unsigned short>(int(a)));
  ROW(7, __float_as_int(float(int(a))));
  ROW(8, __float_as_int(__uint2float_rz(unsigned(i * 2654435761u))));
  ROW(9, __float_as_int(__int2float_rn(i * 123456789)));
  ROW(10, int(static_cast<long long>(a * 1.0e6f) >> 3));
  ROW(11, __float_as_int(__ll2float_rn(static_cast<long long>(i) * 123456789123ll)));
  ROW(12, __half_as_ushort(__float2half_rz(a)));
  ROW(13, __bfloat16_as_ushort(__float2bfloat16_rn(a)));
  ROW(14, __half2int_rn(__float2half(a)));
  ROW(15, __half_as_ushort(__int2half_rn(i * 37)));
}

#define HALF(number, value) memcpy(out + (number) * n + i, &(result = (value)), 4)

extern "C" __global__ void halves(const __half2 *x, const __half2 *y, unsigned *out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const __half2 a = x[i], b = y[i];
  __half2 result;
  HALF(0, __hadd2(a, b));
  HALF(1, __hsub2(a, b));
  HALF(2, __hmul2(a, b));
  HALF(3, __hfma2(a, b, a));
  HALF(4, __h2div(a, b));
  HALF(5, __hneg2(a));
  HALF(6, __habs2(a));
  HALF(7, __hadd2_sat(a, b));
  HALF(8, __hgt2(a, b));
  HALF(9, __lowhigh2highlow(a));
  HALF(10, h2rint(a));
  HALF(11, __halves2half2(__high2half(a), __low2half(b)));
  HALF(12, h2sqrt(__habs2(a)));
  HALF(13, __float22half2_rn(__half22float2(a)));
#if __CUDA_ARCH__ >= 800
  HALF(14, __hmax2(a, b));
  HALF(15, __hmin2_nan(a, b));
  HALF(16, __hfma2_relu(a, b, a));
#endif
  out[17 * n + i] = __hbeq2(a, b) | __hblt2(a, b) << 1 | (__low2half(a) >= __high2half(b)) << 2;
}

extern "C" __global__ void brains(const __nv_bfloat162 *x, const __nv_bfloat162 *y, unsigned *out, int n) {
#if __CUDA_ARCH__ >= 800
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const __nv_bfloat162 a = x[i], b = y[i];
  __nv_bfloat162 result;
  HALF(0, __hadd2(a, b));
  HALF(1, __hmul2(a, b));
  HALF(2, __hfma2(a, b, a));
  HALF(3, __hsub2(a, b));
  HALF(4, __hmax2(a, b));
  HALF(5, __hmin2(a, b));
  HALF(6, __hneg2(a));
  HALF(7, __floats2bfloat162_rn(__low2float(a) * 1.5f, __high2float(b)));
  HALF(8, __hge2(a, b));
  HALF(9, __h2div(a, b));
#endif
}
