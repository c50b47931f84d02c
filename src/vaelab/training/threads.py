"""CPU settings that libraries leave to the user: how many threads compute, which memory is kept, who multiplies."""

import ctypes
import os
import platform
from pathlib import Path

import joblib
import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
FINE = 1 + 2**-12  # a float32 number that bfloat16 rounds to one


def tune(device: torch.device, processes: int = 1) -> None:
    """Make a CPU faster without less precise float32 arithmetic. `processes` is the number on this machine.

    * Threads: torch starts one for each core of the machine. Here the processes share the CPUs that they may use, as
      the affinity of the process and the quota of its container allow. OMP_NUM_THREADS, if it is set, decides.
    * CUDA checks: the optimiser asks at each step whether a CUDA graph is being captured. Lightning lets the driver
      answer, which takes 0.1 ms.
    * Memory: the C library returns the memory that a step frees, and asks for it again page by page. Here it keeps it.
    * Matrix products: torch uses MKL for float32, which on an AMD processor with AVX-512 takes twice as long as oneDNN.
      Torch uses oneDNN if the precision is "medium", which allows bfloat16 inside a product. Some processors then
      compute in bfloat16. One product shows whether this one does.
    """
    if device.type != "cpu":
        return
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), max(1, joblib.cpu_count() // processes)))
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(M_TRIM_THRESHOLD, 2**30)
        library.mallopt(M_MMAP_THRESHOLD, 2**25)  # the largest value that it takes
    info = Path("/proc/cpuinfo")
    vendor = info.read_text() if info.exists() else platform.processor()
    slow = "AuthenticAMD" in vendor and torch.backends.cpu.get_cpu_capability() == "AVX512"
    if slow and torch.get_float32_matmul_precision() == "highest":
        torch.set_float32_matmul_precision("medium")
        if (torch.full((128, 784), FINE) @ torch.ones(784, 400) != 784 * FINE).any():
            torch.set_float32_matmul_precision("highest")
