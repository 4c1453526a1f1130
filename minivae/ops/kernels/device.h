// What every kernel file is compiled after: the few PTX instructions that we use, under plain names, and the block-wide
// helpers. The launcher puts a line in front, which defines T (float or double) and the constants that the kernels
// share with Python. No CUDA header is needed. The tests' emulator has the part under #ifndef EMULATOR in C++.

constexpr unsigned FULL = 0xffffffffu;  // all lanes of a warp

#ifndef EMULATOR
#define SHARED(type, name, dims) __shared__ __align__(16) type name dims
#define DYN_SHARED(type, name) \
  extern __shared__ __align__(128) unsigned char dynamic_shared[]; \
  type* name = reinterpret_cast<type*>(dynamic_shared)

// d (16, 8) += a (16, 8) b (8, 8), by a warp. With g = lane / 4 and t = lane % 4 a lane holds
//   a: (g, t) (g + 8, t) (g, t + 4) (g + 8, t + 4)   b: (t, g) (t + 4, g)
//   d: (g, 2t) (g, 2t+1) (g + 8, 2t) (g + 8, 2t+1)
// Empty below sm_80: the launcher sends such cards to kernels without tensor cores.
__device__ __forceinline__ void mma_m16n8k8(float* d, const unsigned* a, const unsigned* b) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Four 8 x 8 matrices of 16 bits, which are 8 x 4 of 32 bits: lane 8 i + r gives the address of row r of matrix i (16
// bytes), and gets value lane % 4 of row lane / 4 of each matrix. One instruction instead of four loads.
__device__ __forceinline__ void load_matrices(unsigned* values, const void* row) {
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(values[0]), "=r"(values[1]), "=r"(values[2]), "=r"(values[3])
               : "r"(from)
               : "memory");
}

// Asynchronous copy of BYTES (16, 8 or 4) from global to shared memory, both aligned to BYTES; zeros where not valid
// (the global address must be a legal one even then). Copies belong to the group of the next commit.
template <int BYTES> __device__ __forceinline__ void cp_async(void* shared, const void* global, bool valid = true) {
  static_assert(BYTES == 16 || BYTES == 8 || BYTES == 4, "cp_async: 16, 8 or 4 bytes");
#if __CUDA_ARCH__ >= 800
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? BYTES : 0;
  if (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(to), "l"(global), "r"(bytes), "n"(BYTES)
                 : "memory");
#else
  if (BYTES == 16)
    *static_cast<float4*>(shared) = valid ? *static_cast<const float4*>(global) : make_float4(0, 0, 0, 0);
  else if (BYTES == 8)
    *static_cast<double*>(shared) = valid ? *static_cast<const double*>(global) : 0;
  else
    *static_cast<float*>(shared) = valid ? *static_cast<const float*>(global) : 0;
#endif
}
__device__ __forceinline__ void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits for all groups of this thread but the last N. Other threads' copies are there after the next __syncthreads.
template <int N> __device__ __forceinline__ void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// A launch may begin while the one ahead of it still runs (early_launch.py; from sm_90 on, and empty elsewhere). It waits
// before it touches an array: from then on all that the launches ahead wrote is there.
__device__ __forceinline__ void wait_for_launch_ahead() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The next launch may begin when every block has called this or ended, as far as there is room for its blocks.
__device__ __forceinline__ void let_next_launch_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
#endif

// What a product of two factors is multiplied by after mma, which reads 10 bits of a factor's mantissa and drops the rest.
// A factor is too small then by half a unit of the last place kept, ln(2) / 2048 of its value, on average over
// mantissas, so the products' mean error becomes 0. One that has no more bits (such as 1) counts for 3e-4 too much, less
// than the 5e-4 that rounding may cost. Rounding each factor would take an instruction for each and as much time as mma.
constexpr T TF32_PRODUCT = (1 + 0.6931472f / 2048) * (1 + 0.6931472f / 2048);

// What every kernel but a product begins with.
__device__ __forceinline__ void begin() {
  wait_for_launch_ahead();
  let_next_launch_begin();
}

// V neighbouring values, loaded and stored 16 bytes at a time.
template <int V> struct alignas(V == 4 ? 16 : sizeof(T)) Vec {
  T at[V];
};
struct alignas(2 * sizeof(T)) Pair {
  T first, second;
};

// True for every thread of the last block to come here, of the `blocks` that count in *counter. What the other blocks
// wrote before is visible then. *counter is 0 before and after. It is an integer that only says which block is last, so
// a sum that this block then takes in a fixed order is the same in every run.
__device__ __forceinline__ bool last_block(unsigned* counter, unsigned blocks) {
  SHARED(unsigned, last, );
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1u) == blocks - 1;
    if (last) *counter = 0;
  }
  __syncthreads();
  if (last) __threadfence();
  return last;
}
template <int V> __device__ __forceinline__ Vec<V> load(const T* p) { return *reinterpret_cast<const Vec<V>*>(p); }
template <int V> __device__ __forceinline__ void store(T* p, const Vec<V>& v) { *reinterpret_cast<Vec<V>*>(p) = v; }

// s holds rows x width values of a block, s[row * width + i]; afterwards s[i] is their sum over the rows, always added
// in the same order: the lower half of the rows onto the upper, again and again.
template <class V> __device__ __forceinline__ void fold_rows(V* s, int rows, int width) {
  __syncthreads();
  while (rows > 1) {
    const int half = (rows + 1) / 2;
    for (int i = threadIdx.x; i < (rows - half) * width; i += blockDim.x) s[i] += s[i + half * width];
    rows = half;
    __syncthreads();
  }
}
