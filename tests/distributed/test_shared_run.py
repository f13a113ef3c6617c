"""A run of two processes leaves what a run of one with the same global batch leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forked import advect_ranks

SMALL = (
    "train digits --model-channels 8 --max-steps 6 --log-every 3 --sample-every 6 --num-samples 5 --sample-steps 2 "
    "--mixed-precision --half bf16"
)


def rows(run: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def test_sharded_in_bfloat16_it_learns_draws_and_measures_as_one_process_does(tmp_path: Path) -> None:
    advect_ranks(1, f"{SMALL} --run-dir one --batch-size 64", cwd=tmp_path)
    first, second = advect_ranks(2, f"{SMALL} --run-dir two --batch-size 32 --parallel fsdp", cwd=tmp_path)
    one, two = tmp_path / "one", tmp_path / "two"
    for name in ("loss", "held_out_loss"):
        assert rows(two, name) == pytest.approx(rows(one, name), rel=3e-3)
    assert rows(two, "seen") == rows(one, "seen") == [192, 384]
    assert [p.name for p in (two / "samples").iterdir()] == ["step-00000006.png"]
    assert len(list((two / "tensorboard").iterdir())) == 1
    assert "2 processes (fsdp): batches of 32 on each, 64 together" in first.out
    assert second.out == ""
