"""Which type a device computes in, and runs that use it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from advect.core import device
from advect.core.device import cuda_kernels, pick_precision
from advect.core.errors import UserError
from advect.reporting.page import describe
from advect.reporting.run_folder import read_run

CPU = torch.device("cpu")
TINY = "--width 16 --batch-size 64 --log-every 5 --sample-every 20 --num-samples 8 --num-epochs 5"


@pytest.mark.parametrize(
    ("half", "fast", "expected"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, None),
        ("bf16", False, torch.bfloat16),
        ("fp16", True, torch.float16),
    ],
)
def test_a_cpu_computes_in_what_suits_it(half: str, fast: bool, expected: object, monkeypatch) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: fast, raising=False)
    assert pick_precision(True, CPU, half) is expected
    assert pick_precision(False, CPU, half) is None


def test_bfloat16_asked_of_a_gpu_without_it_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(device, "has_fast_bfloat16", lambda device: False)
    with pytest.raises(UserError, match="--half bf16 needs bfloat16, which cuda:0 does not have; use --half fp16"):
        pick_precision(True, torch.device("cuda:0"), "bf16")


def test_float32_for_want_of_bfloat16_is_said_once(advect: Callable[..., None], monkeypatch, capsys) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    advect("train moons --run-dir run --max-steps 2 --mixed-precision", TINY)
    assert capsys.readouterr().out.count("--mixed-precision does nothing here: cpu is fastest in float32") == 1


def test_accumulation_does_not_go_with_learned_times(advect: Callable[..., None]) -> None:
    with pytest.raises(UserError, match="--accumulate and --times importance contradict each other"):
        advect("train moons --run-dir run --accumulate 2 --times importance", TINY)


def test_kernels_are_chosen_for_a_gpu_alone_and_given_back_by_the_last_thread() -> None:
    settings = lambda: (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, dict(os.environ))
    before, gpu = settings(), torch.device("cuda")
    with cuda_kernels(CPU, tf32=True, deterministic=True):
        assert settings() == before and not torch.are_deterministic_algorithms_enabled()
    first, second = cuda_kernels(gpu, tf32=True, deterministic=True), cuda_kernels(gpu, tf32=False)
    first.__enter__()
    assert settings()[:2] == ("high", True) and torch.are_deterministic_algorithms_enabled()
    second.__enter__()
    assert settings()[:2] == ("highest", False)
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert settings() == before and not torch.are_deterministic_algorithms_enabled()


def test_metrics_tell_the_arithmetic_a_second_and_the_report_shows_it(advect: Callable[..., None]) -> None:
    advect("train moons --run-dir run --max-steps 10", TINY)
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "loss" in row]
    layers = [(5, 16), (16, 16), (16, 16), (16, 2)]  # x, t and the sine and cosine of t
    a_sample = 6 * sum(n_in * n_out for n_in, n_out in layers) - 2 * 5 * 16
    for row in logged:
        assert row["flops_per_s"] == pytest.approx(a_sample * row["samples_per_s"], rel=1e-9)
        assert "mfu" not in row
    cards = {card["label"]: card for card in describe(read_run(Path("run")))["cards"]}
    assert cards["GFLOP a second"]["note"] == "in the network"


def test_where_the_peak_is_known_its_share_is_logged(advect: Callable[..., None], monkeypatch, capsys) -> None:
    monkeypatch.setattr("advect.training.trainer.device_peak", lambda device, dtype: 1e13)
    advect("train moons --run-dir run --max-steps 5", TINY)
    row = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[0])
    assert row["mfu"] == pytest.approx(row["flops_per_s"] / 1e13)
    assert "GFLOP/s (0% of peak)" in capsys.readouterr().err
    cards = {card["label"]: card for card in describe(read_run(Path("run")))["cards"]}
    assert cards["GFLOP a second"]["note"].endswith("% of the device's peak")
