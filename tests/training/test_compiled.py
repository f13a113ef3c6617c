"""Facts about --compile-model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from advect.checkpoint.tensor_files import load_weights
from advect.core.device import check_compiler
from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.core.types import STEP, Batch
from advect.losses import Consistency, Eulerian, ImprovedMeanFlow, Lagrangian, MeanFlow
from advect.losses.flow_map import FlowMapLoss
from advect.networks import MLP, Vector
from advect.networks.base import TwoTimes
from advect.training.state import EMA_FILE, MODEL, OPTIMIZER

TINY = "--width 8 --depth 2 --batch-size 32 --num-samples 4 --sample-every 4 --num-epochs 5"


@pytest.mark.slow
def test_compiled_gradients_are_those_of_the_plain_network() -> None:
    net = MLP(3, width=16, depth=3)
    x, t = torch.randn(8, 3), torch.rand(8)
    grads = []
    for run in (net, torch.compile(net)):
        net.zero_grad()
        run(x, t).square().mean().backward()
        grads.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert len(grads[0]) == len(list(net.parameters()))
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [MeanFlow, ImprovedMeanFlow, Lagrangian, Eulerian, Consistency])
def test_a_compiled_network_has_the_loss_of_the_plain_one_with_derivatives_along_it(loss: type[FlowMapLoss]) -> None:
    net = TwoTimes(MLP(3, width=16, depth=3, conditions={STEP: Vector(1)}))
    batch, found = Batch(torch.randn(8, 3)), []
    for run in (net, torch.compile(net)):
        net.zero_grad()
        value = loss(diagonal=0.25)(run, batch, CounterRng(0, 0, 8))
        value.mean().backward()
        found.append([value.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["flow-matching", "mean-flow"])
def test_checkpoints_of_a_compiled_run_are_those_of_a_plain_one(advect: Callable[..., None], objective: str) -> None:
    advect(f"train moons --objective {objective} --run-dir plain --max-steps 6", TINY)
    advect(f"train moons --objective {objective} --run-dir compiled --max-steps 6 --compile-model", TINY)
    for name in (MODEL, EMA_FILE, OPTIMIZER):
        one, other = (load_weights(Path(r) / "checkpoints/step-00000006" / name) for r in ("plain", "compiled"))
        assert one.keys() == other.keys()
        for key in one:
            torch.testing.assert_close(other[key], one[key], rtol=1e-3, atol=1e-5)
    assert len(list((Path("compiled") / "samples").glob("*.png"))) == 2
    advect("train --resume-from compiled --max-steps 8 --no-compile-model")


def test_without_a_compiler_one_sentence_is_said_and_nothing_written(
    advect: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.cpp_builder as builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none_found() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(builder, "get_cpp_compiler", none_found)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler, and none is found; .* --no-compile-model"):
        advect("train moons --run-dir run --compile-model", TINY)
    assert not Path("run").exists()


def test_a_gpu_needs_no_cpp_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    check_compiler(torch.device("cuda"))
