"""A run uses only the threads that it may use, and a CPU's matrix products stay float32."""

import os
import subprocess
import sys
from pathlib import Path

import joblib
import pytest
import torch

from vaelab.training import threads

COUNTS = [(8, 1, 8), (8, 3, 2), (2, 4, 1), (100, 1, 12)]  # CPUs, processes, expected threads if torch has 12
AMD = "vendor_id\t: AuthenticAMD"
CPU = torch.device("cpu")


@pytest.mark.parametrize(("cpus", "processes", "expected"), COUNTS)
def test_processes_share_the_cpus(monkeypatch: pytest.MonkeyPatch, cpus: int, processes: int, expected: int) -> None:
    chosen: list[int] = []
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # monkeypatch restores the variable after the test
    monkeypatch.setattr(threads, "USERS_CHOICE", False)
    monkeypatch.setattr(threads, "ALL_THREADS", 12)
    monkeypatch.setattr(joblib, "cpu_count", lambda: cpus)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    threads.tune(CPU, processes)
    assert chosen == [expected]


def test_the_user_s_number_of_threads_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "USERS_CHOICE", True)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: pytest.fail("the user has chosen"))
    threads.tune(CPU, 4)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_a_process_that_is_bound_to_one_cpu_computes_in_one_thread() -> None:
    script = "import os, torch; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    script += "from vaelab.training import threads; threads.tune(torch.device('cpu')); print(torch.get_num_threads())"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.split() == ["1"]


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A stand-in for /proc/cpuinfo with an AMD processor, and a torch that reports AVX-512."""
    info = tmp_path / "cpuinfo"
    info.write_text(AMD)
    monkeypatch.setattr(threads, "Path", lambda _: info)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    return info


@pytest.mark.usefixtures("processor")
def test_products_are_float32_on_amd() -> None:
    """Matrix products differ from those in float64 by no more than float32's rounding."""
    threads.tune(CPU)
    x, w = torch.randn(128, 784), torch.randn(400, 784)
    exact = x.double() @ w.double().T
    assert (x @ w.T - exact).abs().max() < 784 * 2**-24 * (x.double().abs() @ w.double().abs().T).max()
    assert (x @ w.T - exact).abs().max() < 1e-3  # bfloat16's error is 0.2


@pytest.mark.usefixtures("processor")
def test_onednn_is_not_used_if_it_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    full = torch.full
    monkeypatch.setattr(torch, "full", lambda *arguments: full(*arguments).bfloat16().float())
    threads.tune(CPU)
    assert torch.get_float32_matmul_precision() == "highest"


def test_other_processors_and_gpus_keep_the_precision(processor: Path) -> None:
    threads.tune(torch.device("cuda"))
    processor.write_text("vendor_id\t: GenuineIntel")
    threads.tune(CPU)
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.usefixtures("processor")
def test_the_user_s_precision_is_kept() -> None:
    torch.set_float32_matmul_precision("high")
    threads.tune(CPU)
    assert torch.get_float32_matmul_precision() == "high"


def test_no_gpu_is_looked_for_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    threads.tune(torch.device("cuda"))
    assert "PYTORCH_NVML_BASED_CUDA_CHECK" in os.environ
    threads.tune(CPU)
    assert "PYTORCH_NVML_BASED_CUDA_CHECK" not in os.environ
