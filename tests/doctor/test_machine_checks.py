"""Each verdict on a machine and on a choice of batch size, by figures made by hand; and one machine that is there."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from advect.config.config import network
from advect.core.threads import ThreadChoice
from advect.core.types import Category, DataSpec
from advect.doctor import machine as m
from advect.doctor.examine import MemoryNeeds, check_plan, measure_network
from advect.doctor.report import run_checks

FINE = m.Machine(
    python="3.12.1",
    torch="2.13.0+cu130",
    device="NVIDIA H200",
    device_memory=140 * m.GIB,
    device_free=138 * m.GIB,
    gpus=1,
    built_for_gpu=True,
    gpu_driver=True,
    cores=8,
    threads=8,
    omp=None,
    chosen_half="bfloat16",
    products=m.Products("bfloat16", 1e12, 4e12, 0.003),
    compiler=m.Probe(3.0),
    backend="nccl",
    distributed=m.Probe(0.5),
    folder="runs",
    disk_free=100 * m.GIB,
    shm=m.GIB,
    libraries={"pandas": ("2.2", "tables")},
)
CPU = {"gpus": 0, "device": "cpu"}
BUSY = ThreadChoice(2, "measured", {8: 1.0, 4: 3.0, 2: 5.0, 1: 4.0})
TROUBLE = {
    "old": (m.check_versions, {"torch": "2.5.1"}, "problem", "torch>=2.8"),
    "full GPU": (m.check_device, {"device_free": 10 * m.GIB}, "note", "--device"),
    "unseen GPU": (m.check_device, {**CPU, "built_for_gpu": False}, "problem", "pytorch.org"),
    "slow half": (m.check_precision, {"products": m.Products("bfloat16", 4e9, 1e9, 0.003)}, "note", "--no-mixed"),
    "wrong half": (m.check_precision, {"products": m.Products("bfloat16", 1e9, 4e9, 0.4)}, "problem", "--no-mixed"),
    "NaN half": (m.check_precision, {"products": m.Products("float16", 1e9, 4e9, float("nan"))}, "problem", "--no"),
    "no compiler": (m.check_compiler, {"compiler": m.Probe(None, "no g++")}, "note", "--no-compile-model"),
    "no group": (m.check_distributed, {"distributed": m.Probe(None, "timeout")}, "note", "GLOO_SOCKET_IFNAME"),
    "full disk": (m.check_disk, {"disk_free": m.GIB // 2}, "problem", "--run-dir"),
    "filling disk": (m.check_disk, {"disk_free": 5 * m.GIB}, "note", "--keep-last 1"),
    "small shm": (m.check_shared_memory, {"shm": 64 * 2**20}, "note", "--shm-size"),
    "threads": (m.check_threads, {"threads": 64}, "problem", "OMP_NUM_THREADS=8"),
    "idle cores": (m.check_threads, {**CPU, "threads": 1}, "note", "OMP_NUM_THREADS=8"),
    "busy cores": (m.check_threads, {**CPU, "omp": "8", "fastest": BUSY}, "note", "--threads 2"),
    "missing": (m.check_libraries, {"libraries": {"anndata": (None, "cells")}}, "ok", "advect[cells]"),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_trouble_is_told(name: str) -> None:
    check, change, level, words = TROUBLE[name]
    found = check(replace(FINE, **change))
    assert found.level == level
    assert words in found.advice
    assert found.figures


def test_a_fine_machine_is_found_fine() -> None:
    assert {f.level for f in run_checks(FINE, m.MACHINE_CHECKS)} == {"ok"}
    assert m.check_shared_memory(replace(FINE, shm=None)) is None
    assert m.check_precision(replace(FINE, chosen_half=None)).level == "ok"
    busy = m.check_threads(replace(FINE, **CPU, fastest=BUSY))
    assert busy.level == "ok" and "2 by a factor of 5.0" in busy.title and busy.title.endswith("training takes 2")


def test_this_machine_is_measured() -> None:
    cpu = torch.device("cpu")
    products = m.measure_products(cpu, torch.bfloat16)
    assert products.single_rate > 1e6 and products.half_rate > 1e6
    assert 1e-4 < products.half_error < 0.02  # bfloat16 rounds to 8 bits
    fastest = m.fastest_threads()
    assert 1 <= fastest.threads <= m.count_cores() and torch.get_num_threads() == 1
    total, free = m.device_memory(cpu)
    assert 0 < free <= total


def test_without_sysconf_windows_is_asked(monkeypatch) -> None:
    import ctypes
    import os
    from types import SimpleNamespace

    from advect.core import memory

    def tell(pointer: object) -> int:
        status = pointer._obj  # pyright: ignore[reportAttributeAccessIssue]
        assert status.size == 64  # sizeof(MEMORYSTATUSEX)
        status.total, status.free = 7, 5
        return 1

    monkeypatch.delattr(os, "sysconf")
    windows = SimpleNamespace(kernel32=SimpleNamespace(GlobalMemoryStatusEx=tell))
    monkeypatch.setattr(ctypes, "windll", windows, raising=False)
    assert memory.device_memory(torch.device("cpu")) == (7, 5)


def test_a_group_of_one_process_starts_with_gloo() -> None:
    assert m.run_probe("group", "gloo", timeout=300).seconds is not None


def test_a_trial_that_fails_tells_why_and_one_that_hangs_is_ended() -> None:
    assert "nonsense" in m.run_probe("group", "nonsense", timeout=300).error.lower()
    assert "more than 0.01 seconds" in m.run_probe("group", "gloo", timeout=0.01).error
    assert m.read_answer(0, 'warning\n{"seconds": 2.5}\n', "") == m.Probe(2.5)
    assert m.read_answer(1, "", "  File x\nRuntimeError: no compiler\n").error == "RuntimeError: no compiler"
    assert "code -9" in m.read_answer(-9, "", "").error


PLAN = MemoryNeeds(
    network="unet",
    preset="digits",
    parameters=10**6,
    activations=1e6,
    free=10**9,
    device="cpu",
    train=10_000,
    usual=128,
    steps=3000,
)


def test_the_batch_is_the_planned_one_unless_memory_is_short() -> None:
    assert PLAN.batch == 128
    assert replace(PLAN, free=5 * 10**7).batch == 8  # 30 MB less 20 MB for the state, at 1 MB a sample
    short = check_plan(replace(PLAN, free=5 * 10**7))
    assert short.level == "note" and "--batch-size 8" in short.advice


def test_what_does_not_fit_is_a_problem() -> None:
    assert check_plan(replace(PLAN, free=10**7)).level == "problem"
    assert check_plan(replace(PLAN, fixed=True)).level == "ok"
    too_large = check_plan(replace(PLAN, fixed=True, usual=4096))
    assert too_large.level == "problem" and "--batch-size 512" in too_large.advice


def test_a_network_is_measured_without_computing_it() -> None:
    count, kept = measure_network(network("mlp", width=16, depth=2), DataSpec((2,), "vector", {}))
    wide, kept_wide = measure_network(network("mlp", width=64, depth=2), DataSpec((2,), "vector", {}))
    assert wide > 2 * count and kept_wide > 1.5 * kept
    unet = network("unet", model_channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=())
    spec = DataSpec((1, 16, 16), "image", {"label": Category(("a", "b"), (0.5, 0.5))})
    small = measure_network(unet, spec)[1]
    large = measure_network(unet, replace(spec, shape=(1, 32, 32)))[1]
    assert 3.5 < large / small < 5.0  # four times the pixels; the scores of the attention grow more, the time less


@pytest.mark.slow
def test_the_command_looks_at_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    from advect.cli import run

    try:
        run(["doctor"])
    except SystemExit as stop:
        assert stop.code == 1
    said = capsys.readouterr().out
    assert torch.__version__ in said and sys.version.split()[0] in said
    assert "A process group starts with" in said
