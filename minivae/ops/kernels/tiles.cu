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

// What is known of each column of a tile of which `rows` rows are real: mean, sum of squared distances from it, rows.
// They are the tile's entry, three times `columns` values.
template <int BM, int BN, int WM, int WN>
__device__ __forceinline__ void tile_moments(const T (&acc)[WM / 16][WN / 8][4], int rows, int columns, int n0, int wm,
                                             int wn, T* entry) {
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
      const int n = n0 + wn + j * 8 + t * 2 + e;
      if (wm == 0 && g == 0 && n < columns) {
        entry[n] = mean[j][e];
        entry[columns + n] = total[j][e];
        entry[2 * columns + n] = rows;
      }
    }
}

// How many counters merge_moments needs for each column of tiles: one for each tile and, past the last, one a level.
__device__ __forceinline__ int counters_of(int tiles) { return tiles + LEVELS; }

//   plain: batch_moments(y, moments)
// from the means m_i and the sums of squared distances s_i of all tiles of these columns, each of r_i rows:
//   mean = sum r_i m_i / sum r_i    squares = sum s_i + r_i (m_i - mean)^2    var = squares / sum r_i
// The last block of every MOMENTS_RADIX tiles merges their entries into that of the first, the last of as many of those
// again, and so on: a tree in a fixed order. Distances are taken from the first entry's mean, which makes one pass as
// accurate as two. All loads of eight rounds are on their way at once.
template <int BN>
__device__ __forceinline__ void merge_moments(T* tiles, unsigned* counters, int tile, int tiles_in_all, int columns,
                                              int n0, T* moments) {
  constexpr int PARTS = THREADS / BN;
  SHARED(T, sums, [3][PARTS][BN]);
  const int n = threadIdx.x % BN, part = threadIdx.x / BN;
  const bool inside = n0 + n < columns;
  const int column = inside ? n0 + n : 0;
  bool whole = false;
  for (int step = 1, level = 0; !whole; step *= MOMENTS_RADIX, ++level) {
    whole = step * MOMENTS_RADIX >= tiles_in_all;
    tile = tile / (step * MOMENTS_RADIX) * step * MOMENTS_RADIX;
    const int members = min(MOMENTS_RADIX, ceil_div(tiles_in_all - tile, step));
    if (!last_block(counters + tile + level, members)) return;
    T* first = tiles + (size_t)tile * 3 * columns + column;
    const T origin = first[0];
    const size_t stride = (size_t)step * 3 * columns;
    const T* entry = first + part * stride;
    T mean = 0, squares = 0, rows = 0;
#pragma unroll 8
    for (int i = part; i < members; i += PARTS, entry += PARTS * stride) {
      const T d = entry[0] - origin, count = entry[2 * columns];
      mean += count * d;
      squares += entry[columns] + count * d * d;
      rows += count;
    }
    sums[0][part][n] = mean;
    sums[1][part][n] = squares;
    sums[2][part][n] = rows;
    __syncthreads();
    if (part == 0 && inside) {
      for (int i = 1; i < PARTS; ++i) {
        mean += sums[0][i][n];
        squares += sums[1][i][n];
        rows += sums[2][i][n];
      }
      mean /= rows;
      squares -= rows * mean * mean;
      first[0] = origin + mean;
      first[columns] = squares;
      first[2 * columns] = rows;
      if (whole) {
        moments[column] = origin + mean;
        moments[columns + column] = squares / rows;
      }
    }
  }
}
