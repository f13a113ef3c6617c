"""A training on a disk that fails at its n-th write, or from then on: a sentence, or it goes on; no step is lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from advect.checkpoint.manifest import list_checkpoints, verify_checkpoint
from advect.core.errors import UserError
from faults.disk import ERRORS, FaultyDisk
from runs import end_of

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names open files by /proc")

CALL = (
    "train moons --width 16 --batch-size 32 --max-steps 6 --save-every 2 --sample-every 3 --num-samples 8"
    " --sample-steps 1 --log-every 2 --keep-last 2 --posthoc-ema --run-dir run --resume auto"
)


@pytest.mark.parametrize("once", [True, False], ids=["once", "from then on"])
@pytest.mark.parametrize(("first", "every"), [pytest.param(1, 4, marks=pytest.mark.slow), (17, 53)])
def test_a_training_survives_its_disk(advect: Callable[..., None], tmp_path: Path, first, every, once) -> None:
    with FaultyDisk(tmp_path) as disk:
        advect(CALL)
    wanted, writes = end_of(tmp_path / "run"), disk.writes
    for nth in range(first, writes + 1, every):
        shutil.rmtree(tmp_path / "run")
        number = ERRORS[nth % len(ERRORS)]
        told = ""
        with FaultyDisk(tmp_path, number, nth, once=once) as disk:
            try:
                advect(CALL)
            except UserError as error:
                told = str(error)
        assert "\n" not in told, told
        whole = list_checkpoints(tmp_path / "run/checkpoints")
        for path in whole:
            verify_checkpoint(path)
        if told and "--run-dir" not in told.split(" cannot be written")[0]:
            named = [path.name for path in whole if str(path.relative_to(tmp_path)) in told]
            assert named or ("there is no checkpoint" in told and not whole), (told, whole, disk.log[-3:])
        advect(CALL)
        assert end_of(tmp_path / "run") == wanted, disk.log
        assert not [*(tmp_path / "run").rglob("*.partial"), *(tmp_path / "run").rglob("*.old")]
