// Batch normalization, forward and backward: the kernels of cuda_norm.py. Each quotes the lines of plain.py that it
// replaces. columns.cu says how they are tiled.

template <int V> struct Constants {  // of a thread's channels: u = (x - mean) scale + offset, scale = gamma rstd
  T mean[V], rstd[V], scale[V], offset[V];
  __device__ Constants(const T* moments, const T* gamma, const T* beta, int channel, int c) {
    const Vec<V> means = load<V>(moments + channel), vars = load<V>(moments + c + channel);
    const Vec<V> gammas = load<V>(gamma + channel), betas = load<V>(beta + channel);
    for (int k = 0; k < V; ++k) {
      mean[k] = means.at[k];
      rstd[k] = 1 / sqrt(vars.at[k] + BN_EPS);
      scale[k] = gammas.at[k] * rstd[k];
      offset[k] = betas.at[k];
    }
  }
};

//   plain: rows = x.reshape(-1, x.shape[-1])
//   plain: moments[0] = rows.mean(0)
//   plain: moments[1] = rows.var(0)
// Each block finds the mean m_i and the variance v_i of its rows, a fraction f_i of all rows; then
//   mean = sum f_i m_i    var = sum f_i (v_i + (m_i - mean)^2)
// A block reads its rows twice, the second time from the cache: from sums of squares a small variance would lose its
// digits.
template <int V>
__global__ void batch_moments(const T* x, int rows, int c, int columns, T* partial, unsigned* counters, T* moments) {
  SHARED(T, s, [THREADS * V]);
  begin();
  const Place<V> at(c, columns);
  T mean[V] = {}, spread[V] = {};
  auto rows_of = [&](int block) {
    const int rest = rows % at.step - block * at.lanes;
    return rows / at.step * at.lanes + min(max(rest, 0), at.lanes);
  };
  for (int r = at.row; at.inside && r < rows; r += at.step) {
    const Vec<V> v = load<V>(x + (size_t)r * c + at.channel);
    for (int k = 0; k < V; ++k) mean[k] += v.at[k];
  }
  sum_rows<V>(s, at, columns, mean);
  for (int k = 0; k < V; ++k) mean[k] /= rows_of(blockIdx.x);
  for (int r = at.row; at.inside && r < rows; r += at.step) {
    const Vec<V> v = load<V>(x + (size_t)r * c + at.channel);
    for (int k = 0; k < V; ++k) spread[k] += (v.at[k] - mean[k]) * (v.at[k] - mean[k]);
  }
  sum_rows<V>(s, at, columns, spread);
  if (at.inside && at.lane == 0)
    for (int k = 0; k < V; ++k) {
      partial[(size_t)2 * blockIdx.x * c + at.channel + k] = mean[k];
      partial[(size_t)(2 * blockIdx.x + 1) * c + at.channel + k] = spread[k];
    }
  if (!last_block(counters + blockIdx.y, gridDim.x)) return;

  T whole[V] = {}, var[V] = {};
  for (int i = at.lane; at.inside && i < gridDim.x; i += at.lanes)
    for (int k = 0; k < V; ++k) whole[k] += rows_of(i) * partial[(size_t)2 * i * c + at.channel + k];
  sum_rows<V>(s, at, columns, whole);
  for (int k = 0; k < V; ++k) whole[k] /= rows;
  for (int i = at.lane; at.inside && i < gridDim.x; i += at.lanes)
    for (int k = 0; k < V; ++k) {
      const T off = partial[(size_t)2 * i * c + at.channel + k] - whole[k];
      var[k] += partial[(size_t)(2 * i + 1) * c + at.channel + k] + rows_of(i) * off * off;
    }
  sum_rows<V>(s, at, columns, var);
  if (at.inside && at.lane == 0)
    for (int k = 0; k < V; ++k) {
      moments[at.channel + k] = whole[k];
      moments[c + at.channel + k] = var[k] / rows;
    }
}

//   plain: u = gamma * (x - mean) / np.sqrt(var + BN_EPS) + beta
//   plain: y[...] = np.maximum(u, slope * u)
// With `moving`, the first block of each strip also does
//   plain: moving_average(moving, moments, decay)
// Each element of x is read once and no thread waits for another.
template <int V>
__global__ void batch_norm(const T* x, const T* moments, const T* gamma, const T* beta, T slope, T* moving, T decay,
                           T gain, int rows, int c, int columns, T* y) {
  begin();
  const Place<V> at(c, columns);
  if (!at.inside) return;
  const Constants<V> is(moments, gamma, beta, at.channel, c);
  for (int r = at.row; r < rows; r += at.step) {
    const size_t i = (size_t)r * c + at.channel;
    Vec<V> v = load<V>(x + i);
    for (int k = 0; k < V; ++k) {
      const T u = (v.at[k] - is.mean[k]) * is.scale[k] + is.offset[k];
      v.at[k] = u > slope * u ? u : slope * u;
    }
    store<V>(y + i, v);
  }
  if (moving && at.row == 0)
    for (int i = at.channel; i < 2 * c; i += c) {
      Vec<V> average = load<V>(moving + i);
      const Vec<V> now = load<V>(moments + i);
      for (int k = 0; k < V; ++k) average.at[k] = decay * average.at[k] + gain * now.at[k];
      store<V>(moving + i, average);
    }
}

// g = dy leaky'(u) of one vector, and centred = x - mean.
//   plain: g = dy * np.where(gamma * n + beta < 0, slope, 1)
template <int V>
__device__ __forceinline__ Vec<V> slope_of(const T* dy, const T* x, size_t i, const Constants<V>& is, T slope,
                                           T* centred) {
  Vec<V> g = load<V>(dy + i);
  const Vec<V> v = load<V>(x + i);
  for (int k = 0; k < V; ++k) {
    centred[k] = v.at[k] - is.mean[k];
    if (centred[k] * is.scale[k] + is.offset[k] < 0) g.at[k] *= slope;
  }
  return g;
}

//   plain: g = g - by_beta / rows - n * by_gamma / rows
//   plain: dx[...] = gamma * rstd * g
// as dx = scale g + by_x (x - mean) + constant; fraction is 1 / rows of the whole batch, or 0 in test mode. dx may be
// dy: a thread writes only what it alone has read.
template <int V>
__device__ void write_dx(const Place<V>& at, const T* dy, const T* x, const Constants<V>& is, T slope, T fraction,
                         const T* by_gamma, const T* by_beta, int rows, int c, T* dx) {
  T by_x[V], constant[V];
  for (int k = 0; k < V; ++k) {
    by_x[k] = -is.scale[k] * is.rstd[k] * by_gamma[k] * fraction;
    constant[k] = -is.scale[k] * by_beta[k] * fraction;
  }
  for (int r = at.row; at.inside && r < rows; r += at.step) {
    const size_t i = (size_t)r * c + at.channel;
    T centred[V];
    Vec<V> g = slope_of<V>(dy, x, i, is, slope, centred);
    for (int k = 0; k < V; ++k) g.at[k] = is.scale[k] * g.at[k] + (by_x[k] * centred[k] + constant[k]);
    store<V>(dx + i, g);
  }
}

//   plain: dgamma[...] = (g * n).reshape(-1, len(gamma)).sum(0)
//   plain: dbeta[...] = g.reshape(-1, len(beta)).sum(0)
// Where one block has all rows of its strip (gridDim.x is 1, for the few rows of a dense layer) it also writes dx,
// which saves a launch; otherwise dx is null and batch_norm_dx writes it.
template <int V>
__global__ void __launch_bounds__(THREADS, 16 / sizeof(T))
batch_norm_sums(const T* dy, const T* x, const T* moments, const T* gamma, const T* beta, T slope, T fraction, int rows,
                int c, int columns, T* partial, unsigned* counters, T* dx, T* dgamma, T* dbeta) {
  SHARED(T, s, [THREADS * V]);
  begin();
  const Place<V> at(c, columns);
  const Constants<V> is(moments, gamma, beta, at.inside ? at.channel : 0, c);
  T sums[2][V] = {};  // of g and of g (x - mean)
  for (int r = at.row; at.inside && r < rows; r += at.step) {
    T centred[V];
    const Vec<V> g = slope_of<V>(dy, x, (size_t)r * c + at.channel, is, slope, centred);
    for (int k = 0; k < V; ++k) {
      sums[0][k] += g.at[k];
      sums[1][k] += g.at[k] * centred[k];
    }
  }
  if (!sum_columns<V, 2>(s, at, c, columns, partial, counters, sums)) return;
  for (int k = 0; k < V; ++k) sums[1][k] *= is.rstd[k];
  if (at.inside && at.lane == 0)
    for (int k = 0; k < V; ++k) {
      dbeta[at.channel + k] = sums[0][k];
      dgamma[at.channel + k] = sums[1][k];
    }
  if (dx) write_dx<V>(at, dy, x, is, slope, fraction, sums[1], sums[0], rows, c, dx);
}

// The second pass where several blocks, or several machines, share the rows: dx from the sums over the whole batch.
//   plain: dx[...] = gamma * rstd * g
template <int V>
__global__ void batch_norm_dx(const T* dy, const T* x, const T* moments, const T* gamma, const T* beta, T slope,
                              T fraction, const T* by_gamma, const T* by_beta, int rows, int c, int columns, T* dx) {
  begin();
  const Place<V> at(c, columns);
  if (!at.inside) return;
  const Constants<V> is(moments, gamma, beta, at.channel, c);
  const Vec<V> dots = load<V>(by_gamma + at.channel), sums = load<V>(by_beta + at.channel);
  write_dx<V>(at, dy, x, is, slope, fraction, dots.at, sums.at, rows, c, dx);
}

//   plain: moving[...] = decay * moving + (1 - decay) * moments
// A handful of values, where batch_norm does not do it.
__global__ void moving_average(const T* moments, T decay, T gain, int count, T* moving) {
  begin();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) moving[i] = decay * moving[i] + gain * moments[i];
}
