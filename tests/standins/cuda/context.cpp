// The driver, its one device, and contexts: each thread has a stack of them.
#include <cstdio>
#include <cstring>

#include "standin.h"

namespace standin {

namespace {
thread_local std::vector<CUcontext> stack;

constexpr const char* NAME = "Orin (stand-in)";
constexpr int DRIVER_VERSION = 12060;  // JetPack 6.1 and 6.2

// An AGX Orin 64 GB as deviceQuery shows it; the memory model is CUDA for Tegra's.
const std::map<int, int> ATTRIBUTES = {
    {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024},
    {CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32},
    {CU_DEVICE_ATTRIBUTE_CLOCK_RATE, 1300500},
    {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 16},
    {CU_DEVICE_ATTRIBUTE_INTEGRATED, 1},
    {CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY, 1},
    {CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS, 1},
    {CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT, 2},
    {CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1},
    {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 8},
    {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 7},
    {CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY, 1},
    {CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS, 0},
    {CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS, 0},
};

void pop_if_current(CUcontext handle) {
  if (!stack.empty() && stack.back() == handle) stack.pop_back();
}

template <typename Objects>
void drop_of(CUcontext handle, Objects& objects) {
  for (auto at = objects.begin(); at != objects.end();) {
    bool owned = at->second->context == handle;
    driver().left_behind += owned;
    at = owned ? objects.erase(at) : std::next(at);
  }
}

}  // namespace

Driver& driver() {
  static auto* made = new Driver;
  return *made;
}

CUcontext current() { return stack.empty() ? nullptr : stack.back(); }

CUresult check_current() {
  if (!current()) return CUDA_ERROR_INVALID_CONTEXT;
  return driver().contexts.find(current()) ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

void destroy_context(CUcontext handle) {
  auto& all = driver();
  for (auto& [name, stream] : all.streams.objects) {
    if (stream->context == handle) stream->close();
  }
  if (auto context = all.contexts.find(handle); context->null_stream) context->null_stream->close();
  drop_of(handle, all.streams.objects);
  drop_of(handle, all.events.objects);
  drop_of(handle, all.blocks);
  all.contexts.objects.erase(handle);
}

}  // namespace standin

using namespace standin;

extern "C" {

CUresult CUDAAPI cuInit(unsigned int flags) {
  ENTER(nothing);
  REQUIRE(flags == 0, CUDA_ERROR_INVALID_VALUE);
  driver().initialised = true;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDriverGetVersion(int* version) {
  ENTER(nothing);
  REQUIRE(version, CUDA_ERROR_INVALID_VALUE);
  *version = DRIVER_VERSION;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuGetErrorName(CUresult error, const char** text) {
  static thread_local char name[40];
  std::snprintf(name, sizeof name, "CUDA_ERROR_%d", error);
  *text = error ? name : "CUDA_SUCCESS";
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuGetErrorString(CUresult error, const char** text) {
  static const std::map<int, const char*> texts = {{0, "no error"},
                                                   {1, "invalid argument"},
                                                   {2, "out of memory"},
                                                   {3, "initialization error"},
                                                   {100, "no CUDA-capable device is detected"},
                                                   {101, "invalid device ordinal"},
                                                   {201, "invalid device context"},
                                                   {400, "invalid resource handle"},
                                                   {600, "device not ready"},
                                                   {709, "context is destroyed"},
                                                   {719, "unspecified launch failure"},
                                                   {800, "operation not permitted"},
                                                   {801, "operation not supported"},
                                                   {900, "operation not permitted when stream is capturing"},
                                                   {999, "unknown error"}};
  auto found = texts.find(error);
  *text = found == texts.end() ? "unlisted error of the stand-in" : found->second;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGetCount(int* count) {
  ENTER(initialised);
  *count = 1;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGet(CUdevice* device, int ordinal) {
  ENTER(initialised);
  REQUIRE(ordinal == 0, CUDA_ERROR_INVALID_DEVICE);
  *device = 0;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGetName(char* name, int length, CUdevice device) {
  ENTER(initialised);
  REQUIRE(device == 0, CUDA_ERROR_INVALID_DEVICE);
  std::snprintf(name, length, "%s", NAME);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceTotalMem(size_t* bytes, CUdevice device) {
  ENTER(initialised);
  REQUIRE(device == 0, CUDA_ERROR_INVALID_DEVICE);
  *bytes = TOTAL_BYTES;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  ENTER(initialised);
  REQUIRE(device == 0, CUDA_ERROR_INVALID_DEVICE);
  REQUIRE(attribute > 0 && attribute < CU_DEVICE_ATTRIBUTE_MAX, CUDA_ERROR_INVALID_VALUE);
  auto found = ATTRIBUTES.find(attribute);
  *value = found == ATTRIBUTES.end() ? 0 : found->second;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceComputeCapability(int* major, int* minor, CUdevice device) {
  ENTER(initialised);
  REQUIRE(device == 0, CUDA_ERROR_INVALID_DEVICE);
  *major = ATTRIBUTES.at(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
  *minor = ATTRIBUTES.at(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  ENTER(initialised);
  REQUIRE(device == 0, CUDA_ERROR_INVALID_DEVICE);
  auto& all = driver();
  if (auto primary = all.contexts.find(all.primary)) {
    ++primary->uses;
  } else {
    auto made = std::make_shared<Context>();
    made->primary = true;
    all.primary = all.contexts.add(made);
  }
  *context = all.primary;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDevicePrimaryCtxRelease(CUdevice device) {
  ENTER(initialised);
  REQUIRE(device == 0, CUDA_ERROR_INVALID_DEVICE);
  auto primary = driver().contexts.find(driver().primary);
  REQUIRE(primary, CUDA_ERROR_INVALID_CONTEXT);
  if (--primary->uses == 0) destroy_context(driver().primary);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDevicePrimaryCtxGetState(CUdevice device, unsigned int* flags, int* active) {
  ENTER(initialised);
  REQUIRE(device == 0, CUDA_ERROR_INVALID_DEVICE);
  auto primary = driver().contexts.find(driver().primary);
  *flags = primary ? primary->flags : 0;
  *active = primary != nullptr;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDevicePrimaryCtxReset(CUdevice device) {
  ENTER(initialised);
  REQUIRE(device == 0, CUDA_ERROR_INVALID_DEVICE);
  if (driver().contexts.find(driver().primary)) destroy_context(driver().primary);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxCreate(CUcontext* context, unsigned int flags, CUdevice device) {
  ENTER(initialised);
  REQUIRE(device == 0, CUDA_ERROR_INVALID_DEVICE);
  auto made = std::make_shared<Context>();
  made->flags = flags;
  stack.push_back(*context = driver().contexts.add(made));
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxDestroy(CUcontext context) {
  ENTER(initialised);
  auto found = driver().contexts.find(context);
  REQUIRE(found && !found->primary, CUDA_ERROR_INVALID_CONTEXT);
  destroy_context(context);
  pop_if_current(context);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxAttach(CUcontext* context, unsigned int flags) {
  ENTER(context);
  REQUIRE(flags == 0, CUDA_ERROR_INVALID_VALUE);
  *context = current();
  ++driver().contexts.find(current())->uses;
  return CUDA_SUCCESS;
}

// Legal only with the context current to the calling thread.
CUresult CUDAAPI cuCtxDetach(CUcontext context) {
  ENTER(context);
  auto found = driver().contexts.find(context);
  REQUIRE(found && !found->primary && context == current(), CUDA_ERROR_INVALID_CONTEXT);
  if (--found->uses > 0) return CUDA_SUCCESS;
  destroy_context(context);
  pop_if_current(context);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxPushCurrent(CUcontext context) {
  ENTER(initialised);
  REQUIRE(driver().contexts.find(context), CUDA_ERROR_INVALID_CONTEXT);
  stack.push_back(context);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxPopCurrent(CUcontext* context) {
  ENTER(initialised);
  REQUIRE(current(), CUDA_ERROR_INVALID_CONTEXT);
  if (context) *context = current();
  stack.pop_back();
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxGetCurrent(CUcontext* context) {
  ENTER(initialised);
  *context = current();
  return CUDA_SUCCESS;
}

// Replaces the top of the thread's stack; null pops it.
CUresult CUDAAPI cuCtxSetCurrent(CUcontext context) {
  ENTER(initialised);
  REQUIRE(!context || driver().contexts.find(context), CUDA_ERROR_INVALID_CONTEXT);
  if (!stack.empty()) stack.pop_back();
  if (context) stack.push_back(context);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxGetDevice(CUdevice* device) {
  ENTER(context);
  *device = 0;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxGetFlags(unsigned int* flags) {
  ENTER(context);
  *flags = driver().contexts.find(current())->flags;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxGetApiVersion(CUcontext context, unsigned int* version) {
  ENTER(initialised);
  REQUIRE(driver().contexts.find(context ? context : current()), CUDA_ERROR_INVALID_CONTEXT);
  *version = 3020;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  ENTER(context);
  if (least) *least = LEAST_PRIORITY;
  if (greatest) *greatest = GREATEST_PRIORITY;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxSynchronize(void) {
  std::vector<std::shared_ptr<Stream>> streams;
  {
    ENTER(context);
    for (auto& [name, stream] : driver().streams.objects) {
      if (stream->context == current()) streams.push_back(stream);
    }
    if (auto& null_stream = driver().contexts.find(current())->null_stream) streams.push_back(null_stream);
  }
  for (auto& stream : streams) stream->mark()->wait();
  return CUDA_SUCCESS;
}
}
