// The instrument's own controls: live objects, calls by function, injected failures.
#include <cstdio>
#include <cstring>

#include "standin.h"

namespace standin {

namespace {

struct Failure {
  CUresult code;
  long after;
};

struct Controls {
  std::mutex lock;
  std::map<std::string, long> calls;
  std::map<std::string, Failure> failures;
  std::string unanswered;
  bool trace = false;
};

Controls& controls() {
  static auto* made = new Controls;
  return *made;
}

// cuMemAlloc_v2 is cuMemAlloc to those who ask: the header hides the suffix from programs too.
std::string plain(const char* function) {
  std::string name(function);
  auto suffix = name.rfind("_v");
  return suffix == std::string::npos ? name : name.substr(0, suffix);
}

CUresult injected(const char* function) {
  auto& all = controls();
  std::lock_guard<std::mutex> lock(all.lock);
  auto name = plain(function);
  ++all.calls[name];
  auto failure = all.failures.find(name);
  if (failure == all.failures.end() || failure->second.after-- > 0) return CUDA_SUCCESS;
  return failure->second.code;
}

}  // namespace

CUresult enter(const char* function, Needs needs) {
  if (auto code = injected(function)) return code;
  if (needs == Needs::nothing) return CUDA_SUCCESS;
  Lock lock(driver().lock);
  if (!driver().initialised) return CUDA_ERROR_NOT_INITIALIZED;
  return needs == Needs::context ? check_current() : CUDA_SUCCESS;
}

CUresult unanswered(const char* function) {
  auto& all = controls();
  std::lock_guard<std::mutex> lock(all.lock);
  all.unanswered = function;
  if (all.trace) std::fprintf(stderr, "libcuda stand-in: %s is not answered\n", function);
  return CUDA_ERROR_NOT_SUPPORTED;
}

}  // namespace standin

using namespace standin;

extern "C" {

// Let `after` calls of a function pass, then answer all others with `code`; 0 lifts it. (pycuda tries an allocation
// again after collecting garbage, so that a single failure would never be seen.)
void cuStandinFail(const char* function, int code, long after) {
  auto& all = controls();
  std::lock_guard<std::mutex> lock(all.lock);
  all.failures[function] = {static_cast<CUresult>(code), after};
}

// Forget injected failures, counted calls and the last function that was not answered.
void cuStandinReset() {
  auto& all = controls();
  std::lock_guard<std::mutex> lock(all.lock);
  all.failures.clear();
  all.calls.clear();
  all.unanswered.clear();
  Lock other(driver().lock);
  driver().left_behind = 0;
}

long cuStandinCalls(const char* function) {
  auto& all = controls();
  std::lock_guard<std::mutex> lock(all.lock);
  return all.calls[function];
}

// The last function called that is not answered; empty where there was none. Valid until the next call.
const char* cuStandinUnanswered() { return controls().unanswered.c_str(); }

// Where the functions end that nobody answers.
int cuStandinNotAnswered(const char* function) { return unanswered(function); }

void cuStandinTrace(int on) { controls().trace = on != 0; }

// Live objects of a kind: context, stream, event, graph, executable, device, host, managed, registered.
long cuStandinLive(const char* kind) {
  Lock lock(driver().lock);
  auto& all = driver();
  static const char* const kinds[] = {"device", "host", "managed", "registered"};
  for (int i = 0; i < 4; ++i) {
    if (std::strcmp(kind, kinds[i])) continue;
    long count = 0;
    for (auto& [base, block] : all.blocks) count += block->kind == static_cast<Kind>(i);
    return count;
  }
  const std::map<std::string, long> counts = {{"context", all.contexts.objects.size()},
                                              {"stream", all.streams.objects.size()},
                                              {"event", all.events.objects.size()},
                                              {"graph", all.graphs.objects.size()},
                                              {"executable", all.executables.objects.size()}};
  auto found = counts.find(kind);
  return found == counts.end() ? -1 : found->second;
}

// Bytes of all live allocations.
long cuStandinBytes() {
  Lock lock(driver().lock);
  return static_cast<long>(live_bytes());
}

// Objects that were still alive when their context was destroyed.
long cuStandinLeftBehind() {
  Lock lock(driver().lock);
  return driver().left_behind;
}
}
