"""Two and three real processes: the same gradients, the same curve, and states that any number of them can take up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from advect.checkpoint.async_writer import CheckpointWriter
from advect.checkpoint.tensor_files import load_weights
from advect.core.random import CounterRng
from advect.core.types import Batch
from advect.distributed.comm import all_objects, broadcast_object, current
from advect.distributed.parallel import Parallel, as_sharded, local
from advect.losses import FlowMatching
from advect.networks import MLP, DiT, UNet
from advect.times import Importance
from advect.training import (
    EMA,
    AdamW,
    Muon,
    TrainState,
    hidden_matrices,
    named_params,
    verify_checkpoint,
)
from advect.training.state import EMA_FILE, MODEL, on_meta
from advect.training.step import Step
from forked import run_ranks

CPU = torch.device("cpu")
ROWS = 12
NETS = {
    "mlp": lambda: MLP(3, width=10, depth=3, conditions={"class": 3}),
    "unet": lambda: UNet(
        (2, 8, 8),
        model_channels=8,
        channel_mult=(1, 2),
        attention_resolutions=(4,),
        dropout=0.0,
        conditions={"class": 3},
    ),
    "dit": lambda: DiT((2, 8, 8), depth=2, width=16, heads=2, size=None, conditions={"class": 3}),
}


def make(net: str, kind: str, optimizer: str = "adamw") -> TrainState:
    """A state whose network is the same in every process and not at its zero start."""
    torch.manual_seed(0)
    module = NETS[net]()
    for p in module.parameters():
        nn.init.normal_(p, std=0.2)
    twin, parallel = on_meta(module), Parallel(kind)  # type: ignore[arg-type]
    module = parallel.place(module, CPU)
    params = named_params(module)
    moved = Muon(params, hidden_matrices(module)) if optimizer == "muon" else AdamW(params, eps=1e-3)
    ema = EMA({name: local(p) for name, p in params.items()}, 0.9)
    return TrainState(module, moved, ema, parallel=parallel, twin=twin)


def drawn(net: str, step: int):
    """This process's rows of the global batch of a step."""
    me = current()
    shape = (3,) if net == "mlp" else (2, 8, 8)
    x1 = torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(step))
    cond = {"class": torch.arange(ROWS) % 3}
    mine = me.share(ROWS)
    rng = CounterRng(7, step, len(mine), start=mine.start, total=ROWS)
    rows = slice(mine.start, mine.stop)
    batch = Batch(x1[rows], {name: value[rows] for name, value in cond.items()})
    return FlowMatching(cond_dropout=0.3).sample(batch, rng)


def whole(params: dict[str, Tensor], values: dict[str, Tensor]) -> list[list[float]]:
    tensors = (as_sharded(values[name], p) for name, p in params.items())
    return [(x.full_tensor() if hasattr(x, "full_tensor") else x).flatten().tolist() for x in tensors]


def gradients(net: str, kind: str, accumulate: int) -> tuple[list, float]:
    state = make(net, kind)
    params, kept, seen = named_params(state.net), {}, {}

    class Recorder:
        def step(self, lr: float, bad: Tensor | None = None) -> None:
            for name, p in params.items():
                assert p.grad is not None
                kept[name] = local(p.grad).clone()

    state.optimizer = Recorder()  # type: ignore[assignment]
    step = Step(state, device=CPU, grad_clip=0.0, accumulate=accumulate)
    _, norm = step.take(FlowMatching(), drawn(net, 0), 0.1, seen.update)  # as a log of gradients sees them
    assert [seen[name].flatten().tolist() for name in params] == whole(params, kept)
    return whole(params, kept), norm.item()


def all_gradients(accumulate: int) -> list:
    """Of every network and both ways to share it, in one start of the processes."""
    return [[net, gradients(net, kind, accumulate)] for net in NETS for kind in ("ddp", "fsdp")]


@pytest.mark.parametrize(("n", "accumulate"), [(2, 1), (3, 2)])
def test_gradients_of_ddp_and_fsdp_are_those_of_one_process(n: int, accumulate: int) -> None:
    alone = {net: gradients(net, "none", 1) for net in NETS}
    for found in run_ranks(n, all_gradients, accumulate):
        for net, (grads, norm) in found:
            expected, norm_alone = alone[net]
            assert norm == pytest.approx(norm_alone, rel=1e-5)
            for a, b in zip(grads, expected, strict=True):
                torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-4, atol=1e-6 * norm)


def take_steps(state: TrainState, net: str, steps: range) -> list[float]:
    """Train, and return the losses over all processes."""
    step, losses = Step(state, device=CPU), []
    for s in steps:
        loss, _ = step.take(FlowMatching(), drawn(net, s), 3e-3)
        losses.append(sum(all_objects(loss.item())) / current().world)
        state.progress.step += 1
    return losses


def leg(folder: str, net: str, kind: str, optimizer: str, first: int, last: int) -> list[float]:
    """Load the newest checkpoint if there is one, train to ``last``, write one; the losses."""
    state = make(net, kind, optimizer)
    place = Path(folder)
    if first:
        state.load(place / f"step-{first:08d}")
    losses = take_steps(state, net, range(first, last))
    writer = CheckpointWriter(place, keep_last=0)
    writer.write(last, state.contents())
    writer.wait()
    writer.close()
    if current().is_first:
        verify_checkpoint(place / f"step-{last:08d}")
    broadcast_object(None)
    return losses


WAYS = {
    "1-ddp2-1": [(1, "none"), (2, "ddp"), (1, "none")],
    "ddp2-fsdp3-ddp2": [(2, "ddp"), (3, "fsdp"), (2, "ddp")],
    "fsdp2-1-fsdp3": [(2, "fsdp"), (1, "none"), (3, "fsdp")],
}
LEARNERS = [("mlp", "adamw"), ("unet", "muon")]


def legs(folder: str, kind: str, first: int, last: int) -> list[list[float]]:
    """The leg of every learner, in one start of the processes."""
    return [leg(f"{folder}/{net}", net, kind, optimizer, first, last) for net, optimizer in LEARNERS]


@pytest.mark.parametrize("way", ["1-ddp2-1", "ddp2-fsdp3-ddp2", pytest.param("fsdp2-1-fsdp3", marks=pytest.mark.slow)])
def test_the_curve_stays_that_of_one_process_whoever_takes_the_run_up(tmp_path: Path, way: str) -> None:
    losses: list[list[float]] = [[] for _ in LEARNERS]
    for i, (n, kind) in enumerate(WAYS[way]):
        asked = (str(tmp_path), kind, 4 * i, 4 * i + 4)
        for curve, part in zip(losses, legs(*asked) if n == 1 else run_ranks(n, legs, *asked)[0], strict=True):
            curve += part
    for (net, optimizer), curve in zip(LEARNERS, losses, strict=True):
        assert curve == pytest.approx(take_steps(make(net, "none", optimizer), net, range(12)), rel=1e-5)


def importance_after_a_batch() -> list[float]:
    times, me = Importance(bins=4), current()
    t, loss = torch.linspace(0, 0.99, 12), torch.arange(12.0)
    mine = me.share(12)
    times.importance_weight(t[mine.start : mine.stop], loss[mine.start : mine.stop].requires_grad_())
    return times.state_dict()["loss"]


def test_importance_times_learn_from_the_batch_of_all_processes() -> None:
    expected = importance_after_a_batch()
    for found in run_ranks(2, importance_after_a_batch):
        assert found == pytest.approx(expected, rel=1e-12)


def unequal_gradients() -> list[list[float]]:
    """A loss that is NaN on the last process alone, in float16 and in float32: what happens to weights and scale."""
    told = []
    for half in (None, torch.float16):
        for kind in ("ddp", "fsdp"):
            state = make("mlp", kind)
            params = named_params(state.net)
            step = Step(state, device=CPU, autocast=half)
            point, cond = drawn("mlp", 0)
            before = [local(p).clone() for p in params.values()]
            if current().rank == current().world - 1:
                point.u_t[0, 0] = float("nan")
            _, norm = step.take(FlowMatching(), (point, cond), 0.1)
            same = all(torch.equal(a, local(p)) for a, p in zip(before, params.values(), strict=True))
            told.append([float(same), float(norm.isfinite()), state.loss_scaler.scale if state.loss_scaler else 0.0])
    return told


def test_what_is_not_finite_on_one_process_moves_nothing_on_any() -> None:
    for told in run_ranks(2, unequal_gradients):
        assert told == [[1.0, 0.0, 0.0]] * 2 + [[1.0, 0.0, 2.0**15]] * 2


def both_kinds(folder: str) -> None:
    for kind in ("ddp", "fsdp"):
        leg(f"{folder}/{kind}", "mlp", kind, "adamw", 0, 1)


def test_a_sharded_checkpoint_holds_no_pickle_and_the_same_plain_weights(tmp_path: Path) -> None:
    run_ranks(2, both_kinds, str(tmp_path))
    plain, sharded = (tmp_path / kind / "step-00000001" for kind in ("ddp", "fsdp"))
    files = [p for p in sharded.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".json", ".safetensors"}
    net = NETS["mlp"]()
    for name in (MODEL, EMA_FILE):
        one, other = load_weights(plain / name), load_weights(sharded / name)
        net.load_state_dict(other)
        assert one.keys() == other.keys()
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=1e-5, atol=1e-6)
