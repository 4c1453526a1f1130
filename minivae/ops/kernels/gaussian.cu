// The latent code and the image: reparameterization and KL, tanh and ln p(x|z), the latter with its gradient in the
// same pass. Each kernel quotes the lines of plain.py that it replaces.

constexpr T SIGMA_FLOOR2 = SIGMA_FLOOR * SIGMA_FLOOR;

__device__ __forceinline__ T softplus(T s) { return (s > 0 ? s : 0) + log1p(exp(-fabs(s))); }
__device__ __forceinline__ T sigmoid(T s) { return 1 / (1 + exp(-s)); }

//   plain: var[...] = np.logaddexp(s, 0) + VAR_FLOOR
//   plain: z[...] = mean + np.sqrt(var) * eps
//   plain: terms = mean**2 + var - 1 - np.log(var) if analytic else z**2 - eps**2 - np.log(var)
//   plain: kl[...] = terms.sum(1) / 2
// An image has about ten latents, so each image gets a warp, whose lanes take the latents in turn and add by shuffles.
__global__ void latent(const T* mean, const T* s, const T* eps, int analytic, int images, int size, T* z, T* var,
                       T* kl) {
  begin();
  const int image = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (image >= images) return;
  T sum = 0;
  for (int i = image * size + lane; i < (image + 1) * size; i += 32) {
    const T v = softplus(s[i]) + VAR_FLOOR, code = mean[i] + sqrt(v) * eps[i];
    var[i] = v;
    z[i] = code;
    sum += (analytic ? mean[i] * mean[i] + v - 1 : code * code - eps[i] * eps[i]) - log(v);
  }
  for (int other = 16; other; other /= 2) sum += __shfl_xor_sync(FULL, sum, other);
  if (lane == 0) kl[image] = sum / 2;
}

//   plain: dmean[...] = dz + scale * (mean if analytic else z)
//   plain: through_z = dz if analytic else dmean
//   plain: dvar = through_z * eps / (2 * np.sqrt(var)) - scale / (2 * var) + (scale / 2 if analytic else 0)
//   plain: ds[...] = dvar * np.exp(-np.logaddexp(0, -s))
// Each of a few hundred elements gets a thread.
__global__ void latent_dx(const T* dz, const T* mean, const T* s, const T* eps, int analytic, T scale, const T* z,
                          const T* var, int count, T* dmean, T* ds) {
  begin();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const T d = dz[i] + scale * (analytic ? mean[i] : z[i]), v = var[i];
  dmean[i] = d;
  ds[i] = ((analytic ? dz[i] : d) * eps[i] / (2 * sqrt(v)) - scale / (2 * v) + (analytic ? scale / 2 : 0)) *
          sigmoid(s[i]);
}

//   plain: zy[...] = np.concatenate([z, np.eye(zy.shape[1] - z.shape[1])[labels]], axis=1)
// Each value of zy gets a thread; `size` of a row's `width` values are z's.
__global__ void append_label(const T* z, const int* labels, int size, int width, int count, T* zy) {
  begin();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int n = i / width, column = i % width;
  zy[i] = column < size ? z[n * size + column] : (T)(column - size == labels[n]);
}

//   plain: dz[...] = dzy[:, : dz.shape[1]]
__global__ void append_label_dx(const T* dzy, int size, int width, int count, T* dz) {
  begin();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) dz[i] = dzy[i / size * width + i % size];
}

//   plain: x_hat[...] = np.tanh(a + b)
// Each value gets a thread.
__global__ void bias_tanh(const T* a, const T* b, int c, int count, T* x_hat) {
  begin();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) x_hat[i] = tanh(a[i] + b[i % c]);
}

// The tail of the two kernels below: rec = factor * (the image's sum) + constant, and db. Each thread has put into s,
// for its channels, rows of HEADS sums for db (width HEADS c) and one sum for rec (width c). A block belongs to one
// image and leaves its sums in `partial`; the last block adds them all, an image's for rec and everyone's for db. They
// are a few thousand numbers, which one block adds in less time than a second launch would take.
template <int HEADS>
__device__ void finish(T* s, int lanes, int c, int images, int parts, T factor, T constant, T* partial,
                       unsigned* counter, T* rec, T* db) {
  const int width = (HEADS + 1) * c, heads = HEADS * c, rows = blockDim.x / heads;
  fold_rows(s, lanes, width);
  for (int i = threadIdx.x; i < width; i += blockDim.x) partial[(size_t)blockIdx.x * width + i] = s[i];
  if (!last_block(counter, gridDim.x)) return;
  for (int n = threadIdx.x; n < images; n += blockDim.x) {
    T sum = 0;
    for (int part = n * parts; part < (n + 1) * parts; ++part)
      for (int i = heads; i < width; ++i) sum += partial[(size_t)part * width + i];
    rec[n] = factor * sum + constant;
  }
  if (threadIdx.x < rows * heads) {
    T sum = 0;
    for (int block = threadIdx.x / heads; block < gridDim.x; block += rows)
      sum += partial[(size_t)block * width + threadIdx.x % heads];
    s[threadIdx.x] = sum;
  }
  fold_rows(s, rows, heads);
  if (threadIdx.x < heads) db[threadIdx.x] = s[threadIdx.x];
}

//   plain: bias_tanh(a, b, x_hat)
//   plain: error = x_hat - x
//   plain: precision = np.exp(-2 * log_sigma[0])
//   plain: rec[...] = precision / 2 * (error**2).sum((1, 2, 3)) + x[0].size * log_sigma[0]
//   plain: da[...] = scale * precision * error * (1 - x_hat**2)
//   plain: db[...] = da.sum((0, 1, 2))
// Each image of `size` values gets `parts` blocks; a thread takes V values at a time, 16 bytes of floats. blockDim.x is
// a multiple of c, so the k-th values that a thread meets are all of one channel, whose sums stay in registers.
template <int V>
__global__ void tanh_gaussian(const T* a, const T* b, const T* x, const T* log_sigma, T scale, int images, int size,
                              int c, int parts, T* partial, unsigned* counter, T* x_hat, T* rec, T* da, T* db) {
  SHARED(T, s, [2 * IMAGE_THREADS * V]);
  begin();
  const T precision = exp(-2 * log_sigma[0]);
  const size_t image = blockIdx.x / parts * (size_t)size;
  T bias[V], sum[V] = {}, square[V] = {};
  for (int k = 0; k < V; ++k) bias[k] = b[(threadIdx.x * V + k) % c];
  for (int i = (blockIdx.x % parts * blockDim.x + threadIdx.x) * V; i < size; i += parts * blockDim.x * V) {
    Vec<V> y = load<V>(a + image + i), gradient;
    const Vec<V> target = load<V>(x + image + i);
    for (int k = 0; k < V; ++k) {
      y.at[k] = tanh(y.at[k] + bias[k]);
      const T error = y.at[k] - target.at[k];
      gradient.at[k] = error * (1 - y.at[k] * y.at[k]) * (scale * precision);
      sum[k] += gradient.at[k];
      square[k] += error * error;
    }
    store<V>(x_hat + image + i, y);
    store<V>(da + image + i, gradient);
  }
  for (int k = 0; k < V; ++k) {
    const int row = (threadIdx.x * V + k) / c, channel = (threadIdx.x * V + k) % c;
    s[row * 2 * c + channel] = sum[k];
    s[row * 2 * c + c + channel] = square[k];
  }
  finish<1>(s, blockDim.x * V / c, c, images, parts, precision / 2, size * log_sigma[0], partial, counter, rec, db);
}

//   plain: x_hat[...] = np.tanh(a[..., :c] + b[:c])
//   plain: t = a[..., c:] + b[c:]
//   plain: var = np.logaddexp(t, 0) + t.dtype.type(SIGMA_FLOOR**2)
//   plain: error = x_hat - x
//   plain: ratio = error**2 / var
//   plain: rec[...] = (ratio + np.log(var)).sum((1, 2, 3)) / 2
//   plain: da[..., :c] = error * (1 - x_hat**2) / var * scale
//   plain: da[..., c:] = (1 - ratio) / (2 * var) * np.exp(-np.logaddexp(0, -t)) * scale
//   plain: db[...] = da.sum((0, 1, 2))
// It is tiled as tanh_gaussian is, but a thread takes one value of x at a time, whose two values of a lie c apart.
__global__ void tanh_gaussian_pixel(const T* a, const T* b, const T* x, T scale, int images, int size, int c, int parts,
                                    T* partial, unsigned* counter, T* x_hat, T* rec, T* da, T* db) {
  SHARED(T, s, [3 * IMAGE_THREADS]);
  begin();
  const size_t image = blockIdx.x / parts * (size_t)size;
  const int channel = threadIdx.x % c, row = threadIdx.x / c;
  T sum = 0, sum2 = 0, terms = 0;
  for (int i = blockIdx.x % parts * blockDim.x + threadIdx.x; i < size; i += parts * blockDim.x) {
    const size_t first = (image + i - channel) * 2 + channel, second = first + c;
    const T y = tanh(a[first] + b[channel]), t = a[second] + b[c + channel], var = softplus(t) + SIGMA_FLOOR2;
    const T error = y - x[image + i], ratio = error * error / var;
    const T d1 = error * (1 - y * y) / var * scale, d2 = (1 - ratio) / (2 * var) * sigmoid(t) * scale;
    x_hat[image + i] = y;
    da[first] = d1;
    da[second] = d2;
    sum += d1;
    sum2 += d2;
    terms += ratio + log(var);
  }
  s[row * 3 * c + channel] = sum;
  s[row * 3 * c + c + channel] = sum2;
  s[row * 3 * c + 2 * c + channel] = terms;
  finish<2>(s, blockDim.x / c, c, images, parts, (T)0.5, 0, partial, counter, rec, db);
}

// The sum of rec, by one block of THREADS: rec holds one number for each image of the batch.
__device__ T sum_images(const T* rec, int images) {
  SHARED(T, s, [THREADS]);
  T sum = 0;
  for (int n = threadIdx.x; n < images; n += THREADS) sum += rec[n];
  s[threadIdx.x] = sum;
  fold_rows(s, THREADS, 1);
  return s[0];
}

//   plain: dlog_sigma[0] = scale * (size - 2 * (rec - size * log_sigma[0])).sum()
__global__ void log_sigma_dx(const T* rec, const T* log_sigma, int size, T scale, int images, T* dlog_sigma) {
  begin();
  const T sum = sum_images(rec, images), all = (T)images * size;
  if (threadIdx.x == 0) dlog_sigma[0] = scale * (all - 2 * (sum - all * log_sigma[0]));
}

//   plain: log_sigma[0] = np.log(max(2 * rec.mean() / size, SIGMA_FLOOR**2)) / 2
// A NaN stays a NaN.
__global__ void fit_sigma(const T* rec, int size, int images, T* log_sigma) {
  begin();
  const T mean = 2 * sum_images(rec, images) / images / size;
  if (threadIdx.x == 0) log_sigma[0] = log(mean < SIGMA_FLOOR2 ? SIGMA_FLOOR2 : mean) / 2;
}
