"""Samples in parts: shared by processes, killed and gone on with, and never another call's."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import advect
from advect.cli import run as command
from advect.core.errors import UserError
from advect.model.sampler_config import SamplerConfig
from advect.model.sampling import sample_run
from advect.model.sharded_samples import SampleShards, count_shards, open_plan, write_shards
from forked import ranks, run_ranks
from processes import environment


def ask(n: int, *, seed: int = 0, batch_size: int = 256, **sampler) -> dict[str, Any]:
    """Arguments of ``sample_run``."""
    return {"n": n, "seed": seed, "batch_size": batch_size, "sampler": SamplerConfig(**sampler)}


ASK = ask(50, steps=2, seed=4, batch_size=8)


def parted(run: Path, folder: Path, asked: dict = ASK, *, part_size: int | None = 20, **options) -> list[Path]:
    return sample_run(run, **asked, output_dir=folder, part_size=part_size, **options)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def three(moons_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 samples in three parts."""
    folder = tmp_path_factory.mktemp("three") / "out"
    parted(moons_run, folder)
    return folder


NAMES = {"samples.npz", "samples.csv", "samples.png"}


def test_the_parts_of_one_draw_are_found_as_one_file_of_each_kind(moons_run: Path, three: Path) -> None:
    facts, x = json.loads((three / "samples.json").read_text()), advect.load(moons_run).sample(50, steps=2, seed=4).x
    assert content(three).keys() == {*NAMES, "samples.json"} and facts["sums"].keys() == set(facts["files"]) == NAMES
    for name, told in facts["sums"].items():
        data = (three / name).read_bytes()
        assert told == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    with np.load(three / "samples.npz") as arrays:
        np.testing.assert_allclose(arrays["x"], x.numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(
            np.loadtxt(three / "samples.csv", np.float32, delimiter=",", skiprows=1), arrays["x"]
        )
    assert facts["n"] == 50 and facts["nfe"] == 4 and facts["ema"] is True and facts["run"] == str(moons_run)
    assert facts["parts"] == 3
    assert (
        facts["sha256"]
        == hashlib.sha256((moons_run / "checkpoints/step-00000040/ema.safetensors").read_bytes()).hexdigest()
    )


def test_whole_batches_in_parts_are_the_bytes_of_one_file(moons_run: Path, tmp_path: Path) -> None:
    parted(moons_run, tmp_path / "whole", ask(48, steps=2, batch_size=8), part_size=None)
    parted(moons_run, tmp_path / "parts", ask(48, steps=2, batch_size=8), part_size=16)
    for name in ("samples.npz", "samples.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def shared(run: str, folder: str) -> list:
    """What this process draws of the five parts, and prints."""
    drawn, write, said = [], SampleShards.write, io.StringIO()

    def noted(self: SampleShards, k: int, fill) -> dict:
        drawn.append(k)
        return write(self, k, fill)

    SampleShards.write = noted
    words = f"sample {run} --num-samples 50 --num-steps 2 --seed 4 --batch-size 8 --output-dir {folder} --part-size 10"
    with contextlib.redirect_stdout(said):
        command(words.split())
    return [drawn, said.getvalue().splitlines()]


def test_two_processes_share_the_parts_and_write_the_bytes_of_one(moons_run: Path, tmp_path: Path) -> None:
    parted(moons_run, tmp_path / "one", part_size=10)
    two = tmp_path / "two"
    (first, told), (second, silent) = run_ranks(2, shared, str(moons_run), str(two))
    assert (first, second, silent) == ([0, 2, 4], [1, 3], [])
    names = {"arrays: ": "npz", "table:  ": "csv", "picture:": "png", "facts:  ": "json"}
    assert told == [f"{title} {two}/samples.{suffix}" for title, suffix in names.items()]
    assert content(two) == content(tmp_path / "one")


# Each try is a forked copy of one process, which has paid for its imports. Python tells its audit hooks of each file
# operation before it happens.
PROGRAM = """
import json, os, re, signal, sys
from pathlib import Path
from advect.model.sampler_config import SamplerConfig
from advect.model.sampling import sample_run

def kill_before(event, pattern):
    def hook(name, args):
        if name == event and re.search(pattern, " ".join(map(str, args))):
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

def draw():
    sample_run(Path(run), sampler=SamplerConfig(steps=steps), **asked, output_dir=Path(folder), **options)

run, folder, steps, asked, options, kills = json.loads(sys.argv[1])
for kill in kills:
    pid = os.fork()
    if pid == 0:
        kill_before(*kill)
        draw()
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL, kill
    print(*sorted({*os.listdir(folder)} - {".lock"}) if os.path.exists(folder) else (), flush=True)
"""


def program(run: Path, folder: Path, asked: dict, kills: list[tuple[str, str]], **options) -> list[str]:
    steps, asked = asked["sampler"].steps, {name: value for name, value in asked.items() if name != "sampler"}
    return [sys.executable, "-c", PROGRAM, json.dumps([str(run), str(folder), steps, asked, options, kills])]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_call_killed_again_and_again_ends_with_the_bytes_of_one_that_was_not(
    moons_run: Path, three: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    kills = [
        ("os.rename", r"plan\.json$|/plan\.json "),
        ("open", r"\.part-00000-.*samples\.csv"),  # in the middle of a part
        ("os.rename", r"/part-00001-"),  # the part is written, but not in its place
        ("open", r"\.part-00001-.*part\.json"),
        ("os.mkdir", r"\.part-00002-"),
        ("os.rename", r"out/samples\.npz"),  # the parts are joined, but not in their place
        ("os.rename", r"out/samples\.csv"),
        ("open", r"out/\.samples\.json"),
        ("shutil.rmtree", r"part-00001-of-00003"),
        ("os.remove", r"out/plan\.json"),
    ]
    words = program(moons_run, out, ASK, kills, part_size=20)
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=True)
    seen = [re.sub(r"\.\d+\.partial|-of-00003", "", line).split() for line in done.stdout.splitlines()]
    parts = ["part-00000", "part-00001", "part-00002", "plan.json"]
    assert seen == [
        [".plan.json"],
        [".part-00000", "plan.json"],
        [".part-00001", "part-00000", "plan.json"],
        [".part-00001", "part-00000", "plan.json"],
        ["part-00000", "part-00001", "plan.json"],
        [".samples.npz", *parts],
        [".samples.csv", *parts, "samples.npz"],
        [*parts, "samples.csv", "samples.npz", "samples.png"],
        ["part-00001", "part-00002", "plan.json", *sorted(NAMES | {"samples.json"})],
        ["plan.json", *sorted(NAMES | {"samples.json"})],
    ]
    before = {path: path.stat().st_ino for path in out.glob("samples.*")}
    parted(moons_run, out)
    assert {path: path.stat().st_ino for path in out.glob("samples.*")} == before
    assert content(out) == content(three)


def kill_second() -> None:
    """In the middle of a part of the second process."""

    def hook(name: str, arguments: tuple) -> None:
        if name == "open" and re.search(r"\.part-00001-.*samples\.csv", str(arguments[0])):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def test_one_process_goes_on_where_one_of_two_was_killed(moons_run: Path, tmp_path: Path) -> None:
    out, asked = tmp_path / "out", ask(40, steps=2)
    words = f"sample {moons_run} --num-samples 40 --num-steps 2 --output-dir {out}"
    with ranks(2, words, cwd=tmp_path, before=kill_second) as run:
        first, second = run.wait()
    assert second.code == -9 and first.code == 75 and "lost the others" in first.err
    assert [path.name for path in out.glob("part-*")] == ["part-00000-of-00002"]
    parted(moons_run, out, asked, part_size=None)  # by itself it would have made no parts
    parted(moons_run, tmp_path / "other", asked)
    assert content(out) == content(tmp_path / "other")


def test_a_damaged_part_is_noted_and_drawn_anew(
    moons_run: Path, three: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"the disk is full.* goes on after the parts"):
        patch.setattr("advect.data.join_files._npz_forms", full_disk)
        parted(moons_run, out)
    caplog.set_level("INFO", "advect")
    for name, change in (("samples.npz", lambda data: data[:-1] + b"x"), ("part.json", lambda data: data[:20])):
        file = out / "part-00001-of-00003" / name
        file.write_bytes(change(file.read_bytes()))
        with monkeypatch.context() as patch, pytest.raises(UserError, match="the disk is full"):
            patch.setattr("advect.data.join_files._npz_forms", full_disk)
            parted(moons_run, out)
    assert caplog.messages == [f"note: {out}/part-00001-of-00003 was damaged, and has been drawn anew"] * 2
    parted(moons_run, out)
    assert content(out) == content(three)
    (out / "samples.csv").write_bytes(b"lost")
    parted(moons_run, out)
    assert content(out) == content(three)


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_another_calls_samples_are_kept_unless_they_may_be_overwritten(moons_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    parted(moons_run, out)
    (out / "notes.txt").write_text("mine")
    whole = content(out)
    older = moons_run / "checkpoints/step-00000020"
    for difference, run, asked, options in (
        ("seed was 4 there and is 5 here", moons_run, ask(50, steps=2, seed=5, batch_size=8), {}),
        ("n was 50 there and is 7 here", moons_run, ask(7, steps=2, seed=4, batch_size=8), {}),
        ("parts was 3 there and is 2 here", moons_run, ASK, {"part_size": 25}),
        (r"weights was step-00000040/ema.* there and is step-00000020/ema", older, ASK, {}),
        ("ema", moons_run, ASK, {"ema": False}),
    ):
        with pytest.raises(UserError, match=f"--output-dir .* holds samples of another call: .*{difference}"):
            parted(run, out, asked, **options)
        assert content(out) == whole
    parted(moons_run, out, part_size=25, overwrite=True)
    assert json.loads((out / "samples.json").read_text())["parts"] == 2
    sample_run(moons_run, **ask(3, steps=2), output_dir=out, overwrite=True)
    names = {"samples.npz", "samples.csv", "samples.png", "samples.json", "notes.txt"}
    assert content(out).keys() == names and json.loads((out / "samples.json").read_text())["n"] == 3
    with pytest.raises(UserError, match=r"already holds samples of another call: n was 3 .*, or give --overwrite"):
        parted(moons_run, out)


def test_mistakes_are_told_before_anything_is_written(moons_run: Path, tmp_path: Path) -> None:
    for message, asked, size in (
        ("size must be at least 1 and at most 2,147,483,647, got 0", ASK, 0),
        ("did you mean 'midpoint'", ask(50, solver="midpont"), 20),
        ("guidance is 2", ask(50, guidance=2), 20),
    ):
        with pytest.raises(UserError, match=message):
            parted(moons_run, tmp_path / "out", asked, part_size=size)
    assert not (tmp_path / "out").exists()


def test_single_images_of_all_parts_lie_in_one_folder(digits_run: Path, tmp_path: Path) -> None:
    files = parted(digits_run, tmp_path, ask(5, steps=1), part_size=2, save_individual=True)
    names = {f"sample-{i:06d}.png" for i in range(5)} | {"samples.npz", "samples.png", "samples.json"}
    assert {file.name for file in files} == content(tmp_path).keys() == names


def test_files_of_another_format_get_the_number_of_their_part(tmp_path: Path) -> None:
    def fill(rows: range, folder: Path, bar: object) -> list[Path]:
        (folder / "samples.txt").write_text(f"{rows.start} to {rows.stop}")
        return [folder / "samples.txt"]

    parts = SampleShards(folder=tmp_path, n=5, count=2)
    open_plan(tmp_path, {"n": 5, "parts": 2}, fixed=True, overwrite=False)
    parts.finish({"parts": 2}, write_shards(parts, fill) or {}, lambda places, whole, bar: False)
    left = {name: data.decode() for name, data in content(tmp_path).items() if name != "samples.json"}
    assert left == {"samples-00000-of-00002.txt": "0 to 2", "samples-00001-of-00002.txt": "2 to 5"}
    assert parts.finished() is not None
    open_plan(tmp_path, {"n": 6, "parts": 1}, fixed=True, overwrite=True)
    assert content(tmp_path).keys() == {"plan.json"}


def test_parts_are_at_most_as_large_as_asked_and_leave_no_process_idle(tmp_path: Path) -> None:
    for n, size, world, count in (
        (10_000, None, 1, 1),
        (50_000, None, 1, 5),
        (50_000, None, 8, 8),
        (50_001, None, 4, 8),
        (64, None, 2, 2),
        (64, 100, 2, 2),
        (64, 20, 2, 4),
        (50_000, 10_000, 8, 5),  # as asked: its bytes depend on no number of processes
        (3, None, 8, 3),
    ):
        assert count_shards(n, size, world) == count
        parts = SampleShards(folder=tmp_path, n=n, count=count)
        rows = [parts.rows(k) for k in range(count)]
        assert [i for part in rows for i in part] == list(range(n))
        assert max(map(len, rows)) <= (size or 10_000) and max(map(len, rows)) - min(map(len, rows)) <= 1


def test_a_plan_is_gone_on_with_in_the_parts_that_it_was_cut_into(tmp_path: Path) -> None:
    assert open_plan(tmp_path, {"n": 9, "parts": 4}, fixed=False, overwrite=False) == 4
    assert open_plan(tmp_path, {"n": 9, "parts": 1}, fixed=False, overwrite=False) == 4
    with pytest.raises(UserError, match="parts was 4 there and is 3 here"):
        open_plan(tmp_path, {"n": 9, "parts": 3}, fixed=True, overwrite=False)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(UserError, match="n was None there"):
        open_plan(tmp_path, {"n": 9, "parts": 4}, fixed=False, overwrite=False)
