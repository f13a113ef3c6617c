"""A trained flow, loaded and sampled."""

from __future__ import annotations

import copy
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import advect
from advect.checkpoint.tensor_files import load_weights
from advect.core.errors import UserError
from advect.core.types import DataSpec
from advect.data import Identity
from advect.model.flow import Flow
from advect.model.samples import Samples
from advect.training.state import EMA_FILE, MODEL


def test_samples_come_in_data_units(digits_run: Path, moons_run: Path) -> None:
    digits = advect.load(digits_run).sample(5, steps=2).x
    assert digits.shape == (5, 1, 8, 8) and digits.dtype == torch.float32
    assert digits.min() >= 0 and digits.max() <= 16 and digits.max() > 1
    moons = advect.load(moons_run).sample(7, steps=2).x
    assert moons.shape == (7, 2)


def test_the_averaged_weights_are_the_default(digits_run: Path) -> None:
    checkpoint = digits_run / "checkpoints/step-00000012"
    for ema, file in ((True, EMA_FILE), (False, MODEL)):
        net = advect.load(digits_run, ema=ema).net.state_dict()
        for name, value in load_weights(checkpoint / file).items():
            assert torch.equal(net[name].cpu(), value)
    a, b = (load_weights(checkpoint / file) for file in (EMA_FILE, MODEL))
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_a_sample_depends_on_the_seed_and_its_place_alone(moons_run: Path) -> None:
    flow = advect.load(moons_run)
    ten = flow.sample(10, seed=3, steps=4).x
    torch.testing.assert_close(flow.sample(4, seed=3, steps=4).x, ten[:4], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(flow.sample(10, seed=3, steps=4, batch_size=3).x, ten, rtol=1e-5, atol=1e-6)
    assert torch.equal(flow.sample(10, seed=3, steps=4).x, ten)
    assert not torch.allclose(flow.sample(10, seed=4, steps=4).x, ten)


def test_rows_of_a_draw_cost_as_much_as_they_are(digits_run: Path) -> None:
    flow = advect.load(digits_run)
    ten = flow.sample(10, seed=3, steps=4, batch_size=5).x
    torch.testing.assert_close(flow.sample(10, seed=3, steps=4, rows=range(5, 10)).x, ten[5:], rtol=0, atol=0)
    last = range(10**12 - 3, 10**12)  # whatever is made of all n would not fit
    assert flow.conditions(10**12, seed=3, rows=last)["label"].shape == (3,)
    assert flow.conditions(10**12, {"label": "cycle"}, rows=last)["label"].tolist() == [7, 8, 9]
    assert flow.sample(10**12, seed=3, steps=1, rows=last).x.isfinite().all()


def test_a_trajectory_starts_at_noise_and_ends_at_the_samples(moons_run: Path) -> None:
    flow = advect.load(moons_run)
    states = flow.sample(500, steps=5, seed=1, trajectory=True).x
    assert states.shape == (6, 500, 2)
    assert torch.equal(states[-1], flow.sample(500, steps=5, seed=1).x)
    noise = flow.transform.forward(states[0])
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1


def test_labels_that_are_not_named_are_drawn_as_in_the_data(digits_run: Path) -> None:
    flow = advect.load(digits_run)
    drawn = flow.conditions(20_000)["label"]
    shares = torch.bincount(drawn, minlength=10) / len(drawn)
    expected = torch.tensor(flow.spec.conditions["label"].frequencies)
    assert (shares - expected).abs().max() < 4 * (0.1 * 0.9 / 20_000) ** 0.5
    assert torch.equal(flow.conditions(30)["label"], drawn[:30])


def test_conditions_by_number_name_cycle_none_and_tensor(digits_run: Path) -> None:
    flow = advect.load(digits_run)
    assert flow.conditions(3, {"label": 7})["label"].tolist() == [7, 7, 7]
    assert flow.conditions(3, {"label": "7"})["label"].tolist() == [7, 7, 7]
    assert flow.conditions(12, {"label": "cycle"})["label"].tolist() == [*range(10), 0, 1]
    assert flow.conditions(2, {"label": None})["label"].tolist() == [-1, -1]
    assert flow.conditions(2, {"label": torch.tensor([4, 2])})["label"].tolist() == [4, 2]


def test_guidance_by_one_is_none_and_by_zero_is_unconditional(digits_run: Path) -> None:
    flow = advect.load(digits_run)
    for p in flow.net.parameters():  # an untrained net predicts zero; make the label matter
        torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(p.numel()))
    seven, none = (flow.sample(3, steps=2, cond={"label": v}).x for v in (7, None))
    assert not torch.equal(seven, none)
    assert torch.equal(flow.sample(3, steps=2, cond={"label": 7}, guidance=0.0).x, none)
    doubled = flow.sample(3, steps=2, cond={"label": 7}, guidance=2.0).x
    assert not torch.equal(doubled, seven)


def test_a_weight_file_alone_can_be_sampled_from(digits_run: Path, tmp_path: Path) -> None:
    shutil.copy(digits_run / "checkpoints/step-00000012" / EMA_FILE, tmp_path / "elsewhere.safetensors")
    alone = advect.load(tmp_path / "elsewhere.safetensors").sample(4, steps=2, seed=9).x
    assert torch.equal(alone, advect.load(digits_run).sample(4, steps=2, seed=9).x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n must be at least 1 and at most 1,000,000,000,000, got 0"),
        ({"n": 2, "steps": 0}, "steps must be at least 1"),
        ({"n": 2, "solver": "midpont"}, "did you mean 'midpoint'"),
        ({"n": 2, "batch_size": 0}, "batch_size must be at least 1"),
        ({"n": 2, "cond": {"lable": 3}}, "condition 'lable' is not known; did you mean 'label'"),
        ({"n": 2, "cond": {"label": 10}}, "has no value 10"),
        ({"n": 2, "cond": {"label": "x"}}, "has no value 'x'"),
        ({"n": 2, "cond": {"label": torch.zeros(3)}}, "must have 2 values, one a sample, got 3"),
    ],
)
def test_bad_arguments_are_told(digits_run: Path, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        advect.load(digits_run).sample(**arguments)


def test_guidance_without_conditions_is_refused(moons_run: Path) -> None:
    with pytest.raises(UserError, match="no conditions to guide by"):
        advect.load(moons_run).sample(2, guidance=2.0)


def test_loading_nothing_is_told(tmp_path: Path, moons_run: Path) -> None:
    with pytest.raises(UserError, match="does not exist; give a run folder"):
        advect.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no checkpoint; train first"):
        advect.load(tmp_path / "empty")
    other = tmp_path / "other.safetensors"
    from safetensors.numpy import save_file

    save_file({"w": np.zeros(2)}, other)
    with pytest.raises(UserError, match="was not written by advect"):
        advect.load(other)
    other.write_bytes(b"not weights at all")
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        advect.load(other)


def gaussian_flow() -> Flow:
    """The exact flow of the straight path from N(0, I) to N(0, 4 I) in three dimensions."""

    class Net(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
            t = t[:, None]
            return (4 * t - (1 - t)) / (4 * t**2 + (1 - t) ** 2) * x

    return Flow(Net(), DataSpec((3,), "vector", {}), Identity())


def test_samples_taken_for_a_tensor_say_where_it_is() -> None:
    samples = gaussian_flow().sample(3, steps=1)
    with pytest.raises(AttributeError, match=r"Samples has no attribute 'double'; .* use samples\.x\.double"):
        samples.double()  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"Samples has no attribute 'doubled'$"):
        samples.doubled  # type: ignore[attr-defined]  # noqa: B018
    assert np.array_equal(np.asarray(samples), samples.x.numpy())
    assert torch.equal(copy.deepcopy(samples).x, samples.x)


def test_straightness_is_that_of_the_samples_that_would_be_drawn() -> None:
    flow, n = gaussian_flow(), 500
    x0 = flow.sample(n, seed=7, steps=1, solver="euler", trajectory=True).x[0]
    found = flow.straightness(n, seed=7, solver="rk4")
    assert found.value == pytest.approx(2 * (2 - math.pi / 2) * x0.square().mean().item(), rel=1e-4)
    assert found.distance == pytest.approx(x0.square().mean().item(), rel=1e-4)
    assert flow.straightness(n, seed=8, solver="rk4").distance != pytest.approx(found.distance, rel=1e-3)


def test_straightness_does_not_depend_on_batches_and_is_the_mean_of_its_parts() -> None:
    flow = gaussian_flow()
    whole = flow.straightness(100)
    assert flow.straightness(100, batch_size=7).value == pytest.approx(whole.value, rel=1e-5)
    parts = [flow.straightness(100, rows=rows) for rows in (range(30), range(30, 100))]
    assert 0.3 * parts[0].value + 0.7 * parts[1].value == pytest.approx(whole.value, rel=1e-5)


def test_straightness_is_that_of_the_conditions_and_the_guidance(digits_run: Path) -> None:
    flow = advect.load(digits_run)
    for p in flow.net.parameters():
        torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(p.numel()))
    ask = lambda **options: flow.straightness(4, steps=3, **options).value
    assert ask(cond={"label": 7}, guidance=0.0) == ask(cond={"label": None}) != ask(cond={"label": 7})
    assert ask(cond={"label": 7}, guidance=2.0) != ask(cond={"label": 7})
    for arguments, message in (
        ({"guidance_interval": (0.1, 0.9)}, "guidance is 1"),
        ({"n": 0}, "n must be at least 1 and at most 1,000,000,000,000, got 0"),
        ({"cond": {"lable": 3}}, "condition 'lable' is not known"),
        ({"solver": "dopri5"}, "cannot integrate a deviation"),
    ):
        with pytest.raises(UserError, match=message):
            flow.straightness(**{"n": 2, **arguments})


def test_a_u_net_has_a_density_whatever_the_layout_of_its_weights(digits_run: Path) -> None:
    flow = advect.load(digits_run)
    x = flow.sample(2, steps=2).x
    weights = [p for p in flow.net.parameters() if p.ndim == 4]
    assert any(not p.is_contiguous() for p in weights)
    found = flow.log_prob(x, steps=2, solver="euler")
    layout = [p.stride() for p in weights]
    flow.net.to(memory_format=torch.contiguous_format)
    assert [p.stride() for p in weights] != layout
    torch.testing.assert_close(flow.log_prob(x, steps=2, solver="euler"), found)


def test_samples_come_with_their_conditions_and_their_cost(digits_run: Path) -> None:
    flow = advect.load(digits_run)
    samples = flow.sample(5, steps=3, solver="midpoint", seed=2, batch_size=2)
    assert samples.nfe == 6 and torch.equal(samples.encoded["label"], flow.conditions(5, None, 2)["label"])
    assert flow.sample(2, steps=2, solver="rk4", guidance=2.0).nfe == 8
    assert flow.sample(2, steps=4, diffusion=0.5).nfe == 4
    parts = [flow.sample(5, steps=3, solver="midpoint", seed=2, rows=rows) for rows in (range(2), range(2, 5))]
    whole = Samples.concatenate(parts)[1:]
    assert torch.equal(whole.x, samples.x[1:]) and torch.equal(whole.encoded["label"], samples.encoded["label"][1:])
