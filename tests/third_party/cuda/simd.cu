// CUDA's intrinsics for bytes and halves of a word, some of which nvcc makes video instructions of.

#define INTRINSICS(apply)                                                                                             \
  apply(__vadd2) apply(__vadd4) apply(__vaddss2) apply(__vaddss4) apply(__vaddus2) apply(__vaddus4) apply(__vsub2)    \
  apply(__vsub4) apply(__vsubss2) apply(__vsubss4) apply(__vsubus2) apply(__vsubus4) apply(__vabsdiffu2)              \
  apply(__vabsdiffu4) apply(__vabsdiffs2) apply(__vabsdiffs4) apply(__vsadu2) apply(__vsadu4) apply(__vsads2)         \
  apply(__vsads4) apply(__vavgu2) apply(__vavgu4) apply(__vavgs2) apply(__vavgs4) apply(__vhaddu2) apply(__vhaddu4)   \
  apply(__vmaxu2) apply(__vmaxu4) apply(__vmaxs2) apply(__vmaxs4) apply(__vminu2) apply(__vminu4) apply(__vmins2)     \
  apply(__vmins4) apply(__vcmpeq2) apply(__vcmpeq4) apply(__vcmpgts2) apply(__vcmpgts4) apply(__vcmpleu2)             \
  apply(__vcmpleu4) apply(__vsetne2) apply(__vsetne4) apply(__vsetgeu2) apply(__vsetgeu4) apply(__vsetlts2)           \
  apply(__vsetlts4)

#define STORE(name) out[row++ * n + i] = name(a, b);

// A row of `out` for each intrinsic, in their order above.
extern "C" __global__ void every_intrinsic(const unsigned *x, const unsigned *y, unsigned *out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const unsigned a = x[i], b = y[i];
  int row = 0;
  INTRINSICS(STORE)
}
