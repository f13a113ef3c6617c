"""What needs a CUDA device: `bench/gpu.sh` runs this, on a CPU with ADVECT_GPU_TESTS_ON=cpu."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import advect
from advect.core.device import cuda_kernels
from advect.core.random import CounterRng
from advect.core.types import Batch
from advect.distributed.parallel import Kind, Parallel, as_sharded, local
from advect.losses import FlowMatching
from advect.networks import MLP, DiT, UNet
from advect.training import EMA, AdamW, TrainState, named_params
from advect.training.state import on_meta
from advect.training.step import Step
from processes import environment
from runs import assert_same_end

pytestmark = pytest.mark.gpu

ON = os.environ.get("ADVECT_GPU_TESTS_ON", "cuda")
ROWS = 8
NETS = {
    "mlp": lambda: MLP(3, width=16, depth=3),
    "unet": lambda: UNet(
        (2, 8, 8), model_channels=32, channel_mult=(1, 2), attention_resolutions=(4,), conditions={"class": 3}
    ),
    "dit": lambda: DiT((2, 8, 8), depth=2, width=32, heads=2, size=None, conditions={"class": 3}),
}
DTYPES = [torch.float32, torch.float64]


@pytest.fixture(scope="module")
def device() -> torch.device:
    if ON == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(ON)


@contextmanager
def group_of_one(device: torch.device) -> Iterator[None]:
    """PyTorch's default process group with this process alone, over NCCL on a GPU."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(minutes=1))
    try:
        yield
    finally:
        dist.destroy_process_group()


def trained(
    net: str,
    device: torch.device,
    *,
    kind: Kind = "none",
    half: torch.dtype | None = None,
    compiled: bool = False,
    steps: int = 3,
) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of some steps from one start, and the weights after them."""
    torch.manual_seed(0)
    module = NETS[net]()
    for p in module.parameters():
        nn.init.normal_(p, std=0.1)
    parallel, twin = Parallel(kind), on_meta(module)
    module = parallel.place(module, device, half)
    params = named_params(module)
    ema = EMA({name: local(p) for name, p in params.items()}, 0.9)
    state = TrainState(module, AdamW(params, eps=1e-3), ema, parallel=parallel, twin=twin)
    step, losses = Step(state, device=device, autocast=half, compile_model=compiled), []
    loss_fn, shape = FlowMatching(cond_dropout=0.3), (3,) if net == "mlp" else (2, 8, 8)
    with cuda_kernels(device, tf32=False):
        for number in range(steps):
            x1 = torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(number))
            batch = Batch(x1, None if net == "mlp" else {"class": torch.arange(ROWS) % 3}).to(device)
            loss, _ = step.take(loss_fn, loss_fn.sample(batch, CounterRng(7, number, ROWS)), 3e-3)
            losses.append(loss.item())
            state.progress.step += 1
    whole = {name: as_sharded(local(p), p) for name, p in params.items()}
    weights = {name: x.full_tensor() if hasattr(x, "full_tensor") else x for name, x in whole.items()}  # pyright: ignore
    return losses, {name: x.detach().float().cpu().clone() for name, x in weights.items()}


def assert_close(mine: dict[str, Tensor], other: dict[str, Tensor], within: float) -> None:
    assert mine.keys() == other.keys()
    for name, x in mine.items():
        torch.testing.assert_close(x, other[name], rtol=0, atol=within, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("net", ["unet", "dit"])
def test_a_device_takes_the_steps_of_the_cpu(net: str, device: torch.device) -> None:
    (mine, weights), (cpu, expected) = trained(net, device), trained(net, torch.device("cpu"))
    assert mine == pytest.approx(cpu, rel=1e-3)
    assert_close(weights, expected, 2e-3)  # a step moves a weight by at most 3e-3


@pytest.mark.parametrize("net", ["unet", "dit"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_ddp_and_fsdp_on_one_device_take_the_steps_of_none(net: str, kind: Kind, device: torch.device) -> None:
    alone, expected = trained(net, device)
    with group_of_one(device):
        losses, weights = trained(net, device, kind=kind)
    assert losses == pytest.approx(alone, rel=1e-4)
    assert_close(weights, expected, 2e-4)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["none", "fsdp"])
def test_halves_follow_float32(half: torch.dtype, kind: Kind, device: torch.device) -> None:
    single, _ = trained("dit", device, steps=6)
    with group_of_one(device):
        losses, weights = trained("dit", device, kind=kind, half=half, steps=6)
    assert losses == pytest.approx(single, rel=0.05)
    assert all(x.isfinite().all() for x in weights.values())


def test_a_compiled_step_is_the_plain_one(device: torch.device) -> None:
    for net in ("unet", "dit") if device.type == "cuda" else ("mlp",):  # a C++ compiler takes a minute
        (plain, weights), (losses, compiled) = trained(net, device), trained(net, device, compiled=True)
        assert losses == pytest.approx(plain, rel=1e-3)
        assert_close(compiled, weights, 1e-3)


RUNS = {
    "unet": "digits --model-channels 8 --mixed-precision",
    "dit": "digits --network dit --depth 2 --width 32 --heads 2",
}
SCRIPT = """
import sys
from advect.cli import run
for words in sys.argv[1:]:
    run(words.split())
"""


@pytest.fixture(scope="module")
def folder(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of :data:`RUNS`, NAME and one that was stopped and resumed, NAME-2, in a process of their own.

    cuBLAS reads its setting once a process, so a process that multiplied before could not be deterministic.
    """
    folder = tmp_path_factory.mktemp("runs")
    words = []
    for name, preset in RUNS.items():
        flags = f"--device {device} --deterministic --batch-size 32 --log-every 1 --sample-every 0 --save-every 4"
        words.append(f"train {preset} {flags} --max-steps 8 --run-dir {name}")
        words.append(f"train {preset} {flags} --max-steps 4 --run-dir {name}-2")
        words.append(f"train --resume-from {name}-2 --max-steps 8")
    env = environment(**({"CUDA_VISIBLE_DEVICES": seen} if (seen := os.environ.get("CUDA_VISIBLE_DEVICES")) else {}))
    if device.type == "cuda" and not env["CUDA_VISIBLE_DEVICES"]:
        del env["CUDA_VISIBLE_DEVICES"]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *words], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_a_deterministic_run_goes_on_bit_for_bit(name: str, folder: Path) -> None:
    assert_same_end(folder / name, folder / f"{name}-2", 8)


def test_samples_latents_and_densities_are_those_of_the_cpu(folder: Path, device: torch.device) -> None:
    here, cpu = (advect.load(folder / "dit", device=str(place)) for place in (device, "cpu"))
    cond = {"label": [1, 7, 3, 3]}
    x = cpu.sample(4, steps=5, cond=cond).x
    torch.testing.assert_close(here.sample(4, steps=5, cond=cond).x, x, rtol=0, atol=0.02)  # of 16 grey levels
    mine, other = (flow.encode(x, cond=cond, steps=3) for flow in (here, cpu))
    torch.testing.assert_close(mine, other, rtol=0, atol=2e-3)
    mine, other = (flow.log_prob(x, cond=cond, steps=2) for flow in (here, cpu))
    torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_numbers_are_those_of_the_cpu(dtype: torch.dtype, device: torch.device) -> None:
    def draw(device: torch.device) -> list[torch.Tensor]:
        rng = CounterRng(5, 6, 7, start=3, total=30)
        uniform, normal = (draw((7, 501), device=device, dtype=dtype) for draw in (rng.uniform, rng.normal))
        return [x.cpu() for x in (uniform, rng.permutation(device=device), normal)]

    cpu, here = draw(torch.device("cpu")), draw(device)
    assert torch.equal(cpu[0], here[0])
    assert torch.equal(cpu[1], here[1])
    torch.testing.assert_close(cpu[2], here[2], rtol=0, atol=4e-6 if dtype == torch.float32 else 1e-14)
