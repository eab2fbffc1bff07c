// Modules and kernels: a module is a shared library, and its kernel K is run by its function `launch_K`, which takes
// the one argument of the kernel, grid, block, the windows to skip and the order of threads.
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <vector>

#include "standin.h"

namespace standin {

namespace {

constexpr unsigned MOST_THREADS = 1024;  // of a block (CUDA C++ Programming Guide, compute capability 8.7)
constexpr unsigned MOST_BLOCKS = 65535;  // along y and z
constexpr char ELF[] = "\x7f" "ELF";

using Launcher = void (*)(const void* job, const unsigned* grid, const unsigned* block, int skipped, int backwards);


struct Module {
  explicit Module(void* library) : library(library) {}
  ~Module() { dlclose(library); }
  void* const library;
};

std::map<CUmodule, std::shared_ptr<Module>>& modules() {
  static auto* made = new std::map<CUmodule, std::shared_ptr<Module>>;
  return *made;
}

struct Kernel {
  Launcher run;
  std::shared_ptr<Module> module;  // which stays until what was launched is done
};

std::map<CUfunction, Kernel>& kernels() {
  static auto* made = new std::map<CUfunction, Kernel>;
  return *made;
}

// An image has no size of its own: that of an ELF file ends with its section headers.
std::size_t size_of(const unsigned char* image) {
  std::uint64_t headers;
  std::uint16_t size, count;
  std::memcpy(&headers, image + 40, 8);
  std::memcpy(&size, image + 58, 2);
  std::memcpy(&count, image + 60, 2);
  return headers + std::size_t(size) * count;
}

// The file stays open for good: its number is the library's name, dlopen takes like names for one library, and one that
// is closed need not be gone.
std::shared_ptr<Module> open_image(const void* image) {
  int file = memfd_create("standin-module", MFD_CLOEXEC);
  if (file < 0) return nullptr;
  std::size_t size = size_of(static_cast<const unsigned char*>(image));
  bool written = write(file, image, size) == static_cast<ssize_t>(size);
  std::string path = "/proc/self/fd/" + std::to_string(file);
  void* library = written ? dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL) : nullptr;
  return library ? std::make_shared<Module>(library) : nullptr;
}

}  // namespace

}  // namespace standin

using namespace standin;

extern "C" {

CUresult CUDAAPI cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned, CUjit_option*, void**) {
  ENTER(context);
  REQUIRE(image && !std::memcmp(image, ELF, 4), CUDA_ERROR_INVALID_IMAGE);
  auto opened = open_image(image);
  REQUIRE(opened, CUDA_ERROR_NO_BINARY_FOR_GPU);
  *module = reinterpret_cast<CUmodule>(next_handle());
  modules()[*module] = opened;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuModuleUnload(CUmodule module) {
  ENTER(context);
  auto found = modules().find(module);
  REQUIRE(found != modules().end(), CUDA_ERROR_INVALID_HANDLE);
  for (auto at = kernels().begin(); at != kernels().end();) {
    at = at->second.module == found->second ? kernels().erase(at) : std::next(at);
  }
  modules().erase(found);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  ENTER(context);
  auto found = modules().find(module);
  REQUIRE(found != modules().end(), CUDA_ERROR_INVALID_HANDLE);
  auto run = reinterpret_cast<Launcher>(dlsym(found->second->library, (std::string("launch_") + name).c_str()));
  REQUIRE(run, CUDA_ERROR_NOT_FOUND);
  *function = reinterpret_cast<CUfunction>(next_handle());
  kernels()[*function] = {run, found->second};
  return CUDA_SUCCESS;
}

// What pycuda tells it is given again with the launch.
CUresult CUDAAPI cuFuncSetBlockShape(CUfunction function, int, int, int) {
  ENTER(context);
  return kernels().count(function) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult CUDAAPI cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                                unsigned block_y, unsigned block_z, unsigned, CUstream stream, void** parameters,
                                void** extra) {
  ENTER(context);
  auto kernel = kernels().find(function);
  REQUIRE(kernel != kernels().end(), CUDA_ERROR_INVALID_HANDLE);
  bool fits = grid_x && grid_y && grid_z && grid_y <= MOST_BLOCKS && grid_z <= MOST_BLOCKS;
  REQUIRE(fits && block_x && block_y && block_z, CUDA_ERROR_INVALID_VALUE);
  REQUIRE(std::uint64_t(block_x) * block_y * block_z <= MOST_THREADS, CUDA_ERROR_INVALID_VALUE);
  if (parameters || !extra || extra[0] != CU_LAUNCH_PARAM_BUFFER_POINTER) return unanswered("cuLaunchKernel");
  REQUIRE(extra[2] == CU_LAUNCH_PARAM_BUFFER_SIZE && extra[4] == CU_LAUNCH_PARAM_END, CUDA_ERROR_INVALID_VALUE);
  auto* bytes = static_cast<const char*>(extra[1]);
  std::vector<char> job(bytes, bytes + *static_cast<std::size_t*>(extra[3]));
  std::array<unsigned, 3> grid{grid_x, grid_y, grid_z}, block{block_x, block_y, block_z};
  return submit(stream, [=, kernel = kernel->second] { kernel.run(job.data(), grid.data(), block.data(), 0, 0); });
}

}  // extern "C"
