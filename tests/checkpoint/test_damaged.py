"""Every file of a checkpoint damaged in turn: told, passed over by --resume auto, and never loaded."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from advect.checkpoint.manifest import list_checkpoints, verify_checkpoint
from advect.core.errors import UserError
from forked import advect_ranks

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs forked processes")

SMALL = (
    "train moons --width 16 --batch-size 32 --lr-warmup-steps 4 --log-every 4 --sample-every 0 --save-every 4"
    " --num-epochs 100 --max-steps 8 --run-dir run"
)
KINDS = {"plain": (1, "none"), "sharded": (2, "fsdp")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with a run of 8 steps and checkpoints of steps 4 and 8."""
    folders = {}
    for name, (n, kind) in KINDS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        advect_ranks(n, f"{SMALL} --parallel {kind}", cwd=folders[name])
    return folders


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


DAMAGES: dict[str, Callable[[Path], None]] = {"flip": flip, "cut": cut, "gone": Path.unlink}
FILES = {
    "plain": {"model.safetensors", "ema.safetensors", "state/optimizer.safetensors", "state/run.json"},
    "sharded": {
        "model.safetensors",
        "ema.safetensors",
        "state/run.json",
        "state/shards/shard-00001-model-00001-of-00001.safetensors",
        "state/shards/shard-00002-model-00001-of-00001.safetensors",
    },
}
CASES = [(kind, name) for kind in KINDS for name in sorted(FILES[kind] | {"manifest.json"})]


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder / "run", to / "run")
    return to / "run/checkpoints"


@pytest.mark.parametrize("kind", KINDS)
def test_these_are_all_files_of_a_checkpoint(runs: dict[str, Path], kind: str) -> None:
    for path in list_checkpoints(runs[kind] / "run/checkpoints"):
        files = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}
        assert files == FILES[kind] | {"manifest.json"}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_what_is_damaged_is_told_and_auto_goes_on_from_the_one_before(
    runs: dict[str, Path], tmp_path: Path, advect: Callable, capsys: pytest.CaptureFixture, kind, name, damage
) -> None:
    checkpoints = copied(runs[kind], tmp_path)
    DAMAGES[damage](checkpoints / "step-00000008" / name)
    words = SMALL.removesuffix("--run-dir run").replace("--max-steps 8", "--max-steps 9")
    with pytest.raises(
        UserError, match=r"checkpoint run/checkpoints/step-00000008 is (damaged|incomplete): .*"
    ) as error:
        advect(words, "--resume-from run")
    assert name in str(error.value) and str(error.value).endswith("whole checkpoints beside it: step-00000004")
    capsys.readouterr()
    advect(words, "--run-dir run --resume auto")
    said = capsys.readouterr()
    assert f"warning: {error.value}\nwarning: going on from run/checkpoints/step-00000004 instead\n" in said.err
    assert "resuming at step 4" in said.out
    for path in list_checkpoints(checkpoints):
        verify_checkpoint(path)
    assert not list(checkpoints.glob(".*"))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_where_all_are_damaged_one_sentence_says_so_and_nothing_is_trained(
    runs: dict[str, Path], tmp_path: Path, advect: Callable, damage: str, name: str
) -> None:
    checkpoints = copied(runs["plain"], tmp_path)
    for path in list_checkpoints(checkpoints):
        DAMAGES[damage](path / name)
    before = sorted((p, p.stat().st_mtime_ns) for p in checkpoints.rglob("*"))
    with pytest.raises(UserError, match=r"run holds no whole checkpoint: .*; move the folder away to train anew"):
        advect(SMALL, "--resume auto")
    assert sorted((p, p.stat().st_mtime_ns) for p in checkpoints.rglob("*")) == before


def test_the_only_checkpoint_killed_while_it_was_replaced_is_gone_on_from(
    runs: dict[str, Path], tmp_path: Path, advect: Callable, capsys: pytest.CaptureFixture
) -> None:
    checkpoints = copied(runs["plain"], tmp_path)
    shutil.rmtree(checkpoints / "step-00000004")
    (checkpoints / "step-00000008").rename(checkpoints / ".step-00000008.4242.old")
    advect(SMALL, "--resume auto --max-steps 9")
    assert "resuming at step 8" in capsys.readouterr().out
    assert sorted(p.name for p in checkpoints.iterdir()) == ["latest", "step-00000008", "step-00000009"]


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow) for kind in ("ddp", "fsdp")])
def test_two_processes_fall_back_together(runs: dict[str, Path], tmp_path: Path, kind: str) -> None:
    checkpoints = copied(runs["sharded"], tmp_path)
    flip(checkpoints / "step-00000008" / "state/shards/shard-00002-model-00001-of-00001.safetensors")
    first, second = advect_ranks(2, f"{SMALL} --parallel {kind} --resume auto", cwd=tmp_path)
    assert "going on from run/checkpoints/step-00000004 instead" in first.err and second.out == second.err == ""
    for path in list_checkpoints(checkpoints):
        flip(path / "model.safetensors")
    first, second = advect_ranks(2, f"{SMALL} --parallel {kind} --resume auto", cwd=tmp_path, code=2)
    assert "advect: run holds no whole checkpoint: " in first.err and second.err == ""
