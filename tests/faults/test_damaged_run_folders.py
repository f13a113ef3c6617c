"""What a power cut leaves of the files beside whole checkpoints: the run goes on, or says why in a line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from advect.checkpoint.manifest import find_checkpoint
from advect.core.errors import UserError
from runs import end_of

DAMAGES = {
    "empty": lambda old: b"",
    "nuls": lambda old: bytes(len(old)),
    "half": lambda old: old[: len(old) // 2],
    "not utf-8": lambda old: b"\xff\xfe" + old,
    "a tail of nuls": lambda old: old[: len(old) // 2] + bytes(100),
    "another kind": lambda old: b"[3]\n",
}
FILES = ("environment.json", "metrics.jsonl", "config.yaml")


@pytest.fixture(scope="module")
def resumed(moons_run, tmp_path_factory) -> dict[str, object]:
    """The end of the run when it goes on undisturbed."""
    folder = shutil.copytree(moons_run, tmp_path_factory.mktemp("whole") / "moons")
    go_on(folder)
    return weights(folder)


def go_on(folder: Path) -> None:
    from advect.cli import run

    run(["train", "--resume-from", str(folder), "--max-steps", "45", "--sample-every", "0"])


def weights(folder: Path) -> dict[str, object]:
    return {name: value for name, value in end_of(folder).items() if name != "rows"}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_beside_whole_checkpoints_stops_no_resumption(moons_run, tmp_path, resumed, name, damage):
    folder = shutil.copytree(moons_run, tmp_path / "moons")
    file = folder / name
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    go_on(folder)
    assert weights(folder) == resumed
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 45
    assert json.loads((folder / "environment.json").read_text())["versions" if name == FILES[0] else "resumed"]
    assert "preset: moons" in (folder / "config.yaml").read_text()


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_the_place_of_a_file_is_named(moons_run, tmp_path, name):
    folder = shutil.copytree(moons_run, tmp_path / "moons")
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(UserError) as caught:
        go_on(folder)
    text = str(caught.value)
    assert str(folder / name) in text and "a folder is in the place of the file" in text
    assert f"the last whole checkpoint is {folder / 'checkpoints/step-00000040'}" in text


def test_what_a_start_left_that_was_killed_at_its_first_write_stops_none(tmp_path, advect):
    run = tmp_path / "run"
    run.mkdir()
    dead = 4_194_305  # beyond the largest process number of Linux
    (run / f".config.yaml.{dead}.partial").write_text("preset: mo")
    (run / ".lock").write_text(f"{dead} on here\n")
    advect("train moons --max-steps 2 --width 16 --sample-every 0 --run-dir", run, "--resume auto")
    assert not list(run.glob(".*"))


def test_what_a_killed_writer_left_goes_with_the_next_call(tmp_path):
    from advect.core.files import claim_folder

    dead, mine = 4_194_305, os.getpid()  # the first beyond the largest process number of Linux
    (tmp_path / "evaluation").mkdir()
    for pid in (dead, mine):
        (tmp_path / f".eval.json.{pid}.partial").touch()
        (tmp_path / f"evaluation/.neighbours.npz.{pid}.partial").touch()
    with claim_folder(tmp_path, "--output-dir"):
        left = sorted(path.name for path in tmp_path.rglob("*.partial"))
    assert left == [f".eval.json.{mine}.partial", f".neighbours.npz.{mine}.partial"]  # of another thread


def test_a_pipe_for_metrics_is_told(moons_run, tmp_path, advect):
    shutil.copytree(moons_run, tmp_path / "run")
    (tmp_path / "run/metrics.jsonl").unlink()
    os.mkfifo(tmp_path / "run/metrics.jsonl")
    with pytest.raises(UserError, match=r"run/metrics.jsonl could not .*: it is a pipe, socket or device, not a file"):
        advect("train --resume-from run --max-steps 1000")


def test_pipes_in_the_place_of_files_are_never_waited_for(moons_run, tmp_path):
    whole = shutil.copytree(moons_run, tmp_path / "whole")
    newest = find_checkpoint(whole)
    files = [f for f in (*whole.glob("*.*"), *newest.rglob("*")) if f.is_file()]
    assert newest / "model.safetensors" in files and len(files) > 6
    words = f"import sys; sys.path[:0] = {sys.path!r}\n" + PIPES.format(run=str(whole), files=[*map(str, files)])
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr[-3000:]


PIPES = """
import faulthandler, os, shutil
from advect.cli import run
from advect.core.errors import UserError
faulthandler.dump_traceback_later(500, exit=True)
CALLS = [word.split() for word in (
    "train --max-steps 1 --resume-from {run}", "sample --num-samples 2 --overwrite {run}"
)]
for words in CALLS:  # of the whole run
    run(words)
for file in {files}:
    os.rename(file, file + "-whole")
    os.mkfifo(file)
    for words in CALLS:
        try:
            run(words)
        except UserError as error:
            assert str(error), file
    os.remove(file)
    os.rename(file + "-whole", file)
"""


def test_a_living_process_keeps_its_partial_files(tmp_path):
    from advect.core.files import is_partial, remove_partial

    mine, other = tmp_path / f".a.json.{os.getpid()}.partial", tmp_path / f".a.json.{os.getppid()}.partial"
    mine.touch()
    other.touch()
    remove_partial(tmp_path)
    assert (mine.exists(), other.exists()) == (False, True)
    assert not is_partial(other)
