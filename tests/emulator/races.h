// Races between blocks, found in one run for every order in which blocks could run: part of emulator.h with -DRACES.
//
// A launch compiled with -fsanitize=thread reports each access to memory to the functions at the end of this file,
// which stand in for the sanitizer's own. An access to one of the kernel's arrays must come after the last write of
// another block (a write also after other blocks' reads). Blocks are ordered only as CUDA orders them: what a thread
// wrote before its __threadfence, before an atomicAdd of its block, comes before what a thread does after a
// __threadfence that follows an atomicAdd which found the first one's sum. And each access must come after the thread's
// wait_for_launch_ahead.
#include <map>
#include <set>
#include <unordered_map>

#define UNSEEN __attribute__((no_sanitize_thread))

namespace races {

typedef std::map<int, int> Clock;  // how far each block had come
struct Word { int writer = -1, written = 0; Clock readers; };
struct State {
  std::unordered_map<uintptr_t, Word> words;
  std::unordered_map<uintptr_t, Clock> counters;  // what an atomicAdd of each may know
  std::map<int, int> now;
  std::map<int, Clock> heard;               // by a block's atomicAdds
  std::map<std::pair<int, int>, Clock> known;  // to a thread, since its last fence
  std::set<std::pair<int, int>> unfenced;   // threads that wrote since
};
static std::vector<std::pair<uintptr_t, uintptr_t>> arrays;
static State* state;  // of the launch at hand
static bool busy;
static char message[200];

UNSEEN static int block() { return emu::block_index.x + emu::block_index.y * emu::grid_dim.x; }
UNSEEN static void say(const char* what, int other) {
  if (!message[0])
    snprintf(message, sizeof message, "race: %s: block %d, thread %d, and block %d", what, block(), emu::current->index,
             other);
}
UNSEEN static void join(Clock& to, const Clock& from) {
  for (const auto& entry : from) to[entry.first] = std::max(to[entry.first], entry.second);
}

UNSEEN static void look(uintptr_t begin, size_t bytes, bool write) {
  const int b = block();
  const Clock& known = state->known[{b, emu::current->index}];
  auto before = [&](int other, int time) { return other == b || (known.count(other) && known.at(other) >= time); };
  for (uintptr_t at = begin & ~(uintptr_t)3; at < begin + bytes; at += 4) {
    if (state->counters.count(at)) continue;
    Word& word = state->words[at];
    if (word.writer >= 0 && !before(word.writer, word.written))
      say(write ? "two writes" : "a read of what is written", word.writer);
    if (write) {
      for (const auto& reader : word.readers)
        if (!before(reader.first, reader.second)) say("a write of what is read", reader.first);
      word = {b, state->now[b], {}};
      state->unfenced.insert({b, emu::current->index});
    } else {
      word.readers[b] = state->now[b];
    }
  }
}
UNSEEN static void access(const void* p, size_t bytes, bool write) {
  if (busy || !state) return;
  busy = true;  // what the containers do is not to be looked at
  const uintptr_t begin = (uintptr_t)p;
  bool inside = false;
  for (const auto& array : arrays) inside |= begin >= array.first && begin < array.second;
  if (inside && !emu::current->waited && !message[0])
    snprintf(message, sizeof message, "an access before wait_for_launch_ahead: block %d, thread %d", block(),
             emu::current->index);
  if (inside) look(begin, bytes, write);
  busy = false;
}
UNSEEN static void fence() {
  busy = true;
  const std::pair<int, int> me{block(), emu::current->index};
  join(state->known[me], state->heard[me.first]);
  state->unfenced.erase(me);
  busy = false;
}
UNSEEN static void atomic(void* p) {
  busy = true;
  const int b = block();
  for (const auto& thread : state->unfenced)
    if (thread.first == b) say("atomicAdd after a write that is not fenced", b);
  Clock& counter = state->counters[(uintptr_t)p];
  Clock told;
  told[b] = state->now[b]++;
  for (const auto& entry : state->known)
    if (entry.first.first == b) join(told, entry.second);
  join(state->heard[b], counter);
  join(counter, told);
  busy = false;
}
UNSEEN static void begin() {
  busy = true;
  state = new State;
  message[0] = 0;
  for (unsigned b = 0; b < emu::grid_dim.x * emu::grid_dim.y; ++b) state->now[b] = 1;
  busy = false;
}
UNSEEN static const char* end() {
  busy = true;
  delete state;
  state = nullptr;
  busy = false;
  return message[0] ? message : nullptr;
}

}  // namespace races

extern "C" {
UNSEEN void watch_none() { races::arrays.clear(); }
UNSEEN void watch(void* p, size_t bytes) { races::arrays.push_back({(uintptr_t)p, (uintptr_t)p + bytes}); }
#define ACCESS(bytes) \
  UNSEEN void __tsan_read##bytes(void* p) { races::access(p, bytes, false); } \
  UNSEEN void __tsan_write##bytes(void* p) { races::access(p, bytes, true); } \
  UNSEEN void __tsan_unaligned_read##bytes(void* p) { races::access(p, bytes, false); } \
  UNSEEN void __tsan_unaligned_write##bytes(void* p) { races::access(p, bytes, true); }
ACCESS(1) ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16)
UNSEEN void __tsan_read_range(void* p, size_t n) { races::access(p, n, false); }
UNSEEN void __tsan_write_range(void* p, size_t n) { races::access(p, n, true); }
UNSEEN void __tsan_vptr_update(void*, void*) {}
UNSEEN void __tsan_vptr_read(void*) {}
UNSEEN void __tsan_func_entry(void*) {}
UNSEEN void __tsan_func_exit() {}
UNSEEN void __tsan_init() {}
UNSEEN char __tsan_atomic8_load(const volatile char* p, int) { return *p; }
}
