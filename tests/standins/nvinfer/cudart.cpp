// The few calls of CUDA's runtime that Polygraphy makes, on whatever driver library is there: as the real runtime does,
// it opens libcuda.so.1 itself and makes the primary context current on each thread that calls it.

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>

namespace {

constexpr int INSUFFICIENT_DRIVER = 35;

template <class... A>
int driver(char const* name, A... parameters) {
  static void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  void* const function = library != nullptr ? dlsym(library, name) : nullptr;
  return function != nullptr ? reinterpret_cast<int (*)(A...)>(function)(parameters...) : INSUFFICIENT_DRIVER;
}

int begin() {
  static thread_local bool current = false;
  if (current) return 0;
  void* context = nullptr;
  int code = driver("cuInit", 0u);
  if (code == 0) code = driver("cuDevicePrimaryCtxRetain", &context, 0);
  if (code == 0) code = driver("cuCtxSetCurrent", context);
  current = code == 0;
  return code;
}

template <class... A>
int call(char const* name, A... parameters) {
  int const code = begin();
  return code == 0 ? driver(name, parameters...) : code;
}

}  // namespace

extern "C" {

int cudaStreamCreate(void** stream) { return call("cuStreamCreate", stream, 0u); }
int cudaStreamSynchronize(void* stream) { return call("cuStreamSynchronize", stream); }
int cudaStreamDestroy(void* stream) { return call("cuStreamDestroy_v2", stream); }
int cudaMalloc(void** address, size_t size) { return call("cuMemAlloc_v2", reinterpret_cast<uint64_t*>(address), size); }
int cudaFree(void* address) {  // of nothing is allowed
  return address == nullptr ? begin() : call("cuMemFree_v2", reinterpret_cast<uint64_t>(address));
}
int cudaMemcpy(void* to, void const* from, size_t size, int) {
  return call("cuMemcpy", reinterpret_cast<uint64_t>(to), reinterpret_cast<uint64_t>(from), size);
}
int cudaMemcpyAsync(void* to, void const* from, size_t size, int, void* stream) {
  return call("cuMemcpyAsync", reinterpret_cast<uint64_t>(to), reinterpret_cast<uint64_t>(from), size, stream);
}
}
