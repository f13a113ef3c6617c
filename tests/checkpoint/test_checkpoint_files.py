from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from advect.checkpoint.manifest import (
    FORMAT,
    checkpoint_name,
    list_checkpoints,
    named_checkpoint,
    remove_leftovers,
    retain,
)
from advect.core.errors import UserError
from advect.training import find_checkpoint, verify_checkpoint, write_checkpoint

FILES = {
    "model.safetensors": b"weights" * 99,
    "state/run.json": b'{"step": 1}',
    "state/deep/a b.bin": bytes(range(256)),
}


def fill(folder: Path, mark: bytes = b"") -> None:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(mark + content)


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder with checkpoints of steps 5 and 10."""
    for step in (5, 10):
        write_checkpoint(tmp_path / "checkpoints", step, fill)
    return tmp_path


# --- What lies on the disk ---


def test_manifest_lists_size_and_sum_of_every_file(run):
    folder = run / "checkpoints" / "step-00000010"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["step"] == 10 and manifest["format"] == FORMAT
    assert manifest["files"] == {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in FILES.items()
    }
    assert content(folder).keys() == {*FILES, "manifest.json"}
    assert verify_checkpoint(folder) == manifest
    assert sorted(os.listdir(run / "checkpoints")) == ["latest", "step-00000005", "step-00000010"]
    assert (run / "checkpoints" / "latest").read_text() == "step-00000010\n"


def test_names_sort_by_step():
    steps = [0, 9, 10, 99, 12_345_678, 99_999_999]
    names = [checkpoint_name(step) for step in steps]
    assert names[2] == "step-00000010" and names == sorted(names)


def test_the_same_step_is_replaced(run):
    folder = write_checkpoint(run / "checkpoints", 10, lambda partial: (partial / "only").write_bytes(b"new") and None)
    assert content(folder).keys() == {"only", "manifest.json"}
    verify_checkpoint(folder)
    assert sorted(os.listdir(run / "checkpoints")) == ["latest", "step-00000005", "step-00000010"]


@pytest.mark.parametrize("step", [10, 15])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_fill_that_fails_changes_nothing(run, step, error):
    before = content(run)

    def broken(folder: Path) -> None:
        fill(folder, b"new")
        raise error

    with pytest.raises(error):
        write_checkpoint(run / "checkpoints", step, broken)
    assert content(run) == before
    assert sorted(os.listdir(run / "checkpoints")) == ["latest", "step-00000005", "step-00000010"]


def test_every_file_is_on_the_disk_before_the_checkpoint_appears(run, monkeypatch):
    synced, at_rename = [], []
    fsync, rename = os.fsync, os.rename

    def note_rename(source, target, **kwargs):
        at_rename.append(list(synced))
        return rename(source, target, **kwargs)

    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_ino), fsync(handle)))
    monkeypatch.setattr(os, "rename", note_rename)
    folder = write_checkpoint(run / "checkpoints", 15, fill)
    assert {p.stat().st_ino for p in (folder, *folder.rglob("*"))} <= set(at_rename[0])
    assert folder.parent.stat().st_ino in synced[len(at_rename[0]) :]


@pytest.mark.parametrize("call", ["fsync", "rename", "replace"])
@pytest.mark.parametrize("step", [10, 15])
def test_a_disk_that_fails_at_any_call_leaves_the_checkpoints_whole(run, monkeypatch, call, step):
    real = getattr(os, call)
    for nth in range(30):
        calls = []

        def failing(*args, nth=nth, calls=calls, **kwargs):
            calls.append(args)
            if len(calls) == nth + 1:
                raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            try:
                write_checkpoint(run / "checkpoints", step, fill)
            except OSError:
                failed = True
            else:
                failed = False
        whole = list_checkpoints(run / "checkpoints")
        assert {p.name for p in whole} >= {"step-00000005", "step-00000010"}
        for path in (*whole, find_checkpoint(run)):
            verify_checkpoint(path)
        if not failed:
            break
    assert not failed and nth > 0


# --- Leftovers ---


def test_the_next_write_clears_what_a_killed_one_left(run):
    checkpoints = run / "checkpoints"
    fill_into = checkpoints / ".step-00000015.4242.partial"
    fill_into.mkdir()
    fill(fill_into)
    (checkpoints / ".latest.4242.partial").write_text("step-000")
    write_checkpoint(checkpoints, 20, fill)
    assert sorted(os.listdir(checkpoints)) == ["latest", "step-00000005", "step-00000010", "step-00000020"]


def test_a_checkpoint_that_was_being_replaced_is_put_back(run):
    checkpoints = run / "checkpoints"
    before = content(checkpoints / "step-00000010")
    (checkpoints / "step-00000010").rename(checkpoints / ".step-00000010.4242.old")
    remove_leftovers(checkpoints)
    assert content(checkpoints / "step-00000010") == before
    assert sorted(os.listdir(checkpoints)) == ["latest", "step-00000005", "step-00000010"]


def test_one_that_had_been_replaced_is_removed(run):
    checkpoints = run / "checkpoints"
    (checkpoints / "step-00000005").rename(checkpoints / ".step-00000010.4242.old")
    before = content(checkpoints / "step-00000010")
    remove_leftovers(checkpoints)
    assert content(checkpoints / "step-00000010") == before
    assert sorted(os.listdir(checkpoints)) == ["latest", "step-00000010"]


def test_other_files_beside_the_checkpoints_stay(run):
    checkpoints = run / "checkpoints"
    (checkpoints / "notes.txt").touch()
    (checkpoints / "step-by-step").mkdir()
    remove_leftovers(checkpoints)
    retain(checkpoints, 1)
    assert sorted(os.listdir(checkpoints)) == ["latest", "notes.txt", "step-00000010", "step-by-step"]


# --- Only the newest ---


@pytest.mark.parametrize(
    ("count", "kept"), [(0, [1, 2, 10, 30]), (1, [30]), (3, [2, 10, 30]), (4, [1, 2, 10, 30]), (9, [1, 2, 10, 30])]
)
def test_keep_last_keeps_the_newest(tmp_path, count, kept):
    for step in (1, 2, 10, 30):
        write_checkpoint(tmp_path, step, fill)
    retain(tmp_path, count)
    assert [p.name for p in list_checkpoints(tmp_path)] == [checkpoint_name(step) for step in kept]
    assert len(os.listdir(tmp_path)) == len(kept) + 1
    for path in list_checkpoints(tmp_path):
        verify_checkpoint(path)


def test_keep_last_keeps_the_one_that_latest_names(tmp_path):
    # A run that went on from an older checkpoint than its last.
    for step in (10, 20, 30, 15):
        write_checkpoint(tmp_path / "checkpoints", step, fill)
    retain(tmp_path / "checkpoints", 1)
    assert find_checkpoint(tmp_path).name == "step-00000015"


@pytest.mark.parametrize(("last", "every", "kept"), [(0, 0, [1, 2, 5, 7, 9]), (1, 0, [2, 7, 9]), (2, 5, [2, 5, 7, 9])])
def test_those_of_epochs_are_kept(tmp_path, last, every, kept):
    for step, epoch in ((1, None), (2, 1), (5, None), (7, 3), (9, None)):
        write_checkpoint(tmp_path, step, fill, epoch)
    retain(tmp_path, last, every, epochs=True)
    assert [p.name for p in list_checkpoints(tmp_path)] == [checkpoint_name(step) for step in kept]
    retain(tmp_path, 1)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000009"]


# --- Which one a path means ---


EPOCHS = {1: 100, 2: 200, 3: 300, 50: 5000}


@pytest.fixture
def epochs(tmp_path) -> Path:
    """A run folder with checkpoints of some epochs, and one of step 250 within an epoch."""
    for epoch, step in EPOCHS.items():
        write_checkpoint(tmp_path / "checkpoints", step, fill, epoch)
    write_checkpoint(tmp_path / "checkpoints", 250, fill)
    return tmp_path


@pytest.mark.parametrize("name", ["epoch-50", "checkpoint_epoch_50", "checkpoint_epoch_50.pth", "epoch-050"])
@pytest.mark.parametrize("inside", ["", "checkpoints"])
def test_a_checkpoint_is_found_by_its_epoch(epochs, name, inside):
    found = find_checkpoint(epochs / inside / name)
    assert found == epochs / "checkpoints" / "step-00005000"
    assert verify_checkpoint(found)["epoch"] == 50
    assert find_checkpoint(named_checkpoint(epochs, name)) == found


def test_other_names_of_a_checkpoint(epochs):
    assert named_checkpoint(epochs, None) == epochs
    assert find_checkpoint(named_checkpoint(epochs, "latest")).name == "step-00000250"
    assert find_checkpoint(named_checkpoint(epochs, "step-250")).name == "step-00000250"
    assert "epoch" not in verify_checkpoint(epochs / "checkpoints" / "step-00000250")
    for name, message in {
        "epoch-4": "has no checkpoint of epoch 4; there are those of epochs 1-3, 50$",
        "step-1000": r"step-00001000 does not exist; whole checkpoints beside it: .*step-00005000$",
        "best": "has no best checkpoint; it is found by a training with --eval-every or --early-stopping yes$",
        "../epoch-1": "--checkpoint ../epoch-1 should be like epoch-50, step-1000, best or latest$",
        "50": "--checkpoint 50 should be like epoch-50, step-1000, best or latest$",
    }.items():
        with pytest.raises(UserError, match=message):
            find_checkpoint(named_checkpoint(epochs, name))
    with pytest.raises(UserError, match=r"--checkpoint epoch-1 is one of a run folder, and .* is none"):
        named_checkpoint(epochs / "checkpoints" / "step-00000250", "epoch-1")


def test_a_run_without_epochs_says_how_to_have_them(run):
    with pytest.raises(UserError, match="no checkpoint of epoch 1; there is none of any epoch, which --save-epochs 1"):
        find_checkpoint(run / "epoch-1")


def test_the_epoch_is_sealed(epochs):
    file = epochs / "checkpoints" / "step-00000100" / "manifest.json"
    file.write_text(file.read_text().replace('"epoch": 1', '"epoch": 9'))
    with pytest.raises(UserError, match="does not match its own sum"):
        verify_checkpoint(find_checkpoint(epochs / "epoch-9"))


def test_a_run_folder_means_its_latest_and_a_checkpoint_itself(run):
    checkpoints = run / "checkpoints"
    assert find_checkpoint(run) == checkpoints / "step-00000010"
    write_checkpoint(checkpoints, 7, fill)
    assert find_checkpoint(run) == checkpoints / "step-00000007"  # the newest written, not the furthest
    assert find_checkpoint(checkpoints / "step-00000005") == checkpoints / "step-00000005"


@pytest.mark.parametrize("pointer", [None, b"", b"step-00000099\n", b"../../elsewhere", b"\xff\xfe\x00", b"."])
def test_a_latest_that_leads_nowhere_means_the_furthest(run, pointer):
    latest = run / "checkpoints" / "latest"
    latest.unlink()
    if pointer is not None:
        latest.write_bytes(pointer)
    assert find_checkpoint(run) == run / "checkpoints" / "step-00000010"


def test_a_folder_without_manifest_is_told_of_and_not_passed_over_in_silence(run):
    (run / "checkpoints" / "step-00000010" / "manifest.json").unlink()
    damaged = find_checkpoint(run)
    assert damaged == find_checkpoint(damaged) == run / "checkpoints" / "step-00000010"
    with pytest.raises(UserError, match=r"is incomplete: it has no manifest\.json; .*beside it: step-00000005"):
        verify_checkpoint(damaged)


def test_nothing_there_is_told(run, tmp_path_factory):
    with pytest.raises(UserError, match=r"step-00000007 does not exist; .*beside it: step-00000005, step-00000010"):
        find_checkpoint(run / "checkpoints" / "step-00000007")
    with pytest.raises(UserError, match=r"nowhere does not exist; give a run folder such as runs/digits"):
        find_checkpoint(run / "nowhere")
    with pytest.raises(UserError, match=r"does not exist; no other is beside it"):
        find_checkpoint(run / "nowhere" / "step-00000007")
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UserError, match=rf"{empty} holds no checkpoint; train first: advect train --run-dir {empty}"):
        find_checkpoint(empty)


# --- Damage ---


def damaged(run: Path) -> str:
    with pytest.raises(UserError) as caught:
        verify_checkpoint(run / "checkpoints" / "step-00000010")
    message = str(caught.value)
    assert str(run / "checkpoints" / "step-00000010") in message
    return message


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, 5, -1])
@pytest.mark.parametrize("bit", [1, 0x80])
def test_one_flipped_bit_of_any_file_is_seen_and_named(run, name, place, bit):
    path = run / "checkpoints" / "step-00000010" / name
    data = bytearray(path.read_bytes())
    data[place] ^= bit
    path.write_bytes(data)
    message = damaged(run)
    assert f"is damaged: the content of {name} has changed" in message
    assert message.endswith("whole checkpoints beside it: step-00000005")


def test_a_flipped_bit_of_every_byte_of_the_manifest_is_seen(run):
    path = run / "checkpoints" / "step-00000010" / "manifest.json"
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        message = damaged(run)
        assert "manifest.json" in message or "has format" in message
    path.write_bytes(data)
    verify_checkpoint(path.parent)


def test_a_manifest_cut_off_anywhere_is_seen(run):
    path = run / "checkpoints" / "step-00000010" / "manifest.json"
    data = path.read_bytes()
    assert data.endswith(b"}\n")
    for length in range(len(data) - 1):
        path.write_bytes(data[:length])
        assert "is damaged: manifest.json cannot be read" in damaged(run)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"', "{}", '{"format": null, "sha256": "", "files": {}}'])
def test_a_manifest_that_is_something_else_is_seen(run, text):
    (run / "checkpoints" / "step-00000010" / "manifest.json").write_text(text)
    assert "is damaged: manifest.json cannot be read" in damaged(run)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_off_grown_or_gone_is_named(run, name):
    path = run / "checkpoints" / "step-00000010" / name
    data = path.read_bytes()
    for changed in (data[:-1], b"", data + b"\0"):
        path.write_bytes(changed)
        assert f"{name} has {len(changed)} bytes instead of {len(data)}" in damaged(run)
    path.unlink()
    assert f"{name} is missing" in damaged(run)


def test_a_file_swapped_for_another_checkpoints_is_seen(run):
    write_checkpoint(run / "checkpoints", 10, lambda folder: fill(folder, b"new"))
    old, new = (run / "checkpoints" / checkpoint_name(step) / "model.safetensors" for step in (5, 10))
    old.replace(new)
    assert "model.safetensors has" in damaged(run)


def test_a_newer_format_asks_for_a_newer_advect(run):
    path = run / "checkpoints" / "step-00000010" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": FORMAT + 1}))
    assert f"has format {FORMAT + 1}, and this advect reads up to {FORMAT}; install the newer advect" in damaged(run)


def test_a_damaged_one_alone_names_no_other(tmp_path):
    folder = write_checkpoint(tmp_path, 3, fill)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no other is beside it"):
        verify_checkpoint(folder)
