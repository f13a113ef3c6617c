"""One rank of two told to stop: both end at the same step, with a checkpoint from which both go on."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest

from forked import Run, advect_ranks, ranks
from runs import newest_step

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs forked processes")

SMALL = (
    "train moons --width 16 --batch-size 32 --lr-warmup-steps 4 --log-every 4 --sample-every 0 --save-every 5"
    " --num-epochs 1000 --run-dir run --resume auto"
)


def wait_for_step(run: Run, folder: Path, step: int) -> None:
    while run.alive() and newest_step(folder) < step:
        time.sleep(0.002)
    assert run.alive(), run.said(0)


@pytest.mark.parametrize(
    ("number", "rank", "kind"),
    [
        (signal.SIGTERM, 1, "ddp"),
        (signal.SIGUSR1, 1, "fsdp"),
        *(
            pytest.param(number, rank, "ddp", marks=pytest.mark.slow)
            for number, rank in ((signal.SIGINT, 0), (signal.SIGINT, 1), (signal.SIGTERM, 0), (signal.SIGUSR1, 0))
        ),
    ],
)
def test_a_signal_to_one_rank_ends_both_at_one_step_with_a_checkpoint(
    tmp_path: Path, number: signal.Signals, rank: int, kind: str
) -> None:
    call = f"{SMALL} --parallel {kind}"
    with ranks(2, call, cwd=tmp_path) as run:
        wait_for_step(run, tmp_path / "run", 5)
        run.signal(number, rank)
        ended = run.wait()
    assert [(e.code, "Traceback" in e.err) for e in ended] == [(128 + number, False)] * 2
    assert f"stopped by {number.name}; to go on, type: advect train --resume-from run" in ended[0].out
    step = newest_step(tmp_path / "run")
    newest = tmp_path / f"run/checkpoints/step-{step:08d}"
    assert json.loads((newest / "state/run.json").read_text())["step"] == step
    advect_ranks(2, f"{call} --max-steps {step + 5}", cwd=tmp_path)
    assert newest_step(tmp_path / "run") == step + 5


def never_ending(rank: int) -> None:
    """Let the process of a rank stay in a step, once there are checkpoints, until it is interrupted."""
    import os

    from advect.training.step import Step

    real = Step.take

    def take(self: Step, loss, inputs, lr: float, observe=None):
        while int(os.environ.get("RANK", 0)) == rank and self.state.progress.step == 7:
            Path("stuck").touch()
            time.sleep(0.01)
        return real(self, loss, inputs, lr, observe)

    Step.take = take


@pytest.mark.parametrize(("n", "rank"), [(1, 0), (2, 1)])
def test_a_second_signal_means_now(tmp_path: Path, n: int, rank: int) -> None:
    with ranks(n, SMALL, cwd=tmp_path, before=never_ending, arguments=(rank,)) as run:
        while run.alive() and not (tmp_path / "stuck").exists():
            time.sleep(0.01)
        run.signal(signal.SIGTERM, rank)
        time.sleep(0.1)  # two at once would be one
        assert run.alive()
        run.signal(signal.SIGTERM, rank)
        ended = run.wait(30)
    assert ended[rank].code == 130 and ended[rank].err.endswith("advect: interrupted\n")
    assert "Traceback" not in ended[0].err
    assert newest_step(tmp_path / "run") == 5
    if n == 2:
        assert ended[0].code == 75
    advect_ranks(n, f"{SMALL} --max-steps 8", cwd=tmp_path)
