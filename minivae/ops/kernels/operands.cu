// How product.cu brings its operands from the images and the weights into shared memory, and how warps read them.

constexpr int DEPTH = UNIT_BYTES / sizeof(T);

// A tile in shared memory, SIZE rows of A (or columns of B) by DEPTH, padded so that the 32 values that a warp reads at
// once lie in 32 banks and vectors stay aligned to 16 bytes.
template <bool K_MAJOR, int SIZE> struct Tile {
  static constexpr int PITCH = K_MAJOR ? DEPTH + ALONG_PAD_BYTES / sizeof(T) : SIZE + ACROSS_PAD_BYTES / sizeof(T);
  static constexpr int VALUES = (K_MAJOR ? SIZE : DEPTH) * PITCH;
  static __device__ __forceinline__ int at(int i, int k) { return K_MAJOR ? i * PITCH + k : k * PITCH + i; }

  // An mma takes 16 rows of A by 8, and two take 16 columns of B by 8, as four parts of 8 by 4: of A in the order (0, 0)
  // (8, 0) (0, 4) (8, 4), of B the other way round. A lane (g, t) holds (g, t) of each part.
  template <bool ROWS> static __device__ __forceinline__ int part(int e) {
    return ROWS ? at(e % 2 * 8, e / 2 * 4) : at(e / 2 * 8, e % 2 * 4);
  }
  // What a lane adds to where the parts begin to find what it reads first. Every other address of its is this one plus a
  // constant, which a load takes without an instruction.
  template <bool ROWS> static __device__ __forceinline__ int lane() {
    const int l = threadIdx.x % 32;
    return K_MAJOR ? part<ROWS>(l / 8) + at(l % 8, 0) : at(l / 4, l % 4);
  }
  template <bool ROWS> static __device__ __forceinline__ void fragment(unsigned (&bits)[4], const T* from) {
    if (K_MAJOR) {
      load_matrices(bits, from);
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e) bits[e] = __float_as_uint(from[part<ROWS>(e)]);
    }
  }
};

// Loaders: `load` copies a unit, N vectors of V values a thread. The loaders of windows and of weights by row walk the
// taps of a class together, DEPTH channels a unit.
template <int V> struct Cursor {
  int channels, wide, c, a, b;

  __device__ __forceinline__ Cursor(int channels, int wide, int unit) : channels(channels), wide(wide) {
    const int k = unit * DEPTH + column(), tap = k / channels;
    c = k - tap * channels;
    a = tap / max(wide, 1);
    b = tap - a * max(wide, 1);
  }
  __device__ __forceinline__ void next() {
    for (c += DEPTH; c >= channels; c -= channels) {
      ++b;
      if (b >= wide) {
        b = 0;
        ++a;
      }
    }
  }
  static __device__ __forceinline__ int column() { return threadIdx.x % (DEPTH / V) * V; }
  static __device__ __forceinline__ int row() { return threadIdx.x / (DEPTH / V); }
};

// A of CONV and CONV_DX: a row is a pixel's window, tap after tap. The window is found once a tile; each vector of a
// unit then takes one addition, one mask and one copy.
template <Op OP, int BM, int V> struct Windows {
  using To = Tile<true, BM>;
  static constexpr bool FORTH = OP == CONV;
  static constexpr int STEP = THREADS * V / DEPTH, N = BM / STEP;
  const T* source;
  int width;
  Window rows[N];

  __device__ __forceinline__ Windows(const T* source, const Shape& s, const Class& c, int m0)
      : source(source), width(FORTH ? s.W : s.w) {
#pragma unroll
    for (int i = 0; i < N; ++i)
      rows[i] = window<FORTH>(c, s.images, FORTH ? s.H : s.h, width, FORTH ? s.I : s.O,
                              m0 + Cursor<V>::row() + i * STEP);
  }
  __device__ __forceinline__ void load(T* tile, const Cursor<V>& at, int tall) {
    const unsigned bits = at.a < tall ? tap_bits(at.a, at.b) : NO_TAP;
    const int from = (at.a * width + at.b) * at.channels;
    T* to = tile + To::at(Cursor<V>::row(), Cursor<V>::column());
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const bool valid = (rows[i].taps & bits) == bits;
      cp_async<V * sizeof(T)>(to + To::at(i * STEP, 0),
                              source + (valid ? rows[i].offset + (FORTH ? from : -from) + at.c : 0), valid);
    }
  }
};

// A of CONV_DW: a row is one (tap, channel), and the contraction runs over pixels. Each lane finds the window of one
// pixel of the unit, and shuffles hand it to the others.
template <int BM, int V> struct WindowsAcross {
  using To = Tile<false, BM>;
  static constexpr int STEP = THREADS * V / BM, N = DEPTH / STEP;
  const T* source;
  int from;
  unsigned bits;

  __device__ __forceinline__ WindowsAcross(const T* source, const Shape& s, int m0) : source(source) {
    const int m = m0 + column(), tap = m / s.I, a = tap / s.kernel, b = tap - a * s.kernel;
    from = (a * s.W + b) * s.I + m - tap * s.I;
    bits = a < s.kernel ? tap_bits(a, b) : NO_TAP;
  }
  __device__ __forceinline__ void load(T* tile, const Shape& s, const Class& c, int u) {
    const Window mine = window<true>(c, s.images, s.H, s.W, s.I, u * DEPTH + threadIdx.x % 32);
    const int first = threadIdx.x / (BM / V);
    T* to = tile + To::at(column(), first);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int offset = __shfl_sync(FULL, mine.offset, first + i * STEP);
      const bool valid = (__shfl_sync(FULL, mine.taps, first + i * STEP) & bits) == bits;
      cp_async<V * sizeof(T)>(to + To::at(0, i * STEP), source + (valid ? offset + from : 0), valid);
    }
  }
  static __device__ __forceinline__ int column() { return threadIdx.x % (BM / V) * V; }
};

// B of CONV (the weights) and of CONV_DW (dy): a matrix (rows, columns) as it lies in memory.
template <int BN, int V> struct Matrix {
  using To = Tile<false, BN>;
  static constexpr int STEP = THREADS * V / BN, N = DEPTH / STEP;
  const T* source;
  int rows, columns, n0;

  __device__ __forceinline__ void load(T* tile, int u) {
    const int n = threadIdx.x % (BN / V) * V, row = threadIdx.x / (BN / V);
    T* to = tile + To::at(n, row);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int k = u * DEPTH + row + i * STEP;
      const bool valid = k < rows && n0 + n < columns;
      cp_async<V * sizeof(T)>(to + To::at(0, i * STEP), source + (valid ? k * columns + n0 + n : 0), valid);
    }
  }
};

// A column of a product: a channel and, in CONV_DX_ALL, a pixel of the patch.
struct Column {
  int channel, y, x;
};
template <Op OP> __device__ __forceinline__ Column column_of(const Shape& s, int n) {
  if (OP != CONV_DX_ALL) return {n, 0, 0};
  const int pixel = n / s.I;
  return {n - pixel * s.I, pixel / s.stride, pixel % s.stride};
}

// B of CONV_DX: column i of a tap is w[tap, i, :], which lies along the contraction.
template <Op OP, int BN, int V> struct Weights {
  using To = Tile<true, BN>;
  static constexpr int STEP = THREADS * V / DEPTH, N = BN / STEP;
  const T* source;
  Column columns[N];

  __device__ __forceinline__ Weights(const T* source, const Shape& s, int n0, int count) : source(source) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int n = n0 + Cursor<V>::row() + i * STEP;
      columns[i] = n < count ? column_of<OP>(s, n) : Column{-1, 0, 0};
    }
  }
  __device__ __forceinline__ void load(T* tile, const Cursor<V>& at, const Shape& s, const Class& c) {
    T* to = tile + To::at(Cursor<V>::row(), Cursor<V>::column());
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int a = c.first_a + at.a * s.stride.by + columns[i].y, b = c.first_b + at.b * s.stride.by + columns[i].x;
      bool valid = columns[i].channel >= 0 && at.a < c.tall;
      if (OP == CONV_DX_ALL) valid = valid && a >= 0 && a < s.kernel && b >= 0 && b < s.kernel;
      const int from = ((a * s.kernel + b) * s.I + columns[i].channel) * s.O + at.c;
      cp_async<V * sizeof(T)>(to + To::at(i * STEP, 0), source + (valid ? from : 0), valid);
    }
  }
};

template <Op OP, int BM, int V> struct Operand { using A = Windows<OP, BM, V>; };
template <int BM, int V> struct Operand<CONV_DW, BM, V> { using A = WindowsAcross<BM, V>; };
template <Op OP, int BN, int V> struct OperandB { using B = Weights<OP, BN, V>; };
template <int BN, int V> struct OperandB<CONV, BN, V> { using B = Matrix<BN, V>; };
template <int BN, int V> struct OperandB<CONV_DW, BN, V> { using B = Matrix<BN, V>; };
