// Capture of a stream's work and the graphs made of it.
#include "standin.h"

using namespace standin;

extern "C" {

CUresult CUDAAPI cuStreamBeginCapture(CUstream handle, CUstreamCaptureMode) {
  ENTER(context);
  auto stream = driver().streams.find(handle);
  REQUIRE(handle && handle != CU_STREAM_LEGACY, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  REQUIRE(stream, CUDA_ERROR_INVALID_HANDLE);
  REQUIRE(!stream->capture, CUDA_ERROR_ILLEGAL_STATE);
  stream->capture = std::make_shared<Graph>();
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
  ENTER(context);
  std::shared_ptr<Stream> stream;
  if (auto code = find_stream(handle, stream)) return code;
  *status = !stream->capture         ? CU_STREAM_CAPTURE_STATUS_NONE
            : stream->capture->valid ? CU_STREAM_CAPTURE_STATUS_ACTIVE
                                     : CU_STREAM_CAPTURE_STATUS_INVALIDATED;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuStreamEndCapture(CUstream handle, CUgraph* graph) {
  ENTER(context);
  auto stream = driver().streams.find(handle);
  REQUIRE(stream, CUDA_ERROR_INVALID_HANDLE);
  REQUIRE(stream->capture, CUDA_ERROR_ILLEGAL_STATE);
  auto captured = stream->capture;
  for (auto& [name, other] : driver().streams.objects) {
    if (other->capture == captured) other->capture = nullptr;
  }
  *graph = nullptr;
  REQUIRE(captured->valid, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  *graph = driver().graphs.add(captured);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuGraphGetNodes(CUgraph handle, CUgraphNode* nodes, size_t* count) {
  ENTER(initialised);
  auto graph = driver().graphs.find(handle);
  REQUIRE(graph && count, CUDA_ERROR_INVALID_VALUE);
  if (nodes) return unanswered("cuGraphGetNodes with nodes");
  *count = graph->tasks.size();
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph handle, unsigned long long) {
  ENTER(context);
  auto graph = driver().graphs.find(handle);
  REQUIRE(graph && executable, CUDA_ERROR_INVALID_VALUE);
  *executable = driver().executables.add(std::make_shared<Graph>(*graph));
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuGraphUpload(CUgraphExec handle, CUstream stream) {
  ENTER(context);
  REQUIRE(driver().executables.find(handle), CUDA_ERROR_INVALID_VALUE);
  return submit(stream, [] {});
}

CUresult CUDAAPI cuGraphLaunch(CUgraphExec handle, CUstream stream) {
  ENTER(context);
  auto graph = driver().executables.find(handle);
  REQUIRE(graph, CUDA_ERROR_INVALID_VALUE);
  return submit(stream, [graph] {
    for (auto& task : graph->tasks) task();
  });
}

CUresult CUDAAPI cuGraphExecDestroy(CUgraphExec handle) {
  ENTER(initialised);
  REQUIRE(driver().executables.objects.erase(handle), CUDA_ERROR_INVALID_VALUE);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuGraphDestroy(CUgraph handle) {
  ENTER(initialised);
  REQUIRE(driver().graphs.objects.erase(handle), CUDA_ERROR_INVALID_VALUE);
  return CUDA_SUCCESS;
}
}
