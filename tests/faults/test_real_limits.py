"""Disks and limits as the operating system has them: read-only, of some size, and a largest file."""

from __future__ import annotations

import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from advect.checkpoint.manifest import list_checkpoints
from advect.core.errors import UserError
from forked import advect_ranks

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts tmpfs, forks processes")


def test_a_run_on_a_read_only_disk_is_sampled_evaluated_and_reported_elsewhere(
    advect: Callable[..., None], moons_run: Path, tmp_path: Path, disk: Callable[[str], Path]
) -> None:
    run = shutil.copytree(moons_run, disk("size=40m") / "moons")
    disk("ro")
    few = {
        "sample": "--num-samples 4 --num-steps 1",
        "eval": "--num-samples 40 --metrics energy",
        "report": "--no-measure",
    }
    for command, flags in few.items():
        with pytest.raises(UserError, match=r"cannot be written to \(Read-only file system\); choose a folder"):
            advect(command, run, flags)
    advect("sample", run, few["sample"], "--output-dir made")
    advect("eval", run, few["eval"], "--output made/eval.json")
    advect("report", run, "--num-samples 40 --nfes 2 --output-dir made")
    there = {path.relative_to(tmp_path / "made").as_posix() for path in (tmp_path / "made").rglob("*")}
    assert {"samples.json", "eval.json", "report.html", "evaluation/quality.json"} <= there
    assert "Frechet distance" in (tmp_path / "made/report.html").read_text()
    assert not [name for name in there if "/." in f"/{name}"]


def largest_file(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize(
    ("words", "size", "file"),
    [
        (
            "train moons --width 64 --batch-size 32 --max-steps 3 --sample-every 0 --run-dir out",
            30_000,
            "out/checkpoints",
        ),
        ("sample {run} --num-samples 4000 --num-steps 1 --output-dir out", 20_000, "out/part-00000-of-00001"),
        ("report {run} --no-measure --output-dir out", 5_000, "out/report.html"),
    ],
)
def test_a_limit_of_the_size_of_files_is_told_as_what_it_is(
    moons_run: Path, tmp_path: Path, words: str, size: int, file: str
) -> None:
    call = words.format(run=moons_run)
    (ended,) = advect_ranks(1, call, cwd=tmp_path, before=largest_file, arguments=(size,), code=2)
    last = ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err and file in last, ended.err
    assert "could not be written" in last and "files may not become that large here (see ulimit -f)" in last
    assert not list_checkpoints(tmp_path / "out/checkpoints") and not (tmp_path / "out/samples.json").exists()
    assert not list((tmp_path / "out").rglob(".*.partial"))
