// What the CUDA language compiles to apart from arithmetic: calls, local memory, jump tables, structures, assertions.

#include <cassert>
#include <cstdio>
#include <cuda_runtime.h>

struct Pair {
  float first;
  double second;
  int third[3];
};

__constant__ float weights[8] = {1, 2, 4, 8, 16, 32, 64, 128};
__device__ int counter = 40;
__device__ const int primes[] = {2, 3, 5, 7, 11, 13, 17, 19};
__device__ int *pointer = &counter;

__device__ __noinline__ float polynomial(float x, int degree) {
  float result = 0.0f;
  for (int i = degree; i >= 0; --i) result = result * x + weights[i];
  return result;
}

__device__ __noinline__ int power(int base, int exponent) {
  int result = 1;
  for (; exponent > 0; exponent >>= 1, base *= base)
    if (exponent & 1) result *= base;
  return result;
}

__device__ __noinline__ int power_of_power(int base, int exponent) { return power(power(base, exponent), 2) - exponent; }

__device__ __noinline__ Pair combine(Pair left, const Pair &right) {
  left.first += right.first;
  left.second *= right.second;
  for (int i = 0; i < 3; ++i) left.third[i] -= right.third[2 - i];
  return left;
}

__device__ __noinline__ void fill(int *to, int count, int value) {
  for (int i = 0; i < count; ++i) to[i] = value + i;
}

extern "C" __global__ void calls(const float *x, float *y, int *numbers, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  y[i] = polynomial(x[i], i % 8);
  numbers[i] = power_of_power(i % 5 - 2, i % 4);
}

extern "C" __global__ void structures(Pair value, Pair *out) {
  const Pair own = {float(threadIdx.x), 2.0, {int(threadIdx.x), 1, 2}};
  out[threadIdx.x] = combine(value, own);
}

extern "C" __global__ void local_arrays(const int *x, int *y) {
  int values[32];
  fill(values, 32, threadIdx.x);
  for (int i = 0; i < 32; ++i) values[(x[threadIdx.x] + i * 7) % 32] ^= i;
  int sum = 0;
  for (int i = 0; i < 32; ++i) sum = sum * 3 + values[x[(threadIdx.x + i) % 32] % 32];
  y[threadIdx.x] = sum;
}

extern "C" __global__ void bytes_in_local_memory(const unsigned char *x, unsigned char *y, int n) {
  unsigned char line[64];
  for (int i = 0; i < 64; ++i) line[i] = x[threadIdx.x * 64 + i];
  for (int i = 1; i < 64; ++i) {
    const unsigned char key = line[i];
    int j = i;
    while (j > 0 && line[j - 1] > key) {
      line[j] = line[j - 1];
      --j;
    }
    line[j] = key;
  }
  for (int i = 0; i < 64; ++i) y[threadIdx.x * 64 + i] = line[(i + n) % 64];
}

extern "C" __global__ void jumps(const int *x, int *y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int value = x[i];
  for (int step = 0; step < 3; ++step) {
    switch (value & 15) {
      case 0: value = value * 3 + 1; break;
      case 1: value ^= value >> 3; break;
      case 2: value = __popc(value); break;
      case 3: value -= primes[step]; break;
      case 4: value = value / 7; break;
      case 5: value = -value; [[fallthrough]];
      case 6: value += 100; break;
      case 7: value = __brev(value); break;
      case 8: value = __clz(value); break;
      case 9: value = value % 1000; break;
      case 12: value = value << 2; break;
      case 13: value = ~value; break;
      default: value += 7;
    }
  }
  y[i] = value;
}

extern "C" __global__ void variables(int *out) {
  if (threadIdx.x == 0) atomicAdd(pointer, 2);
  __syncthreads();
  out[threadIdx.x] = *static_cast<volatile int *>(&counter) + primes[threadIdx.x % 8];
}

typedef int (*Operation)(int, int);
__device__ int add(int a, int b) { return a + b; }
__device__ int subtract(int a, int b) { return a - b; }
__device__ int multiply(int a, int b) { return a * b; }
__device__ Operation operations[] = {add, subtract, multiply};

extern "C" __global__ void function_pointers(const int *x, int *y) {
  const int i = threadIdx.x;
  y[i] = operations[i % 3](x[i], i);
}

extern "C" __global__ void messages(const int *x, int *y, int limit) {
  const int value = x[threadIdx.x];
  assert(value < limit);
  if (value == limit - 1) printf("thread %d has %d of %f\n", threadIdx.x, value, 1.5);
  y[threadIdx.x] = value + 1;
}

// Threads of a warp leave loops at different times, from the middle and from nested ones.
extern "C" __global__ void divergence(const int *x, int *y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  int value = i < n ? x[i] : 1, steps = 0;
  while (value != 1) {
    if (value & 1) {
      value = 3 * value + 1;
      if (steps > 150) break;
      for (int j = 0; j < (value & 3); ++j) {
        if (j == 2) continue;
        steps += 1;
      }
    } else {
      value >>= 1;
    }
    ++steps;
    if (steps == 97) goto done;
  }
  steps += 1000;
done:
  if (i < n) y[i] = steps;
}
