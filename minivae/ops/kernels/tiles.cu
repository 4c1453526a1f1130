// What product.cu does with a tile that is computed: it adds up the tile's pieces and takes its batch-norm moments.

// Adds up a tile that `pieces` blocks, from block `first` on, have computed: RADIX pieces at a time, as a tree, so the
// order does not depend on which block comes when. It is true for the block that has the sum; no block waits for
// another. `partial` holds BM x BN values in each of two slots a block, since a share may end one tile and begin
// another.
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
      if (wm == 0 && g == 0 && n < columns) {
        mean_of[n] = mean[j][e];
        squares_of[n] = total[j][e];
      }
    }
}

//   plain: batch_moments(y, moments)
// by one block, from the means m_i and variances v_i of all tiles of these columns, each a fraction f_i of the rows:
//   mean = sum f_i m_i    var = sum f_i (v_i + (m_i - mean)^2)
// Distances are taken from the first tile's mean, which makes one pass as accurate as two.
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
      mean += f * d;
      squares += tile[columns] + f * d * d;
    }
    before += count_of;
  }
  sums[0][part][n] = mean;
  sums[1][part][n] = squares;
  __syncthreads();
  if (part || n0 + n >= columns) return;
  for (int i = 1; i < PARTS; ++i) {
    mean += sums[0][i][n];
    squares += sums[1][i][n];
  }
  mean /= count;
  moments[n0 + n] = origin + mean;
  moments[columns + n0 + n] = squares / count - mean * mean;
}
