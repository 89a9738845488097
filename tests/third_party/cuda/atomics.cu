// Every atomic function, and what is built from them.

#include <cuda/atomic>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

extern "C" __global__ void integers(const int *x, int *out, unsigned *wrapped, unsigned long long *wide, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const int value = x[i], place = i % 4;
  atomicAdd(out + place, value);
  atomicSub(out + 4 + place, value);
  atomicMin(out + 8 + place, value);
  atomicMax(out + 12 + place, value);
  atomicAnd(out + 16 + place, value);
  atomicOr(out + 20 + place, value);
  atomicXor(out + 24 + place, value);
  atomicInc(wrapped + place, 6);
  atomicDec(wrapped + 4 + place, 6);
  atomicAdd(wide + place, static_cast<unsigned long long>(value) << 20);
  atomicMax(wide + 4 + place, static_cast<unsigned long long>(value));
  atomicXor(wide + 8 + place, static_cast<unsigned long long>(value) * 0x100000001ull);
}

__device__ float atomic_max(float *address, float value) {
  int old = __float_as_int(*static_cast<volatile float *>(address)), assumed;
  do {
    assumed = old;
    old = atomicCAS(reinterpret_cast<int *>(address), assumed, __float_as_int(fmaxf(value, __int_as_float(assumed))));
  } while (assumed != old);
  return __int_as_float(old);
}

extern "C" __global__ void floats(const float *x, float *out, double *wide, __half *halves, __half2 *pairs,
                                  __nv_bfloat16 *brains, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  atomicAdd(out, x[i]);
  atomic_max(out + 1, x[i]);
  atomicAdd(wide, static_cast<double>(x[i]));
  atomicAdd(halves, __float2half(x[i]));
  atomicAdd(pairs, __floats2half2_rn(x[i], -x[i]));
#if __CUDA_ARCH__ >= 800
  atomicAdd(brains, __float2bfloat16(x[i]));
#endif
}

// Each thread takes its number, so that all come out once.
extern "C" __global__ void tickets(int *next, int *taken, int *exchanged) {
  const int ticket = atomicAdd(next, 1);
  taken[ticket] = blockIdx.x * blockDim.x + threadIdx.x;
  atomicExch(exchanged, ticket);
}

extern "C" __global__ void histogram(const unsigned char *x, unsigned *counts, int n) {
  __shared__ unsigned local[256];
  for (int i = threadIdx.x; i < 256; i += blockDim.x) local[i] = 0;
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&local[x[i]], 1);
  __syncthreads();
  for (int i = threadIdx.x; i < 256; i += blockDim.x)
    if (local[i]) atomicAdd(counts + i, local[i]);
}

// A lock between blocks: one thread of each takes it and changes what it protects.
extern "C" __global__ void locked(int *lock, int *total, int *log) {
  if (threadIdx.x != 0) return;
  while (atomicCAS(lock, 0, 1) != 0) {
  }
  __threadfence();
  const int before = *static_cast<volatile int *>(total);
  *static_cast<volatile int *>(total) = before + 1 + blockIdx.x;
  log[blockIdx.x] = before;
  __threadfence();
  atomicExch(lock, 0);
}

// The C++ memory model: block 0 publishes, the others acquire.
extern "C" __global__ void published(const int *x, int *data, int *flag, int *out, int n) {
  cuda::atomic_ref<int, cuda::thread_scope_device> ready(*flag);
  if (blockIdx.x == 0) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) data[i] = x[i] * x[i];
    __syncthreads();
    if (threadIdx.x == 0) ready.store(1, cuda::memory_order_release);
  }
  if (threadIdx.x == 0) {
    while (ready.load(cuda::memory_order_acquire) == 0) {
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) out[blockIdx.x * n + i] = data[n - 1 - i];
}

extern "C" __global__ void references(const unsigned *x, unsigned *out, unsigned long long *wide) {
  cuda::atomic_ref<unsigned, cuda::thread_scope_block> block(out[0]);
  cuda::atomic_ref<unsigned, cuda::thread_scope_device> device(out[1]);
  cuda::atomic_ref<unsigned, cuda::thread_scope_system> system(out[2]);
  cuda::atomic_ref<unsigned long long, cuda::thread_scope_device> longer(wide[0]);
  const unsigned value = x[threadIdx.x];
  block.fetch_add(value, cuda::memory_order_relaxed);
  device.fetch_max(value, cuda::memory_order_acq_rel);
  system.fetch_or(value, cuda::memory_order_seq_cst);
  longer.fetch_add(value, cuda::memory_order_relaxed);
  unsigned expected = out[3 + threadIdx.x];
  cuda::atomic_ref<unsigned, cuda::thread_scope_device> own(out[3 + threadIdx.x]);
  own.compare_exchange_strong(expected, value, cuda::memory_order_acq_rel);
}
