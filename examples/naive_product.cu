// The product that everything else in minivae/ops/kernels improves on, to read first: y (N, O) = x (N, I) w (I, O), one
// thread for each value of y. docs/kernels.md goes on from here; tests/test_examples.py runs it.
//
//   plain: y[...] = x @ w
//
// Neighbouring threads have neighbouring columns o, so the 32 loads of w that a warp does at once are one line of 128
// bytes, and its loads of x are one value for all. Still each multiplication costs two loads, while a multiprocessor can
// do four multiplications for each: it waits for its memory all the time.
extern "C" __global__ void naive_product(const float* x, const float* w, int N, int I, int O, float* y) {
  const int o = blockIdx.x * blockDim.x + threadIdx.x;
  const int n = blockIdx.y;
  if (o >= O || n >= N) return;  // the last block of a row may stand over its end
  float sum = 0;
  for (int i = 0; i < I; ++i) sum += x[n * I + i] * w[i * O + o];
  y[n * O + o] = sum;
}
