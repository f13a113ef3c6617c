"""FlowModel keeps scikit-learn's rules, its densities are densities, and data come back in the form they came in."""

from __future__ import annotations

import pickle
import warnings
from itertools import count
from types import SimpleNamespace
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn.datasets
import torch
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.datasets import make_moons
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import advect
from advect import FlowModel, UserError
from advect.sklearn import fitting
from advect.sklearn.settings import resolve
from advect.training import Trainer

OTHER = np.random.default_rng(0).normal(size=(40, 2))


def small(**arguments: Any) -> FlowModel:
    """A model that trains in a fraction of a second."""
    given = {"steps": 20, "batch_size": 16, "hidden": (16, 16), "density_steps": 8, "sample_steps": 5, "device": "cpu"}
    return FlowModel(**{**given, "random_state": 0, **arguments})  # type: ignore[arg-type]


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(0).normal([1.0, -2.0, 30.0], [1.0, 0.2, 10.0], (80, 3))


@parametrize_with_checks([small()])
def test_it_keeps_the_rules_of_scikit_learn(estimator: FlowModel, check: Any) -> None:
    check(estimator)


class TestDensity:
    def test_it_integrates_to_one_in_one_dimension(self) -> None:
        x = np.random.default_rng(0).normal(3, 2, (500, 1))
        model = small(steps=200, density_steps=50).fit(x)
        grid = np.linspace(-17, 23, 401)[:, None]
        assert np.trapezoid(np.exp(model.score_samples(grid)), grid[:, 0]) == pytest.approx(1, abs=1e-3)

    def test_it_integrates_to_one_in_two(self) -> None:
        x = np.random.default_rng(0).normal(size=(500, 2)) @ [[2, 0], [1, 0.5]]
        model = small(steps=200, density_steps=20).fit(x)
        a, b = np.linspace(-13, 13, 81), np.linspace(-3, 3, 81)
        grid = np.stack(np.meshgrid(a, b, indexing="ij"), -1).reshape(-1, 2)
        density = np.exp(model.score_samples(grid)).reshape(len(a), len(b))
        assert np.trapezoid(np.trapezoid(density, b), a) == pytest.approx(1, abs=1e-3)

    def test_that_of_a_gaussian_is_learned(self, points: np.ndarray) -> None:
        model = small(steps=600, batch_size=64, hidden=(32, 32), learning_rate=3e-3, density_steps=20).fit(points)
        entropy = 1.5 * np.log(2 * np.pi * np.e) + np.log(1.0 * 0.2 * 10.0)
        assert model.score(points) == pytest.approx(-entropy, abs=0.4)

    def test_units_of_the_data_count(self, points: np.ndarray) -> None:
        model, scaled = small().fit(points), small().fit(points * 10)
        assert scaled.score(points * 10) == pytest.approx(model.score(points) - 3 * np.log(10), abs=1e-3)

    def test_more_than_a_block_of_rows(self) -> None:
        x = np.random.default_rng(0).normal(size=(1100, 2))
        model = small(steps=2).fit(x)
        assert np.allclose(model.score_samples(x)[1000:], model.score_samples(x[1000:]), rtol=1e-6)


class TestForms:
    def test_arrays_come_back_as_arrays(self, points: np.ndarray) -> None:
        samples = small().fit(points.astype(np.float32)).sample(7)
        assert samples.shape == (7, 3) and samples.dtype == np.float32

    def test_images_go_through_a_unet(self) -> None:
        images = np.random.default_rng(0).integers(0, 256, (12, 1, 8, 8), np.uint8)
        model = small(steps=2, hidden=(8, 16), density_steps=1).fit(images)
        samples = model.sample(3)
        assert type(model.flow_.net).__name__ == "UNet"
        assert samples.shape == (3, 1, 8, 8) and samples.dtype == np.uint8
        assert model.transform(images[:2]).shape == (2, 1, 8, 8)

    def test_a_frame_of_numbers_has_a_density(self, points: np.ndarray) -> None:
        frame = pd.DataFrame(points, columns=["a", "b", "c"])
        model = small().fit(frame)
        assert model.sample(4).columns.tolist() == ["a", "b", "c"]
        assert model.feature_names_in_.tolist() == ["a", "b", "c"]
        assert np.isfinite(model.score_samples(frame)).all()

    def test_a_frame_of_mixed_columns_comes_back_as_it_was(self) -> None:
        frame = pd.DataFrame(
            {
                "age": [31, 45, 22, 60, 38, 51] * 5,
                "city": pd.Categorical(["Oslo", "Rome", "Oslo", "Bern", "Rome", "Rome"] * 5),
                "when": pd.to_datetime(
                    ["2020-01-01", "2021-06-01", None, "2022-03-01", "2020-05-05", "2023-01-09"] * 5
                ),
            }
        )
        model = small().fit(frame)
        samples = model.sample(9)
        assert samples.dtypes.tolist() == frame.dtypes.tolist()
        assert set(samples["city"]) <= {"Oslo", "Rome", "Bern"} and samples["age"].between(22, 60).all()
        latent = model.set_params(density_steps=60).transform(frame)
        pd.testing.assert_frame_equal(model.inverse_transform(latent), frame)
        with pytest.raises(UserError, match="for a density"):
            model.score(frame)
        with pytest.raises(UserError, match="'Paris', which the data fitted had not"):
            model.transform(frame.assign(city="Paris"))

    def test_anndata_comes_back_with_its_genes(self) -> None:
        anndata = pytest.importorskip("anndata")
        x = np.random.default_rng(0).poisson(3, (40, 5)).astype(np.float32)
        cells = anndata.AnnData(x, var=pd.DataFrame({"chromosome": list("12345")}, [f"g{i}" for i in range(5)]))
        model = small().fit(cells)
        samples = model.sample(6)
        assert samples.shape == (6, 5) and samples.var.equals(cells.var)
        assert model.feature_names_in_.tolist() == cells.var_names.tolist()
        assert model.score_samples(cells).shape == (40,)
        assert small(options={"pca": 2}).fit(cells).transform(cells).shape == (40, 2)

    def test_another_kind_than_the_fitted_is_refused(self, points: np.ndarray) -> None:
        with pytest.raises(UserError, match="another kind"):
            small().fit(points).score(pd.DataFrame(points, columns=list("abc")))


class TestTraining:
    def test_latents_come_back_as_the_data(self, points: np.ndarray) -> None:
        model = small(density_steps=50).fit(points)
        z = model.transform(points)
        assert np.allclose(model.inverse_transform(z), points, rtol=1e-4, atol=1e-3)

    def test_a_seed_repeats_and_another_does_not(self, points: np.ndarray) -> None:
        a, b = small().fit(points).sample(5), small().fit(points).sample(5)
        assert np.array_equal(a, b)
        assert not np.array_equal(a, small(random_state=1).fit(points).sample(5))

    def test_training_in_parts_keeps_the_optimiser(self, points: np.ndarray) -> None:
        steady: Any = {"options": {"lr_schedule": "constant", "lr_warmup_steps": 0}, "early_stopping": False}
        whole = small(steps=20, **steady).fit(points)
        parts = small(steps=10, **steady).fit(points)
        parts = pickle.loads(pickle.dumps(parts)).partial_fit(points)
        assert parts.n_iter_ == whole.n_iter_ == 20
        assert np.array_equal(parts.sample(5), whole.sample(5))

    def test_early_stopping_takes_the_best_weights(self) -> None:
        x, _ = make_moons(300, noise=0.3, random_state=0)
        model = small(
            steps=2000, n_iter_no_change=3, learning_rate=1e-2, hidden=64, options={"gain": 1.0}, base=None
        ).fit(x)
        curve, steps = model.validation_curve_, model._fitted.evaluated
        best = int(np.argmin(curve))
        assert model.validation_loss_ == min(curve) and model.n_iter_ == steps[best] < steps[-1] < 2000
        assert len(curve) == len(steps) >= best + 1 + 3

    def test_refitting_trains_on_all_rows_for_as_many_steps(self) -> None:
        x = np.abs(np.random.default_rng(0).normal(size=(300, 2)))
        steady: Any = {"options": {"lr_schedule": "constant", "lr_warmup_steps": 5}, "base": None}
        model = small(steps=100, **steady).fit(x)
        whole = small(steps=model.n_iter_, early_stopping=False, **steady).fit(x)
        assert 0 < model.n_iter_ <= 100
        assert np.array_equal(model.sample(5), whole.sample(5))

    def test_of_few_rows_density_and_samples_are_those_of_a_mixture(self) -> None:
        x = OTHER @ [[1.0, 0.5], [0.0, 1.0]]
        model = small(steps=200, hidden=32, learning_rate=1e-2, options={"gain": 1.0}).fit(x)
        flows = model._flows
        assert len(flows) == 6 and flows[0] is model.flow_
        points = torch.from_numpy(x)
        densities = torch.stack([flow.log_prob(points, steps=8).exp() for flow in flows])
        assert np.allclose(np.exp(model.score_samples(x)), densities.mean(0), rtol=1e-3)
        assert densities.std(0).max() > 0.01  # the flows differ
        again = pickle.loads(pickle.dumps(model))
        assert np.array_equal(again.sample(50), model.sample(50))
        assert np.allclose(again.score_samples(x), model.score_samples(x))
        assert len(small(steps=2).fit(np.tile(x, (6, 1)))._flows) == 1

    def test_samples_of_a_mixture_keep_the_order_of_labels(self) -> None:
        y = np.array(["left", "right"]).repeat(50)
        x = np.random.default_rng(0).normal(size=(100, 2)) * 0.3 + np.where(y == "left", -5, 5)[:, None]
        model = small(steps=300, batch_size=64, hidden=(32, 32), learning_rate=3e-3, sample_steps=10).fit(x, y)
        signs = model.sample(40, ["left", "right"] * 20)[:, 0] > 0
        assert len(model._flows) == 6 and (signs == ([False, True] * 20)).mean() > 0.9

    def test_before_training_it_is_the_gaussian_of_the_data(self, points: np.ndarray) -> None:
        x = points @ [[1, 0.5, 0], [0, 1, 0], [0, 0.3, 1]]
        model = small(steps=1, learning_rate=1e-12, early_stopping=False, options={"lr_warmup_steps": 0}).fit(x)
        gaussian = multivariate_normal.logpdf(x, x.mean(0), np.cov(x.T, bias=True)).mean()  # type: ignore[arg-type]
        assert model.score(x) == pytest.approx(gaussian, abs=0.05)

    def test_memorising_is_told(self) -> None:
        x, new = np.random.default_rng(0).normal(size=(2, 12, 3))
        with pytest.warns(UserWarning, match="none is held out"):
            model = small(steps=1500, hidden=64, learning_rate=1e-2, early_stopping=False, options={"gain": 1.0}).fit(
                x
            )
        with pytest.warns(UserWarning, match="the model memorises"):
            model.score(new)

    def test_few_rows_are_told(self) -> None:
        with pytest.warns(UserWarning, match="3 rows are too few"):
            assert np.isfinite(small().fit(OTHER[:3]).sample(2)).all()

    def test_the_warm_up_follows_the_plan(self) -> None:
        unset: Any = {"hidden": None, "rows": 100, "data_options": (), "labelled": False}
        for steps, options, warmup in ((100, {}, 5), (9000, {}, 100), (100, {"lr_warmup_steps": 7}, 7)):
            given = {"learning_rate": None, "batch_size": 256}
            found = resolve(options, modality="vector", steps=steps, arguments=given, **unset).training
            assert (found.batch_size, found.lr_warmup_steps) == (256, warmup)

    @pytest.mark.parametrize("folded", [False, True])
    def test_the_minutes_end_the_schedules_of_all_trainings(
        self, monkeypatch: pytest.MonkeyPatch, folded: bool
    ) -> None:
        ticks = count()  # every look at the clock moves it by two milliseconds
        clock = SimpleNamespace(monotonic=lambda: 0.002 * next(ticks))
        for module in ("advect.training.guards", "advect.sklearn.held_out_rows"):
            monkeypatch.setattr(f"{module}.time", clock)
        rates: list[list[float]] = []
        train = Trainer.run

        def run(trainer: Trainer) -> str:
            rates.append([])
            step = trainer._train_step
            trainer._train_step = lambda: rates[-1].append(trainer.learning_rate) or step()  # type: ignore[method-assign]
            return train(trainer)

        monkeypatch.setattr(Trainer, "run", run)
        model = small(steps=10**6, max_minutes=0.05, early_stopping=folded).fit(OTHER)
        assert 0.002 * next(ticks) <= 3
        assert len(rates) == (6 if folded else 1) and 0 < model.n_iter_ <= len(rates[0]) < 1500
        assert rates[0][-1] < 0.02 * max(rates[0])
        assert all(abs(len(r) - len(rates[0])) <= 0.2 * len(rates[0]) for r in rates[:-1])

    def test_pickles_and_joblib_files_give_the_same_samples(self, points: np.ndarray, tmp_path: Any) -> None:
        model = small().fit(points)
        joblib.dump(model, tmp_path / "model.joblib")
        for again in (pickle.loads(pickle.dumps(model)), joblib.load(tmp_path / "model.joblib")):
            assert np.array_equal(again.sample(5), model.sample(5))
            assert again.score(points) == model.score(points)

    def test_options_reach_the_configuration(self, points: np.ndarray) -> None:
        model = small(options={"network": "resmlp", "dropout": 0.5, "optimizer": "muon", "path": "trigonometric"})
        model.fit(points)
        assert type(model.flow_.net).__name__ == "ResidualMLP" and model.flow_.net.blocks[0].dropout == 0.5
        assert "Trigonometric" in repr(model.flow_.path)
        assert clone(model).options == model.options

    def test_vectors_have_another_usual_rate_and_length_than_images(self) -> None:
        unset: Any = {"hidden": None, "steps": None, "rows": 5000, "arguments": {"learning_rate": None}}
        vectors, images = (
            resolve({}, modality=m, labelled=False, data_options=(), **unset) for m in ("vector", "image")
        )
        assert (vectors.steps, vectors.training.learning_rate) == (8000, 4e-3)
        assert (images.steps, images.training.learning_rate) == (2000, 1e-3)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"options": {"ema_decy": 0.9}}, "did you mean 'ema_decay'"),
            ({"options": {"times": "logit-nrmal"}}, "did you mean 'logit-normal'"),
            ({"options": {"seed": 3}}, "random_state"),
            ({"options": {"network": "unet"}}, "take mlp or resmlp"),
            ({"options": {"ema_decay": "much"}}, "ema_decay must be a number"),
            ({"steps": 0}, "steps must be"),
            ({"hidden": (8, 16)}, "equal widths"),
            ({"coupling": "optimal"}, "coupling 'optimal'"),
            ({"early_stopping": True, "validation_fraction": 0}, "validation_fraction"),
            ({"max_minutes": 0}, "max_minutes must be a finite number of minutes above 0, got 0"),
            ({"max_minutes": float("nan")}, "max_minutes must be"),
            ({"options": {"max_minutes": 1.0}}, "is an argument"),
            ({"early_stopping": "always"}, "True, False or 'auto'"),
        ],
    )
    def test_a_mistake_is_told(self, points: np.ndarray, arguments: dict, words: str) -> None:
        with pytest.raises(UserError, match=words):
            small(**arguments).fit(points)


class TestCompany:
    def test_a_pipeline_and_a_search(self) -> None:
        x, _ = make_moons(300, noise=0.05, random_state=0)
        pipe = make_pipeline(StandardScaler(), small(early_stopping=False, options={"gain": 1.0}))
        search = GridSearchCV(pipe, {"flowmodel__steps": [1, 300], "flowmodel__learning_rate": [1e-2]}, cv=2).fit(x)
        assert search.best_params_["flowmodel__steps"] == 300

    def test_importing_advect_does_not_import_it(self) -> None:
        import subprocess
        import sys

        code = "import sys, advect; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
        assert "FlowModel" in dir(advect)

    def test_global_random_state_is_left_alone(self, points: np.ndarray) -> None:
        before = torch.get_rng_state()
        small().fit(points).sample(2)
        assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("name", "gain"), [("iris", 0.4), ("diabetes", 1.0)])
def test_defaults_beat_a_gaussian_on_small_tables(name: str, gain: float) -> None:
    x = np.asarray(getattr(sklearn.datasets, f"load_{name}")().data)
    x = x[np.random.default_rng(0).permutation(len(x))]
    x = (x - x.mean(0)) / x.std(0)
    train, test = x[: len(x) * 7 // 10], x[len(x) * 7 // 10 :]
    gaussian = multivariate_normal.logpdf(test, train.mean(0), np.cov(train.T)).mean()  # type: ignore[arg-type]
    assert FlowModel(random_state=0, device="cpu").fit(train).score(test) > gaussian + gain


def test_values_in_the_other_byte_order_are_read() -> None:
    x = OTHER.astype(">f8")
    assert np.isfinite(FlowModel(steps=2, random_state=0).fit(x).sample(3)).all()
    frame = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "k": np.arange(len(x)).astype(">i4")})
    assert FlowModel(steps=2, random_state=0).fit(frame).sample(3).notna().all(axis=None)


@pytest.mark.parametrize("y", [[None, "a"], [np.nan, "a"], pd.array([1, None], "Int64")])
def test_missing_labels_are_refused(y: Any) -> None:
    with pytest.raises(UserError, match=r"y holds (missing labels|NaN)"):
        FlowModel(steps=2).fit(OTHER[:2], y)


def test_whole_numbers_that_float64_would_round_are_refused() -> None:
    with pytest.raises(UserError, match=r"whole numbers beyond 2\^53"):
        FlowModel(steps=2).fit(2**60 + np.arange(20).reshape(10, 2))


def test_constant_columns_come_back_exactly(points: np.ndarray) -> None:
    x = np.c_[points, np.full(len(points), 0.1), np.full(len(points), -3e7)]
    made = small(steps=3).fit(x).sample(20)
    assert (made[:, 3:] == x[0, 3:]).all() and made[:, 0].std() > 0


@pytest.mark.parametrize(("size", "dtype"), [(3.3e38, np.float32), (6e4, np.float16), (8e307, np.float64)])
def test_samples_are_finite_whatever_the_size_of_a_column(size: float, dtype: type) -> None:
    x = np.stack([np.linspace(-size, size, 40), np.linspace(0, 1, 40)], 1).astype(dtype)
    new = FlowModel(steps=3, hidden=4, early_stopping=False, random_state=0).fit(x).sample(3000)
    assert new.dtype == dtype and np.isfinite(new).all() and np.abs(new[:, 0].astype(float)).max() > size / 2


def test_minutes_too_few_to_learn_are_told_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_train", lambda *_: pytest.fail("trained before it warned"))
    with warnings.catch_warnings(), pytest.raises(UserWarning, match="max_minutes=1e-06 is time for about 0 steps"):
        warnings.simplefilter("error", UserWarning)
        small(max_minutes=1e-6).fit(OTHER)


@pytest.mark.parametrize(
    ("arguments", "y", "words"),
    [
        ({"options": {"lr_warmup_steps": 50}}, None, "warm-up takes 50 of 20 steps.* give lr_warmup_steps 1"),
        (
            {"options": {"ema_decay": 0.999}},
            None,
            "would reach back 1,000 steps, more than the 20 of the run; give ema",
        ),
        ({}, ["a"] * 39 + ["b"], r"1 value of y has fewer than 10 training rows, too few to learn from: b \(1\)"),
        (
            {"batch_size": 512},
            None,
            "batch of 512 holds each of the 40 training rows 13 times; give batch_size 256",
        ),
        ({"max_minutes": 1e-6}, None, "max_minutes=1e-06 is time for .* too few to learn from; 3,000 take"),
    ],
)
def test_what_keeps_a_fit_from_learning_is_told_at_the_callers_line(arguments: dict, y: Any, words: str) -> None:
    with pytest.warns(UserWarning, match=words) as told:
        small(early_stopping=False, **arguments).fit(OTHER, y)
    assert {warning.filename for warning in told if issubclass(warning.category, UserWarning)} == {__file__}
    with pytest.warns(UserWarning, match="9 rows are too few") as told:
        small(early_stopping=False).partial_fit(OTHER[:9])
    assert {warning.filename for warning in told if issubclass(warning.category, UserWarning)} == {__file__}
