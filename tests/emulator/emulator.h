// Runs CUDA C kernels on a CPU to test that they are right; it says nothing about speed.
//
// A block is a set of fibers on one OS thread, one fiber per CUDA thread, and blocks run one after the other. A fiber
// runs until it meets a barrier or a warp collective; the scheduler lets the waiting fibers go when all have come.
//   order 0: lanes, warps and blocks first to last; cp.async lands at once       (shows a tile overwritten too early)
//   order 1: last to first;                         cp.async lands at its wait   (shows a wait that is missing)
//   order 2: shuffled again at every barrier;       cp.async lands at its wait
// It finds divergent barriers, deadlocks, missing barriers and waits, shared memory read before it is written (every
// block starts with all bits set: NaN), misaligned vectors, and, through guard pages, accesses out of range.
// It does not cover memory order between blocks (but see atomicAdd and races.h), bank conflicts, the tensor core's exact rounding and
// flushed denormals.
#pragma once
#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <math.h>
#include <string>
#include <type_traits>
#include <sys/mman.h>
#include <typeinfo>
#include <ucontext.h>
#include <utility>
#include <vector>

#define EMULATOR 1
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __CUDA_ARCH__ 900
#define SHARED(type, name, dims) \
  alignas(16) static type name dims; \
  static const bool name##_known = emu::shared_array(&name, sizeof name); \
  (void)name##_known
#define DYN_SHARED(type, name) type* name = reinterpret_cast<type*>(emu::dynamic_shared)

struct uint3 { unsigned x, y, z; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline double2 make_double2(double x, double y) { return {x, y}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

namespace emu {

enum State { RUNNING, AT_WARP, AT_BLOCK, DONE, FAULTED };
enum Collective { SYNC, SHUFFLE, BALLOT, MMA, MATRICES };
struct Copy { void* to; const void* from; unsigned bytes; int group; };  // from null: zeros

struct Fiber {
  jmp_buf context;
  ucontext_t entry;
  bool started, waited;  // for the launch ahead
  uint3 thread;
  int index, line, source, group, fences;
  State state;
  Collective collective;
  unsigned mask;
  uint64_t value, result;  // of a shuffle or a ballot
  float* d;                // of an mma
  unsigned a[4], b[2];
  unsigned* values;        // of a load of matrices
  const void* row;
  std::vector<Copy> copies;
};

constexpr int MAX_THREADS = 1024;
constexpr size_t STACK = 64 * 1024, PAGE = 4096;
alignas(128) static unsigned char dynamic_shared[228 * 1024];
static Fiber fibers[MAX_THREADS];
static Fiber* current;
static uint3 block_index, block_dim, grid_dim;
static jmp_buf scheduler;
static char message[256];
static int order, skipped_line;
static unsigned random_state;
static void (*run_kernel)(void*);
static void* kernel_arguments;

struct SharedArray { void* data; size_t bytes; };
static std::vector<SharedArray>& shared_arrays() { static std::vector<SharedArray> list; return list; }
static bool shared_array(void* data, size_t bytes) {
  memset(data, 0xff, bytes);
  shared_arrays().push_back({data, bytes});
  return true;
}

[[noreturn]] static void fail(const char* what, int line) {
  snprintf(message, sizeof message, "line %d: %s: block (%u, %u, %u) thread (%u, %u, %u)", line, what, block_index.x,
           block_index.y, block_index.z, current->thread.x, current->thread.y, current->thread.z);
  current->state = FAULTED;
  _longjmp(scheduler, 1);
}
static void on_signal(int, siginfo_t* info, void*) {  // a guard page around an array or under a fiber's stack
  char what[64];
  snprintf(what, sizeof what, "illegal access to %p", info->si_addr);
  fail(what, current->line);
}

// Fibers

static void fiber_main() {
  for (;;) {
    run_kernel(kernel_arguments);
    current->state = DONE;
    if (!_setjmp(current->context)) _longjmp(scheduler, 1);
  }
}
static void make_fiber(Fiber& f) {
  static char* stacks = (char*)mmap(nullptr, MAX_THREADS * (STACK + PAGE), PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  char* stack = stacks + (&f - fibers) * (STACK + PAGE);
  mprotect(stack, PAGE, PROT_NONE);
  getcontext(&f.entry);
  f.entry.uc_stack.ss_sp = stack + PAGE;
  f.entry.uc_stack.ss_size = STACK;
  f.entry.uc_link = nullptr;
  makecontext(&f.entry, fiber_main, 0);
  f.started = false;
}
__attribute__((noinline)) static void resume(Fiber& f) {
  current = &f;
  if (_setjmp(scheduler)) return;
  if (f.started) _longjmp(f.context, 1);
  f.started = true;
  setcontext(&f.entry);
}
__attribute__((noinline)) static void wait(State state, int line) {
  current->state = state;
  current->line = line;
  if (!_setjmp(current->context)) _longjmp(scheduler, 1);
}

// What a warp does together: each lane leaves its operands and waits; the last to come does the work for all.

static float tf32(unsigned bits) {  // the tensor core ignores the low 13 bits
  bits &= 0xffffe000u;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
static void multiply(Fiber* warp) {  // d (16, 8) += a (16, 8) b (8, 8), spread over lanes as PTX's m16n8k8 has it
  float a[16][8], b[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][t + i / 2 * 4] = tf32(warp[lane].a[i]);
    for (int i = 0; i < 2; ++i) b[t + i * 4][g] = tf32(warp[lane].b[i]);
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float sum = 0;
      for (int k = 0; k < 8; ++k) sum += a[row][k] * b[k][column];
      warp[lane].d[i] += sum;
    }
}
static void load(Fiber* warp) {  // four matrices of 8 x 4 values, lane 8 i + r having the address of row r of matrix i
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) memcpy(warp[lane].values + i, (const char*)warp[8 * i + lane / 4].row + lane % 4 * 4, 4);
}
static bool release_warp(Fiber* warp, int lanes) {  // true if some lanes may go on
  for (int i = 0; i < lanes; ++i) {
    Fiber& first = warp[i];
    if (first.state != AT_WARP) continue;
    bool complete = true;
    for (int j = 0; j < lanes; ++j)
      complete &= !(first.mask >> j & 1) || (warp[j].state == AT_WARP && warp[j].mask == first.mask &&
                                              warp[j].line == first.line && warp[j].collective == first.collective);
    if (!complete) continue;
    if (first.collective == MMA) multiply(warp);
    if (first.collective == MATRICES) load(warp);
    uint64_t votes = 0;
    for (int j = 0; j < lanes; ++j)
      if (first.mask >> j & 1) votes |= uint64_t(warp[j].value != 0) << j;
    for (int j = 0; j < lanes; ++j) {
      Fiber& f = warp[j];
      if (!(first.mask >> j & 1)) continue;
      if (f.collective == BALLOT) f.result = votes;
      if (f.collective == SHUFFLE)  // from a lane that takes no part: poison
        f.result = f.source < lanes && first.mask >> f.source & 1 ? warp[f.source].value : ~uint64_t(0);
      f.state = RUNNING;
    }
    return true;
  }
  return false;
}
static void collective(Collective what, unsigned mask, int line) {
  const int lane = current->index % 32;
  if (!(mask >> lane & 1)) fail("a lane outside the mask of its collective", line);
  current->collective = what;
  current->mask = mask;
  wait(AT_WARP, line);
}
template <class V> V shuffle(unsigned mask, V value, int source, int line) {
  static_assert(sizeof(V) <= 8);
  current->value = 0;
  memcpy(&current->value, &value, sizeof value);
  current->source = source;
  collective(SHUFFLE, mask, line);
  memcpy(&value, &current->result, sizeof value);
  return value;
}

// Blocks

static void permutation(int* p, int n) {
  for (int i = 0; i < n; ++i) p[i] = order == 1 ? n - 1 - i : i;
  for (int i = n - 1; order == 2 && i > 0; --i) {
    random_state = random_state * 1664525u + 1013904223u;
    std::swap(p[i], p[(random_state >> 8) % (i + 1)]);
  }
}
template <class... A> static bool stop(const char* format, A... values) {
  snprintf(message, sizeof message, format, values...);
  return false;
}
static bool run_block() {
  const int threads = block_dim.x * block_dim.y * block_dim.z, warps = (threads + 31) / 32;
  for (int i = 0; i < threads; ++i) {
    Fiber& f = fibers[i];
    f.thread = {i % block_dim.x, i / block_dim.x % block_dim.y, i / (block_dim.x * block_dim.y)};
    f.index = i;
    f.line = f.group = f.fences = 0;
    f.waited = false;
    f.state = RUNNING;
    f.copies.clear();
  }
  for (;;) {
    int warp_order[32], lane_order[32], waiting = 0, first = -1;
    permutation(warp_order, warps);
    for (int w = 0; w < warps; ++w) {
      Fiber* warp = fibers + warp_order[w] * 32;
      const int lanes = threads - warp_order[w] * 32 < 32 ? threads - warp_order[w] * 32 : 32;
      do {
        permutation(lane_order, lanes);
        for (int i = 0; i < lanes; ++i)
          if (warp[lane_order[i]].state == RUNNING) {
            resume(warp[lane_order[i]]);
            if (warp[lane_order[i]].state == FAULTED) return false;
          }
      } while (release_warp(warp, lanes));
    }
    for (int i = 0; i < threads; ++i) {
      const Fiber& f = fibers[i];
      if (f.state == AT_WARP) return stop("deadlock: thread %d waits for its warp at line %d, mask %08x", i, f.line, f.mask);
      if (f.state != AT_BLOCK) continue;
      if (first < 0) first = i;
      if (f.line != fibers[first].line) return stop("divergent __syncthreads: lines %d and %d, thread %d", fibers[first].line, f.line, i);
      ++waiting;
    }
    if (!waiting) return true;
    if (waiting < threads) return stop("%d of %d threads are gone at the __syncthreads of line %d", threads - waiting, threads, fibers[first].line);
    for (int i = 0; i < threads; ++i) fibers[i].state = RUNNING;
  }
}

}  // namespace emu

#ifdef RACES
#include "races.h"
#else
namespace races {
static inline void begin() {}
static inline const char* end() { return nullptr; }
static inline void fence() {}
static inline void atomic(void*) {}
static inline void access(const void*, size_t, bool) {}
}  // namespace races
#endif

namespace emu {

template <class... A> struct Call { void (*kernel)(A...); void** values; };
template <class... A, size_t... I> void invoke(Call<A...>* c, std::index_sequence<I...>) {
  c->kernel(*(std::remove_const_t<A>*)c->values[I]...);
}
// shape: grid x y z, block x y z.  settings: order, seed, the line whose barrier or wait is skipped (0: none).
template <class... A> int launch(void (*kernel)(A...), const unsigned* shape, size_t shared, const int* settings, void** values) {
  Call<A...> call{kernel, values};
  run_kernel = [](void* c) { invoke((Call<A...>*)c, std::index_sequence_for<A...>{}); };
  kernel_arguments = &call;
  grid_dim = {shape[0], shape[1], shape[2]};
  block_dim = {shape[3], shape[4], shape[5]};
  order = settings[0], random_state = settings[1], skipped_line = settings[2];
  const size_t threads = size_t(block_dim.x) * block_dim.y * block_dim.z;
  const unsigned blocks = grid_dim.x * grid_dim.y * grid_dim.z;
  if (threads < 1 || threads > MAX_THREADS || blocks < 1 || shared > sizeof dynamic_shared || grid_dim.y > 65535 || grid_dim.z > 65535)
    return stop("bad launch: %d threads, %d blocks, %d bytes of shared memory", threads, blocks, shared), 1;

  static bool made[MAX_THREADS];
  for (size_t i = 0; i < threads; ++i)
    if (!made[i]) make_fiber(fibers[i]), made[i] = true;
  static char signal_stack[32 * 1024];
  stack_t alternate{}, old_stack;
  alternate.ss_sp = signal_stack, alternate.ss_size = sizeof signal_stack;
  sigaltstack(&alternate, &old_stack);
  struct sigaction action{}, old_segv, old_bus;
  action.sa_sigaction = on_signal, action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigaction(SIGSEGV, &action, &old_segv);
  sigaction(SIGBUS, &action, &old_bus);

  bool good = true;
  races::begin();
  std::vector<int> block_order(blocks);
  permutation(block_order.data(), blocks);
  for (unsigned i = 0; good && i < blocks; ++i) {
    const unsigned b = block_order[i];
    block_index = {b % grid_dim.x, b / grid_dim.x % grid_dim.y, b / (grid_dim.x * grid_dim.y)};
    memset(dynamic_shared, 0xff, shared);
    for (const SharedArray& s : shared_arrays()) memset(s.data, 0xff, s.bytes);
    good = run_block();
  }
  const char* race = races::end();
  if (good && race) good = stop("%s", race);
  if (!good)
    for (bool& m : made) m = false;  // fibers stopped half-way start afresh
  sigaction(SIGSEGV, &old_segv, nullptr);
  sigaction(SIGBUS, &old_bus, nullptr);
  sigaltstack(&old_stack, nullptr);
  return good ? 0 : 1;
}
template <class... A> const char* signature(void (*)(A...)) {  // mangled types, each followed by a comma
  static std::string types = [] { std::string s; ((s += typeid(A).name(), s += ','), ...); return s; }();
  return types.c_str();
}

}  // namespace emu

// CUDA's names. Each barrier and wait knows its line, by which a test can skip it.

#define threadIdx (emu::current->thread)
#define blockIdx (emu::block_index)
#define blockDim (emu::block_dim)
#define gridDim (emu::grid_dim)
#define LINE int line = __builtin_LINE()
static inline void __syncthreads(LINE) { if (line != emu::skipped_line) emu::wait(emu::AT_BLOCK, line); }
static inline void __syncwarp(unsigned mask = ~0u, LINE) { if (line != emu::skipped_line) emu::collective(emu::SYNC, mask, line); }
template <class V> V __shfl_sync(unsigned mask, V v, int lane, LINE) { return emu::shuffle(mask, v, lane & 31, line); }
template <class V> V __shfl_xor_sync(unsigned mask, V v, int x, LINE) { return emu::shuffle(mask, v, (emu::current->index & 31) ^ x, line); }
template <class V> V __shfl_down_sync(unsigned mask, V v, unsigned d, LINE) {
  const int lane = emu::current->index & 31;
  return emu::shuffle(mask, v, lane + d < 32 ? lane + d : lane, line);
}
static inline unsigned __ballot_sync(unsigned mask, int vote, LINE) {
  emu::current->value = vote != 0;
  emu::collective(emu::BALLOT, mask, line);
  return (unsigned)emu::current->result;
}
static inline int __any_sync(unsigned mask, int vote, LINE) { return __ballot_sync(mask, vote, line) != 0; }
static inline int __all_sync(unsigned mask, int vote, LINE) { return __ballot_sync(mask, vote, line) == mask; }
static inline void __threadfence() {
  ++emu::current->fences;
  races::fence();
}
// Integers only: the order in which blocks add floats would show in the result. It tells other blocks that this one's
// results are there, so all its threads must have fenced theirs.
template <class V> V atomicAdd(V* p, V v, LINE) {
  static_assert(std::is_integral_v<V>);
  for (unsigned i = 0; i < blockDim.x * blockDim.y * blockDim.z; ++i)
    if (!emu::current->fences || emu::fibers[i].fences < emu::current->fences)
      emu::fail("atomicAdd before every thread's __threadfence", line);
  races::atomic(p);
  const V old = *p;
  *p += v;
  return old;
}
template <class V> V __ldg(const V* p) { return *p; }
static inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
static inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
static inline double rsqrt(double x) { return 1 / sqrt(x); }
static inline float rsqrt(float x) { return 1 / sqrtf(x); }
static inline void sincospi(double x, double* s, double* c) { *s = sin(M_PI * x), *c = cos(M_PI * x); }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }

// The PTX that device.h has under the same names.

static inline void wait_for_launch_ahead() { emu::current->waited = true; }
static inline void let_next_launch_begin() {}

static inline void mma_m16n8k8(float* d, const unsigned* a, const unsigned* b, LINE) {
  emu::Fiber& f = *emu::current;
  f.d = d;
  memcpy(f.a, a, sizeof f.a);
  memcpy(f.b, b, sizeof f.b);
  emu::collective(emu::MMA, ~0u, line);
}
static inline void load_matrices(unsigned* values, const void* row, LINE) {
  emu::Fiber& f = *emu::current;
  if ((uintptr_t)row % 16) emu::fail("load_matrices: a misaligned row", line);
  f.values = values, f.row = row;
  emu::collective(emu::MATRICES, ~0u, line);
}
template <int BYTES> static inline void cp_async(void* shared, const void* global, bool valid = true, LINE) {
  if (((uintptr_t)shared | (uintptr_t)global) % BYTES) emu::fail("cp.async of a misaligned address", line);
  if (valid) races::access(global, BYTES, false);
  if (emu::order) {
    memset(shared, 0xff, BYTES);
    emu::current->copies.push_back({shared, valid ? global : nullptr, BYTES, emu::current->group});
  } else if (valid) {
    memcpy(shared, global, BYTES);
  } else {
    memset(shared, 0, BYTES);
  }
}
static inline void cp_async_commit(LINE) { if (line != emu::skipped_line) ++emu::current->group; }
template <int N> static inline void cp_async_wait(LINE) {
  if (line == emu::skipped_line) return;
  auto& copies = emu::current->copies;
  size_t kept = 0;
  for (const emu::Copy& c : copies) {
    if (c.group >= emu::current->group - N) copies[kept++] = c;
    else if (c.from) memcpy(c.to, c.from, c.bytes);
    else memset(c.to, 0, c.bytes);
  }
  copies.resize(kept);
}
