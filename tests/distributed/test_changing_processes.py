"""The command line on ever other numbers of processes: one loss curve."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from forked import advect_ranks

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs forked processes")

DATA = {
    "moons": "moons --width 16",
    "digits": "digits --model-channels 8 --dropout 0",
}
WAYS = {
    "1-ddp-1": [(1, "none"), (2, "ddp"), (1, "none")],
    "ddp-fsdp-ddp": [(2, "ddp"), (2, "fsdp"), (2, "ddp")],
}


def curve(run: Path) -> tuple[list[int], list[float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    return [row["step"] for row in rows], [value for row in rows for value in (row["loss"], row["grad_norm"])]


@pytest.mark.parametrize(
    ("data", "way"),
    [
        ("moons", "1-ddp-1"),
        ("moons", "ddp-fsdp-ddp"),
        *(pytest.param("digits", w, marks=pytest.mark.slow) for w in WAYS),
    ],
)
def test_the_logged_curve_is_that_of_one_process(tmp_path: Path, data: str, way: str) -> None:
    call = f"train {DATA[data]} --lr-warmup-steps 4 --learning-rate 1e-3 --sample-every 0 --log-every 1 --num-epochs 9"
    advect_ranks(1, f"{call} --batch-size 64 --run-dir alone --max-steps 18", cwd=tmp_path)
    for i, (n, kind) in enumerate(WAYS[way]):
        leg = f"--resume auto --batch-size {64 // n} --parallel {kind} --max-steps {6 * (i + 1)}"
        said = advect_ranks(n, f"{call} --run-dir changing {leg}", cwd=tmp_path)[0].out
        assert "will not equal" not in said and ("resuming at step" in said) == (i > 0)
    steps, values = curve(tmp_path / "changing")
    assert steps == list(range(1, 19))
    assert values == pytest.approx(curve(tmp_path / "alone")[1], rel=1e-5)
