from __future__ import annotations

import pytest
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.types import NULL
from advect.solvers import autoguided_velocity, guided_velocity, integrate

LABEL = torch.tensor([3, 1, 4, NULL])


class Recorder:
    """A network whose answer depends on everything it is given; it remembers the conditions of each call."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Tensor] | None] = []
        self.sizes: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, cond: dict[str, Tensor] | None = None) -> Tensor:
        self.calls.append(cond)
        self.sizes.append(len(x))
        label = torch.full((len(x),), NULL) if cond is None else cond["label"]
        return x.sin() * (2.0 + label)[:, None] + t[:, None]


@pytest.fixture
def at() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, generator=generator), torch.rand(4, generator=generator)


def parts(at) -> tuple[Tensor, Tensor]:
    x, t = at
    return Recorder()(x, t, {"label": LABEL}), Recorder()(x, t, {"label": torch.full((4,), NULL)})


@pytest.mark.parametrize(("scale", "size"), [(1.0, 4), (0.0, 4), (2.0, 8), (0.5, 8), (-1.0, 8), (7.5, 8)])
def test_scale_extrapolates_from_unconditional_to_conditional_in_one_call(at, scale, size):
    net = Recorder()
    with_cond, without = parts(at)
    u = guided_velocity(net, {"label": LABEL}, scale)(*at)
    torch.testing.assert_close(u, without + scale * (with_cond - without), rtol=1e-5, atol=1e-5)
    assert net.sizes == [size]


def test_scale_1_and_0_are_the_plain_flows_to_the_last_bit(at):
    with_cond, without = parts(at)
    assert torch.equal(guided_velocity(Recorder(), {"label": LABEL}, 1.0)(*at), with_cond)
    assert torch.equal(guided_velocity(Recorder(), {"label": LABEL}, 0.0)(*at), without)


def test_scale_2_is_twice_the_conditional_less_the_unconditional(at):
    with_cond, without = parts(at)
    u = guided_velocity(Recorder(), {"label": LABEL}, 2.0)(*at)
    torch.testing.assert_close(u, 2 * with_cond - without, rtol=1e-6, atol=1e-6)


def test_a_sample_without_label_is_not_guided(at):
    u = guided_velocity(Recorder(), {"label": LABEL}, 5.0)(*at)
    assert torch.equal(u[3], parts(at)[1][3])


@pytest.mark.parametrize("cond", [None, {}])
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_without_conditions_there_is_nothing_to_guide(at, cond, scale):
    seen = []
    u = guided_velocity(lambda x, t, cond=None: seen.append((len(x), cond)) or x, cond, scale)(*at)
    assert torch.equal(u, at[0])
    assert seen == [(4, cond)]


def test_conditions_are_not_changed_and_all_become_null(at):
    cond = {"label": LABEL.clone(), "donor": torch.arange(4)}
    net = Recorder()
    guided_velocity(net, cond, 2.0)(*at)
    guided_velocity(net, cond, 0.0)(*at)
    assert torch.equal(cond["label"], LABEL) and torch.equal(cond["donor"], torch.arange(4))
    both, null = net.calls
    assert torch.equal(both["donor"], torch.tensor([0, 1, 2, 3, -1, -1, -1, -1]))
    assert all((value == NULL).all() for value in null.values())


def test_a_guided_flow_can_be_integrated():
    # u(x, t, c) = c and u(x, t, null) = -1: the guided velocity is -1 + scale (c + 1).
    net = lambda x, t, cond: cond["label"][:, None].to(x.dtype).expand_as(x)
    end = integrate(guided_velocity(net, {"label": torch.tensor([0, 2])}, 3.0), torch.zeros(2, 1), steps=4)
    assert end.flatten().tolist() == [2.0, 8.0]


# --- In an interval. ---


@pytest.mark.parametrize(("time", "size"), [(0.1, 4), (0.3, 8), (0.5, 8), (0.7, 8), (0.8, 4)])
def test_outside_the_interval_the_flow_is_the_conditional_one_at_one_call(at, time, size):
    x, t = at[0], torch.full((4,), time)
    net, guided = Recorder(), guided_velocity(Recorder(), {"label": LABEL}, 3.0)
    u = guided_velocity(net, {"label": LABEL}, 3.0, interval=(0.3, 0.7))(x, t)
    expected = guided(x, t) if size == 8 else Recorder()(x, t, {"label": LABEL})
    assert torch.equal(u, expected) and net.sizes == [size]


def test_rows_on_both_sides_of_the_bound(at):
    x, t = at[0], torch.tensor([0.1, 0.4, 0.6, 0.9])
    u = guided_velocity(Recorder(), {"label": LABEL}, 3.0, interval=(0.3, 0.7))(x, t)
    with_cond, without = parts((x, t))
    expected = torch.where(((t > 0.3) & (t < 0.7))[:, None], without + 3 * (with_cond - without), with_cond)
    torch.testing.assert_close(u, expected, rtol=1e-5, atol=1e-5)


def test_without_guidance_there_is_no_interval_but_scale_0_has_one(at):
    net = Recorder()
    x, late = at[0], torch.full((4,), 0.9)
    assert torch.equal(guided_velocity(net, {"label": LABEL}, 0.0, interval=(0.0, 0.5))(x, late), parts((x, late))[0])
    assert torch.equal(guided_velocity(net, {"label": LABEL}, 1.0, interval=(0.0, 0.5))(x, late), parts((x, late))[0])


@pytest.mark.parametrize("interval", [(0.7, 0.3), (0.5, 0.5), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 1.0)])
def test_wrong_intervals(interval):
    for make in (
        lambda: guided_velocity(Recorder(), {"label": LABEL}, 2.0, interval=interval),
        lambda: autoguided_velocity(lambda x, t: x, lambda x, t: x, 2.0, interval=interval),
    ):
        with pytest.raises(UserError, match="the guidance interval needs 0 <= lo < hi <= 1, got"):
            make()


# --- By a weaker network. ---


def test_autoguidance_extrapolates_from_the_weak_network(at):
    x, t = at
    strong, weak = (lambda x, t: x.sin() + t[:, None]), (lambda x, t: x.cos())
    for scale in (0.0, 0.5, 1.0, 2.5):
        u = autoguided_velocity(strong, weak, scale)(x, t)
        torch.testing.assert_close(u, scale * strong(x, t) + (1 - scale) * weak(x, t))
    assert torch.equal(autoguided_velocity(strong, weak, 1.0)(x, t), strong(x, t))
    assert torch.equal(autoguided_velocity(strong, weak, 0.0)(x, t), weak(x, t))


@pytest.mark.parametrize(
    ("scale", "time", "calls"), [(1.0, 0.5, "s"), (0.0, 0.5, "w"), (2.0, 0.5, "sw"), (2.0, 0.9, "s")]
)
def test_autoguidance_calls_only_what_it_needs(at, scale, time, calls):
    made = []
    strong, weak = (lambda x, t: made.append("s") or x), (lambda x, t: made.append("w") or x)
    autoguided_velocity(strong, weak, scale, interval=(0.2, 0.8))(at[0], torch.full((4,), time))
    assert "".join(sorted(made)) == calls


def test_both_guidances_together(at):
    good, bad = Recorder(), Recorder()
    velocity = autoguided_velocity(
        guided_velocity(good, {"label": LABEL}, 2.0), guided_velocity(bad, {"label": LABEL}), 1.5
    )
    velocity(*at)
    assert good.sizes == [8] and bad.sizes == [4]
