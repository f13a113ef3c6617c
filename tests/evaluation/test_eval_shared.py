"""An evaluation that is shared, killed or damaged ends with the numbers of one that was not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from advect.commands.evaluate import evaluate
from advect.data import Moons
from advect.data.repeats import LOOKED_AT
from advect.evaluation import ReferenceCache
from advect.evaluation.protocol import EvalConfig
from advect.evaluation.workspace import open_workspace
from advect.model.flow import Flow
from forked import advect_ranks
from processes import environment

METRICS = ("frechet", "kernel", "straightness")
ASK: dict[str, Any] = {"num_samples": 1300, "num_steps": (2,), "metrics": METRICS}
WORDS = f"--num-samples 1300 --num-steps 2 --metrics {' '.join(METRICS)}"


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """The result less what depends on the machine's speed, and on how many processes took part."""
    plain = json.loads(json.dumps(result))
    plain["made_with"].pop("processes")
    plain["subject"].pop("run")
    for point in plain["points"]:
        del point["seconds"], point["samples_per_s"]
    return plain


@pytest.fixture(scope="module")
def alone(moons_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process finds that nothing interrupts."""
    request = EvalConfig(**ASK, output=tmp_path_factory.mktemp("alone") / "a.json")
    return numbers(evaluate(moons_run, request)[1])


def test_two_processes_find_the_numbers_of_one(moons_run: Path, alone: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(moons_run, tmp_path / "run")
    first, second = advect_ranks(2, f"eval run {WORDS}", cwd=tmp_path, timeout=120)
    assert "frechet" in first.out and second.out == ""
    (file,) = (tmp_path / "run/evaluation").iterdir()
    result = json.loads(file.read_text())
    assert result["made_with"]["processes"] == 2 and numbers(result) == alone


def test_a_mistake_that_only_the_first_process_finds_is_that_of_both(moons_run: Path, tmp_path: Path) -> None:
    cache = {"fingerprint": Moons().fingerprint, "what": "held-out copies of training rows", "rows": LOOKED_AT}
    ReferenceCache(tmp_path / "cache/features").save(cache, {"shared": torch.tensor(9999)})
    first, second = advect_ranks(2, f"eval {moons_run} {WORDS}", cwd=tmp_path, code=2, ADVECT_CACHE=tmp_path / "cache")
    assert second.err == ""
    assert "9,999 are copies of training rows, so that the reference is the training set" in first.err
    assert first.err.count("\n") == 1


# Each try is a forked copy of one process; Python tells its audit hooks of each file operation before it happens.
PROGRAM = """
import json, os, re, signal, sys
from pathlib import Path
from advect.commands.evaluate import evaluate
from advect.evaluation.protocol import EvalConfig
from advect.config.arguments import parse_config
from advect.config.build import build_dataset

def kill_before(event, pattern):
    def hook(name, args):
        if name == event and re.search(pattern, " ".join(map(str, args))):
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

run, asked, kills = json.loads(sys.argv[1])
build_dataset(parse_config(Path(run) / "config.yaml")[1].data)  # to pay for the imports once
for kill in kills:
    pid = os.fork()
    if pid == 0:
        kill_before(*kill)
        tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in asked.items()}
        evaluate(Path(run), EvalConfig(**tuples))
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL, kill
    there = sorted(str(p.relative_to(run)) for p in Path(run, "evaluation").rglob("*"))
    print(*there, flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_call_killed_again_and_again_ends_with_the_same_numbers(
    moons_run: Path, alone: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(moons_run, tmp_path / "run")
    cache = tmp_path / "cache"
    kills = [
        ("os.rename", r"reference/part-00003"),  # its features are counted, but not in their place
        ("os.rename", r"\.safetensors\.\d+\.partial .*\.safetensors"),  # the reference's summary is not kept yet
        ("os.rename", r"way-0-seed-0/part-00001"),
        ("open", r"way-0-seed-0/\.part-00002.*part\.json"),  # in the middle of a part
        ("os.rename", r"way-0-seed-0\.json"),  # all parts are there, and the numbers not yet
        ("os.rename", r"straightness/part-00000"),
        ("os.rename", r"/eval-[0-9a-f]{8}\.json"),  # nothing but the result is missing
    ]
    words = [sys.executable, "-c", PROGRAM, json.dumps([str(tmp_path / "run"), ASK, kills])]
    done = subprocess.run(words, env=environment(ADVECT_CACHE=cache), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    plain = re.sub(r"evaluation/eval-[0-9a-f]{8}\.parts/|-of-\d+", "", done.stdout)
    seen = [line.split() for line in plain.splitlines()]
    assert len(seen) == len(kills)
    assert "reference/part-00002" in seen[0] and "reference/part-00003" not in seen[0]
    assert "reference/part-00019" in seen[1] and not any(p.startswith("reference/part") for p in seen[2])
    assert "way-0-seed-0/part-00000" in seen[2] and "way-0-seed-0/part-00001" in seen[3]
    assert "way-0-seed-0/part-00002" in seen[4] and "way-0-seed-0.json" in seen[5]
    assert "straightness.json" in seen[6] and not list((tmp_path / "run/evaluation").glob("*.json"))
    monkeypatch.setenv("ADVECT_CACHE", str(cache))
    draw = Flow.sample  # a trial of one sample is made each time
    monkeypatch.setattr(Flow, "sample", lambda *a, **k: draw(*a, **k) if len(k["rows"]) == 1 else pytest.fail("drew"))
    _, result = evaluate(tmp_path / "run", EvalConfig(**ASK))
    assert numbers(result) == alone
    assert len(list((tmp_path / "run/evaluation").rglob("*"))) == 1


def test_damaged_parts_and_those_of_other_features_are_drawn_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "advect")
    asked: list[range] = []

    def fill(rows: range, bar: Any) -> dict[str, torch.Tensor]:
        asked.append(rows)
        return {"x": torch.arange(rows.start, rows.stop)}

    def total(stamp: str, stop: bool = False) -> float:
        def finish(parts: Any) -> float:
            found = float(sum(part["x"].sum() for part in parts))
            if stop:
                raise KeyboardInterrupt
            return found

        caplog.clear()
        with open_workspace(tmp_path / "work", stamp=stamp) as work:
            found = work.cached_json("set", 1200, fill, finish, title="set")
            assert work.cached_json("set", 1200, fill, finish, title="set") == found  # it is known by now
            return found

    with pytest.raises(KeyboardInterrupt):
        total("a", stop=True)
    assert len(asked) == 3
    part = next((tmp_path / "work/set").glob("part-00001-*/rows.safetensors"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(KeyboardInterrupt):
        total("a", stop=True)
    assert asked[3:] == [range(400, 800)] and "was damaged, and has been drawn anew" in caplog.text
    assert total("b") == 1199 * 600 and len(asked) == 7 and not caplog.messages
    assert not (tmp_path / "work").exists()
