// Sums down the columns of a matrix, for the kernels that end in them: batch norm's and those of spectrum.cu.
//
// x is a matrix of `rows` rows and c channels, channels side by side. A thread takes V neighbouring channels, 16 bytes
// of floats, and walks down the rows, so that its channels' constants are read once and stay in registers. A block is
// `columns` such threads wide, which makes 128 bytes, a line of the cache; its other threads stand on further rows.
// blockIdx.y is the strip of channels, blockIdx.x the share of the rows: neighbouring rows go to neighbouring threads.
//
// A sum over rows has three levels: each thread adds its own rows, the block adds its threads' sums in shared memory
// (fold_rows), and the last block of a strip to finish adds the sums of the strip's blocks. Every order is fixed, so
// two runs give the same bits.

template <int V> struct Place {
  int column, lane, lanes, channel, row, step;
  bool inside;
  __device__ Place(int c, int columns)
      : column(threadIdx.x % columns), lane(threadIdx.x / columns), lanes(blockDim.x / columns),
        channel((blockIdx.y * columns + column) * V), row(blockIdx.x * lanes + lane), step(gridDim.x * lanes),
        inside(channel < c) {}
};

// Each channel's sum of `value` over the block's rows, in every thread of the channel; s (THREADS * V) is scratch.
template <int V> __device__ void sum_rows(T* s, const Place<V>& at, int columns, T* value) {
  __syncthreads();  // the last sums in s have been read
  for (int k = 0; k < V; ++k) s[(at.lane * columns + at.column) * V + k] = value[k];
  fold_rows(s, at.lanes, columns * V);
  for (int k = 0; k < V; ++k) value[k] = s[at.column * V + k];
}

// sum holds, of SUMS quantities, a thread's own sums over its rows; afterwards those over all rows, in every thread of
// the channel. True for the one block of each strip that has them. partial has room for SUMS values of each block and
// channel, counters a number for each strip.
template <int V, int SUMS>
__device__ bool sum_columns(T* s, const Place<V>& at, int c, int columns, T* partial, unsigned* counters,
                            T (&sum)[SUMS][V]) {
  for (int j = 0; j < SUMS; ++j) sum_rows<V>(s, at, columns, sum[j]);
  if (gridDim.x == 1) return true;
  if (at.inside && at.lane == 0)
    for (int j = 0; j < SUMS; ++j)
      for (int k = 0; k < V; ++k) partial[(size_t)(SUMS * blockIdx.x + j) * c + at.channel + k] = sum[j][k];
  if (!last_block(counters + blockIdx.y, gridDim.x)) return false;
  for (int j = 0; j < SUMS; ++j)
    for (int k = 0; k < V; ++k) sum[j][k] = 0;
  // A load for every round, with a factor of 0 past the end: a condition would make each wait for the one before.
  const T* from = partial + at.channel;
  const int blocks = gridDim.x;
  for (int i = at.lane; at.inside && i < blocks; i += AHEAD * at.lanes) {
    Vec<V> parts[AHEAD][SUMS];
    for (int a = 0; a < AHEAD; ++a) {
      const size_t block = min(i + a * at.lanes, blocks - 1);
      for (int j = 0; j < SUMS; ++j) parts[a][j] = load<V>(from + (SUMS * block + j) * c);
    }
    for (int a = 0; a < AHEAD; ++a) {
      const T factor = i + a * at.lanes < blocks;
      for (int j = 0; j < SUMS; ++j)
        for (int k = 0; k < V; ++k) sum[j][k] += factor * parts[a][j].at[k];
    }
  }
  for (int j = 0; j < SUMS; ++j) sum_rows<V>(s, at, columns, sum[j]);
  return true;
}
