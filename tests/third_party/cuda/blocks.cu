// What CUB does with a block's threads, and a scan of many blocks that look back at those before them.

#include <cub/cub.cuh>

extern "C" __global__ void radix_sort(const unsigned *keys, const int *values, unsigned *sorted, int *order, int n) {
  using Sort = cub::BlockRadixSort<unsigned, 128, 4, int>;
  using Load = cub::BlockLoad<unsigned, 128, 4, cub::BLOCK_LOAD_TRANSPOSE>;
  using LoadValues = cub::BlockLoad<int, 128, 4, cub::BLOCK_LOAD_WARP_TRANSPOSE>;
  using Store = cub::BlockStore<unsigned, 128, 4, cub::BLOCK_STORE_TRANSPOSE>;
  __shared__ union {
    typename Sort::TempStorage sort;
    typename Load::TempStorage load;
    typename LoadValues::TempStorage load_values;
    typename Store::TempStorage store;
  } space;
  unsigned own[4];
  int places[4];
  Load(space.load).Load(keys, own, n, 0xffffffffu);
  __syncthreads();
  LoadValues(space.load_values).Load(values, places, n, -1);
  __syncthreads();
  Sort(space.sort).Sort(own, places);
  __syncthreads();
  Store(space.store).Store(sorted, own, n);
  cub::StoreDirectBlocked(threadIdx.x, order, places, n);
}

struct Less {
  __device__ bool operator()(int a, int b) const { return a < b; }
};

// It reads one element behind each run, and lets && and || decide whether that matters.
extern "C" __global__ void merge_sort(const int *x, int *y) {
  using Sort = cub::BlockMergeSort<int, 64, 4>;
  __shared__ typename Sort::TempStorage space;
  int own[4];
  cub::LoadDirectBlocked(threadIdx.x, x, own);
  Sort(space).Sort(own, Less());
  cub::StoreDirectBlocked(threadIdx.x, y, own);
}

template <cub::BlockHistogramAlgorithm ALGORITHM>
__device__ void counts(const unsigned char *x, int *y) {
  using Histogram = cub::BlockHistogram<unsigned char, 128, 4, 256, ALGORITHM>;
  __shared__ typename Histogram::TempStorage space;
  __shared__ int bins[256];
  unsigned char own[4];
  cub::LoadDirectStriped<128>(threadIdx.x, x, own);
  Histogram(space).Histogram(own, bins);
  __syncthreads();
  for (int i = threadIdx.x; i < 256; i += 128) y[i] = bins[i];
}
extern "C" __global__ void counts_by_sorting(const unsigned char *x, int *y) { counts<cub::BLOCK_HISTO_SORT>(x, y); }
extern "C" __global__ void counts_by_atomics(const unsigned char *x, int *y) { counts<cub::BLOCK_HISTO_ATOMIC>(x, y); }

using Tiles = cub::ScanTileState<int>;
__device__ int tickets = 0;

extern "C" __global__ void initialise(char *state, int tiles) {
  Tiles sums;
  sums.Init(tiles, state, 1 << 20);
  sums.InitializeStatus(tiles);
}

extern "C" __global__ void look_back(const int *x, int *y, char *state, int tiles) {
  using Scan = cub::BlockScan<int, 64>;
  using Before = cub::TilePrefixCallbackOp<int, cuda::std::plus<>, Tiles>;
  __shared__ typename Scan::TempStorage space;
  __shared__ typename Before::TempStorage before_space;
  __shared__ int mine;
  if (threadIdx.x == 0) mine = atomicAdd(&tickets, 1);
  __syncthreads();
  const int tile = mine;
  Tiles sums;
  sums.Init(tiles, state, 1 << 20);
  int own[2];
  cub::LoadDirectBlocked(threadIdx.x, x + tile * 128, own);
  if (tile == 0) {
    int total;
    Scan(space).InclusiveSum(own, own, total);
    if (threadIdx.x == 0) sums.SetInclusive(0, total);
  } else {
    Before before(sums, before_space, cuda::std::plus<>{}, tile);
    Scan(space).InclusiveSum(own, own, before);
  }
  cub::StoreDirectBlocked(threadIdx.x, y + tile * 128, own);
}
