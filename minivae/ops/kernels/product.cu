// The three convolutions as matrix products whose big operand is never stored: it is gathered from the image while the
// product runs. One kernel, `product`, is the loop; Op says where its operands come from and where its result goes:
//
//   CONV         np: y = im2col(x) @ w          y (m, o) = sum over (tap, i) of x[m at tap, i] w[tap, i, o]
//   CONV_DX      np: dx = col2im(dy @ w.T)      dx (m, i) = sum over (tap, o) of dy[m at tap, o] w[tap, i, o]
//   CONV_DX_ALL  np: dx = col2im(dy @ w.T)      the same for few channels i
//   CONV_DW      np: dw = im2col(x).T @ dy      dw ((tap, i), o) = sum over m of x[m at tap, i] dy[m, o]
//
// The dense products np.matmul(x, w), np.matmul(dy, w.T), np.matmul(x.T, dy) are these with images and kernels of 1 x 1.
//
// CONV_DX never touches the zeros that a stride puts between pixels: output pixels whose coordinates agree modulo the
// stride see the same taps and are a class with a product of its own (5 x 5, stride 2: 9 + 6 + 6 + 4 = 25 taps), the
// heaviest first. With 3 channels a class would fill 3 columns of a tile, so CONV_DX_ALL has the channels of all classes
// side by side as columns, and a zero where a class does not have a tap (25 of 36 are used).
//
// Tiling: a block of 128 threads, warps 2 x 2 or 4 x 1, computes tiles of BM x BN with DEPTH of the contraction (128
// bytes) at a time, "a unit", from STAGES buffers that cp.async fills ahead: copies are in flight while tensor cores
// work, and one barrier a unit is enough. The units of all tiles, in a row, are cut into equal shares, one per block:
// every multiprocessor has the same work whatever the shapes, which tiles of 9, 6, 6 and 4 taps would not give. A tile
// cut by shares is summed by the last of its blocks to finish, always in the same order.

constexpr int THREADS = 128, STAGES = 3;
constexpr int DEPTH = 128 / sizeof(T);
constexpr int RADIX = 16;  // pieces of a tile that one block adds up

// A tile in shared memory, SIZE rows (of A; columns of B) by DEPTH, padded so that the 32 values that a warp reads at
// once lie in 32 banks and vectors stay on 16 bytes.
template <bool K_MAJOR, int SIZE> struct Tile {
  static constexpr int PITCH = K_MAJOR ? DEPTH + 16 / sizeof(T) : SIZE + 32 / sizeof(T);
  static constexpr int VALUES = (K_MAJOR ? SIZE : DEPTH) * PITCH;
  static __device__ __forceinline__ int at(int i, int k) { return K_MAJOR ? i * PITCH + k : k * PITCH + i; }

  // The operands of two 8-wide halves i.. and i + 8.. of an mma: (i + g, k + t), (i + g, k + t + 4) of each.
  static __device__ __forceinline__ void fragment(unsigned (&low)[2], unsigned (&high)[2], const T* tile, int i, int k) {
    const int lane = threadIdx.x % 32;
    unsigned bits[4];
    if (K_MAJOR) {
      load_matrices(bits, tile + at(i + lane % 8 + lane / 16 * 8, k + lane / 8 % 2 * 4));
    } else {
      const int g = i + lane / 4, t = k + lane % 4;
      bits[0] = __float_as_uint(tile[at(g, t)]), bits[1] = __float_as_uint(tile[at(g, t + 4)]);
      bits[2] = __float_as_uint(tile[at(g + 8, t)]), bits[3] = __float_as_uint(tile[at(g + 8, t + 4)]);
    }
    low[0] = to_tf32(__uint_as_float(bits[0])), low[1] = to_tf32(__uint_as_float(bits[1]));
    high[0] = to_tf32(__uint_as_float(bits[2])), high[1] = to_tf32(__uint_as_float(bits[3]));
  }
};

// acc += a (WM, DEPTH) b (DEPTH, WN) by a warp, on tensor cores or not; either way its lanes share the result as those of
// mma_m16n8k8 do.
template <bool TENSOR, class A, class B, int WM, int WN>
__device__ __forceinline__ void multiply(T (&acc)[WM / 16][WN / 8][4], const T* a, const T* b, int wm, int wn) {
  if constexpr (TENSOR) {
#pragma unroll
    for (int k = 0; k < DEPTH; k += 8) {
      unsigned upper[WM / 16][2], lower[WM / 16][2], columns[WN / 8][2];
#pragma unroll
      for (int i = 0; i < WM / 16; ++i) A::fragment(upper[i], lower[i], a, wm + 16 * i, k);
#pragma unroll
      for (int j = 0; j < WN / 8; j += 2) B::fragment(columns[j], columns[j + 1], b, wn + 8 * j, k);
#pragma unroll
      for (int i = 0; i < WM / 16; ++i) {
        const unsigned rows[4] = {upper[i][0], lower[i][0], upper[i][1], lower[i][1]};
#pragma unroll
        for (int j = 0; j < WN / 8; ++j) mma_m16n8k8(acc[i][j], rows, columns[j]);
      }
    }
  } else {
    const int g = wm + threadIdx.x % 32 / 4, t = wn + threadIdx.x % 4 * 2;
#pragma unroll 2
    for (int k = 0; k < DEPTH; ++k) {
      T column[WN / 8][2];
#pragma unroll
      for (int j = 0; j < WN / 8; ++j) column[j][0] = b[B::at(t + 8 * j, k)], column[j][1] = b[B::at(t + 8 * j + 1, k)];
#pragma unroll
      for (int i = 0; i < WM / 16; ++i) {
        const T upper = a[A::at(g + 16 * i, k)], lower = a[A::at(g + 16 * i + 8, k)];
#pragma unroll
        for (int j = 0; j < WN / 8; ++j) {
          acc[i][j][0] += upper * column[j][0], acc[i][j][1] += upper * column[j][1];
          acc[i][j][2] += lower * column[j][0], acc[i][j][3] += lower * column[j][1];
        }
      }
    }
  }
}

// Loaders: each thread copies N vectors of V values a unit, `load` the ones of unit u. Those of A and of weights by row
// walk the taps of a class in step, DEPTH channels a unit.
template <int V> struct Cursor {
  int channels, wide, c, a, b;

  __device__ __forceinline__ Cursor(int channels, int wide, int unit) : channels(channels), wide(wide) {
    const int k = unit * DEPTH + column(), tap = k / channels;
    c = k - tap * channels, a = tap / max(wide, 1), b = tap - a * max(wide, 1);
  }
  __device__ __forceinline__ void next() {
    for (c += DEPTH; c >= channels; c -= channels)
      if (++b >= wide) b = 0, ++a;
  }
  static __device__ __forceinline__ int column() { return threadIdx.x % (DEPTH / V) * V; }
  static __device__ __forceinline__ int row() { return threadIdx.x / (DEPTH / V); }
};

// A of CONV, CONV_DX: a row is a pixel's window, tap after tap. The window is found once a tile; a unit is one addition,
// one mask and one copy per vector.
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
      rows[i] = window<FORTH>(c, s.images, FORTH ? s.H : s.h, width, FORTH ? s.I : s.O, m0 + Cursor<V>::row() + i * STEP);
  }
  __device__ __forceinline__ void load(T* tile, const Cursor<V>& at, int tall) {
    const unsigned bits = at.a < tall ? tap_bits(at.a, at.b) : NO_TAP;
    const int from = (at.a * width + at.b) * at.channels;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const bool valid = (rows[i].taps & bits) == bits;
      cp_async<V * sizeof(T)>(tile + To::at(Cursor<V>::row() + i * STEP, Cursor<V>::column()),
                              source + (valid ? rows[i].offset + (FORTH ? from : -from) + at.c : 0), valid);
    }
  }
};

// A of CONV_DW: a row is one (tap, channel), the contraction runs over pixels. Each lane finds the window of one pixel of
// the unit, and the warp hands them round.
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
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int k = threadIdx.x / (BM / V) + i * STEP, offset = __shfl_sync(FULL, mine.offset, k);
      const bool valid = (__shfl_sync(FULL, mine.taps, k) & bits) == bits;
      cp_async<V * sizeof(T)>(tile + To::at(column(), k), source + (valid ? offset + from : 0), valid);
    }
  }
  static __device__ __forceinline__ int column() { return threadIdx.x % (BM / V) * V; }
};

// B of CONV, the weights, and of CONV_DW, dy: a matrix (rows, columns) as it lies in memory.
template <int BN, int V> struct Matrix {
  using To = Tile<false, BN>;
  static constexpr int STEP = THREADS * V / BN, N = DEPTH / STEP;
  const T* source;
  int rows, columns, n0;

  __device__ __forceinline__ void load(T* tile, int u) {
    const int n = threadIdx.x % (BN / V) * V, row = threadIdx.x / (BN / V);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int k = u * DEPTH + row + i * STEP;
      const bool valid = k < rows && n0 + n < columns;
      cp_async<V * sizeof(T)>(tile + To::at(n, row + i * STEP), source + (valid ? k * columns + n0 + n : 0), valid);
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
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int a = c.first_a + at.a * s.stride.by + columns[i].y, b = c.first_b + at.b * s.stride.by + columns[i].x;
      bool valid = columns[i].channel >= 0 && at.a < c.tall;
      if (OP == CONV_DX_ALL) valid = valid && a >= 0 && a < s.kernel && b >= 0 && b < s.kernel;
      const int from = ((a * s.kernel + b) * s.I + columns[i].channel) * s.O + at.c;
      cp_async<V * sizeof(T)>(tile + To::at(Cursor<V>::row() + i * STEP, Cursor<V>::column()),
                              source + (valid ? from : 0), valid);
    }
  }
};

// Adds up a tile that `pieces` blocks, from `first` on, have computed: RADIX at a time as a tree, so the order does not
// depend on who comes when. True for the block that has the sum; no block waits for another.
// partial: BM x BN values for each of two slots a block, since a share may end one tile and begin another.
template <int M, int N>
__device__ __forceinline__ bool sum_pieces(T (&acc)[M][N][4], int first, int pieces, T* partial, unsigned* counters) {
  int rank = blockIdx.x - first;
  auto slot = [&](int r) { return 2 * (first + r) + (r == 0); };
  auto at = [&](int r, int i, int j) {
    return reinterpret_cast<Vec<4>*>(partial) + ((size_t)slot(r) * M * N + i * N + j) * THREADS + threadIdx.x;
  };
  for (int step = 1; step < pieces; step *= RADIX, counters += 2 * gridDim.x) {
#pragma unroll
    for (int i = 0; i < M; ++i)
#pragma unroll
      for (int j = 0; j < N; ++j) *at(rank, i, j) = {acc[i][j][0], acc[i][j][1], acc[i][j][2], acc[i][j][3]};
    const int lead = rank / (step * RADIX) * step * RADIX, members = min(RADIX, ceil_div(pieces - lead, step));
    if (!last_block(counters + slot(lead), members)) return false;
#pragma unroll
    for (int i = 0; i < M; ++i)
#pragma unroll
      for (int j = 0; j < N; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) acc[i][j][e] = 0;
    for (int member = 0; member < members; ++member) {
#pragma unroll
      for (int i = 0; i < M; ++i)
#pragma unroll
        for (int j = 0; j < N; ++j) {
          const Vec<4> piece = *at(lead + member * step, i, j);
#pragma unroll
          for (int e = 0; e < 4; ++e) acc[i][j][e] += piece.at[e];
        }
    }
    rank = lead;
  }
  return true;
}

// Mean and sum of squared distances from it, for each column of a tile of which `rows` rows are real.
template <int BM, int BN, int WM, int WN>
__device__ __forceinline__ void tile_moments(const T (&acc)[WM / 16][WN / 8][4], int rows, int columns, int wm, int wn,
                                             T* mean_of, T* squares_of) {
  SHARED(T, sums, [2][BM / WM][BN]);
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  T total[WN / 8][2] = {}, mean[WN / 8][2] = {};
#pragma unroll
  for (int pass = 0; pass < 2; ++pass) {
#pragma unroll
    for (int j = 0; j < WN / 8; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        T sum = 0;
#pragma unroll
        for (int i = 0; i < WM / 8; ++i) {
          const T d = acc[i / 2][j][i % 2 * 2 + e] - mean[j][e];
          if (wm + i * 8 + g < rows) sum += pass ? d * d : d;
        }
        for (int lanes = 4; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(FULL, sum, lanes);
        if (g == 0) sums[pass][wm / WM][wn + j * 8 + t * 2 + e] = sum;
      }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < WN / 8; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        total[j][e] = 0;
        for (int i = 0; i < BM / WM; ++i) total[j][e] += sums[pass][i][wn + j * 8 + t * 2 + e];
        if (pass == 0) mean[j][e] = total[j][e] / rows;
      }
  }
#pragma unroll
  for (int j = 0; j < WN / 8; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int n = wn + j * 8 + t * 2 + e;
      if (wm == 0 && g == 0 && n < columns) mean_of[n] = mean[j][e], squares_of[n] = total[j][e];
    }
}

// np: mean = sum f_i m_i; var = sum f_i (v_i + (m_i - mean)^2), over all tiles of these columns, by one block. Distances
// are taken from the first tile's mean, which makes one pass as sound as two.
template <Op OP, int BM, int BN>
__device__ __forceinline__ void merge_moments(const Shape& s, const T* tiles, int n0, int columns, T* moments) {
  constexpr int PARTS = THREADS / BN;
  SHARED(T, sums, [2][PARTS][BN]);
  const int n = threadIdx.x % BN, part = threadIdx.x / BN;
  T mean = 0, squares = 0, count = 0;
  const T origin = n0 + n < columns ? tiles[n0 + n] : 0;
  for (int q = 0, before = 0; q < classes<OP>(s); ++q) {
    const Class c = pixel_class<OP>(s, q);
    const int rows = s.images * c.pixels(), count_of = ceil_div(rows, BM);
    count += rows;
#pragma unroll 4
    for (int i = part; i < count_of; i += PARTS) {
      if (n0 + n >= columns) break;
      const T* tile = tiles + (size_t)(before + i) * 2 * columns + n0 + n;
      const T d = tile[0] - origin, f = min(BM, rows - i * BM);
      mean += f * d, squares += tile[columns] + f * d * d;
    }
    before += count_of;
  }
  sums[0][part][n] = mean, sums[1][part][n] = squares;
  __syncthreads();
  if (part || n0 + n >= columns) return;
  for (int i = 1; i < PARTS; ++i) mean += sums[0][i][n], squares += sums[1][i][n];
  mean /= count;
  moments[n0 + n] = origin + mean;
  moments[columns + n0 + n] = squares / count - mean * mean;
}

template <Op OP, int BM, int V> struct Operand { using A = Windows<OP, BM, V>; };
template <int BM, int V> struct Operand<CONV_DW, BM, V> { using A = WindowsAcross<BM, V>; };
template <Op OP, int BN, int V> struct OperandB { using B = Weights<OP, BN, V>; };
template <int BN, int V> struct OperandB<CONV, BN, V> { using B = Matrix<BN, V>; };
template <int BN, int V> struct OperandB<CONV_DW, BN, V> { using B = Matrix<BN, V>; };

// a: the gathered image, x or dy (CONV_DX).  b: w, or dy (CONV_DW).  out: y, dx or dw.  moments: (2, columns) or null.
// partial, counters: for sum_pieces.  tiles, columns_done: for the moments.  share: units per block, of `units` in all.
template <Op OP, bool TENSOR, int BM, int BN, int WM, int WN, bool VECTOR>
__global__ void __launch_bounds__(THREADS, BM * BN * sizeof(T) < 32768 ? 3 : 2)
product(const T* __restrict__ a, const T* __restrict__ b, T* __restrict__ out, T* moments, T* partial,
        unsigned* counters, T* tiles, unsigned* columns_done, int images, int H, int W, int I, int h, int w, int O,
        int kernel, int stride, int top, int left, int share, int units,
        int row_tiles_in_all) {
  constexpr int V = VECTOR ? 16 / sizeof(T) : 1;
  using LoadA = typename Operand<OP, BM, V>::A;
  using LoadB = typename OperandB<OP, BN, V>::B;
  using A = typename LoadA::To;
  using B = typename LoadB::To;
  DYN_SHARED(T, buffers);
  const Shape s{images, H, W, I, h, w, O, kernel, top, left, stride};
  const int warp = threadIdx.x / 32, wm = warp / (BN / WN) * WM, wn = warp % (BN / WN) * WN;
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int columns = OP == CONV_DX ? I : OP == CONV_DX_ALL ? stride * stride * I : O;
  const int column_tiles = ceil_div(columns, BN), end = min(units, (int)(blockIdx.x + 1) * share);
  int unit = blockIdx.x * share, units_before = 0, row_tiles_before = 0;  // of the classes before this one

  for (int q = 0; q < classes<OP>(s); ++q) {
    const Class c = pixel_class<OP>(s, q);
    const int channels = OP == CONV ? I : O, pixels = images * c.pixels();
    const int rows = OP == CONV_DW ? kernel * kernel * I : pixels, row_tiles = ceil_div(rows, BM);
    const int depth = OP == CONV_DW ? pixels : c.tall * c.wide * channels, per_tile = max(1, ceil_div(depth, DEPTH));
    const int class_end = units_before + row_tiles * column_tiles * per_tile;

    while (unit < min(end, class_end)) {
      const int tile = (unit - units_before) / per_tile, tile_begin = units_before + tile * per_tile;
      const int m0 = tile / column_tiles * BM, n0 = tile % column_tiles * BN;
      const int from = unit - tile_begin, count = min(end - tile_begin, per_tile) - from;
      unit += count;

      Cursor<V> cursor(channels, c.wide, from);
      T acc[WM / 16][WN / 8][4] = {};
      auto run = [&](auto& load_a, auto& load_b) {
        __syncthreads();  // the tile before has been read
        for (int u = 1 - STAGES; u < count; ++u) {  // the first rounds only fill buffers
          if (u >= 0) {
            cp_async_wait<STAGES - 2>();
            __syncthreads();  // unit u is here, and unit u - 1, whose buffer is filled next, has been read
          }
          const int ahead = u + STAGES - 1;
          if (ahead < count) {
            T* to = buffers + ahead % STAGES * (A::VALUES + B::VALUES);
            if constexpr (OP == CONV_DW) load_a.load(to, s, c, from + ahead);
            else load_a.load(to, cursor, c.tall);
            if constexpr (OP == CONV || OP == CONV_DW) load_b.load(to + A::VALUES, from + ahead);
            else load_b.load(to + A::VALUES, cursor, s, c);
            cursor.next();
          }
          cp_async_commit();
          if (u < 0) continue;
          const T* now = buffers + u % STAGES * (A::VALUES + B::VALUES);
          multiply<TENSOR, A, B, WM, WN>(acc, now, now + A::VALUES, wm, wn);
        }
      };
      if constexpr (OP == CONV_DW) {
        LoadA load_a(a, s, m0);
        LoadB load_b{b, depth, columns, n0};
        run(load_a, load_b);
      } else if constexpr (OP == CONV) {
        LoadA load_a(a, s, c, m0);
        LoadB load_b{b, depth, columns, n0};
        run(load_a, load_b);
      } else {
        LoadA load_a(a, s, c, m0);
        LoadB load_b(b, s, n0, columns);
        run(load_a, load_b);
      }

      const int first = tile_begin / share, last = (tile_begin + per_tile - 1) / share;
      if (!sum_pieces(acc, first, last - first + 1, partial, counters)) continue;

      const bool pairs = columns % 2 == 0 && OP != CONV_DX_ALL && (size_t)out % (2 * sizeof(T)) == 0;
#pragma unroll
      for (int i = 0; i < WM / 8; ++i) {
        const int m = m0 + wm + i * 8 + g;
        if (m >= rows) continue;
        const int row = m / c.width, n = row / c.height, y = (row - n * c.height.by) * c.step + c.y,
                  x = (m - row * c.width.by) * c.step + c.x;
        T* to = out + (OP == CONV || OP == CONV_DW ? m * O : ((n * H + y) * W + x) * I);
#pragma unroll
        for (int j = 0; j < WN / 8; ++j) {
          const int at = n0 + wn + j * 8 + t * 2;
          const T *value = &acc[i / 2][j][i % 2 * 2];
          if (pairs) {
            if (at < columns) *reinterpret_cast<Pair*>(to + at) = {value[0], value[1]};
            continue;
          }
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const Column k = column_of<OP>(s, at + e);
            if (at + e < columns && (OP != CONV_DX_ALL || (y + k.y < H && x + k.x < W)))
              to[(k.y * W + k.x) * I + k.channel] = value[e];
          }
        }
      }
      if (OP == CONV_DW || OP == CONV_DX_ALL || !moments) continue;
      T* mine = tiles + (size_t)(row_tiles_before + m0 / BM) * 2 * columns + n0;
      tile_moments<BM, BN, WM, WN>(acc, min(BM, rows - m0), columns - n0, wm, wn, mine, mine + columns);
      if (last_block(columns_done + n0 / BN, row_tiles_in_all)) merge_moments<OP, BM, BN>(s, tiles, n0, columns, moments);
    }
    units_before = class_end, row_tiles_before += row_tiles;
  }
}
