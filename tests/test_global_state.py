"""Threads, and what a call leaves behind: PyTorch, NumPy and Python keep much for a whole process."""

from __future__ import annotations

import ast
import os
import random
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from sklearn.datasets import make_moons
from sklearn.model_selection import GridSearchCV, cross_val_score
from torch import Tensor, nn
from torch.utils import _python_dispatch

import advect
from advect.checkpoint.tensor_files import assemble
from advect.core.errors import UserError
from advect.core.random import LayerRng, RandomOps, _with_generator, layer_rng
from advect.evaluation.feature_network import FeatureNetwork
from advect.networks.layers import checkpoint, dropout
from advect.paths import AffinePath, InterpolantPath, VariancePreserving
from advect.training.state import on_meta
from advect.training.step import draws_itself

X, Y = make_moons(120, noise=0.1, random_state=0)
SMALL: dict[str, Any] = {"hidden": 8, "steps": 12, "batch_size": 32, "early_stopping": False}


def process_state() -> dict[str, Any]:
    """What is one for all threads of the process, or set for this one."""
    python, numpy = random.getstate(), np.random.get_state()
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": (numpy[0], numpy[1].tolist(), *numpy[2:]),
        "random": python,
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "denormals": (torch.tensor([1e-310], dtype=torch.float64) * 0.5).item() > 0,
        "threads": torch.get_num_threads(),
        "new threads": ThreadPoolExecutor(1).submit(torch.get_num_threads).result(),
        "type": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "kernels": (torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()),
        "attention": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()),
        "modes": (_python_dispatch.is_in_torch_dispatch_mode(), layer_rng()),
    }


@contextmanager
def nothing_left(*, but: str = "") -> Iterator[None]:
    """Context that fails if the process is another afterwards, ``but`` for a part of it."""
    before = process_state()
    yield
    for name, value in process_state().items():
        assert name == but or value == before[name], name


def in_threads(work: Callable[[int], Any], n: int = 8, rounds: int = 1) -> list[Any]:
    """Results of ``work`` at 0 .. n - 1, each in a thread of its own, at once."""
    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(work, list(range(n)) * rounds))


@pytest.fixture(scope="module")
def model() -> advect.FlowModel:
    return advect.FlowModel(random_state=0, **SMALL).fit(X)


# --- Several threads. ---


@pytest.mark.parametrize("options", [{}, {"network": "resmlp", "dropout": 0.3, "path": "vp"}], ids=["mlp", "dropout"])
def test_eight_fits_at_once_are_equal_to_the_bit_to_each_alone(options: dict[str, Any]) -> None:
    def fit(seed: int) -> dict[str, Tensor]:
        return advect.FlowModel(random_state=seed, options=options, **SMALL).fit(X).flow_.net.state_dict()

    alone = [fit(seed) for seed in range(8)]
    with nothing_left():
        for weights, same in zip(in_threads(fit), alone, strict=True):
            assert all(torch.equal(weights[name], value) for name, value in same.items())


def test_eight_threads_use_one_flow_as_one_does(moons_run: Path) -> None:
    flow = advect.load(moons_run)
    x = torch.from_numpy(X[:40]).float()

    def use(seed: int) -> tuple[Tensor, ...]:
        rows = x[seed : seed + 20]
        return flow.sample(9, steps=6, seed=seed).x, flow.log_prob(rows, steps=4), flow.encode(rows, steps=4)

    alone = [use(seed) for seed in range(8)]
    with nothing_left():
        found = in_threads(use, rounds=4)
    for got, same in zip(found, alone * 4, strict=True):
        assert all(map(torch.equal, got, same))


def test_densities_leave_the_precision_of_training_to_other_threads(moons_run: Path) -> None:
    flow = advect.load(moons_run)
    flow.autocast = torch.bfloat16
    x = torch.from_numpy(X[:40]).float()
    use = lambda i: flow.log_prob(x, steps=2) if i % 2 else flow.sample(9, steps=6, seed=i).x
    alone = [use(i) for i in range(8)]
    assert all(map(torch.equal, in_threads(use, rounds=3), alone * 3))
    assert flow.autocast == torch.bfloat16


@pytest.mark.parametrize(
    "path", [AffinePath(VariancePreserving()), InterpolantPath(lambda a, b, t: t.cos() * a + t * b)]
)
def test_paths_differentiate_in_several_threads(path: Any) -> None:
    x0, x1, t = torch.randn(64, 2), torch.randn(64, 2), torch.rand(64)
    velocity = lambda i: path.sample(x0, x1, t).u_t
    assert all(torch.equal(u, velocity(0)) for u in in_threads(velocity, rounds=20))


def test_scikit_learns_searches_score_in_threads_as_in_one() -> None:
    estimator = advect.FlowModel(random_state=0, **{**SMALL, "steps": 4, "density_steps": 2})

    def scores(jobs: int) -> tuple[np.ndarray, np.ndarray]:
        search = GridSearchCV(estimator, {"hidden": [4, 8]}, cv=3, n_jobs=jobs).fit(X)
        return cross_val_score(estimator, X, cv=4, n_jobs=jobs), search.cv_results_["mean_test_score"]

    alone = scores(1)
    with nothing_left(but="warnings"), joblib.parallel_backend("threading"):  # scikit-learn sets filters in threads
        found = scores(4)
    for together, each in zip(found, alone, strict=True):
        assert np.isfinite(each).all() and np.array_equal(together, each)


def test_no_code_changes_the_filters_of_warnings() -> None:
    """They are those of all threads: what one hides or restores, another loses."""
    words = ("catch_warnings", "simplefilter", "filterwarnings", "captureWarnings")
    for file in Path(advect.__file__).parent.rglob("*.py"):
        calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        names = {getattr(call, "attr", getattr(call, "id", "")) for call in calls}
        assert not names & set(words), file


def test_networks_and_shards_are_read_in_threads_without_a_warning_or_a_filter(tmp_path: Path) -> None:
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save

    torch.jit.script(nn.Flatten()).save(str(tmp_path / "net.pt"))
    tensors = {"model.w": torch.randn(5, 3), "model.b": torch.arange(4.0), "ema.w": torch.zeros(2)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of being alone
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(tmp_path / "shards"), save_distributed=True))
    told: list[tuple[Any, ...]] = []
    with warnings.catch_warnings():
        warnings.showwarning = lambda *found, **_: told.append(found)
        filters = warnings.filters

        def read(i: int) -> bool:
            features = FeatureNetwork(tmp_path / "net.pt", size=2, mean=0, std=1)(torch.zeros(1, 3, 2, 2))
            own = assemble(tmp_path / "shards", ["model"])
            whole = own.keys() == {"w", "b"} and torch.equal(own["w"], tensors["model.w"])
            return whole and features.shape == (1, 12) and warnings.filters is filters

        with nothing_left():
            assert all(in_threads(read, rounds=2))
    # Python itself hides that a library finds another part of it old.
    assert [message for message, kind, *_ in told if kind is not DeprecationWarning] == []


# --- What a call leaves behind. ---

CALLS: dict[str, Callable[[advect.FlowModel, Path], object]] = {
    "fit": lambda model, run: advect.FlowModel(random_state=0, **SMALL).fit(X, Y),
    "fit without a seed": lambda model, run: advect.FlowModel(**SMALL).fit(X).sample(3),
    "fit, held out": lambda model, run: advect.FlowModel(random_state=0, hidden=8, steps=30).fit(X),
    "fit with dropout": lambda model, run: advect.FlowModel(
        random_state=0, options={"network": "resmlp", "dropout": 0.2, "threads": 1}, **SMALL
    ).fit(X),
    "partial_fit": lambda model, run: model.partial_fit(X),
    "model.sample": lambda model, run: model.sample(5),
    "score_samples": lambda model, run: model.score_samples(X[:9]),
    "score": lambda model, run: model.score(X[:9]),
    "transform": lambda model, run: model.inverse_transform(model.transform(X[:9])),
    "load": lambda model, run: advect.load(run),
    "flow.sample": lambda model, run: advect.load(run).sample(4, steps=3),
    "flow.sample, stochastic": lambda model, run: advect.load(run).sample(4, steps=5, diffusion="sigma"),
    "flow.log_prob": lambda model, run: advect.load(run).log_prob(torch.zeros(3, 2), trace="hutchinson"),
    "encode, decode": lambda model, run: advect.load(run).decode(advect.load(run).encode(torch.zeros(3, 2))),
    "straightness": lambda model, run: advect.load(run).straightness(8, steps=3),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_leaves_no_trace_in_the_process(name: str, model: advect.FlowModel, moons_run: Path) -> None:
    with nothing_left():
        CALLS[name](model, moons_run)


@pytest.mark.parametrize(
    "words",
    [
        "train moons --run-dir new --max-steps 3 --width 8 --batch-size 32 --sample-every 2 --num-samples 4",
        "train moons --run-dir drops --max-steps 3 --network resmlp --width 8 --dropout 0.2 --grad-checkpointing",
        "train moons --dry-run",
        "sample RUN --num-samples 4 --output-dir out",
        "eval RUN --num-samples 60 --metrics marginals",
        "report RUN --num-samples 60 --nfes 2",
        "doctor RUN --samples 60",
        "presets",
    ],
)
def test_a_command_leaves_no_trace_in_the_process(
    words: str, advect: Callable[..., None], moons_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tyro._unsafe_cache.sys", SimpleNamespace(modules={}))  # it draws to test itself under pytest
    with nothing_left(), suppress(SystemExit):
        advect(words.replace("RUN", str(moons_run)))


# --- The random numbers of layers. ---


class Dropped(nn.Module):
    """A network by its user, with PyTorch's own dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(2, 64), nn.Dropout(0.5), nn.Linear(64, 2)

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return self.last(self.drop(self.first(x)))


def test_weights_and_dropout_are_those_of_the_seed_without_a_global_generator() -> None:
    x, t = torch.ones(4, 2), torch.zeros(4)
    torch.manual_seed(5)
    net = Dropped()
    wanted = net(x, t)

    def own(seed: int) -> tuple[Tensor, Tensor]:
        with LayerRng(seed).used():
            net = Dropped()
            return net.first.weight, net(x, t)

    with nothing_left():
        for weight, out in in_threads(lambda i: own(5), rounds=4):
            assert torch.equal(weight, net.first.weight) and torch.equal(out, wanted)
    assert not torch.equal(own(6)[1], wanted)


def test_a_network_that_draws_by_itself_is_told_from_one_that_asks() -> None:
    x, t = torch.ones(4, 2), torch.zeros(4)
    assert draws_itself(on_meta(Dropped()), x, t)
    assert not draws_itself(on_meta(advect.networks.ResidualMLP(2, width=8, depth=2, dropout=0.3)), x, t)

    class Looks(Dropped):
        def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
            return x * x.sum().item()

    assert draws_itself(on_meta(Looks()), x, t)  # as it cannot be told


@pytest.mark.parametrize("by_all", [True, False])
def test_recomputed_layers_drop_what_they_dropped(by_all: bool) -> None:
    class Block(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return nn.functional.dropout(h, 0.5) * dropout(h, 0.5) if by_all else dropout(dropout(h, 0.5), 0.5)

    def gradient(recompute: bool) -> Tensor:
        h = torch.ones(500, requires_grad=True)
        with LayerRng(3).used(by_all=by_all):
            out = checkpoint(Block(), checkpoint(Block(), h, recompute=recompute), recompute=recompute)
        return torch.autograd.grad(out.sum(), h)[0]

    with nothing_left():
        assert torch.equal(gradient(True), gradient(False))


def test_a_random_operator_that_takes_no_generator_is_refused() -> None:
    attention = torch.ops.aten._scaled_dot_product_flash_attention.default
    x = (torch.ones(1, 2, 4, 8),) * 3
    assert RandomOps.draws(attention, (*x, 0.1), {}) and not RandomOps.draws(attention, x, {})
    with pytest.raises(UserError, match="takes no generator; use dropout"):
        _with_generator(attention)
