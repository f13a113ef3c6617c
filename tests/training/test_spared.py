"""What only watches a run fails, and the run goes on; what ends a run leaves its checkpoint, and says so truly."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import pytest
import torch

from advect.checkpoint.manifest import list_checkpoints, verify_checkpoint
from advect.core.errors import UserError
from advect.reporting.sample_grids import SampleGridCallback
from advect.training.callbacks import MetricsFile
from advect.training.loggers import TensorBoardLogger
from advect.training.step import Step
from runs import end_of

TINY = "train moons --width 16 --batch-size 32 --log-every 2 --max-steps 8 --num-samples 8 --sample-steps 1 --run-dir"


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, "advect")
    return caplog


@pytest.mark.parametrize("error", [ValueError("range must be finite"), MemoryError(), OSError(errno.EIO, "bad")])
def test_a_picture_that_fails_is_told_once_and_changes_no_bit(advect, tmp_path, monkeypatch, warnings, error):
    advect(TINY, "plain --sample-every 2")

    def fail(*_):
        raise error

    monkeypatch.setattr(SampleGridCallback, "_draw", fail)
    advect(TINY, "broken --sample-every 2")
    told = [message for message in warnings.messages if "picture" in message]
    assert len(told) == 1 and "the run goes on" in told[0], warnings.messages
    plain, broken = end_of(tmp_path / "plain"), end_of(tmp_path / "broken")
    assert plain == broken  # the held-out losses are logged, too


def test_sampling_that_fails_leaves_the_network_in_training_and_the_loss_logged(advect, monkeypatch, warnings):
    def fail(self):
        assert not self.flow.net.training
        raise RuntimeError("the samples are not finite")

    monkeypatch.setattr(SampleGridCallback, "_sample", fail)
    advect(TINY, "run --sample-every 2")
    assert end_of(Path("run"))["progress"]["step"] == 8
    assert sum("not finite" in message for message in warnings.messages) == 1


@pytest.mark.parametrize("event", ["on_start", "scalars", "picture", "close"])
def test_a_board_that_fails_is_told_once(advect, monkeypatch, warnings, event):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TensorBoardLogger, event, fail)
    advect(TINY, "run --sample-every 2")
    told = [message for message in warnings.messages if "TensorBoard" in message]
    assert told == ["TensorBoard failed (the disk is full); the run goes on, and tells this once"]
    assert end_of(Path("run"))["progress"]["step"] == 8


def test_a_board_whose_thread_meets_a_full_disk_prints_no_traceback(advect, monkeypatch, warnings, capfd):
    from tensorboard.summary.writer.record_writer import RecordWriter

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", fail)
    advect(TINY, "run --sample-every 0")
    assert "Traceback" not in capfd.readouterr().err
    assert any("TensorBoard failed" in message for message in warnings.messages)


def failing_at(step: int, error: Exception, monkeypatch: pytest.MonkeyPatch, *, moving: bool = False) -> None:
    """Have the ``step``-th step fail, before or while the weights move."""
    take = Step.take

    def fail(self, *arguments, **options):
        if self.state.progress.step + 1 == step:
            if moving:
                self.moving = True
            raise error
        return take(self, *arguments, **options)

    monkeypatch.setattr(Step, "take", fail)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
        (UserError("too many images are damaged; mend them"), "too many images are damaged"),
    ],
)
def test_an_error_in_a_step_keeps_the_steps_before_it(advect, tmp_path, monkeypatch, error, said):
    advect(TINY, "whole --sample-every 0")
    with monkeypatch.context() as patch:
        failing_at(6, error, patch)
        with pytest.raises(UserError, match=said) as caught:
            advect(TINY, "run --sample-every 0")
    (kept,) = list_checkpoints(tmp_path / "run/checkpoints")
    assert str(caught.value).endswith("; the last whole checkpoint is run/checkpoints/step-00000005")
    assert verify_checkpoint(kept)["step"] == 5
    advect("train --resume-from run")
    assert end_of(tmp_path / "run") == end_of(tmp_path / "whole")


def test_a_bug_keeps_the_steps_before_it_and_is_raised_as_it_is(advect, tmp_path, monkeypatch):
    failing_at(4, KeyError("bug"), monkeypatch)
    with pytest.raises(KeyError, match="bug"):
        advect(TINY, "run --sample-every 0")
    assert [path.name for path in list_checkpoints(tmp_path / "run/checkpoints")] == ["step-00000003"]


def test_half_moved_weights_are_not_kept_and_that_is_said(advect, tmp_path, monkeypatch):
    failing_at(4, torch.OutOfMemoryError("out of memory"), monkeypatch, moving=True)
    with pytest.raises(UserError, match=r"out of memory .*; there is no checkpoint$"):
        advect(TINY, "run --sample-every 0")
    assert list_checkpoints(tmp_path / "run/checkpoints") == []


def test_a_row_of_metrics_that_fails_keeps_the_steps_before_it(advect, monkeypatch):
    def fail(self, row):
        raise OSError(errno.EFBIG, "File too large", str(self.path))

    monkeypatch.setattr(MetricsFile, "write", fail)
    with pytest.raises(UserError) as caught:
        advect(TINY, "run --sample-every 0")
    assert str(caught.value).startswith("run/metrics.jsonl could not be written: files may not become that large here")
    assert "; the last whole checkpoint is run/checkpoints/step-00000002; " in str(caught.value)
