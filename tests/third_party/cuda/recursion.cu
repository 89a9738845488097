// Functions that call themselves and each other: on local arrays, by value in structures, through pointers.

struct Moves {
  int count;
  long long digits;  // the moves in base 10, as from * 3 + to
};

__device__ __noinline__ Moves hanoi(int discs, int from, int to, Moves moves) {
  if (discs == 0) return moves;
  const int other = 3 - from - to;
  moves = hanoi(discs - 1, from, other, moves);
  moves.count += 1;
  moves.digits = moves.digits * 10 + from * 3 + to;
  return hanoi(discs - 1, other, to, moves);
}

extern "C" __global__ void towers(Moves *out) {
  out[threadIdx.x] = hanoi(threadIdx.x % 5, threadIdx.x % 3, (threadIdx.x + 1) % 3, Moves{0, 0});
}

__device__ __noinline__ void quicksort(int *values, int first, int last) {
  if (first >= last) return;
  const int pivot = values[(first + last) / 2];
  int low = first, high = last;
  while (low <= high) {
    while (values[low] < pivot) ++low;
    while (values[high] > pivot) --high;
    if (low <= high) {
      const int swapped = values[low];
      values[low++] = values[high];
      values[high--] = swapped;
    }
  }
  quicksort(values, first, high);
  quicksort(values, low, last);
}

extern "C" __global__ void sorted(int *rows, int n) {
  int own[24];
  for (int i = 0; i < n; ++i) own[i] = rows[threadIdx.x * n + i];
  quicksort(own, 0, n - 1);
  for (int i = 0; i < n; ++i) rows[threadIdx.x * n + i] = own[i];
}

// A calculator of sums and products: digits, '+', '*' and brackets.
__device__ int sum(const char **text);

__device__ __noinline__ int factor(const char **text) {
  if (**text != '(') return *(*text)++ - '0';
  ++*text;
  const int value = sum(text);
  ++*text;
  return value;
}

__device__ __noinline__ int product(const char **text) {
  int value = factor(text);
  while (**text == '*') {
    ++*text;
    value *= factor(text);
  }
  return value;
}

__device__ __noinline__ int sum(const char **text) {
  int value = product(text);
  while (**text == '+') {
    ++*text;
    value += product(text);
  }
  return value;
}

extern "C" __global__ void calculator(const char *texts, int width, int *values) {
  const char *text = texts + threadIdx.x * width;
  values[threadIdx.x] = sum(&text);
}
