// What pycuda includes of the CUDA toolkit's profiler interface; the runtime's wheel has no such header.
#pragma once
#include <cuda.h>

typedef enum CUoutput_mode_enum { CU_OUT_KEY_VALUE_PAIR = 0, CU_OUT_CSV = 1 } CUoutput_mode;

extern "C" {
CUresult CUDAAPI cuProfilerInitialize(const char* config, const char* output, CUoutput_mode mode);
CUresult CUDAAPI cuProfilerStart(void);
CUresult CUDAAPI cuProfilerStop(void);
}
