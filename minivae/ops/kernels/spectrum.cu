// What --sigma spectrum needs beside the other operations: a transform of the residual, and a Student-t's density with
// its gradient, and the energies of bands. Each kernel quotes the lines of plain_sigmas.py that it replaces; columns.cu says what Place is.

//   plain: error[...] = x_hat - x
// Each value gets a thread.
__global__ void subtract(const T* x_hat, const T* x, int count, T* error) {
  begin();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) error[i] = x_hat[i] - x[i];
}

//   plain: da[...] = dy * (1 - y**2)
//   plain: db[...] = da.reshape(-1, len(db)).sum(0)
template <int V>
__global__ void bias_tanh_dx(const T* dy, const T* y, int rows, int c, int columns, T* partial, unsigned* counters,
                             T* da, T* db) {
  SHARED(T, s, [THREADS * V]);
  begin();
  const Place<V> at(c, columns);
  T sum[1][V] = {};
  for (int r = at.row; at.inside && r < rows; r += at.step) {
    const size_t i = (size_t)r * c + at.channel;
    Vec<V> gradient = load<V>(dy + i);
    const Vec<V> slope_from = load<V>(y + i);
    for (int k = 0; k < V; ++k) {
      gradient.at[k] *= 1 - slope_from.at[k] * slope_from.at[k];
      sum[0][k] += gradient.at[k];
    }
    store<V>(da + i, gradient);
  }
  if (!sum_columns<V, 1>(s, at, c, columns, partial, counters, sum) || !at.inside || at.lane > 0) return;
  for (int k = 0; k < V; ++k) db[at.channel + k] = sum[0][k];
}

// y (m, n) = a (m, inner) b (inner, n) for each blockIdx.z, whose a and b begin a_step and b_step values further on; one
// of the two factors is the same for all, and its step is 0.
//   plain: y[...] = x @ c
//   plain: y[...] = r @ x
// A block computes SIDE x SIDE values, a thread every GROUPS-th row of one column, from tiles of both factors in shared
// memory. The factors keep all their bits, which tensor cores would not: noise may be narrower than a grey level, and
// a small coefficient is what is left of pixels a thousand times as large.
__global__ void mix(const T* a, const T* b, int m, int inner, int n, int a_step, int b_step, T* y) {
  constexpr int GROUPS = THREADS / SIDE, RESULTS = SIDE / GROUPS;
  SHARED(T, left, [SIDE][SIDE]);
  SHARED(T, right, [SIDE][SIDE]);
  begin();
  const int column = threadIdx.x % SIDE, group = threadIdx.x / SIDE;
  const int n0 = blockIdx.x * SIDE, m0 = blockIdx.y * SIDE;
  a += (size_t)blockIdx.z * a_step;
  b += (size_t)blockIdx.z * b_step;
  y += (size_t)blockIdx.z * m * n;
  T sum[RESULTS] = {};
  for (int from = 0; from < inner; from += SIDE) {
    __syncthreads();  // the tiles before have been read
    for (int e = 0; e < RESULTS; ++e) {
      const int row = group + e * GROUPS;
      const bool in_a = m0 + row < m && from + column < inner, in_b = from + row < inner && n0 + column < n;
      left[row][column] = in_a ? a[(size_t)(m0 + row) * inner + from + column] : 0;
      right[row][column] = in_b ? b[(size_t)(from + row) * n + n0 + column] : 0;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < SIDE; ++k)
      for (int e = 0; e < RESULTS; ++e) sum[e] += left[group + e * GROUPS][k] * right[k][column];
  }
  for (int e = 0; e < RESULTS; ++e) {
    const int row = m0 + group + e * GROUPS;
    if (row < m && n0 + column < n) y[(size_t)row * n + n0 + column] = sum[e];
  }
}

//   plain: precision = np.exp(-2 * (log_scale + b))
//   plain: ratio = f**2 * precision
//   plain: d = ratio.sum(1)
//   plain: rec[...] = (nu + size) / 2 * np.log1p(d / nu) + (log_scale + b).sum(1) + constant
//   plain: weight = ((nu + size) / (nu + d))[:, None]
// Each image gets a block.
template <int V>
__global__ void student(const T* f, const T* log_scale, const T* b, T nu, T constant, int size, T* rec, T* weight) {
  SHARED(T, s, [2 * THREADS]);
  begin();
  const size_t image = (size_t)blockIdx.x * size;
  T d = 0, logs = 0;
  for (int i = threadIdx.x * V; i < size; i += THREADS * V) {
    const Vec<V> value = load<V>(f + image + i), scale = load<V>(log_scale + image + i), shared_scale = load<V>(b + i);
    for (int k = 0; k < V; ++k) {
      const T log_of_both = scale.at[k] + shared_scale.at[k];
      d += value.at[k] * value.at[k] * exp(-2 * log_of_both);
      logs += log_of_both;
    }
  }
  s[2 * threadIdx.x] = d;
  s[2 * threadIdx.x + 1] = logs;
  fold_rows(s, THREADS, 2);
  if (threadIdx.x > 0) return;
  rec[blockIdx.x] = (nu + size) / 2 * log1p(s[0] / nu) + s[1] + constant;
  weight[blockIdx.x] = (nu + size) / (nu + s[0]);
}

//   plain: df[...] = scale * weight * f * precision
//   plain: dlog_scale[...] = scale * (1 - weight * ratio)
//   plain: db[...] = dlog_scale.sum(0)
template <int V>
__global__ void student_dx(const T* f, const T* log_scale, const T* b, const T* weight, T scale, int rows, int c,
                           int columns, T* partial, unsigned* counters, T* df, T* dlog_scale, T* db) {
  SHARED(T, s, [THREADS * V]);
  begin();
  const Place<V> at(c, columns);
  const Vec<V> shared_scale = load<V>(b + (at.inside ? at.channel : 0));
  T sum[1][V] = {};
  for (int r = at.row; at.inside && r < rows; r += at.step) {
    const size_t i = (size_t)r * c + at.channel;
    const Vec<V> value = load<V>(f + i);
    Vec<V> by_f, by_scale = load<V>(log_scale + i);
    for (int k = 0; k < V; ++k) {
      by_f.at[k] = scale * weight[r] * value.at[k] * exp(-2 * (by_scale.at[k] + shared_scale.at[k]));
      by_scale.at[k] = scale - by_f.at[k] * value.at[k];
      sum[0][k] += by_scale.at[k];
    }
    store<V>(df + i, by_f);
    store<V>(dlog_scale + i, by_scale);
  }
  if (!sum_columns<V, 1>(s, at, c, columns, partial, counters, sum) || !at.inside || at.lane > 0) return;
  for (int k = 0; k < V; ++k) db[at.channel + k] = sum[0][k];
}

// The first of the three steps of log_energy; the second is a product.
//   plain: energy[...] = np.log(f**2 @ pool.T + PIXEL_VAR)
__global__ void squares(const T* f, int count, T* square) {
  begin();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) square[i] = f[i] * f[i];
}

// The third, in place.
//   plain: energy[...] = np.log(f**2 @ pool.T + PIXEL_VAR)
__global__ void log_energy(int count, T* energy) {
  begin();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) energy[i] = log(energy[i] + PIXEL_VAR);
}

//   plain: df[...] = 2 * f * ((denergy / np.exp(energy)) @ pool)
// Each value gets a thread, which goes through the bands. Training does not need it, so it need not be fast.
__global__ void log_energy_dx(const T* denergy, const T* f, const T* pool, const T* energy, int size, int bands,
                              int count, T* df) {
  begin();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int image = i / size;
  T sum = 0;
  for (int j = 0; j < bands; ++j)
    sum += denergy[image * bands + j] / exp(energy[image * bands + j]) * pool[j * size + i % size];
  df[i] = 2 * f[i] * sum;
}
