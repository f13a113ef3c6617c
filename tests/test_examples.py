"""The examples and the README's Python run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_from_the_parts_learns() -> None:
    command = [sys.executable, ROOT / "examples/from_the_parts.py", "--steps", "150"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    distance = float(re.search(r"held-out points ([0-9.]+)", out)[1])  # type: ignore[index]
    assert distance < 0.2  # noise itself is at about 0.5 from the moons


def test_the_estimator_tells_the_moons_apart() -> None:
    command = [sys.executable, ROOT / "examples/estimator.py", "--steps", "150"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    plain, given = map(float, re.search(r"log-density (\S+), given the label (\S+)", out).groups())  # type: ignore[union-attr]
    assert given > plain > -3  # a Gaussian of the data's moments is at about -2.1


def test_the_python_of_the_readme_runs(digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    assert blocks
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/digits").symlink_to(digits_run)
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.slow
def test_the_guide_to_data_runs(advect: Callable[..., None]) -> None:
    pytest.importorskip("anndata")
    text = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    text = text[text.index("## One of each") : text.index("The official files of")]
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.S):
        exec(compile(code, "docs/data.md", "exec"), names)
    commands = re.findall(r"^    advect (train --data .*)$", text, flags=re.M)
    assert len(commands) == 11
    for i, command in enumerate(commands):
        advect(command, "--max-steps 1 --batch-size 4 --sample-every 0 --num-workers 0 --run-dir", f"run{i}")
        assert Path(f"run{i}/checkpoints/latest").is_file()
