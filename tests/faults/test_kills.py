"""Commands killed at each of their writes, and repeated: the same bytes as never killed, nothing half looks whole."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from faults.disk import FaultyDisk
from forked import advect_ranks, ranks

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs forked processes")


class DeadlyDisk(FaultyDisk):
    """Kills the process at a write."""

    def write(self, what: str, path: str) -> None:
        try:
            super().write(what, path)
        except OSError:
            os.kill(os.getpid(), signal.SIGKILL)


def die_at(folder: str, nth: int) -> None:
    DeadlyDisk(Path(folder), nth=nth).__enter__()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.mark.parametrize(
    "nths", [(9, 19), pytest.param(tuple(range(1, 40)), marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_a_sampling_killed_at_a_write_is_no_set_and_is_repeated(moons_run: Path, tmp_path: Path, nths) -> None:
    call = f"sample {moons_run} --num-samples 20 --num-steps 2 --output-dir out"
    advect_ranks(1, call, cwd=tmp_path)
    whole, out = content(tmp_path / "out"), tmp_path / "out"
    died = 0
    for nth in nths:
        shutil.rmtree(out)
        with ranks(1, call, cwd=tmp_path, before=die_at, arguments=(str(tmp_path), nth)) as run:
            (ended,) = run.wait()
        if ended.code == 0:
            break
        died += 1
        if not (out / "samples.json").exists():
            other = call.replace("--num-samples 20", "--num-samples 8")  # another request finds nothing in its way
            if out.exists():
                shutil.copytree(out, tmp_path / "other")
            advect_ranks(1, other.replace("--output-dir out", "--output-dir other"), cwd=tmp_path)
            assert not list((tmp_path / "other").glob(".*"))
            shutil.rmtree(tmp_path / "other")
        advect_ranks(1, call, cwd=tmp_path)
        assert content(out) == whole
        assert not [name for name in os.listdir(out) if name.startswith(".")]
    assert died == len(nths) or died > 15
