"""CUDA kernels as PTX, which the driver itself compiles, and engines whose work is one of them."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from ctypes import byref, c_uint, c_uint32, c_uint64, c_void_p

import numpy as np

from orin.board import SharedTensor
from orin.jetson.cuda import CudaContext
from orin.jetson.engine import JetsonEngine, Site
from orin.soc import AGX_ORIN_64GB_SOC

PTX = b"""
.version 7.0
.target sm_70
.address_size 64

// y[i] = x[i * stride] as float32, for i < samples
.visible .entry first_bytes(.param .u64 x, .param .u64 y, .param .u64 stride, .param .u32 samples)
{
  .reg .pred %over;
  .reg .b32 %thread, %block, %size, %count, %byte;
  .reg .b64 %i, %from, %to, %step;
  .reg .f32 %value;
  mov.u32 %thread, %tid.x;
  mov.u32 %block, %ctaid.x;
  mov.u32 %size, %ntid.x;
  mad.lo.u32 %thread, %block, %size, %thread;
  ld.param.u32 %count, [samples];
  setp.ge.u32 %over, %thread, %count;
  @%over bra done;
  cvt.u64.u32 %i, %thread;
  ld.param.u64 %from, [x];
  ld.param.u64 %to, [y];
  ld.param.u64 %step, [stride];
  mad.lo.u64 %from, %i, %step, %from;
  mad.lo.u64 %to, %i, 4, %to;
  ld.volatile.global.s8 %byte, [%from];
  cvt.rn.f32.s32 %value, %byte;
  st.volatile.global.f32 [%to], %value;
done:
  ret;
}

// mine = 1; then wait until other is 1, for at most that many cycles; met = whether it was
.visible .entry meet(.param .u64 mine, .param .u64 other, .param .u64 met, .param .u64 cycles)
{
  .reg .pred %seen, %late;
  .reg .b32 %value, %one;
  .reg .b64 %mine, %other, %met, %begin, %now, %limit;
  ld.param.u64 %mine, [mine];
  ld.param.u64 %other, [other];
  ld.param.u64 %met, [met];
  ld.param.u64 %limit, [cycles];
  mov.u32 %one, 1;
  st.volatile.global.u32 [%mine], %one;
  mov.u64 %begin, %clock64;
look:
  ld.volatile.global.u32 %value, [%other];
  setp.eq.u32 %seen, %value, 1;
  @%seen bra there;
  mov.u64 %now, %clock64;
  sub.u64 %now, %now, %begin;
  setp.gt.u64 %late, %now, %limit;
  @%late bra done;
  bra look;
there:
  st.volatile.global.u32 [%met], %one;
done:
  ret;
}
"""
THREADS = 128


class Kernels:
    """The kernels above, loaded into a context."""

    def __init__(self, cuda):
        self._cuda = cuda
        self._library = ctypes.CDLL("libcuda.so.1")
        self._module = c_void_p()
        self._functions = {}
        with cuda.current():
            self._call("cuModuleLoadData", byref(self._module), PTX)
            for name in ("first_bytes", "meet"):  # now: a first use may have to wait for what runs
                self._functions[name] = c_void_p()
                self._call("cuModuleGetFunction", byref(self._functions[name]), self._module, name.encode())

    def launch(self, name, stream, *arguments, threads=1):
        """Put a kernel of so many threads onto a stream."""
        given = (c_void_p * len(arguments))(*(ctypes.cast(byref(value), c_void_p) for value in arguments))
        size = min(threads, THREADS)
        grid, block = (map(c_uint, (count, 1, 1)) for count in (-(-threads // size), size))
        self._call("cuLaunchKernel", self._functions[name], *grid, *block, c_uint(0), c_void_p(stream), given, None)

    def priority(self, stream):
        """What the driver says of a stream's priority."""
        found = ctypes.c_int()
        self._call("cuStreamGetPriority", c_void_p(stream), byref(found))
        return found.value

    def close(self):
        with self._cuda.current():
            self._call("cuModuleUnload", self._module)

    def _call(self, function, *arguments):
        code = getattr(self._library, function)(*arguments)
        assert code == 0, f"{function} answers {code}"


class KernelPlan:
    """Stands where TensorRT's deserialized engine does: a batch is one launch, each answer a sample's first byte."""

    def __init__(self, kernels, engine):
        self.kernels, self.engine = kernels, engine
        self.names = [binding.name for binding in (*engine.manifest.inputs, *engine.manifest.outputs)]
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, index):
        return self.names[index]

    def create_execution_context(self):
        return KernelExecution(self)


class KernelExecution:
    """Stands where TensorRT's execution context does."""

    def __init__(self, plan):
        self._plan = plan
        self._addresses = {}
        self._samples = plan.engine.manifest.spec.batch

    def set_input_shape(self, name, shape):
        self._samples = shape[0]
        return True

    def set_tensor_address(self, name, address):
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        stride = self._plan.engine.manifest.inputs[0].sample_bytes
        x, y = (c_uint64(self._addresses[name]) for name in self._plan.names)
        arguments = (x, y, c_uint64(stride), c_uint32(self._samples))
        self._plan.kernels.launch("first_bytes", stream, *arguments, threads=self._samples)
        return True


class KernelBoard:
    """Implements `orin.board.Board` on any NVIDIA GPU: all three accelerators are streams of it."""

    name = "kernels"
    provenance = "measured"
    computes_outputs = True
    soc = AGX_ORIN_64GB_SOC

    def __init__(self, memory="mapped"):
        self.cuda = CudaContext()
        self.kernels = Kernels(self.cuda)
        self._memory = memory

    def load(self, engine, accelerator, depth, tail=None):
        site = Site(accelerator, self.cuda, 10, lambda: "the kernel did not start")
        return JetsonEngine(engine, KernelPlan(self.kernels, engine), site, depth)

    def allocate(self, nbytes) -> SharedTensor:
        return self.cuda.allocate(nbytes, self._memory)

    def meter(self, on_line=None):
        raise NotImplementedError  # no sensor

    def keeps_pace(self):
        return None

    @contextmanager
    def hold(self, plan):
        yield self.soc.clocks(plan.mode or "MAXN")

    def close(self):
        self.kernels.close()
        self.cuda.close()


def ints(tensor):
    """A tensor's memory as the CPU sees it, as 32-bit integers."""
    return tensor.array.view(np.uint32)
