// Every MMA atom of CuTe, alone: each thread gathers its values of A and B by the atom's layouts, one mma runs, and D is
// written twice, by the atom's layout into a matrix and register by register. The target chooses the atoms.
//
// A, B: one element to a 32-bit word, as bits, row-major (m, k) and (n, k); C, D: row-major (m, n). Elements of 64 bits
// take two words. Scales: a byte to a word, (m, groups) and (n, groups).

#include <cute/atom/mma_atom.hpp>
#include <cute/atom/mma_traits_sm120.hpp>
#include <cute/atom/mma_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/atom/mma_traits_sm89.hpp>
#include <cute/atom/mma_traits_sm90.hpp>

#include <type_traits>
#include <utility>

using namespace cute;

template <class Op> struct Traits : MMA_Traits<Op> {};

// Of these the header has layouts that are not the manual's: of A, strides of another nesting than their shapes, which
// cannot be evaluated; of B, a stride of 32 between lanes that hold eight rows of eight, so that some would share rows.
struct BitsOf128 {
  using ALayout = Layout<Shape<Shape<_4, _8>, Shape<_32, _2>>, Stride<Stride<_512, _1>, Stride<_16, _8>>>;
};
struct FoursOf32 {
  using BLayout = Layout<Shape<Shape<_4, _8>, Shape<_8>>, Stride<Stride<_64, _1>, Stride<_8>>>;
};
#define CORRECTED(name, from, Operand)                        \
  template <> struct Traits<name> : MMA_Traits<name> {        \
    using Operand = from::Operand;                            \
  };
CORRECTED(SM80_16x8x128_S32U1U1S32_TN_XORPOPC, BitsOf128, ALayout)
CORRECTED(SM80_16x8x128_S32U1U1S32_TN_ANDPOPC, BitsOf128, ALayout)
CORRECTED(SM80_16x8x32_S32S4S4S32_TN, FoursOf32, BLayout)
CORRECTED(SM80_16x8x32_S32S4U4S32_TN, FoursOf32, BLayout)
CORRECTED(SM80_16x8x32_S32U4S4S32_TN, FoursOf32, BLayout)
CORRECTED(SM80_16x8x32_S32U4U4S32_TN, FoursOf32, BLayout)
CORRECTED(SM80_16x8x32_S32S4S4S32_TN_SATURATE, FoursOf32, BLayout)
CORRECTED(SM80_16x8x32_S32S4U4S32_TN_SATURATE, FoursOf32, BLayout)
CORRECTED(SM80_16x8x32_S32U4S4S32_TN_SATURATE, FoursOf32, BLayout)
CORRECTED(SM80_16x8x32_S32U4U4S32_TN_SATURATE, FoursOf32, BLayout)
template <class T> constexpr int bits = cutlass::sizeof_bits<T>::value;

// The registers of one operand, filled element by element.
template <class Array, class Value> struct Fragment {
  using Register = std::remove_extent_t<Array>;
  static constexpr int count = std::extent_v<Array>;
  Register registers[count];

  __device__ Fragment() {
    for (int i = 0; i < count; ++i) registers[i] = Register{};
  }

  __device__ void set(int i, const uint32_t *word) {
    if constexpr (bits<Value> == 64) {
      registers[i] = __hiloint2double(word[1], word[0]);
    } else if constexpr (bits<Value> == 32 && sizeof(Register) == 4) {
      memcpy(&registers[i], word, 4);
    } else {
      constexpr int each = 32 / bits<Value>;
      registers[i / each] |= (*word & ((1u << bits<Value>) - 1)) << (i % each * bits<Value>);
    }
  }
};

template <class Op, class = void> struct HasScales : std::false_type {};
template <class Op> struct HasScales<Op, std::void_t<typename Op::SFARegisters>> : std::true_type {};

template <class Op, class D, class A, class B, class C, size_t... d, size_t... a, size_t... b, size_t... c>
__device__ void multiply(D &to, const A &left, const B &right, const C &total, std::index_sequence<d...>,
                         std::index_sequence<a...>, std::index_sequence<b...>, std::index_sequence<c...>) {
  Op::fma(to.registers[d]..., left.registers[a]..., right.registers[b]..., total.registers[c]...);
}

template <class Op, class D, class A, class B, class C, size_t... d, size_t... a, size_t... b, size_t... c>
__device__ void multiply_scaled(D &to, const A &left, const B &right, const C &total, uint32_t left_scale,
                                uint32_t right_scale, std::index_sequence<d...>, std::index_sequence<a...>,
                                std::index_sequence<b...>, std::index_sequence<c...>) {
  using Scale = std::remove_extent_t<typename Op::SFARegisters>;
  Op::fma(to.registers[d]..., left.registers[a]..., right.registers[b]..., total.registers[c]..., Scale(left_scale),
          Scale(right_scale));
}

template <class Op>
__device__ void run(const uint32_t *a, const uint32_t *b, const uint32_t *c, const uint32_t *left_scales,
                    const uint32_t *right_scales, uint32_t *d, uint32_t *raw) {
  using T = Traits<Op>;
  constexpr int m = size<0>(typename T::Shape_MNK{}), n = size<1>(typename T::Shape_MNK{});
  constexpr int k = size<2>(typename T::Shape_MNK{});
  constexpr int wide_a = bits<typename T::ValTypeA> == 64 ? 2 : 1, wide = bits<typename T::ValTypeD> == 64 ? 2 : 1;
  typename T::ALayout a_layout;
  typename T::BLayout b_layout;
  typename T::CLayout c_layout;
  const int lane = threadIdx.x;
  Fragment<typename Op::ARegisters, typename T::ValTypeA> left;
  Fragment<typename Op::BRegisters, typename T::ValTypeB> right;
  Fragment<typename Op::CRegisters, typename T::ValTypeC> total;
  Fragment<typename Op::DRegisters, typename T::ValTypeD> result;
  for (int i = 0; i < size<1>(a_layout); ++i) {
    const int at = a_layout(lane, i);
    left.set(i, a + (at % m * k + at / m) * wide_a);
  }
  for (int i = 0; i < size<1>(b_layout); ++i) {
    const int at = b_layout(lane, i);
    right.set(i, b + (at % n * k + at / n) * wide_a);
  }
  for (int i = 0; i < size<1>(c_layout); ++i) {
    const int at = c_layout(lane, i);
    total.set(i, c + (at % m * n + at / m) * wide);
  }
  using std::make_index_sequence;
  constexpr make_index_sequence<decltype(result)::count> d_count;
  constexpr make_index_sequence<decltype(left)::count> a_count;
  constexpr make_index_sequence<decltype(right)::count> b_count;
  constexpr make_index_sequence<decltype(total)::count> c_count;
  if constexpr (HasScales<Op>::value) {
    constexpr int groups = k / T::SFVecSize;
    uint32_t left_scale = 0, right_scale = 0;
    for (int group = 0; group < groups; ++group) {
      const int row = typename T::SFALayout{}(lane, group * T::SFVecSize) % m;
      const int column = typename T::SFBLayout{}(lane, group * T::SFVecSize) % n;
      left_scale |= left_scales[row * groups + group] << 8 * group;
      right_scale |= right_scales[column * groups + group] << 8 * group;
    }
    multiply_scaled<Op>(result, left, right, total, left_scale, right_scale, d_count, a_count, b_count, c_count);
  } else {
    multiply<Op>(result, left, right, total, d_count, a_count, b_count, c_count);
  }
  const uint32_t *words = reinterpret_cast<const uint32_t *>(result.registers);
  constexpr int registers = sizeof(result.registers) / 4;
  for (int i = 0; i < registers; ++i) raw[lane * registers + i] = words[i];
  for (int i = 0; i < size<1>(c_layout); ++i) {
    const int at = c_layout(lane, i);
    uint32_t *to = d + (at % m * n + at / m) * wide;
    if constexpr (bits<typename T::ValTypeD> == 16) {
      *to = words[i / 2] >> (i % 2 * 16) & 0xffff;
    } else {
      for (int part = 0; part < wide; ++part) to[part] = words[i * wide + part];
    }
  }
}

#define ATOM_AS(name, ...)                                                                                             \
  extern "C" __global__ void name(const uint32_t *a, const uint32_t *b, const uint32_t *c, const uint32_t *left_scales,   \
                                  const uint32_t *right_scales, uint32_t *d, uint32_t *raw) {                          \
    run<__VA_ARGS__>(a, b, c, left_scales, right_scales, d, raw);                                                      \
  }
#define ATOM(name) ATOM_AS(name, cute::name)
#define WITH_SATURATION(name) ATOM(name) ATOM(name##_SATURATE)
#define INTEGERS(shape, S, U)                                                                                          \
  WITH_SATURATION(SM80_##shape##_S32##S##S##S32_TN)                                                                    \
  WITH_SATURATION(SM80_##shape##_S32##S##U##S32_TN)                                                                    \
  WITH_SATURATION(SM80_##shape##_S32##U##S##S32_TN)                                                                    \
  WITH_SATURATION(SM80_##shape##_S32##U##U##S32_TN)
#define BITS(shape) ATOM(SM80_##shape##_S32U1U1S32_TN_XORPOPC) ATOM(SM80_##shape##_S32U1U1S32_TN_ANDPOPC)

#if __CUDA_ARCH_LIST__ == 750
ATOM(SM75_16x8x8_F32F16F16F32_TN)
ATOM(SM75_8x8x16_S32S8S8S32_TN)
#elif __CUDA_ARCH_LIST__ == 800
ATOM(SM80_16x8x8_F16F16F16F16_TN)
ATOM(SM80_16x8x16_F16F16F16F16_TN)
ATOM(SM80_16x8x8_F32F16F16F32_TN)
ATOM(SM80_16x8x16_F32F16F16F32_TN)
ATOM(SM80_16x8x8_F32BF16BF16F32_TN)
ATOM(SM80_16x8x16_F32BF16BF16F32_TN)
ATOM(SM80_16x8x4_F32TF32TF32F32_TN)
ATOM(SM80_16x8x8_F32TF32TF32F32_TN)
ATOM(SM80_8x8x4_F64F64F64F64_TN)
INTEGERS(8x8x16, S8, U8)
INTEGERS(16x8x16, S8, U8)
INTEGERS(16x8x32, S8, U8)
INTEGERS(8x8x32, S4, U4)
INTEGERS(16x8x32, S4, U4)
INTEGERS(16x8x64, S4, U4)
BITS(8x8x128)
BITS(16x8x128)
BITS(16x8x256)
#elif __CUDA_ARCH_LIST__ == 890
ATOM(SM89_16x8x32_F32E4M3E4M3F32_TN)
ATOM(SM89_16x8x32_F32E4M3E5M2F32_TN)
ATOM(SM89_16x8x32_F32E5M2E5M2F32_TN)
ATOM(SM89_16x8x32_F32E5M2E4M3F32_TN)
ATOM(SM89_16x8x32_F16E4M3E4M3F16_TN)
ATOM(SM89_16x8x32_F16E4M3E5M2F16_TN)
ATOM(SM89_16x8x32_F16E5M2E5M2F16_TN)
ATOM(SM89_16x8x32_F16E5M2E4M3F16_TN)
#elif __CUDA_ARCH_LIST__ == 900
ATOM(SM90_16x8x4_F64F64F64F64_TN)
ATOM(SM90_16x8x8_F64F64F64F64_TN)
ATOM(SM90_16x8x16_F64F64F64F64_TN)
#else
namespace scaled = SM120::BLOCKSCALED;
using E2M1 = cutlass::float_e2m1_t;
using E2M3 = cutlass::float_e2m3_t;
using E3M2 = cutlass::float_e3m2_t;
using E4M3 = cutlass::float_e4m3_t;
using E5M2 = cutlass::float_e5m2_t;
using UE8M0 = cutlass::float_ue8m0_t;
using UE4M3 = cutlass::float_ue4m3_t;
#define PAIR(A, B)                                                                                                     \
  ATOM_AS(SM120_16x8x32_F32##A##B##F32_TN, SM120_16x8x32_TN<A, B, float>)                                              \
  ATOM_AS(SM120_16x8x32_F32##A##B##F32_TN_VS32, scaled::SM120_16x8x32_TN_VS<A, B, float, UE8M0, 32>)
#define PAIRS(A) PAIR(A, E2M1) PAIR(A, E2M3) PAIR(A, E3M2) PAIR(A, E4M3) PAIR(A, E5M2)
PAIRS(E2M1)
PAIRS(E2M3)
PAIRS(E3M2)
PAIRS(E4M3)
PAIRS(E5M2)
ATOM_AS(SM120_16x8x64_F32E2M1E2M1F32_TN_VS32, scaled::SM120_16x8x64_TN_VS<E2M1, E2M1, float, UE8M0, 32>)
ATOM_AS(SM120_16x8x64_F32E2M1E2M1F32_TN_VS16, scaled::SM120_16x8x64_TN_VS<E2M1, E2M1, float, UE4M3, 16>)
#endif
