// The binary interface of TensorRT 10.3, each slot routed by its name to one callback; the rest is Python's.
//
// An object is `{virtual destructor, pointer to the object with the table of slots}`. Shells of destroyed objects are
// kept (64 bytes each), so that a use after destruction is answered with a message and not with a crash.

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <type_traits>

extern "C" {
extern void* PyExc_RuntimeError;
int PyGILState_Ensure();
void PyGILState_Release(int);
void PyErr_SetString(void*, char const*);
int PyRun_SimpleStringFlags(char const*, void*);
}

struct Dims {
  int32_t nbDims;
  int64_t d[8];
};

struct Weights {
  int32_t type;
  void const* values;
  int64_t count;
};

namespace {

// Answers a slot: parameters as 64-bit words in, result as up to nine words out; null, or what went wrong.
using Dispatch = char const* (*)(char const* slot, void* owner, uint64_t const* words, int count, uint64_t* result);

Dispatch dispatch = nullptr;
std::mutex counting;
std::map<std::string, int> live;

void raise_in_python(char const* text) {
  std::fprintf(stderr, "stand-in of libnvinfer: %s\n", text);
  int const gil = PyGILState_Ensure();
  PyErr_SetString(PyExc_RuntimeError, text);
  PyGILState_Release(gil);
}

template <class T>
uint64_t word(T value) {
  if constexpr (std::is_pointer_v<T>) {
    return reinterpret_cast<uint64_t>(value);
  } else if constexpr (std::is_floating_point_v<T>) {
    double const wide = value;
    uint64_t bits;
    std::memcpy(&bits, &wide, sizeof bits);
    return bits;
  } else {
    return static_cast<uint64_t>(static_cast<int64_t>(value));
  }
}

template <class R>
R read(uint64_t const* words) {
  if constexpr (std::is_same_v<R, Dims>) {
    Dims dims{static_cast<int32_t>(words[0]), {}};
    for (int axis = 0; axis < 8; ++axis) dims.d[axis] = static_cast<int64_t>(words[axis + 1]);
    return dims;
  } else if constexpr (std::is_reference_v<R>) {
    return *reinterpret_cast<std::remove_reference_t<R>*>(words[0]);
  } else if constexpr (std::is_pointer_v<R>) {
    return reinterpret_cast<R>(words[0]);
  } else if constexpr (std::is_floating_point_v<R>) {
    double wide;
    std::memcpy(&wide, words, sizeof wide);
    return static_cast<R>(wide);
  } else if constexpr (!std::is_void_v<R>) {
    return static_cast<R>(words[0]);
  }
}

template <class R, class... W>
R route(void const* owner, char const* slot, W... parameters) {
  uint64_t const words[] = {parameters..., 0};
  uint64_t result[9] = {};
  if (dispatch != nullptr) {
    char const* const wrong = dispatch(slot, const_cast<void*>(owner), words, sizeof...(parameters), result);
    if (wrong != nullptr) raise_in_python(wrong);
  }
  return read<R>(result);
}

void born(char const* name) {
  std::lock_guard<std::mutex> const hold(counting);
  ++live[name];
}

void died(char const* name, void* owner) {
  {
    std::lock_guard<std::mutex> const hold(counting);
    --live[name];
  }
  if (dispatch != nullptr) route<void>(owner, (std::string(name) + ".~").c_str());
}

struct Table {  // what a shell points to: slots 0 and 1 are the destructors
  virtual ~Table() = default;
  void* owner = nullptr;
};

struct Whole {};  // an interface that is not split: its own table, destructors where it declares them

#include "slots.inc"

template <class V>
struct Shell {
  explicit Shell(char const* name) : name(name) {
    table->owner = unlisted->owner = this;
    born(name);
  }
  virtual ~Shell() { died(name, this); }
  static void operator delete(void*) {}

  V* table = new V;
  Unlisted* unlisted = new Unlisted;  // a concrete layer's second table
  char const* name;
};

#include "makers.inc"

bool ready() {
  if (dispatch != nullptr) return true;
  int const gil = PyGILState_Ensure();
  PyRun_SimpleStringFlags("import sys; sys.path.append('" ROOT "'); import tests.standins.nvinfer.control", nullptr);
  PyGILState_Release(gil);
  return dispatch != nullptr;
}

// Interfaces that a user implements, as NvInferRuntimeBase.h and NvInfer.h of 10.3 declare them.

struct InterfaceInfo {
  char const* kind;
  int32_t major;
  int32_t minor;
};

struct Logger {
  virtual void log(int32_t severity, char const* text) = 0;
  virtual ~Logger() = default;
};

struct Versioned {
  virtual int32_t getAPILanguage() = 0;
  virtual InterfaceInfo getInterfaceInfo() = 0;
  virtual ~Versioned() = default;
};

struct Calibrator : Versioned {
  virtual int32_t getBatchSize() = 0;
  virtual bool getBatch(void** bindings, char const** names, int32_t count) = 0;
  virtual void const* readCalibrationCache(size_t& length) = 0;
  virtual void writeCalibrationCache(void const* cache, size_t length) = 0;
  virtual int32_t getAlgorithm() = 0;
};

struct ProgressMonitor : Versioned {
  virtual void phaseStart(char const* phase, char const* parent, int32_t steps) = 0;
  virtual bool stepComplete(char const* phase, int32_t step) = 0;
  virtual void phaseFinish(char const* phase) = 0;
};

struct OutputAllocator : Versioned {
  virtual void* reallocateOutput(char const* name, void* memory, uint64_t size, uint64_t alignment) = 0;
  virtual void* reallocateOutputAsync(char const* name, void* memory, uint64_t size, uint64_t alignment, void*) = 0;
  virtual void notifyShape(char const* name, Dims const& dims) = 0;
};

}  // namespace

extern "C" {

void standin_register(Dispatch callback) { dispatch = callback; }

void* standin_make(char const* name) { return make_object(name); }

int standin_live(char const* name) {
  std::lock_guard<std::mutex> const hold(counting);
  return live[name];
}

// The end of an object that its parent owns: a network's tensors and layers.
void standin_drop(char const* name) {
  std::lock_guard<std::mutex> const hold(counting);
  --live[name];
}

void standin_log(Logger* logger, int32_t severity, char const* text) { logger->log(severity, text); }

int32_t standin_calibrator_batch_size(Calibrator* calibrator) { return calibrator->getBatchSize(); }
int32_t standin_calibrator_algorithm(Calibrator* calibrator) { return calibrator->getAlgorithm(); }
bool standin_calibrator_batch(Calibrator* calibrator, void** bindings, char const** names, int32_t count) {
  return calibrator->getBatch(bindings, names, count);
}
void const* standin_calibrator_read(Calibrator* calibrator, size_t* length) {
  return calibrator->readCalibrationCache(*length);
}
void standin_calibrator_write(Calibrator* calibrator, void const* cache, size_t length) {
  calibrator->writeCalibrationCache(cache, length);
}

void standin_phase_start(ProgressMonitor* monitor, char const* phase, char const* parent, int32_t steps) {
  monitor->phaseStart(phase, parent, steps);
}
bool standin_step_complete(ProgressMonitor* monitor, char const* phase, int32_t step) {
  return monitor->stepComplete(phase, step);
}
void standin_phase_finish(ProgressMonitor* monitor, char const* phase) { monitor->phaseFinish(phase); }

void* standin_output_memory(OutputAllocator* allocator, char const* name, void* memory, uint64_t size, void* stream) {
  return allocator->reallocateOutputAsync(name, memory, size, 256, stream);
}
void standin_output_shape(OutputAllocator* allocator, char const* name, Dims const* dims) {
  allocator->notifyShape(name, *dims);
}

// What the bindings ask of the three libraries.

void* createInferBuilder_INTERNAL(void* logger, int32_t version) {
  return ready() ? route<void*>(nullptr, "create.Builder", word(logger), word(version)) : nullptr;
}
void* createInferRuntime_INTERNAL(void* logger, int32_t version) {
  return ready() ? route<void*>(nullptr, "create.Runtime", word(logger), word(version)) : nullptr;
}
void* createNvOnnxParser_INTERNAL(void* network, void* logger, int32_t version) {
  return ready() ? route<void*>(nullptr, "create.Parser", word(network), word(logger), word(version)) : nullptr;
}
void* createInferRefitter_INTERNAL(void*, void*, int32_t) {
  raise_in_python("createInferRefitter_INTERNAL is not answered");
  return nullptr;
}
void* createNvOnnxParserRefitter_INTERNAL(void*, void*, int32_t) {
  raise_in_python("createNvOnnxParserRefitter_INTERNAL is not answered");
  return nullptr;
}
int32_t getNvOnnxParserVersion() { return PARSER_VERSION; }
void* getPluginRegistry() { return ready() ? route<void*>(nullptr, "create.PluginRegistry") : nullptr; }
void* getBuilderPluginRegistry(int32_t) { return getPluginRegistry(); }
bool initLibNvInferPlugins(void* logger, char const* space) {
  return ready() && route<void*>(nullptr, "create.Plugins", word(logger), word(space)) != nullptr;
}
}
