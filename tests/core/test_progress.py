"""Progress without a terminal: lines after three seconds, by a clock of the test's own."""

from __future__ import annotations

import pytest

from advect.core import progress
from advect.core.progress import BatchProgress, Progress
from advect.core.types import DataSpec
from advect.data.transforms import Standardize
from advect.model.flow import Flow
from advect.networks import MLP


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_nothing_is_shown_of_quick_work(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10, "sample", "sample") as bar:
        for now[0] in (1.0, 2.0, 2.9):
            bar.update(3)
        bar.update(1)
    assert capsys.readouterr().err == ""


def test_lines_tell_rate_and_time_left_and_the_end(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(100, "sample", "row") as bar:
        for now[0] in (2.0, 4.0, 10.0, 20.0, 100.0):
            bar.update(20)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "sample: 40 of 100 rows, 10 a second, 0:04 passed, 0:06 left",
        "sample: 80 of 100 rows, 4 a second, 0:20 passed, 0:05 left",
        "sample: 100 of 100 rows, 1 a second, 1:40 passed, 0:00 left",
        "sample: 100 of 100 rows, 1 a second, took 1:40",
    ]


def test_a_batch_moves_with_every_call_of_the_network(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    spec = DataSpec((2,), "vector", {})
    flow = Flow(MLP(2, width=8), spec, Standardize([0.0, 0.0], [1.0, 1.0]))
    with Progress(6, "sample", "sample") as bar:
        seen = []
        step = bar.update
        bar.update = lambda n=1: (seen.append(n), step(n))[1]  # type: ignore[method-assign]
        flow.sample(6, steps=5, solver="midpoint", batch_size=3, progress=bar)
        assert len(seen) == 2 * (10 + 1) and bar.n == 6


def test_a_plain_bar_counts_whole_batches() -> None:
    bar = progress.tqdm(total=4, disable=False, file=open("/dev/null", "w"))  # noqa: SIM115
    batch = BatchProgress(bar, 4, 10)
    batch.step()
    assert bar.n == 0
    batch.finish()
    assert bar.n == 4
