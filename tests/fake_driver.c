// A libcuda whose cuLaunchKernelEx prints what it was given, as cuda.h declares it; it has nothing else.
#include <stdio.h>
#include <string.h>

typedef struct {
  int id;
  char padding[4];
  union { char padding[64]; int allowed; } value;
} Attribute;
typedef struct {
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
  Attribute* attributes;
  unsigned attribute_count;
} Config;

static int launch(const Config* c, void* function, void** args, void** extra) {
  const Attribute* a = c->attributes;
  printf("%u %u %u %u %u %u %u %p %p\n", c->grid[0], c->grid[1], c->grid[2], c->block[0], c->block[1], c->block[2],
         c->shared_bytes, c->stream, function);
  printf("%u %d %d\n", c->attribute_count, a->id, a->value.allowed);
  printf("%d %u %g %g %llu %p\n", *(int*)args[0], *(unsigned*)args[1], *(float*)args[2], *(double*)args[3],
         *(unsigned long long*)args[4], *(void**)args[5]);
  fflush(stdout);
  return function == (void*)13 ? 700 : 0;
}

int cuGetProcAddress(const char* name, void** found, int version, unsigned long long flags, int* status) {
  *found = 0;
  if (!strncmp(name, "cuLaunchKernelEx", 16)) *found = launch;
  if (!strncmp(name, "cuGetProcAddress", 16)) *found = cuGetProcAddress;
  return *found ? 0 : 500;
}
int cuGetProcAddress_v2(const char* name, void** found, int version, unsigned long long flags, int* status) {
  return cuGetProcAddress(name, found, version, flags, status);
}
