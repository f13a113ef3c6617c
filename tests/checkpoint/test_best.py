"""The file that names the best checkpoint, and the checkpoint that it keeps: bytes on disk."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from advect.checkpoint.async_writer import CheckpointWriter, StateSnapshot
from advect.checkpoint.manifest import (
    Best,
    find_checkpoint,
    list_checkpoints,
    names_checkpoint,
    read_best,
    retain,
    write_best,
    write_checkpoint,
)
from advect.core.errors import UserError


def fill(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weights")


def best_of(step: int, value: float = 0.5) -> Best:
    return Best(f"step-{step:08d}", "frechet", value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of the steps 10, 20, 30 and 40."""
    for step in (10, 20, 30, 40):
        write_checkpoint(tmp_path / "checkpoints", step, fill)
    return tmp_path / "checkpoints"


def steps(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in list_checkpoints(folder)]


def test_the_file_is_one_line_and_reads_back(folder: Path) -> None:
    write_best(folder, best_of(20, 0.1 + 0.2))
    text = (folder / "best").read_text()
    assert json.loads(text) == {"name": "step-00000020", "metric": "frechet", "value": 0.1 + 0.2}
    assert text.count("\n") == 1 and read_best(folder) == best_of(20, 0.1 + 0.2)
    write_best(folder, None)
    assert not (folder / "best").exists() and read_best(folder) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"name": "step-00000020"}', "step-00000020\n", "\x00\xff"])
def test_a_damaged_file_names_nothing_and_keeps_nothing(folder: Path, text: str) -> None:
    (folder / "best").write_bytes(text.encode("latin-1"))
    assert read_best(folder) is None
    with pytest.raises(UserError, match="best is damaged; give a run folder"):
        find_checkpoint(folder / "best")
    retain(folder, 1)
    assert steps(folder) == [40]


@pytest.mark.parametrize(("last", "every", "left"), [(1, 0, [20, 40]), (2, 0, [20, 30, 40]), (1, 30, [20, 30, 40])])
def test_the_best_stays_beside_the_newest(folder: Path, last: int, every: int, left: list[int]) -> None:
    write_best(folder, best_of(20))
    retain(folder, last, every)
    assert steps(folder) == left


def test_the_best_may_be_among_the_newest(folder: Path) -> None:
    write_best(folder, best_of(40))
    retain(folder, 2)
    assert steps(folder) == [30, 40]


def test_the_one_before_goes_when_another_is_better(folder: Path) -> None:
    write_best(folder, best_of(10))
    writer = CheckpointWriter(folder, keep_last=1)
    writer.write(50, StateSnapshot())
    writer.wait()
    assert steps(folder) == [10, 50]
    writer.mark(best_of(50))
    writer.wait()
    assert steps(folder) == [50] and read_best(folder) == best_of(50)
    writer.write(60, StateSnapshot())
    writer.close()
    assert steps(folder) == [50, 60]


def test_best_is_named_when_its_checkpoint_is_whole_and_not_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, began = threading.Event(), threading.Event()

    class Slow(StateSnapshot):
        def write(self, folder: Path) -> None:
            began.set()
            assert go.wait(20)
            super().write(folder)

    writer = CheckpointWriter(folder, keep_last=1)
    writer.write(50, Slow())
    writer.mark(best_of(50))  # does not wait
    assert began.wait(20) and read_best(folder) is None and steps(folder) == [10, 20, 30, 40]
    go.set()
    writer.wait()
    assert read_best(folder) == best_of(50) and steps(folder) == [50]
    writer.close()


def test_a_checkpoint_that_could_not_be_written_is_not_the_best(folder: Path) -> None:
    class Full(StateSnapshot):
        def write(self, folder: Path) -> None:
            raise OSError(28, "No space left on device")

    write_best(folder, best_of(20))
    writer = CheckpointWriter(folder, keep_last=1)
    writer.write(50, Full())
    writer.mark(best_of(50))
    with pytest.raises(UserError, match="the disk is full"):
        writer.wait()
    assert read_best(folder) == best_of(20) and 20 in steps(folder)
    writer.close()


def test_best_and_latest_mean_the_checkpoints_that_they_name(folder: Path) -> None:
    write_best(folder, best_of(20))
    assert find_checkpoint(folder / "best") == folder / "step-00000020"
    assert find_checkpoint(folder / "latest") == find_checkpoint(folder.parent) == folder / "step-00000040"
    assert names_checkpoint(folder / "best") and not names_checkpoint(folder / "step-00000020")


def test_a_best_that_is_not_there_is_told(folder: Path) -> None:
    with pytest.raises(UserError, match="best does not exist"):
        find_checkpoint(folder / "best")
    write_best(folder, best_of(70))
    with pytest.raises(UserError, match=r"step-00000070 does not exist; whole checkpoints beside it: .*step-00000040"):
        find_checkpoint(folder / "best")
