/* y = x w^T by CUTLASS, with the tile that it takes by default; the result is cutlass::Status. */
#include <cutlass/gemm/device/gemm.h>

using Row = cutlass::layout::RowMajor;
using Column = cutlass::layout::ColumnMajor;
using Tensor = cutlass::arch::OpClassTensorOp;
using Arch = cutlass::arch::Sm80;
using Half = cutlass::half_t;
using Floats = cutlass::gemm::device::Gemm<Half, Row, Half, Column, Half, Row, float, Tensor, Arch>;
using Bytes = cutlass::gemm::device::Gemm<int8_t, Row, int8_t, Column, int32_t, Row, int32_t, Tensor, Arch>;

template <typename Gemm, typename In, typename Out, typename Scalar>
static int run(int m, int n, int k, void *x, void *w, void *y, void *stream) {
    Out *result = (Out *)y;
    typename Gemm::Arguments given(
        {m, n, k}, {(In *)x, k}, {(In *)w, k}, {result, n}, {result, n}, {Scalar(1), Scalar(0)});
    return (int)Gemm()(given, nullptr, (cudaStream_t)stream);
}

extern "C" int gemm_f16(int m, int n, int k, void *x, void *w, void *y, void *stream) {
    return run<Floats, Half, Half, float>(m, n, k, x, w, y, stream);
}

extern "C" int gemm_i8(int m, int n, int k, void *x, void *w, void *y, void *stream) {
    return run<Bytes, int8_t, int32_t, int32_t>(m, n, k, x, w, y, stream);
}
