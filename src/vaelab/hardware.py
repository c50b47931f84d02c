"""What libraries leave undone for the device in use."""

import ctypes
import os
import platform
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
FINE = 1 + 2**-12  # bfloat16 rounds it to one


def tune(device: torch.device) -> None:
    """Settings of torch's that make a CPU quicker, and change none of its float32 arithmetic to less.

    * The optimiser asks at each step whether a CUDA graph is being captured. Lightning has NVML answer that, to spare
      forked processes a GPU that is not used here, which takes a tenth of a millisecond a step.
    * The C library gives back the memory that a step has freed, and asks for it anew, page by page. Now it keeps it.
    * Torch has MKL multiply float32 matrices, which takes twice as long as oneDNN on an AMD processor with AVX-512, and
      asks oneDNN only where bfloat16 is allowed inside a product. On Intel's AMX it would make use of that; a product
      of numbers that bfloat16 has not got shows that it does not here.
    """
    if device.type != "cpu":
        return
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(M_TRIM_THRESHOLD, 2**30)
        library.mallopt(M_MMAP_THRESHOLD, 2**25)  # the most that it takes
    info = Path("/proc/cpuinfo")
    vendor = info.read_text() if info.exists() else platform.processor()
    slow = "AuthenticAMD" in vendor and torch.backends.cpu.get_cpu_capability() == "AVX512"
    if slow and torch.get_float32_matmul_precision() == "highest":
        torch.set_float32_matmul_precision("medium")
        if (torch.full((128, 784), FINE) @ torch.ones(784, 400) != 784 * FINE).any():
            torch.set_float32_matmul_precision("highest")
