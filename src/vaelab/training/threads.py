"""CPU settings that make a run faster: threads, memory, and the library of the matrix products."""

import ctypes
import os
import platform
from pathlib import Path

import joblib
import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h
USERS_CHOICE, ALL_THREADS = "OMP_NUM_THREADS" in os.environ, torch.get_num_threads()
FINE = 1 + 2**-12  # a float32 number that bfloat16 rounds to 1


def tune(device: torch.device, processes: int = 1) -> None:
    """Make a CPU faster at the same float32 precision. `processes` is the number of processes on this machine.

    * Threads: torch starts one thread for each core of the machine. Here the processes share the CPUs that the process
      affinity and the container quota allow. If OMP_NUM_THREADS is set, it is used instead.
    * CUDA checks: the optimiser checks at each step whether a CUDA graph is being captured. Lightning's setting,
      which is removed here, makes this check call the driver. A call takes 0.1 ms.
    * Memory: the C library returns the memory that a step frees, and requests it again page by page. Here it keeps it.
    * Matrix products: on an AMD processor with AVX-512, torch uses MKL for float32, which takes twice as long as
      oneDNN. Precision "medium" selects oneDNN, but some processors then compute in bfloat16. A test product detects
      this, and the precision is set back.
    """
    if device.type != "cpu":
        return
    if not USERS_CHOICE:
        torch.set_num_threads(min(ALL_THREADS, max(1, joblib.cpu_count() // processes)))
        os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # otherwise Lightning's launchers choose again
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(M_TRIM_THRESHOLD, 2**30)
        library.mallopt(M_MMAP_THRESHOLD, 2**25)  # the largest value that mallopt accepts
    info = Path("/proc/cpuinfo")
    vendor = info.read_text() if info.exists() else platform.processor()
    slow = "AuthenticAMD" in vendor and torch.backends.cpu.get_cpu_capability() == "AVX512"
    if slow and torch.get_float32_matmul_precision() == "highest":
        torch.set_float32_matmul_precision("medium")
        if (torch.full((128, 784), FINE) @ torch.ones(784, 400) != 784 * FINE).any():
            torch.set_float32_matmul_precision("highest")
