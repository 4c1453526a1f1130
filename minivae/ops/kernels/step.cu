// A training step's ends: noise, batch, Adam, log. Each kernel quotes the lines of plain.py that it replaces.

// philox.philox4x32: ten rounds of two products of 32 x 32 bits.
__device__ __forceinline__ uint4 philox4x32(uint4 c, unsigned k0, unsigned k1) {
  for (int round = 0; round < 10; ++round) {
    const unsigned p_high = __umulhi(0xD2511F53u, c.x), p_low = 0xD2511F53u * c.x;
    const unsigned q_high = __umulhi(0xCD9E8D57u, c.z), q_low = 0xCD9E8D57u * c.z;
    c = make_uint4(q_high ^ c.y ^ k0, q_low, p_high ^ c.w ^ k1, p_low);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// counter = (position // 4, stream, step % 2**32, step >> 32), key = seed
__device__ __forceinline__ uint4 random_words(unsigned long long seed, unsigned stream, unsigned long long step,
                                              unsigned position) {
  return philox4x32(make_uint4(position / 4, stream, (unsigned)step, (unsigned)(step >> 32)), (unsigned)seed,
                    (unsigned)(seed >> 32));
}

//   plain: out[...] = philox.normals(seed, stream, t[0], out.size).reshape(out.shape)
// A thread makes the four normals of one counter, in double as NumPy does, whatever T is: a batch needs a few hundred.
__global__ void normal(unsigned long long seed, unsigned stream, const long long* t, int count, T* out) {
  begin();
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
  if (i >= count) return;
  const uint4 w = random_words(seed, stream, t[0], i);
  const unsigned pairs[2][2] = {{w.x, w.y}, {w.z, w.w}};
  for (int k = 0; k < 2; ++k) {
    const double u = (pairs[k][0] + 0.5) / 4294967296.0, v = (pairs[k][1] + 0.5) / 4294967296.0;
    const double radius = sqrt(-2 * log(u));
    double sine, cosine;
    sincospi(2 * v, &sine, &cosine);
    if (i + 2 * k < count) out[i + 2 * k] = radius * cosine;
    if (i + 2 * k + 1 < count) out[i + 2 * k + 1] = radius * sine;
  }
}

//   plain: x[...] = images[index[t[0] % len(index)]] / x.dtype.type(HALF_RANGE) - 1
// blockIdx.x is the image's place in the batch, blockIdx.y a part of the image; a thread turns four bytes into four
// values. `size`, the values of an image, is a multiple of 4, since height and width are even.
__global__ void gather(const unsigned char* images, const int* index, const long long* t, int window, int size, T* x) {
  begin();
  const int batch = gridDim.x, row = index[t[0] % window * batch + blockIdx.x];
  const unsigned char* from = images + (size_t)row * size;
  T* to = x + (size_t)blockIdx.x * size;
  const int i = (blockIdx.y * blockDim.x + threadIdx.x) * 4;
  if (i >= size) return;
  const unsigned bytes = *reinterpret_cast<const unsigned*>(from + i);
  Vec<4> v;
  for (int k = 0; k < 4; ++k) v.at[k] = (T)(bytes >> 8 * k & 255) / HALF_RANGE - 1;
  store<4>(to + i, v);
}

//   plain: labels[...] = table[t[0] % len(table)]
__global__ void take_labels(const int* table, const long long* t, int window, int images, int* labels) {
  begin();
  const int n = blockIdx.x * blockDim.x + threadIdx.x;
  if (n < images) labels[n] = table[t[0] % window * images + n];
}

//   plain: noise = philox.uniforms(seed, stream, t[0], x.size, first).reshape(x.shape) - 0.5
//   plain: x += noise / HALF_RANGE
// A thread takes the four values of one counter, in double as NumPy does, so that they have the same bits. `count` is a
// multiple of 4, as in gather, and so is `first`.
__global__ void dequantize(unsigned long long seed, unsigned stream, const long long* t, int first, int count, T* x) {
  begin();
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
  if (i >= count) return;
  const uint4 w = random_words(seed, stream, t[0], first + i);
  const unsigned words[4] = {w.x, w.y, w.z, w.w};
  Vec<4> v = load<4>(x + i);
  for (int k = 0; k < 4; ++k) v.at[k] = v.at[k] + ((words[k] + 0.5) / 4294967296.0 - 0.5) / (double)HALF_RANGE;
  store<4>(x + i, v);
}

//   plain: rate[0] = lr[0] * np.sqrt(1 - beta2 ** (t[0] + 1)) / (1 - beta1 ** (t[0] + 1))
// lr and t are read on the device, so that a captured graph follows them.
__global__ void adam_rate(const double* lr, const long long* t, double beta1, double beta2, T* rate) {
  begin();
  const double count = t[0] + 1;
  rate[0] = lr[0] * sqrt(1 - pow(beta2, count)) / (1 - pow(beta1, count));
}

//   plain: m[...] = beta1 * m + (1 - beta1) * grads
//   plain: v[...] = beta2 * v + (1 - beta2) * grads**2
//   plain: values -= float(rate[0]) * m / (np.sqrt(v) + eps)
// A launch takes a part of the flat buffers, a thread V values (16 bytes of floats) of each at a time. Memory bounds its
// speed: 28 bytes a parameter.
template <int V>
__global__ void adam(const T* rate, double beta1, double beta2, T eps, int size, T* values, const T* grads, T* m,
                     T* v) {
  begin();
  const T step = rate[0];
  const T keep1 = beta1, keep2 = beta2, take1 = 1 - beta1, take2 = 1 - beta2;
  const size_t stride = (size_t)gridDim.x * blockDim.x * V;
  for (size_t i = (size_t)(blockIdx.x * blockDim.x + threadIdx.x) * V; i < size; i += stride) {
    const Vec<V> g = load<V>(grads + i);
    Vec<V> mi = load<V>(m + i);
    Vec<V> vi = load<V>(v + i);
    Vec<V> p = load<V>(values + i);
    for (int k = 0; k < V; ++k) {
      mi.at[k] = keep1 * mi.at[k] + take1 * g.at[k];
      vi.at[k] = keep2 * vi.at[k] + take2 * (g.at[k] * g.at[k]);
      p.at[k] -= step * (mi.at[k] / (sqrt(vi.at[k]) + eps));
    }
    store<V>(m + i, mi);
    store<V>(v + i, vi);
    store<V>(values + i, p);
  }
}

//   plain: total += term
// A thread takes V values.
template <int V> __global__ void add(const T* term, int size, T* total) {
  begin();
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) * V;
  if (i >= size) return;
  Vec<V> sum = load<V>(total + i);
  const Vec<V> other = load<V>(term + i);
  for (int k = 0; k < V; ++k) sum.at[k] += other.at[k];
  store<V>(total + i, sum);
}

//   plain: history[t[0] % len(history)] = rec.mean(), kl.mean()
//   plain: t += 1
// One block adds in double. It ends the step, and nothing else runs beside it.
__global__ void record(const T* rec, const T* kl, int images, int window, long long* t, double* history) {
  SHARED(double, s, [2 * THREADS]);
  begin();
  double sum[2] = {};
  for (int n = threadIdx.x; n < images; n += THREADS) {
    sum[0] += rec[n];
    sum[1] += kl[n];
  }
  s[2 * threadIdx.x] = sum[0];
  s[2 * threadIdx.x + 1] = sum[1];
  fold_rows(s, THREADS, 2);
  if (threadIdx.x == 0) {
    history[t[0] % window * 2] = s[0] / images;
    history[t[0] % window * 2 + 1] = s[1] / images;
    t[0] += 1;
  }
}
