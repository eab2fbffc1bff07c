// A stand-in for libcuda.so.1: "device" memory is host memory, a stream is an ordered queue on a host thread.
//
// It answers what a toolkit uses and checks what the driver checks; the CUDA Driver API reference (12.6) is the source
// of every error code, by the name of the function. Handles are numbers that are never used twice, so that a destroyed
// object is always told from a live one. Nothing is ever freed at exit: stream threads may outlive static objects.
#pragma once
#include <cuda.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace standin {

using Task = std::function<void()>;
using Lock = std::unique_lock<std::recursive_mutex>;

// A point in a stream's work: what an event refers to once it was recorded.
class Marker {
 public:
  void reach();                        // now
  void wait();                         // until reached
  bool reached();
  std::int64_t at_ns() const { return at_ns_; }

 private:
  std::mutex lock_;
  std::condition_variable changed_;
  bool reached_ = false;
  std::int64_t at_ns_ = 0;
};

// Work that was captured, in the order of the calls: one valid order of the graph.
struct Graph {
  std::vector<Task> tasks;
  bool valid = true;
};

class Stream : public std::enable_shared_from_this<Stream> {
 public:
  Stream(CUcontext context, unsigned flags, int priority) : context(context), flags(flags), priority(priority) {}
  void push(Task task, std::shared_ptr<Marker> marker = nullptr);  // the marker is reached when the task is done
  void close();  // finish what was pushed, then end
  bool busy();
  std::shared_ptr<Marker> mark();

  const CUcontext context;
  const unsigned flags;
  const int priority;
  std::shared_ptr<Graph> capture;  // being captured into; guarded by the driver's lock

 private:
  void serve();

  std::mutex lock_;
  std::condition_variable changed_;
  std::deque<std::pair<Task, std::shared_ptr<Marker>>> work_;
  bool running_ = false, started_ = false, closing_ = false;
};

struct Event {
  CUcontext context;
  unsigned flags;
  std::shared_ptr<Marker> marker;   // null until recorded
  std::shared_ptr<Graph> captured;  // the capture that last recorded it
};

struct Context {
  unsigned flags = 0;
  bool primary = false;
  int uses = 1;
  std::shared_ptr<Stream> null_stream;
};

enum class Kind { device, host, managed, registered };

// Memory from one of the allocators; its bytes live as long as someone holds the block.
struct Block {
  Block(Kind kind, std::uintptr_t base, std::size_t bytes, CUcontext context, unsigned flags, void* owned)
      : kind(kind), base(base), bytes(bytes), context(context), flags(flags), owned(owned) {}
  ~Block();
  const Kind kind;
  const std::uintptr_t base;
  const std::size_t bytes;
  const CUcontext context;
  const unsigned flags;
  void* const owned;
};

inline std::uintptr_t next_handle() {
  static std::uintptr_t last = 0x10000;
  return last += 64;
}

// Objects by handle.
template <typename Handle, typename Object>
class Table {
 public:
  Handle add(std::shared_ptr<Object> object) {
    auto handle = reinterpret_cast<Handle>(next_handle());
    objects[handle] = std::move(object);
    return handle;
  }
  std::shared_ptr<Object> find(Handle handle) const {
    auto at = objects.find(handle);
    return at == objects.end() ? nullptr : at->second;
  }
  std::map<Handle, std::shared_ptr<Object>> objects;
};

struct Driver {
  std::recursive_mutex lock;
  bool initialised = false;
  CUcontext primary = nullptr;
  long left_behind = 0;  // objects that a context took with it when it was destroyed
  Table<CUcontext, Context> contexts;
  Table<CUstream, Stream> streams;
  Table<CUevent, Event> events;
  Table<CUgraph, Graph> graphs;
  Table<CUgraphExec, Graph> executables;
  std::map<std::uintptr_t, std::shared_ptr<Block>> blocks;  // by base
};

Driver& driver();
std::int64_t now_ns();

// What a call needs before it may do anything; `enter` also counts the call and answers with an injected failure.
enum class Needs { nothing, initialised, context };
CUresult enter(const char* function, Needs needs);
CUresult unanswered(const char* function);

CUcontext current();
CUresult check_current();  // 201 where no context is current, 709 where it was destroyed
void destroy_context(CUcontext handle);

// Streams and memory; all to be called under the driver's lock.
CUresult find_stream(CUstream handle, std::shared_ptr<Stream>& stream);
CUresult submit(CUstream handle, Task task, std::shared_ptr<Marker> marker = nullptr);
std::shared_ptr<Block> find_block(std::uintptr_t address, std::size_t bytes);
std::size_t live_bytes();
constexpr std::size_t TOTAL_BYTES = std::size_t(64) << 30;  // AGX Orin 64 GB
constexpr int LEAST_PRIORITY = 0, GREATEST_PRIORITY = -5;

}  // namespace standin

#define ENTER(needs)                                                                \
  if (CUresult code = standin::enter(__func__, standin::Needs::needs)) return code; \
  standin::Lock lock(standin::driver().lock)
#define REQUIRE(condition, code) \
  if (!(condition)) return code
