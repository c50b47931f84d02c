"""A CPU's products stay float32."""

import os
from pathlib import Path

import pytest
import torch

from vaelab.training import threads

AMD = "vendor_id\t: AuthenticAMD"
CPU = torch.device("cpu")


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file in place of /proc/cpuinfo, of an AMD processor, and torch that sees AVX-512."""
    info = tmp_path / "cpuinfo"
    info.write_text(AMD)
    monkeypatch.setattr(threads, "Path", lambda _: info)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    return info


@pytest.mark.usefixtures("processor")
def test_products_are_float32_on_amd() -> None:
    """Whatever library multiplies: the sums differ from those in float64 by no more than float32's rounding."""
    threads.tune(CPU)
    x, w = torch.randn(128, 784), torch.randn(400, 784)
    exact = x.double() @ w.double().T
    assert (x @ w.T - exact).abs().max() < 784 * 2**-24 * (x.double().abs() @ w.double().abs().T).max()
    assert (x @ w.T - exact).abs().max() < 1e-3  # bfloat16's error is 0.2


@pytest.mark.usefixtures("processor")
def test_onednn_is_not_asked_where_it_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    full = torch.full
    monkeypatch.setattr(torch, "full", lambda *arguments: full(*arguments).bfloat16().float())
    threads.tune(CPU)
    assert torch.get_float32_matmul_precision() == "highest"


def test_others_keep_mkl(processor: Path) -> None:
    threads.tune(torch.device("cuda"))
    processor.write_text("vendor_id\t: GenuineIntel")
    threads.tune(CPU)
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.usefixtures("processor")
def test_a_wish_of_the_users_stands() -> None:
    torch.set_float32_matmul_precision("high")
    threads.tune(CPU)
    assert torch.get_float32_matmul_precision() == "high"


def test_no_gpu_is_looked_for_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    threads.tune(torch.device("cuda"))
    assert "PYTORCH_NVML_BASED_CUDA_CHECK" in os.environ
    threads.tune(CPU)
    assert "PYTORCH_NVML_BASED_CUDA_CHECK" not in os.environ
