"""A path, a solver, a metric and a data format made elsewhere are choices, flags and configuration at once."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from advect.config.arguments import parse_config, parse_train
from advect.core import registry

PARTS = '''
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from advect.core.registry import register
from advect.data.arrays import Arrays
from advect.data.base import Detected
from advect.metrics.base import FeatureMetric
from advect.paths.schedules import Coefficients, Schedule
from advect.solvers.runge_kutta import RungeKutta


@register("late")
@dataclass(frozen=True)
class Late(Schedule):
    """alpha_t = t^power and sigma_t = 1 - t.

    Args:
        power: how late the data come.
    """

    power: float = 2.0

    def coefficients(self, t):
        return Coefficients(t**self.power, 1 - t, self.power * t ** (self.power - 1), -1 + 0 * t)


@register("ralston")
@dataclass(frozen=True)
class Ralston(RungeKutta):
    """Ralston's method: order 2."""

    order, evaluations, nodes = 2, 2, (0.0, 2 / 3)

    def step(self, u, x, t, h):
        k1 = u(x, t[0])
        k2 = u(x.add(k1, alpha=2 * h / 3), t[1])
        return x.add(k1, alpha=h / 4).add_(k2, alpha=3 * h / 4)


@register("median_gap")
class MedianGap(FeatureMetric):
    """Distance of the medians of the features."""

    def distance(self, x, y):
        return (x.median(0).values - y.median(0).values).norm().item()


@register("points")
class Points(Arrays):
    """Vectors from a text file (.pts), a row a line.

    Args:
        thin: every so many rows are taken.
    """

    place = "the .pts file"

    @classmethod
    def recognises(cls, path: Path):
        return Detected(50, "a text file of points", "vector") if path.suffix == ".pts" else None

    @classmethod
    def part_files(cls, folder: Path):
        np.savetxt(folder / "a.pts", np.random.default_rng(4).normal(2, 3, (80, 2)))
        return cls(folder / "a.pts", thin=2)

    def __init__(self, file, *, thin: int = 1):
        super().__init__(np.loadtxt(file, dtype=np.float32, ndmin=2)[::thin], held_out=0.25, name=Path(file).name)
'''
NAMES = {"path": "late", "solver": "ralston", "metric": "median_gap", "data-format": "points"}
SETUP = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "new-parts"
version = "1"
[project.entry-points."advect.parts"]
new = "new_parts"
[tool.setuptools]
py-modules = ["new_parts"]
"""
PIP = ["install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target"]


@pytest.fixture(params=["made in this process", "of an installed package"])
def child(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The parts are there; yields the pytest options with which a child has them, too."""
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    (source / "new_parts.py").write_text(PARTS)
    installed = request.param == "of an installed package"
    if installed:
        (source / "pyproject.toml").write_text(SETUP)
        subprocess.run([sys.executable, "-m", "pip", *PIP, site, source], check=True)
    place = site if installed else source
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("PYTHONPATH", f"{place}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    if not installed:
        importlib.import_module("new_parts")
    yield [] if installed else ["-p", "new_parts"]
    for kind, name in NAMES.items():
        registry.unregister(registry.get(kind, name))
    registry._loaded.discard("new_parts")
    sys.modules.pop("new_parts", None)


def shown(command: str, capsys: pytest.CaptureFixture[str], advect: Callable[..., None]) -> str:
    with pytest.raises(SystemExit):
        advect(command)
    return " ".join(re.sub(r"[│\s]+", " ", capsys.readouterr().out).split())


def test_new_parts_are_choices_flags_and_configuration_and_meet_the_contracts(
    child: list[str], capsys: pytest.CaptureFixture[str], advect: Callable[..., None]
) -> None:
    for kind, name in NAMES.items():
        assert name in registry.choices(kind) and registry.summaries(kind)[name]

    np.savetxt("a.pts", np.random.default_rng(0).normal(size=(40, 2)))
    training = ["--data", "a.pts", "--path", "late", "--path-power", "3", "--thin", "2", "--solver", "ralston"]
    help_ = shown(" ".join(["train", *training, "--help-all"]), capsys, advect)
    for words in ("late: alpha_t = t^power", "--path-power", "how late", "ralston", "points: Vectors from", "--thin"):
        assert words in help_
    assert "ralston" in shown("sample RUN --help-all", capsys, advect)
    assert "median_gap: Distance of the medians" in shown("eval RUN --help-all", capsys, advect)

    preset, a = parse_train(training)
    assert (a.settings.method.path_power, a.settings.data.thin, a.settings.output.solver) == (3.0, 2, "ralston")
    Path("config.yaml").write_text(a.settings.to_yaml(preset))
    assert parse_config(Path("config.yaml")) == (preset, a.settings)

    small = "--width 16 --depth 2 --batch-size 8 --max-steps 2 --sample-every 0 --num-workers 0 --run-dir run"
    advect("train", *training, small)
    advect("sample run --num-samples 4")
    advect("eval run --num-samples 15 --metrics median_gap --output found.json")
    assert '"median_gap"' in Path("found.json").read_text()


def test_new_parts_meet_the_contracts(child: list[str]) -> None:
    command = [sys.executable, "-m", "pytest", "-rA", "-q", "-p", "no:cacheprovider", *child]
    chosen = ["-k", " or ".join(NAMES.values()), Path(__file__).parent / "contracts"]
    found = subprocess.run([*command, *chosen], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-3000:]
    for name in NAMES.values():
        assert re.search(rf"^PASSED .*\[[^]]*{name}", found.stdout, flags=re.M), name
