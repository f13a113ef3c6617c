"""Two commands on one folder at once: one works, the other says who does; and readers beside a run that writes."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import pytest

from advect.checkpoint import manifest
from advect.checkpoint.manifest import find_checkpoint, find_weights, read_newest
from advect.core.errors import UserError
from advect.core.files import claim_folder
from forked import ranks

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs forked processes")


def slow_writes(seconds: float) -> None:
    """Have a sampling wait within its writes until the file ``go`` is there."""
    from advect.model import sharded_samples

    real = sharded_samples.SampleShards.write

    def waiting(self, *arguments):
        Path("begun").touch()
        until = time.monotonic() + seconds
        while not Path("go").exists() and time.monotonic() < until:
            time.sleep(0.01)
        return real(self, *arguments)

    sharded_samples.SampleShards.write = waiting


@linux
@pytest.mark.parametrize("parts", ["", "--part-size 10"])
def test_of_two_samplings_into_one_folder_one_works_and_the_other_tells(advect, moons_run, tmp_path, parts):
    words = f"sample {moons_run} --num-samples 20 --num-steps 2 --output-dir out {parts}"
    with ranks(1, words, cwd=tmp_path, before=slow_writes, arguments=(50.0,)) as first:
        while first.alive() and not (tmp_path / "begun").exists():
            time.sleep(0.01)
        for flags in ("", "--overwrite"):
            with pytest.raises(UserError, match=r"--output-dir out is in use by process \d+ on .*; wait for it"):
                advect(words, flags)
        (tmp_path / "go").touch()
        (ended,) = first.wait()
    assert ended.code == 0 and "advect:" not in ended.err, ended.err
    listed = json.loads((tmp_path / "out/samples.json").read_text())
    assert listed["n"] == 20
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]
    advect(words, "--overwrite")


@pytest.mark.parametrize(
    ("words", "folder", "name", "argument"),
    [
        ("sample {run} --num-steps 2 --output-dir out", "out", ".lock", "--output-dir"),
        ("report {run} --no-measure --output-dir out", "out", ".report.lock", "--output-dir"),
        (
            "eval {run} --num-samples 50 --metrics energy --output out/a.json",
            "out",
            ".a.json.lock",
            "--output",
        ),
        ("reflow {run} --output-dir out --num-pairs 20 --no-measure", "out", ".lock", "--output-dir"),
        ("train moons --run-dir out", "out", ".lock", "--run-dir"),
    ],
)
def test_each_command_that_writes_holds_its_folder(advect, moons_run, tmp_path, words, folder, name, argument):
    place = tmp_path / folder
    with claim_folder(place, argument, name), pytest.raises(UserError, match="out is in use by process"):
        advect(words.format(run=moons_run))
    assert list(place.iterdir()) == []


def test_a_packing_holds_its_folder(advect, tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images/a.png")
    with claim_folder(tmp_path / "out", "out_folder"), pytest.raises(UserError, match="out is in use by process"):
        advect("data pack images --image-size 8 --output out")
    advect("data pack images --image-size 8 --output out")


def test_a_reader_takes_the_newest_again_where_the_run_has_removed_it(moons_run, tmp_path, monkeypatch):
    import advect

    run = shutil.copytree(moons_run, tmp_path / "run")
    folder = run / "checkpoints"
    newest, moved = find_checkpoint(run), folder / "step-00000060"
    real, seen = manifest.verify_checkpoint, []

    def removed_meanwhile(path: Path) -> dict:
        seen.append(path.name)
        if len(seen) == 1:  # as retention does: a newer one is there, and this one goes
            shutil.copytree(newest, moved)
            (folder / "latest").write_text(moved.name + "\n")
            shutil.rmtree(newest)
        return real(path)

    monkeypatch.setattr("advect.model.load.verify_checkpoint", removed_meanwhile)
    assert advect.load(run).spec.shape == (2,)
    assert seen == ["step-00000040", "step-00000060"]


def test_a_checkpoint_that_is_named_is_not_replaced_by_another(moons_run, tmp_path):
    run = shutil.copytree(moons_run, tmp_path / "run")
    named, tried = run / "checkpoints/step-00000020", []

    def read(place: Path) -> None:
        tried.append(place.name)
        shutil.rmtree(place)
        (place / "model.safetensors").read_bytes()

    with pytest.raises(UserError, match="step-00000020 does not exist; whole checkpoints beside it: step-00000040"):
        read_newest(named, read, find_weights)
    assert tried == ["step-00000020"]


def test_damage_is_told_at_once(moons_run, tmp_path):
    run = shutil.copytree(moons_run, tmp_path / "run")
    tried = []

    def read(place: Path) -> None:
        tried.append(place.name)
        raise UserError("it is damaged")

    with pytest.raises(UserError, match="it is damaged"):
        read_newest(run, read)
    assert tried == ["step-00000040"]


def test_a_file_that_another_process_removed_is_told_as_that(advect, moons_run, tmp_path, monkeypatch):
    from advect.data import modality

    real = modality.Modality.write

    def removed_meanwhile(self, x, encoded, folder, **options):
        files = real(self, x, encoded, folder, **options)
        shutil.rmtree(folder)
        return files

    for cls in (modality.Modality, *modality.Modality.__subclasses__()):
        if "write" in vars(cls):
            monkeypatch.setattr(cls, "write", removed_meanwhile)
    with pytest.raises(UserError, match="it is not there, and may have been removed by another process") as caught:
        advect("sample", moons_run, "--num-samples 8 --num-steps 1 --output-dir out")
    assert "space" not in str(caught.value)


def test_averages_hold_their_folder_and_take_what_a_living_run_has_not_thinned_out(advect, tmp_path, monkeypatch):
    from advect.commands import ema

    advect("train moons --width 16 --batch-size 32 --max-steps 40 --sample-every 0 --posthoc-ema --run-dir run")
    with claim_folder(tmp_path / "run/ema", "--output", ".ema.lock"), pytest.raises(UserError, match="is in use by"):
        advect("ema run --length 0.1")
    real, seen = ema.combine, []

    def thinned_meanwhile(snapshots, factors):
        seen.append(len(snapshots))
        if len(seen) == 1:
            shutil.rmtree(snapshots[0].path)
        return real(snapshots, factors)

    monkeypatch.setattr(ema, "combine", thinned_meanwhile)
    advect("ema run --length 0.1")
    assert seen[1:] == [seen[0] - 1]
    assert len(list((tmp_path / "run/ema").glob("length-0.1-*.safetensors"))) == 1
