// Streams as ordered queues on host threads, events as points in them, host functions, capture and graphs.
#include <algorithm>
#include <chrono>
#include <thread>

#include "standin.h"

namespace standin {

namespace {
thread_local bool in_host_function = false;

bool is_null(CUstream handle) { return !handle || handle == CU_STREAM_LEGACY; }
}  // namespace

std::int64_t now_ns() {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void Marker::reach() {
  std::lock_guard<std::mutex> lock(lock_);
  at_ns_ = now_ns();
  reached_ = true;
  changed_.notify_all();
}

void Marker::wait() {
  std::unique_lock<std::mutex> lock(lock_);
  changed_.wait(lock, [this] { return reached_; });
}

bool Marker::reached() {
  std::lock_guard<std::mutex> lock(lock_);
  return reached_;
}

void Stream::push(Task task, std::shared_ptr<Marker> marker) {
  std::lock_guard<std::mutex> lock(lock_);
  work_.emplace_back(std::move(task), std::move(marker));
  if (!started_) std::thread([self = shared_from_this()] { self->serve(); }).detach();
  started_ = true;
  changed_.notify_all();
}

void Stream::close() {
  std::lock_guard<std::mutex> lock(lock_);
  closing_ = true;
  changed_.notify_all();
}

bool Stream::busy() {
  std::lock_guard<std::mutex> lock(lock_);
  return running_ || !work_.empty();
}

std::shared_ptr<Marker> Stream::mark() {
  auto marker = std::make_shared<Marker>();
  if (busy()) {
    push([] {}, marker);
  } else {
    marker->reach();
  }
  return marker;
}

void Stream::serve() {
  std::unique_lock<std::mutex> lock(lock_);
  for (;;) {
    changed_.wait(lock, [this] { return closing_ || !work_.empty(); });
    if (work_.empty()) break;
    auto [task, marker] = std::move(work_.front());
    work_.pop_front();
    running_ = true;
    lock.unlock();
    task();
    task = nullptr;
    lock.lock();
    running_ = false;  // before the marker: who waited for it finds the stream idle
    if (marker) marker->reach();
  }
  started_ = false;
}

CUresult find_stream(CUstream handle, std::shared_ptr<Stream>& stream) {
  if (handle == CU_STREAM_PER_THREAD) return unanswered("CU_STREAM_PER_THREAD");
  if (is_null(handle)) {
    auto& null_stream = driver().contexts.find(current())->null_stream;
    if (!null_stream) null_stream = std::make_shared<Stream>(current(), CU_STREAM_DEFAULT, 0);
    stream = null_stream;
    return CUDA_SUCCESS;
  }
  stream = driver().streams.find(handle);
  return stream ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

// The null stream and those created without CU_STREAM_NON_BLOCKING wait for each other ("Stream synchronization
// behavior" in the reference).
CUresult submit(CUstream handle, Task task, std::shared_ptr<Marker> marker) {
  if (in_host_function) return CUDA_ERROR_NOT_PERMITTED;
  std::shared_ptr<Stream> stream;
  if (auto code = find_stream(handle, stream)) return code;
  if (stream->capture) {
    stream->capture->tasks.push_back(std::move(task));
    return CUDA_SUCCESS;
  }
  auto null_stream = driver().contexts.find(stream->context)->null_stream;
  if (stream != null_stream && null_stream && !(stream->flags & CU_STREAM_NON_BLOCKING) && null_stream->busy()) {
    stream->push([marker = null_stream->mark()] { marker->wait(); });
  }
  if (stream == null_stream) {
    for (auto& [name, other] : driver().streams.objects) {
      if (other->context != stream->context || other->flags & CU_STREAM_NON_BLOCKING) continue;
      if (other->capture) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
      if (other->busy()) stream->push([marker = other->mark()] { marker->wait(); });
    }
  }
  stream->push(std::move(task), std::move(marker));
  return CUDA_SUCCESS;
}

}  // namespace standin

using namespace standin;

extern "C" {

CUresult CUDAAPI cuStreamCreateWithPriority(CUstream* stream, unsigned int flags, int priority) {
  ENTER(context);
  REQUIRE(flags == CU_STREAM_DEFAULT || flags == CU_STREAM_NON_BLOCKING, CUDA_ERROR_INVALID_VALUE);
  auto clamped = std::clamp(priority, GREATEST_PRIORITY, LEAST_PRIORITY);  // as the reference says
  *stream = driver().streams.add(std::make_shared<Stream>(current(), flags, clamped));
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuStreamCreate(CUstream* stream, unsigned int flags) {
  ENTER(context);
  return cuStreamCreateWithPriority(stream, flags, 0);
}

CUresult CUDAAPI cuStreamGetPriority(CUstream handle, int* priority) {
  ENTER(context);
  std::shared_ptr<Stream> stream;
  if (auto code = find_stream(handle, stream)) return code;
  *priority = stream->priority;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuStreamGetFlags(CUstream handle, unsigned int* flags) {
  ENTER(context);
  std::shared_ptr<Stream> stream;
  if (auto code = find_stream(handle, stream)) return code;
  *flags = stream->flags;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuStreamGetCtx(CUstream handle, CUcontext* context) {
  ENTER(context);
  std::shared_ptr<Stream> stream;
  if (auto code = find_stream(handle, stream)) return code;
  *context = stream->context;
  return CUDA_SUCCESS;
}

// Returns at once; what was enqueued still runs.
CUresult CUDAAPI cuStreamDestroy(CUstream handle) {
  ENTER(context);
  auto stream = driver().streams.find(handle);
  REQUIRE(stream, CUDA_ERROR_INVALID_HANDLE);
  stream->close();
  driver().streams.objects.erase(handle);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuStreamQuery(CUstream handle) {
  ENTER(context);
  std::shared_ptr<Stream> stream;
  if (auto code = find_stream(handle, stream)) return code;
  REQUIRE(!stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  return stream->busy() ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}

CUresult CUDAAPI cuStreamSynchronize(CUstream handle) {
  std::shared_ptr<Stream> stream;
  {
    ENTER(context);
    REQUIRE(!in_host_function, CUDA_ERROR_NOT_PERMITTED);
    if (auto code = find_stream(handle, stream)) return code;
    if (stream->capture) {
      stream->capture->valid = false;
      return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
  }
  stream->mark()->wait();
  return CUDA_SUCCESS;
}

// Host functions must not call CUDA: `submit` and the waits answer 800 on their thread.
CUresult CUDAAPI cuLaunchHostFunc(CUstream handle, CUhostFn function, void* data) {
  ENTER(context);
  REQUIRE(function, CUDA_ERROR_INVALID_VALUE);
  return submit(handle, [function, data] {
    in_host_function = true;
    function(data);
    in_host_function = false;
  });
}

CUresult CUDAAPI cuStreamAddCallback(CUstream handle, CUstreamCallback function, void* data, unsigned int flags) {
  ENTER(context);
  REQUIRE(function && flags == 0, CUDA_ERROR_INVALID_VALUE);
  return submit(handle, [handle, function, data] {
    in_host_function = true;
    function(handle, CUDA_SUCCESS, data);
    in_host_function = false;
  });
}

CUresult CUDAAPI cuEventCreate(CUevent* event, unsigned int flags) {
  ENTER(context);
  bool timed = !(flags & CU_EVENT_DISABLE_TIMING);
  REQUIRE(flags <= 7 && !(flags & CU_EVENT_INTERPROCESS && timed), CUDA_ERROR_INVALID_VALUE);
  *event = driver().events.add(std::make_shared<Event>(Event{current(), flags, nullptr, nullptr}));
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuEventDestroy(CUevent handle) {
  ENTER(context);
  REQUIRE(driver().events.objects.erase(handle), CUDA_ERROR_INVALID_HANDLE);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuEventRecord(CUevent handle, CUstream stream_handle) {
  ENTER(context);
  auto event = driver().events.find(handle);
  std::shared_ptr<Stream> stream;
  if (auto code = find_stream(stream_handle, stream)) return code;
  REQUIRE(event && event->context == stream->context, CUDA_ERROR_INVALID_HANDLE);
  event->captured = stream->capture;
  if (stream->capture) return CUDA_SUCCESS;
  event->marker = std::make_shared<Marker>();
  return submit(stream_handle, [] {}, event->marker);
}

CUresult CUDAAPI cuEventQuery(CUevent handle) {
  ENTER(context);
  auto event = driver().events.find(handle);
  REQUIRE(event, CUDA_ERROR_INVALID_HANDLE);
  REQUIRE(!event->captured, CUDA_ERROR_CAPTURED_EVENT);
  return !event->marker || event->marker->reached() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult CUDAAPI cuEventSynchronize(CUevent handle) {
  std::shared_ptr<Marker> marker;
  {
    ENTER(context);
    REQUIRE(!in_host_function, CUDA_ERROR_NOT_PERMITTED);
    auto event = driver().events.find(handle);
    REQUIRE(event, CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(!event->captured, CUDA_ERROR_CAPTURED_EVENT);
    marker = event->marker;
  }
  if (marker) marker->wait();
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuEventElapsedTime(float* elapsed_ms, CUevent start_handle, CUevent end_handle) {
  ENTER(context);
  auto start = driver().events.find(start_handle), end = driver().events.find(end_handle);
  REQUIRE(start && end && start->marker && end->marker, CUDA_ERROR_INVALID_HANDLE);
  REQUIRE(!((start->flags | end->flags) & CU_EVENT_DISABLE_TIMING), CUDA_ERROR_INVALID_HANDLE);
  REQUIRE(start->marker->reached() && end->marker->reached(), CUDA_ERROR_NOT_READY);
  *elapsed_ms = static_cast<float>((end->marker->at_ns() - start->marker->at_ns()) * 1e-6);
  return CUDA_SUCCESS;
}

// An event that was captured draws this stream into the same capture.
CUresult CUDAAPI cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned int) {
  ENTER(context);
  auto event = driver().events.find(event_handle);
  std::shared_ptr<Stream> stream;
  if (auto code = find_stream(handle, stream)) return code;
  REQUIRE(event, CUDA_ERROR_INVALID_HANDLE);
  if (event->captured) {
    REQUIRE(!stream->capture || stream->capture == event->captured, CUDA_ERROR_STREAM_CAPTURE_MERGE);
    stream->capture = event->captured;
    return CUDA_SUCCESS;
  }
  if (!event->marker || event->marker->reached()) return CUDA_SUCCESS;
  REQUIRE(!stream->capture, CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
  return submit(handle, [marker = event->marker] { marker->wait(); });
}
}
