// Memory kinds on host memory: allocation, addresses, copies and fills, each checked against the live allocations.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "standin.h"

namespace standin {

namespace {

constexpr std::size_t PAGE = 4096;
constexpr std::size_t DEVICE_ALIGNMENT = 256;  // what cuMemAlloc gives, and no more (CUDA C++ Programming Guide)
constexpr int POISON = 0xCD;                   // new memory is not zeroed
constexpr std::size_t POISONED_BYTES = std::size_t(256) << 20;

// Device memory starts 256 bytes into a page: no test passes because of an alignment nobody promised.
CUresult allocate(Kind kind, std::size_t bytes, unsigned flags, std::uintptr_t& base) {
  REQUIRE(bytes, CUDA_ERROR_INVALID_VALUE);
  REQUIRE(bytes <= TOTAL_BYTES - live_bytes(), CUDA_ERROR_OUT_OF_MEMORY);
  std::size_t offset = kind == Kind::device ? DEVICE_ALIGNMENT : 0;
  void* owned = std::aligned_alloc(PAGE, (bytes + offset + PAGE - 1) / PAGE * PAGE);
  REQUIRE(owned, CUDA_ERROR_OUT_OF_MEMORY);
  base = reinterpret_cast<std::uintptr_t>(owned) + offset;
  std::memset(reinterpret_cast<void*>(base), POISON, std::min(bytes, POISONED_BYTES));
  driver().blocks[base] = std::make_shared<Block>(kind, base, bytes, current(), flags, owned);
  return CUDA_SUCCESS;
}

// What is freed stays until the work already enqueued is done, as cuMemFree's implicit synchronisation gives.
CUresult release(std::uintptr_t base, std::initializer_list<Kind> kinds, CUresult otherwise) {
  auto at = driver().blocks.find(base);
  bool fits = at != driver().blocks.end() && std::count(kinds.begin(), kinds.end(), at->second->kind);
  REQUIRE(fits, otherwise);
  auto keep = [block = at->second](std::shared_ptr<Stream>& stream) {
    if (stream && stream->busy()) stream->push([block] {});
  };
  for (auto& [name, stream] : driver().streams.objects) keep(stream);
  for (auto& [name, context] : driver().contexts.objects) keep(context->null_stream);
  driver().blocks.erase(at);
  return CUDA_SUCCESS;
}

bool on_device(CUdeviceptr address, std::size_t bytes) {
  auto block = find_block(address, bytes);
  if (!block) return false;
  return block->kind == Kind::device || block->kind == Kind::managed || block->flags & CU_MEMHOSTALLOC_DEVICEMAP;
}

void* pointer(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

// A copy that holds what it reads and writes until it has run.
Task copying(void* to, const void* from, std::size_t bytes) {
  auto source = find_block(reinterpret_cast<std::uintptr_t>(from), bytes);
  auto target = find_block(reinterpret_cast<std::uintptr_t>(to), bytes);
  return [=] {
    (void)source, (void)target;
    std::memmove(to, from, bytes);
  };
}

// From pageable memory the driver copies to staging memory before it returns.
Task uploading(void* to, const void* from, std::size_t bytes) {
  if (find_block(reinterpret_cast<std::uintptr_t>(from), bytes)) return copying(to, from, bytes);
  auto begin = static_cast<const unsigned char*>(from);
  auto staged = std::make_shared<std::vector<unsigned char>>(begin, begin + bytes);
  auto target = find_block(reinterpret_cast<std::uintptr_t>(to), bytes);
  return [=] {
    (void)target;
    std::memcpy(to, staged->data(), bytes);
  };
}

CUresult run_now(Lock& lock, Task task) {
  auto marker = std::make_shared<Marker>();
  if (auto code = submit(nullptr, std::move(task), marker)) return code;
  lock.unlock();
  marker->wait();
  return CUDA_SUCCESS;
}

template <typename Value>
CUresult fill(CUdeviceptr to, Value value, std::size_t count, CUstream stream) {
  REQUIRE(to % sizeof(Value) == 0 && on_device(to, count * sizeof(Value)), CUDA_ERROR_INVALID_VALUE);
  return submit(stream, [=, block = find_block(to, count * sizeof(Value))] {
    std::fill_n(static_cast<Value*>(pointer(to)), count, value);
  });
}

}  // namespace

Block::~Block() { std::free(owned); }

std::shared_ptr<Block> find_block(std::uintptr_t address, std::size_t bytes) {
  auto next = driver().blocks.upper_bound(address);
  if (next == driver().blocks.begin()) return nullptr;
  auto& block = std::prev(next)->second;
  bool inside = address - block->base <= block->bytes && bytes <= block->bytes - (address - block->base);
  return inside ? block : nullptr;
}

std::size_t live_bytes() {
  std::size_t bytes = 0;
  for (auto& [base, block] : driver().blocks) bytes += block->kind == Kind::registered ? 0 : block->bytes;
  return bytes;
}

}  // namespace standin

using namespace standin;

extern "C" {

CUresult CUDAAPI cuMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  ENTER(context);
  *total_bytes = TOTAL_BYTES;
  *free_bytes = TOTAL_BYTES - live_bytes();
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemAlloc(CUdeviceptr* address, size_t bytes) {
  ENTER(context);
  std::uintptr_t base;
  if (auto code = allocate(Kind::device, bytes, 0, base)) return code;
  *address = base;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemAllocManaged(CUdeviceptr* address, size_t bytes, unsigned int flags) {
  ENTER(context);
  REQUIRE(flags == CU_MEM_ATTACH_GLOBAL || flags == CU_MEM_ATTACH_HOST, CUDA_ERROR_INVALID_VALUE);
  std::uintptr_t base;
  if (auto code = allocate(Kind::managed, bytes, 0, base)) return code;
  *address = base;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemHostAlloc(void** memory, size_t bytes, unsigned int flags) {
  ENTER(context);
  REQUIRE(flags <= 7, CUDA_ERROR_INVALID_VALUE);
  std::uintptr_t base;
  if (auto code = allocate(Kind::host, bytes, flags, base)) return code;
  *memory = pointer(base);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemAllocHost(void** memory, size_t bytes) {
  ENTER(context);
  return cuMemHostAlloc(memory, bytes, CU_MEMHOSTALLOC_DEVICEMAP);
}

CUresult CUDAAPI cuMemFree(CUdeviceptr address) {
  ENTER(context);
  return release(address, {Kind::device, Kind::managed}, CUDA_ERROR_INVALID_VALUE);
}

CUresult CUDAAPI cuMemFreeHost(void* memory) {
  ENTER(context);
  return release(reinterpret_cast<std::uintptr_t>(memory), {Kind::host}, CUDA_ERROR_INVALID_VALUE);
}

CUresult CUDAAPI cuMemHostRegister(void* memory, size_t bytes, unsigned int flags) {
  ENTER(context);
  REQUIRE(memory && bytes, CUDA_ERROR_INVALID_VALUE);
  auto base = reinterpret_cast<std::uintptr_t>(memory);
  REQUIRE(!find_block(base, 1) && !find_block(base + bytes - 1, 1), CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
  driver().blocks[base] = std::make_shared<Block>(Kind::registered, base, bytes, current(), flags, nullptr);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemHostUnregister(void* memory) {
  ENTER(context);
  return release(reinterpret_cast<std::uintptr_t>(memory), {Kind::registered}, CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
}

// Unified addressing gives the same address on both sides; only memory that was asked to be mapped has one here.
CUresult CUDAAPI cuMemHostGetDevicePointer(CUdeviceptr* address, void* memory, unsigned int flags) {
  ENTER(context);
  auto block = find_block(reinterpret_cast<std::uintptr_t>(memory), 1);
  bool host = block && (block->kind == Kind::host || block->kind == Kind::registered);
  REQUIRE(flags == 0 && host && block->flags & CU_MEMHOSTALLOC_DEVICEMAP, CUDA_ERROR_INVALID_VALUE);
  *address = reinterpret_cast<CUdeviceptr>(memory);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemHostGetFlags(unsigned int* flags, void* memory) {
  ENTER(context);
  auto block = find_block(reinterpret_cast<std::uintptr_t>(memory), 1);
  REQUIRE(block && block->kind == Kind::host, CUDA_ERROR_INVALID_VALUE);
  *flags = block->flags;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemGetAddressRange(CUdeviceptr* base, size_t* bytes, CUdeviceptr address) {
  ENTER(context);
  auto block = find_block(address, 1);
  REQUIRE(block, CUDA_ERROR_NOT_FOUND);
  if (base) *base = block->base;
  if (bytes) *bytes = block->bytes;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuPointerGetAttribute(void* data, CUpointer_attribute attribute, CUdeviceptr address) {
  ENTER(initialised);
  auto block = find_block(address, 1);
  REQUIRE(block, CUDA_ERROR_INVALID_VALUE);
  bool host = block->kind == Kind::host || block->kind == Kind::registered;
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT: *static_cast<CUcontext*>(data) = block->context; break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      *static_cast<unsigned*>(data) = host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
      break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *static_cast<CUdeviceptr*>(data) = address; break;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
      REQUIRE(block->kind != Kind::device, CUDA_ERROR_INVALID_VALUE);
      *static_cast<void**>(data) = pointer(address);
      break;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED: *static_cast<unsigned*>(data) = block->kind == Kind::managed; break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *static_cast<int*>(data) = 0; break;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: *static_cast<CUdeviceptr*>(data) = block->base; break;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE: *static_cast<size_t*>(data) = block->bytes; break;
    default: return unanswered("cuPointerGetAttribute of another attribute");
  }
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuStreamAttachMemAsync(CUstream stream, CUdeviceptr address, size_t bytes, unsigned int flags) {
  ENTER(context);
  auto block = find_block(address, std::max<size_t>(bytes, 1));
  REQUIRE(block && block->kind == Kind::managed, CUDA_ERROR_INVALID_VALUE);
  REQUIRE(address == block->base && (bytes == 0 || bytes == block->bytes), CUDA_ERROR_INVALID_VALUE);
  REQUIRE(flags == CU_MEM_ATTACH_GLOBAL || flags == CU_MEM_ATTACH_HOST || flags == CU_MEM_ATTACH_SINGLE,
          CUDA_ERROR_INVALID_VALUE);
  REQUIRE(flags != CU_MEM_ATTACH_SINGLE || stream, CUDA_ERROR_INVALID_VALUE);
  return submit(stream, [block] {});
}

// Needs concurrent managed access, which Orin has not.
CUresult CUDAAPI cuMemPrefetchAsync(CUdeviceptr address, size_t bytes, CUdevice, CUstream) {
  ENTER(context);
  auto block = find_block(address, bytes);
  REQUIRE(block && block->kind == Kind::managed, CUDA_ERROR_INVALID_VALUE);
  return CUDA_ERROR_INVALID_DEVICE;
}

CUresult CUDAAPI cuMemcpyHtoD(CUdeviceptr to, const void* from, size_t bytes) {
  ENTER(context);
  REQUIRE(on_device(to, bytes), CUDA_ERROR_INVALID_VALUE);
  return run_now(lock, copying(pointer(to), from, bytes));
}

CUresult CUDAAPI cuMemcpyDtoH(void* to, CUdeviceptr from, size_t bytes) {
  ENTER(context);
  REQUIRE(on_device(from, bytes), CUDA_ERROR_INVALID_VALUE);
  return run_now(lock, copying(to, pointer(from), bytes));
}

CUresult CUDAAPI cuMemcpyDtoD(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  ENTER(context);
  REQUIRE(on_device(to, bytes) && on_device(from, bytes), CUDA_ERROR_INVALID_VALUE);
  return run_now(lock, copying(pointer(to), pointer(from), bytes));
}

CUresult CUDAAPI cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  ENTER(context);
  return run_now(lock, copying(pointer(to), pointer(from), bytes));
}

CUresult CUDAAPI cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  ENTER(context);
  REQUIRE(on_device(to, bytes), CUDA_ERROR_INVALID_VALUE);
  return submit(stream, uploading(pointer(to), from, bytes));
}

CUresult CUDAAPI cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  ENTER(context);
  REQUIRE(on_device(from, bytes), CUDA_ERROR_INVALID_VALUE);
  return submit(stream, copying(to, pointer(from), bytes));
}

CUresult CUDAAPI cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  ENTER(context);
  REQUIRE(on_device(to, bytes) && on_device(from, bytes), CUDA_ERROR_INVALID_VALUE);
  return submit(stream, copying(pointer(to), pointer(from), bytes));
}

CUresult CUDAAPI cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  ENTER(context);
  return submit(stream, copying(pointer(to), pointer(from), bytes));
}

CUresult CUDAAPI cuMemsetD8(CUdeviceptr to, unsigned char value, size_t count) {
  ENTER(context);
  return fill(to, value, count, nullptr);
}

CUresult CUDAAPI cuMemsetD16(CUdeviceptr to, unsigned short value, size_t count) {
  ENTER(context);
  return fill(to, value, count, nullptr);
}

CUresult CUDAAPI cuMemsetD32(CUdeviceptr to, unsigned int value, size_t count) {
  ENTER(context);
  return fill(to, value, count, nullptr);
}

CUresult CUDAAPI cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream stream) {
  ENTER(context);
  return fill(to, value, count, stream);
}

CUresult CUDAAPI cuMemsetD16Async(CUdeviceptr to, unsigned short value, size_t count, CUstream stream) {
  ENTER(context);
  return fill(to, value, count, stream);
}

CUresult CUDAAPI cuMemsetD32Async(CUdeviceptr to, unsigned int value, size_t count, CUstream stream) {
  ENTER(context);
  return fill(to, value, count, stream);
}
}
