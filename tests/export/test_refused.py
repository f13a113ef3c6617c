"""What cannot be exported is refused in a sentence, before anything is written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advect.cli import run
from advect.core.errors import UserError
from advect.core.types import Category, DataSpec
from advect.data.tables.columns import Number
from advect.data.tables.rules import Rule
from advect.data.tables.scaling import StandardScaling
from advect.data.tables.transform import TableTransform
from advect.data.transforms import Identity
from advect.export.files import CARD
from advect.model.flow import Flow
from advect.paths import BrownianBridge, MixturePath
from advect.sources import Empirical, Masked

SPEC = DataSpec((2,), "vector", {"label": Category(("a", "b"), (0.5, 0.5))})


class Still(nn.Module):
    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return x * 0.5


class Branching(nn.Module):
    """A part that looks at values, which a graph cannot."""

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return x if float(x.sum()) > 0 else -x


def flow(net: nn.Module | None = None, **method: Any) -> Flow:
    return Flow(net or Still(), method.pop("spec", SPEC), method.pop("transform", Identity()), **method)


def ruled() -> TableTransform:
    columns = [Number(name=name, dtype="float64", scaling=StandardScaling(0.0, 1.0), low=-9, high=9) for name in "ab"]
    return TableTransform(columns, [Rule("a <= b")])


def bridge() -> Flow:
    return flow(path=BrownianBridge(sigma=0.5), source=Empirical(torch.zeros(4, 2)))


def tokens() -> Flow:
    return flow(path=MixturePath(), source=Masked(), spec=DataSpec((4, 3), "tokens", {}))


REFUSED = {
    "a flow of tokens": (tokens, {}, r"flow is one of tokens"),
    "an adaptive solver": (flow, {"solver": "dopri5"}, r"'dopri5' chooses its own steps.*take midpoint"),
    "a solver of noise": (flow, {"solver": "euler-maruyama"}, r"'euler-maruyama' draws noise at each step"),
    "rules": (lambda: flow(transform=ruled()), {}, r"drawn anew.*--model-units"),
    "a bridge from rows": (bridge, {}, r"draws noise at its start"),
    "no such solver": (flow, {"solver": "midpont"}, r"did you mean 'midpoint'"),
    "too many steps": (flow, {"steps": 3000}, r"num_steps is 3000"),
    "too many calls": (flow, {"steps": 600, "solver": "rk4"}, r"calls the network 2,400 times"),
    "no step": (flow, {"steps": 0}, r"steps must be at least 1"),
    "no such condition": (flow, {"cond": {"lable": "a"}}, r"'lable' is not known; did you mean 'label'"),
    "several values": (flow, {"cond": {"label": "cycle"}}, r"fixed to one value in an export, got 'cycle'"),
    "an idle interval": (flow, {"guidance_interval": (0.1, 0.5)}, r"guidance_interval is given, but guidance is 1"),
    "no such format": (flow, {"format": "onxx"}, r"format has no choice 'onxx'; did you mean 'onnx'"),
    "a branch": (lambda: flow(Branching()), {"steps": 1}, r"the network has a part that torch.export cannot trace"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_sentence_and_nothing_written(case: str, tmp_path: Path) -> None:
    make, arguments, said = REFUSED[case]
    with pytest.raises(UserError, match=said):
        make().export(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match=r"holds 'mine.txt', which is no export"):
        flow().export(tmp_path / "a", overwrite=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / CARD).write_text("{}")
    with pytest.raises(UserError, match=r"holds an export already; name another folder, or give --overwrite"):
        flow().export(tmp_path / "b")
    with pytest.raises(UserError, match=r"mine.txt is a file; name a folder"):
        flow().export(tmp_path / "a" / "mine.txt")
    assert [p.name for p in sorted(tmp_path.rglob("*"))] == ["a", "mine.txt", "b", CARD]


def test_a_missing_library_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"pip install 'advect\[export\]'"):
        flow().export(tmp_path / "out", format="onnx")
    assert not (tmp_path / "out").exists()


def test_the_command_tells_a_run_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        run(["export", str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match=r"advect export needs a run"):
        run(["export", "--format", "onnx"])


@pytest.mark.slow
def test_a_run_is_exported_by_the_command(moons_run: Path, tmp_path: Path) -> None:
    run(["export", str(moons_run), "--num-steps", "2", "--output", str(tmp_path / "out"), "--num-samples", "3"])
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["example.npz", CARD, "network.pt2", "sampler.pt2"]
    with pytest.raises(UserError, match="holds an export already"):
        run(["export", str(moons_run), "--num-steps", "2", "--output", str(tmp_path / "out")])
