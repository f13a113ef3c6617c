"""Facts about one step: parts of a batch, float16 and its loss scale."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.core.types import Batch
from advect.couplings import ExactOT
from advect.losses import FlowMatching
from advect.networks import MLP, UNet
from advect.training import EMA, AdamW, LossScaler, Muon, TrainState, named_params
from advect.training.step import Step, split_rows

CPU = torch.device("cpu")


class Recorder:
    """An optimiser that keeps the gradients and moves nothing."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.grads = net, []

    def step(self, lr: float, bad: Tensor | None = None) -> None:
        self.grads = [None if p.grad is None else p.grad.clone() for p in self.net.parameters()]

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def load(self, tensors: dict[str, Tensor], step: int) -> None: ...


def drawn_batch(loss_fn: FlowMatching, rows: int):
    generator = torch.Generator().manual_seed(0)
    x1 = torch.randn(rows, 2, generator=generator)
    cond = {"class": torch.randint(0, 3, (rows,), generator=generator)}
    return loss_fn.sample(Batch(x1, cond), CounterRng(7, 0, rows))


def small_net() -> MLP:
    torch.manual_seed(0)
    return MLP(2, width=16, depth=3, conditions={"class": 3})


@pytest.mark.parametrize(("rows", "parts"), [(32, 2), (32, 5), (7, 3), (3, 8)])
def test_parts_have_the_gradient_and_loss_of_the_whole_batch(rows: int, parts: int) -> None:
    loss_fn = FlowMatching(coupling=ExactOT(), cond_dropout=0.3)
    drawn = drawn_batch(loss_fn, rows)
    found = []
    for accumulate in (1, parts):
        net = small_net()
        optimizer = Recorder(net)
        step = Step(TrainState(net, optimizer, None), device=CPU, grad_clip=0.0, accumulate=accumulate)
        loss, norm = step.take(loss_fn, drawn, 0.1)
        found.append((loss, norm, optimizer.grads))
    torch.testing.assert_close(found[1], found[0], rtol=2e-5, atol=1e-6)


def test_activations_computed_again_give_the_same_gradient_dropout_included() -> None:
    loss_fn = FlowMatching()
    x1 = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = loss_fn.sample(Batch(x1), CounterRng(7, 0, 6))
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        net = UNet(
            (1, 8, 8),
            model_channels=8,
            channel_mult=(1, 2),
            attention_resolutions=(),
            dropout=0.3,
            grad_checkpointing=again,
        )
        for p in net.parameters():
            nn.init.normal_(p, std=0.1)
        optimizer = Recorder(net)
        step = Step(TrainState(net, optimizer, None), device=CPU, grad_clip=0.0)
        torch.manual_seed(1)
        loss, _ = step.take(loss_fn, drawn, 0.1)
        found.append((loss, optimizer.grads, step.flops))
    torch.testing.assert_close(found[0], found[1])


def test_rows_are_split_once_each_and_in_order() -> None:
    point, cond = drawn_batch(FlowMatching(), 10)
    parts = split_rows((point, cond), 4)
    assert [len(p.t) for p, _ in parts] == [3, 3, 2, 2]
    assert torch.equal(torch.cat([p.x_t for p, _ in parts]), point.x_t)
    assert cond is not None
    assert torch.equal(torch.cat([c["class"] for _, c in parts if c]), cond["class"])


def test_the_gradient_in_float16_is_that_of_float32_unscaled() -> None:
    loss_fn = FlowMatching()
    drawn = drawn_batch(loss_fn, 64)
    grads = {}
    for dtype in (None, torch.float16):
        net = small_net()
        optimizer = Recorder(net)
        state = TrainState(net, optimizer, None)
        state.loss_scaler = None if dtype is None else LossScaler(256.0)
        Step(state, device=CPU, grad_clip=0.0, autocast=dtype).take(loss_fn, drawn, 0.1)
        grads[dtype] = torch.cat([g.flatten() for g in optimizer.grads])
        assert state.loss_scaler is None or state.loss_scaler.skipped == 0
    error = (grads[torch.float16] - grads[None]).norm() / grads[None].norm()
    assert 0 < error < 5e-3


@pytest.mark.parametrize(
    ("options", "scale", "error"),
    [
        ({"grad_clip": 1e-3}, None, 0),
        ({"grad_clip": 1e-3, "accumulate": 3}, None, 1e-6),
        ({"grad_clip": 1e-3, "autocast": torch.float16}, 256.0, 5e-3),
        ({"grad_clip": 1e-3, "autocast": torch.bfloat16}, None, 3e-2),
        pytest.param({"grad_clip": 1e-3, "compile_model": True}, None, 1e-5, marks=pytest.mark.slow),
    ],
    ids=["clipped", "parts", "float16", "bfloat16", "compiled"],
)
def test_observed_gradients_are_those_of_the_mean_loss_unscaled_and_not_clipped(
    options: dict, scale: float | None, error: float
) -> None:
    loss_fn, net, seen = FlowMatching(), small_net(), {}
    sample, cond = drawn_batch(loss_fn, 64)
    params = named_params(net)
    mean = loss_fn.compare(net(sample.x_t, sample.t, cond), sample).mean()
    true = dict(zip(params, torch.autograd.grad(mean, list(params.values())), strict=True))
    state = TrainState(net, AdamW(params), None)
    state.loss_scaler = None if scale is None else LossScaler(scale)
    step = Step(state, device=CPU, **options)
    keep = lambda grads: seen.update({name: grad.clone() for name, grad in grads.items()})
    step.take(loss_fn, (sample, cond), 0.1, keep)
    assert seen.keys() == true.keys()
    whole = lambda grads: torch.cat([grads[name].flatten() for name in true])
    assert (whole(seen) - whole(true)).norm() <= error * whole(true).norm()


def test_an_overflow_changes_nothing_but_the_scale() -> None:
    net, loss_fn = small_net(), FlowMatching()
    params = named_params(net)
    state = TrainState(net, AdamW(params), EMA(params, 0.9))
    assert state.ema is not None
    step = Step(state, device=CPU, autocast=torch.float16)
    assert state.loss_scaler is not None
    state.loss_scaler.scale = 256.0
    drawn = drawn_batch(loss_fn, 64)
    step.take(loss_fn, drawn, 0.1)
    kept = [t.clone() for t in (*params.values(), *state.optimizer.tensors().values(), *state.ema.shadow.values())]
    state.loss_scaler.scale = 2.0**60
    seen: list[dict] = []
    _, norm = step.take(loss_fn, drawn, 0.1, seen.append)
    assert seen == []
    now = [*params.values(), *state.optimizer.tensors().values(), *state.ema.shadow.values()]
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))
    assert not norm.isfinite()
    assert all(p.grad is None for p in params.values())
    assert state.ema.updates == 1
    assert (state.loss_scaler.scale, state.loss_scaler.skipped) == (2.0**59, 1)


def test_the_scale_doubles_after_a_calm_interval_and_goes_on_from_what_was_kept() -> None:
    one, other = LossScaler(8.0, interval=3), LossScaler(2.0, interval=3)
    one.adapt(finite=False)
    assert one.scale == 4.0
    for _ in range(2):
        one.adapt(finite=True)
    other.load_state_dict(one.state_dict())
    for scale in (one, other):
        grads = [torch.ones(2)]
        scale.unscale(grads)
        scale.adapt(finite=True)
        assert grads[0].tolist() == [0.25, 0.25]
        assert (scale.scale, scale.skipped) == (8.0, 1)


def test_a_loss_that_is_never_finite_ends_the_run() -> None:
    scale = LossScaler(2.0**-14)
    with pytest.raises(UserError, match=r"not finite even with the loss scaled by .*; lower --learning-rate"):
        scale.adapt(finite=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_whose_loss_is_not_finite_changes_nothing_even_where_the_gradient_would_be(value: float) -> None:
    net, loss_fn = small_net(), FlowMatching()
    params = named_params(net)
    state = TrainState(net, AdamW(params), EMA(params, 0.9))
    assert state.ema is not None
    step, drawn = Step(state, device=CPU), drawn_batch(loss_fn, 16)
    step.take(loss_fn, drawn, 0.1)
    kept = [t.clone() for t in (*params.values(), *state.optimizer.tensors().values(), *state.ema.shadow.values())]

    class Shifted(FlowMatching):
        def compare(self, output: Tensor, point) -> Tensor:
            return super().compare(output, point) + value  # a constant has no gradient

    _, norm = step.take(Shifted(), drawn, 0.1)
    now = [*params.values(), *state.optimizer.tensors().values(), *state.ema.shadow.values()]
    assert not norm.isfinite()
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))
    step.take(loss_fn, drawn, 0.1)
    assert not torch.equal(kept[0], next(iter(params.values())))


@pytest.mark.parametrize("make", [lambda params: AdamW(params), lambda params: Muon(params, {"w": 1})])
def test_an_optimiser_told_on_the_device_that_a_step_is_bad_moves_nothing(make) -> None:
    params = {"w": nn.Parameter(torch.ones(3, 3)), "b": nn.Parameter(torch.ones(3))}
    optimizer = make(params)
    for value, bad in ((1.0, torch.zeros(())), (float("nan"), torch.ones(()))):
        before = [t.clone() for t in (*params.values(), *optimizer.tensors().values())]
        for p in params.values():
            p.grad = torch.full_like(p, value)
        optimizer.step(0.1, bad)
        same = [
            torch.equal(a, b) for a, b in zip(before, (*params.values(), *optimizer.tensors().values()), strict=True)
        ]
        assert not any(same) if not bad else all(same)
        assert all(p.grad is None for p in params.values())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"accumulate": 0}, "accumulate must be at least 1 part, got 0"), ({"grad_clip": -1.0}, "grad_clip must be")],
)
def test_mistakes_are_told(wrong: dict, message: str) -> None:
    net = small_net()
    with pytest.raises(UserError, match=message):
        Step(TrainState(net, Recorder(net), None), device=CPU, **wrong)
