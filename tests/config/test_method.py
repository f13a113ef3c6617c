"""Every choice of the method trains, resumes and samples from the command line; contradictions are refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import advect as package
from advect.config.arguments import parse_train
from advect.config.build import build_loss, build_path, fit_source
from advect.config.config import MethodConfig
from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.core.types import Batch, DataSpec
from advect.data import Identity
from advect.losses import FlowMatching
from advect.model.load import read_model_metadata
from advect.paths import AffinePath, GaussianMixture
from advect.solvers import integrate
from advect.training.state import MODEL
from runs import end_of


class Rows:
    """12,000 rows of deviation 1, but the last 2,000, of deviation 10."""

    train = property(lambda self: self)

    def __len__(self) -> int:
        return 12_000

    def source_samples(self) -> None: ...

    def fetch(self, indices: np.ndarray) -> Batch:
        x = torch.tensor(np.where(indices % 2, 1.0, -1.0) * np.where(indices < 10_000, 1.0, 10.0))
        return Batch(x[:, None].float())


def test_a_matched_source_reads_all_rows() -> None:
    found = fit_source(MethodConfig(source="matched"), Rows())  # type: ignore[arg-type]
    assert found["std"] == pytest.approx((10_000 / 12_000 + 100 * 2_000 / 12_000) ** 0.5)


PLANE: Any = SimpleNamespace(spec=DataSpec((2,), "vector", {}))  # what a loss without a mask asks a data set for
SMALL = "--width 16 --batch-size 64 --log-every 5 --sample-every 0 --max-steps 10"
CHOICES = [
    "--mask random",
    "--path lipman-ot",
    "--path vp",
    "--path vp --path-sigma quadratic",
    "--path trigonometric",
    "--path cosine",
    "--path ddpm",
    "--path polynomial --path-n 3",
    "--path bridge --sigma-min 0.5",
    "--source matched",
    "--source matched --source-per-feature --source-centre",
    "--source sparse --source-dropout 0.3",
    "--coupling ot",
    "--coupling sinkhorn --coupling-epsilon 0.1 --coupling-iterations 20",
    "--times uniform",
    "--times logit-normal --times-mean 1 --times-std 0.5",
    "--times u-shaped",
    "--times shifted --times-base logit-normal",
    "--times importance",
    "--weight t2",
    "--weight one-minus-t2",
    "--weight min-snr",
    "--weight inverse-snr --weight-of loss",
    "--prediction data",
    "--prediction data --loss-space velocity --t-eps 0.05",
    "--prediction noise",
    "--prediction score --loss-space noise",
    "--loss-type pseudo-huber",
    "--loss-type pseudo-huber --prediction data --loss-space velocity --weight t2 --t-eps 0.05",
    "--objective score-matching --prediction score --objective-weighting likelihood",
    "--objective score-matching --prediction noise --path ddpm",
    "--objective stochastic-interpolant --score-network head",
]
SCORES = [
    "--score-network head --optimizer muon",
    "--score-network separate --path bridge --sigma-min 0.5 --optimizer muon",
    "--score-network head --coupling ot --sigma-min 0.2 --objective-score-weight 0.5",
    "--score-network separate --prediction data --path vp --times importance",
    "--score-network head --network resmlp --depth 1 --source matched --sigma-min 0.3",
]
SCORE = "--objective stochastic-interpolant"


@pytest.mark.parametrize("flags", CHOICES)
def test_a_choice_trains_and_samples(advect: Callable[..., None], flags: str) -> None:
    advect("train moons --run-dir run", SMALL, flags)
    row = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    assert np.isfinite(row["loss"]) and row["grad_norm"] > 0
    x = package.load("run").sample(50, steps=8).x
    assert x.shape == (50, 2) and torch.isfinite(x).all()


@pytest.mark.parametrize("flags", SCORES)
def test_a_learned_score_samples_the_stochastic_equation_and_resumes_bit_for_bit(
    advect: Callable[..., None], flags: str
) -> None:
    advect("train moons --run-dir whole", SMALL, SCORE, flags)
    advect("train moons --run-dir parts", SMALL, SCORE, flags, "--max-steps 6")
    advect("train --resume-from parts --max-steps 10")
    whole, parts = (package.load(run).net.state_dict() for run in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    flow = package.load("whole")
    x, t = torch.randn(5, 2), torch.full((5,), 0.4)
    assert flow.learned_score and flow.score()(x, t).shape == flow.velocity()(x, t).shape == (5, 2)
    sde, ode = flow.sample(50, steps=8, diffusion=0.5).x, flow.sample(50, steps=8).x
    assert torch.isfinite(sde).all() and torch.isfinite(ode).all() and not torch.equal(sde, ode)
    advect("sample whole --num-samples 9 --num-steps 8 --diffusion sigma --solver heun")
    facts = json.loads(Path("whole/generated/seed-0/samples.json").read_text())
    assert facts["diffusion"] == "sigma" and facts["n"] == 9


def test_a_learned_score_is_evaluated_and_reported_like_any_run(advect: Callable[..., None]) -> None:
    advect(
        "train moons --run-dir run --path bridge --sigma-min 0.5 --score-network head",
        SCORE,
        SMALL,
        "--sample-every 5",
    )
    assert any("held_out_loss" in row for row in Path("run/metrics.jsonl").read_text().splitlines())
    advect("eval run --num-samples 50 --metrics energy --diffusion 0.5 --num-steps 5")
    result = json.loads(next(Path("run/evaluation").glob("eval-*.json")).read_text())
    assert "0.5" in json.dumps(result)
    advect("report run --num-samples 40")
    with pytest.raises(UserError, match="advect reflow trains no score, and the run has --score-network head"):
        advect("reflow run")
    with pytest.raises(UserError, match="has another network: score_network was head there and is separate here"):
        advect("train --resume-from run --score-network separate")


def test_a_bridge_without_a_score_refuses_a_diffusion_and_says_how(advect: Callable[..., None]) -> None:
    advect("train moons --run-dir run --path bridge --sigma-min 0.5", SMALL)
    with pytest.raises(UserError, match=r"needs the score.*--objective stochastic-interpolant --score-network head"):
        advect("sample run --diffusion 0.5")


def test_the_networks_of_all_layouts_have_a_second_head(advect: Callable[..., None]) -> None:
    small = "--max-steps 2 --batch-size 8 --sample-every 0"
    for run, flags in (
        ("unet", "--model-channels 8 --patch-size 2 --channel-mult 1 2 --attention-resolutions"),
        ("dit", "--network dit --size None --width 16 --depth 1 --heads 2"),
    ):
        advect("train digits --score-network head --run-dir", run, SCORE, small, flags)
        flow = package.load(run)
        assert flow.sample(2, steps=3, diffusion="sigma", cond={"label": 3}, guidance=2.0).x.shape == (2, 1, 8, 8)


def test_images_of_other_sizes_are_drawn_where_they_divide(advect: Callable[..., None], moons_run: Path) -> None:
    tiny = "--network dit --size None --width 16 --depth 1 --heads 2 --max-steps 2 --batch-size 8 --sample-every 0"
    advect("train digits --run-dir dit", tiny)
    flow = package.load("dit")
    other, same = flow.sample(3, steps=2, image_size=(12, 16)).x, flow.sample(3, steps=2, image_size=(8, 8)).x
    assert other.shape == (3, 1, 12, 16) and torch.equal(same, flow.sample(3, steps=2).x)
    advect("sample dit --num-samples 2 --num-steps 2 --image-size 12 16 --save-individual")
    folder = Path("dit/generated/seed-0")
    assert json.loads((folder / "samples.json").read_text())["image_size"] == [12, 16]
    with Image.open(min(folder.glob("sample-*.png"))) as image:
        assert image.size == (16, 12)
    with pytest.raises(UserError, match=r"must have a height divisible by 2, since patch_size is 2, got 9"):
        advect("sample dit --image-size 9 8 --output-dir odd")
    advect("train digits --run-dir unet --max-steps 1 --sample-every 0 --model-channels 8")
    assert package.load("unet").sample(2, steps=2, image_size=(12, 16)).x.shape == (2, 1, 12, 16)
    for run, message in (("unet", "height divisible by 2"), (moons_run, "this flow makes vector data")):
        with pytest.raises(UserError, match=message):
            advect("sample", run, "--image-size 11 12 --output-dir out")
    assert not Path("out").exists() and not Path("odd").exists()


@pytest.mark.parametrize(
    "net",
    ["dit --size None --width 16 --depth 1 --heads 2", "unet --model-channels 8 --patch-size 1 --channel-mult 1 2"],
)
def test_images_of_several_sizes_are_trained_on_together_and_resumed(advect: Callable[..., None], net: str) -> None:
    Path("data").mkdir()
    for i, size in enumerate([(16, 16), (24, 16), (16, 32)] * 12):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)).save(f"data/{i}.png")
    more = "--attention-resolutions" if "unet" in net else ""
    sizes = "--image-size 24 --bucket-step 8 --batch-size 4"
    flags = f"--threads 1 {sizes} --sample-every 0 --num-workers 1 --network {net} {more}"
    seen = []
    original = FlowMatching.sample

    def spied(self: FlowMatching, batch: Batch, generator: Any = None) -> Any:
        seen.append(tuple(batch.x1.shape[1:]))
        return original(self, batch, generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FlowMatching, "sample", spied)
        advect("train images --data-dir data --run-dir whole --max-steps 12", flags)
    assert set(seen) == {(3, 16, 16), (3, 24, 16), (3, 16, 32)}
    advect("train images --data-dir data --run-dir half --max-steps 5", flags)
    advect("train --resume-from half --max-steps 12")
    ends = [end_of(Path(run)) for run in ("whole", "half")]
    assert ends[0] == ends[1]
    assert package.load("half").sample(2, steps=1, image_size=(16, 32)).x.shape == (2, 3, 16, 32)
    with pytest.raises(UserError, match="--source matched has the size of the data, and --bucket-step many"):
        advect("train images --data-dir data --run-dir other --source matched", flags)
    with pytest.raises(UserError, match="must have a height divisible by 2, since"):
        advect("train images --data-dir data --run-dir other", flags.replace("step 8", "step 3"))
    assert not Path("other").exists()


def test_conditional_transport_trains_on_labels(advect: Callable[..., None]) -> None:
    advect("train digits --coupling conditional-ot --model-channels 8 --batch-size 32 --max-steps 2 --sample-every 0")
    assert Path("runs/digits/checkpoints/step-00000002").is_dir()


def test_flags_have_a_second_spelling() -> None:
    old, new = (
        parse_train(["moons", *words.split()])[1].settings.method
        for words in (
            "--margin 0.05 --penalty=pseudo-huber --loss-space data",
            "--t-eps 0.05 --loss-type pseudo-huber --loss_space data",
        )
    )
    assert old == new and (new.t_eps, new.loss_type, new.loss_space) == (0.05, "pseudo-huber", "data")


def test_the_loss_type_reaches_the_loss_and_the_run(advect: Callable[..., None]) -> None:
    default = build_loss(MethodConfig(), PLANE, {"kind": "gaussian"})
    assert isinstance(default, FlowMatching) and default.loss_type == "squared"
    advect("train moons --run-dir plain", SMALL)
    advect("train moons --run-dir robust --loss-type pseudo-huber", SMALL)
    rows = (Path(run, "metrics.jsonl").read_text().splitlines()[0] for run in ("plain", "robust"))
    plain, robust = (json.loads(row)["loss"] for row in rows)
    assert 0 < robust < plain**0.5  # a mean of roots is below the root of the mean
    assert read_model_metadata(Path("robust/checkpoints/step-00000010") / MODEL).method.loss_type == "pseudo-huber"


@pytest.mark.parametrize("times", ["importance", "u-shaped"])
def test_a_run_with_learned_times_resumes_bit_for_bit(advect: Callable[..., None], times: str) -> None:
    advect("train moons --run-dir whole --times", times, SMALL)
    advect("train moons --run-dir parts --times", times, SMALL, "--max-steps 6")
    advect("train --resume-from parts --max-steps 10")
    states = []
    for run in ("whole", "parts"):
        folder = Path(run) / "checkpoints/step-00000010"
        state = json.loads((folder / "state/run.json").read_text())
        state.pop("seconds")
        states.append((state, package.load(folder, ema=False).net.state_dict()))
    assert states[0][0] == states[1][0]
    assert bool(states[0][0]["extra"]) == (times == "importance")
    assert all(torch.equal(states[0][1][k], states[1][1][k]) for k in states[0][1])


def test_pairing_ahead_changes_nothing(advect: Callable[..., None]) -> None:
    advect("train moons --coupling ot --run-dir one", SMALL)
    advect("train moons --coupling ot --run-dir two --pair-ahead --num-workers 1", SMALL)
    one, two = (package.load(run, ema=False).net.state_dict() for run in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    for name, ahead in (("three", "--no-pair-ahead"), ("four", "--pair-ahead")):
        advect("train moons --coupling ot --mixed-precision", SMALL, "--run-dir", name, ahead)
    three, four = (package.load(run, ema=False).net.state_dict() for run in ("three", "four"))
    assert all(torch.equal(three[name], four[name]) for name in three)
    assert not all(torch.equal(one[name], three[name]) for name in one)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("moons --times importance --pair-ahead", "contradict each other"),
        ("moons --path bridge", "--path bridge needs its width"),
        ("moons --coupling conditional-ot", "needs labels, and the data have none"),
        ("moons --objective score-matching", "--prediction must be 'score' or 'noise', got 'velocity'"),
        (
            "moons --objective score-matching --prediction score --coupling ot",
            "take --coupling ot; leave it at indep",
        ),
        (
            "moons --objective score-matching --prediction score --weight t2",
            "not take --weight t2; leave it",
        ),
        (
            "moons --objective score-matching --prediction score --loss-type pseudo-huber",
            "does not take --loss-type pseudo-huber; leave it at squared",
        ),
        ("moons --prediction score --source sparse", "Gaussian noise drawn apart from x1"),
        ("moons --path bridge --sigma-min 0.5 --prediction score", "gives no velocity to sample with"),
        ("moons --coupling ot --sigma-min 0.1 --prediction data", "gives no velocity to sample with"),
        ("moons --path bridge --sigma-min 1 --weight min-snr", "needs the signal-to-noise ratio"),
        ("moons --path bridge --sigma-min 1 --prediction data", "gives no velocity to sample with"),
        ("moons --objective stochastic-interpolant", "needs --score-network head or separate; give it, too"),
        ("moons --score-network head", "does nothing with --objective flow-matching; give --objective stoch"),
        (
            f"moons {SCORE} --score-network head --coupling ot",
            "--source gaussian and --coupling ot; give --sigma-min",
        ),
        (
            f"moons {SCORE} --score-network head --objective-score-weight -1",
            "--objective-score-weight must be at least 0 and at most 1,000,000, got -1",
        ),
    ],
)
def test_contradictions_are_refused_before_anything_is_written(
    advect: Callable[..., None], flags: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        advect("train", flags, "--run-dir run")
    assert not Path("run").exists()


def test_a_prediction_samples_as_the_velocity_it_implies(moons_run: Path) -> None:
    """Wrap one velocity network as a network of each other kind: all sample the same."""
    flow = package.load(moons_run)
    path = build_path(MethodConfig())
    reference = flow.sample(40, steps=10, seed=1).x
    velocity = flow.net
    for kind in ("data", "noise", "score"):

        class As(torch.nn.Module):
            def forward(self, x_t, t, cond=None, kind=kind):
                return path.convert(velocity(x_t, t, cond), x_t, t, "velocity", kind)  # type: ignore[attr-defined]

        other = package.Flow(As(), flow.spec, flow.transform, path=path, prediction=kind)  # type: ignore[arg-type]
        torch.testing.assert_close(other.sample(40, steps=10, seed=1).x, reference, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize(
    "way",
    ["--solver dopri5", "--solver heun --grid cosine", "--solver rk4", "--solver ab2 --grid edm", "--solver dpmpp2m"],
)
def test_every_solver_reaches_the_same_samples(advect: Callable[..., None], moons_run: Path, way: str) -> None:
    advect("sample", moons_run, "--num-samples 30 --num-steps 200 --solver rk4 --output-dir fine")
    steps = "" if "dopri5" in way else "--num-steps 100"
    advect("sample", moons_run, "--num-samples 30 --output-dir way", way, steps)
    fine, found = (np.load(f"{folder}/samples.npz")["x"] for folder in ("fine", "way"))
    assert np.abs(fine - found).max() < 5e-3


@pytest.mark.parametrize("sigma_min", [0.0, 0.3])
def test_ode_and_sde_end_in_the_law_of_the_path_with_an_exact_velocity(sigma_min: float) -> None:
    path = AffinePath(sigma_min=sigma_min)
    law = GaussianMixture(torch.tensor([[2.0, 0.0], [-1.0, 1.0]]), stds=torch.tensor([0.3, 0.5]), path=path)

    class Exact(torch.nn.Module):
        def forward(self, x_t, t, cond=None):
            return law.velocity(x_t, t)

    flow = package.Flow(Exact(), DataSpec((2,), "vector", {}), Identity(), path=path)
    n = 6000
    data = law.sample(n, 1.0, CounterRng(0, 0, n)).float()
    for way in ({"solver": "midpoint", "steps": 40}, {"diffusion": 0.7, "steps": 150}, {"diffusion": 1.0}):
        x = flow.sample(n, **way).x
        torch.testing.assert_close(x.mean(0), data.mean(0), atol=0.08, rtol=0)
        torch.testing.assert_close(x.T.cov(), data.T.cov(), atol=0.12, rtol=0)
        torch.testing.assert_close(flow.sample(3, **way).x, x[:3], atol=1e-4, rtol=1e-4)
    density = law.log_prob(data[:50], torch.ones(50))
    torch.testing.assert_close(flow.log_prob(data[:50], steps=60), density.float(), atol=2e-3, rtol=1e-3)


def test_another_law_of_times_can_take_over_from_importance(advect: Callable[..., None]) -> None:
    advect("train moons --times importance --run-dir run", SMALL)
    advect("train --resume-from run --times uniform --max-steps 12")
    assert Path("run/checkpoints/step-00000012").is_dir()


def test_a_run_continued_elsewhere_has_its_own_checkpoint_even_without_a_step(advect: Callable[..., None]) -> None:
    advect("train moons --run-dir one", SMALL)
    advect("train --resume-from one --run-dir two")
    assert package.load("two").sample(2).x.shape == (2, 2)


def test_a_flow_without_label_dropout_refuses_what_needs_the_null(advect: Callable[..., None]) -> None:
    advect("train digits --label-dropout 0 --model-channels 8 --batch-size 32 --max-steps 2 --sample-every 2")
    flow = package.load("runs/digits")
    assert flow.sample(2, steps=2).x.shape == (2, 1, 8, 8)
    for arguments in ({"guidance": 2.0}, {"cond": {"label": None}}):
        with pytest.raises(UserError, match="trained with --label-dropout 0"):
            flow.sample(2, steps=2, **arguments)


def test_decoding_an_encoding_gives_the_data_back(moons_run: Path) -> None:
    flow = package.load(moons_run)
    x = flow.sample(20, steps=10).x
    z = flow.encode(x, steps=60)
    assert z.shape == x.shape and not torch.allclose(z, x)
    torch.testing.assert_close(flow.decode(z, steps=60), x, atol=1e-4, rtol=1e-4)
    again = integrate(flow.velocity(), z, solver="rk4", steps=60)
    torch.testing.assert_close(flow.transform.inverse(again), flow.decode(z, steps=60))


def test_the_density_in_data_units_integrates_to_one(moons_run: Path) -> None:
    flow = package.load(moons_run)
    side = torch.linspace(-4, 5, 61)
    grid = torch.tensor(list(itertools.product(side.tolist(), side.tolist())))
    density = flow.log_prob(grid, steps=12).exp()
    assert density.sum().item() * (9 / 60) ** 2 == pytest.approx(1, abs=0.02)
    bits = flow.bits_per_dim(grid[:3], steps=12)
    torch.testing.assert_close(bits, -density[:3].log() / 2 / np.log(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solver": "dopri5", "steps": 5}, "chooses its own steps|steps is 5"),
        ({"grid": "sqare"}, "grid 'sqare' is not known"),
        ({"diffusion": "sigm"}, "did you mean 'sigma'"),
        ({"diffusion": 0.5, "solver": "rk4"}, "solver 'rk4' does not take a diffusion"),
        ({"guidance_interval": (0.1, 0.5)}, "guidance is 1, which is none"),
    ],
)
def test_bad_samplers_are_told(moons_run: Path, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        package.load(moons_run).sample(2, **arguments)


def test_min_snr_is_told_the_space_of_the_loss() -> None:
    for prediction, loss, space in (
        ("velocity", "same", "velocity"),
        ("data", "same", "data"),
        ("data", "noise", "noise"),
    ):
        method = MethodConfig(weight="min-snr", prediction=prediction, loss_space=loss, label_dropout=0)  # type: ignore[arg-type]
        assert build_loss(method, PLANE, {"kind": "gaussian"}).weight.prediction == space  # type: ignore[attr-defined]
