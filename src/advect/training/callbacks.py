"""Callbacks for the metrics file, the progress bar, checkpoints and periodic actions."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from abc import abstractmethod
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from advect.checkpoint.async_writer import CheckpointWriter
from advect.checkpoint.manifest import checkpoint_name, checkpoint_step, last_checkpoint, list_checkpoints
from advect.core.errors import UserError
from advect.core.files import atomic_write_text, naming, open_regular
from advect.core.progress import DELAY, clock, rough_duration
from advect.core.records import parse_record
from advect.distributed.comm import broadcast_object, sync_errors
from advect.training.guards import Spared
from advect.training.state import Progress
from advect.training.trainer import Callback, Trainer

logger = logging.getLogger(__name__)


class MetricsFile(Callback):
    """``metrics.jsonl``: one JSON object a logged step. Resumption drops the rows after the checkpoint, and lines that
    are none; a rollback keeps its bad steps.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._there = path, frozenset[str]()

    def on_start(self, trainer: Trainer) -> None:
        self._open(trainer)

    def _open(self, trainer: Trainer, *, keep: str = "") -> None:
        if self.path.exists():
            lines = self._whole_lines()
            resumed = _resumed_rows(lines, trainer.state.progress, keep)
            atomic_write_text(self.path, "".join(line + "\n" for line in resumed))
            self._there = frozenset(line for line in resumed if _row(line).get("step") == trainer.state.progress.step)
        with naming(self.path):
            self._file = self.path.open("a", encoding="utf-8")

    def _whole_lines(self) -> list[str]:
        """Lines that are rows; the others, but for a last one that a kill has cut, are told."""
        with naming(self.path), open_regular(self.path) as file:
            text = file.read().decode("utf-8", errors="replace")
        lines = text.split("\n")
        cut = lines.pop()  # "", or half a row
        whole = [line for line in lines if _row(line)]
        if lost := len(lines) - len(whole) + (cut.strip() != "" and not cut.startswith("{")):
            logger.warning(f"{self.path} is damaged: {lost:,} of its lines are no rows, and left out")
        return whole

    def rows(self) -> list[dict]:
        """All rows of the file."""
        return [_row(line) for line in self._whole_lines()] if self.path.exists() else []

    def write(self, row: dict) -> None:
        """Append and flush a row, unless the first step has it: a call that a kill interrupted is repeated.

        Numbers that are not finite, of which JSON has none, are null.
        """
        row = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
        if (line := json.dumps(row)) not in self._there:
            with naming(self.path):
                self._file.write(line + "\n")
                self._file.flush()

    def on_log(self, trainer: Trainer, row: dict) -> None:
        self.write(row)

    def on_bad_step(self, trainer: Trainer, row: dict) -> None:
        self.write(row)

    def on_rollback(self, trainer: Trainer, row: dict) -> None:
        self._file.close()
        self._open(trainer, keep="bad_step")
        self.write(row)

    def on_epoch(self, trainer: Trainer, loss: float) -> None:
        self.write({"step": trainer.state.progress.step, "epoch": trainer.epoch, "epoch_loss": loss})

    def close(self) -> None:
        if hasattr(self, "_file"):
            with suppress(OSError):  # told when the row was written
                self._file.close()


def _resumed_rows(lines: list[str], progress: Progress, keep: str) -> list[str]:
    """Rows up to the run's step, and those with a field ``keep``; rows before the last rollback stay as they are."""
    rows = [(line, _row(line)) for line in lines]
    left = [i for i, (_, row) in enumerate(rows) if "rolled_back_from" in row] if progress.rate < 1 else []
    first = left[-1] + 1 if left else 0
    past = [(line, row) for line, row in rows[first:] if row.get("step", math.inf) <= progress.step or keep in row]
    return lines[:first] + [line for line, row in past if "rolled_back_from" not in row]


def _row(line: str) -> dict:
    """The object of a line; empty unless it has a step."""
    try:
        row = parse_record(line, dict[str, Any], "metrics.jsonl")
    except UserError:  # cut off by a kill
        return {}
    return row if type(row.get("step")) is int else {}


MEASURED = 5.0
"""Seconds from which the length of a run is foretold."""


class Forecast(Callback):
    """Tell once, from the first seconds, how long the run takes here.

    ``needed`` are the steps that learning takes: minutes that allow fewer are told, with those that would do.
    ``early`` runs may end before.
    """

    def __init__(self, needed: int = 0, *, early: bool = False) -> None:
        self.needed, self.early = needed, early

    def on_start(self, trainer: Trainer) -> None:
        self._begin, self._told = trainer.state.progress.step, False
        self._from: tuple[int, float] | None = None
        self._first = (self._begin, 0.0)

    def on_step(self, trainer: Trainer) -> None:
        if self._told:
            return
        step, passed = trainer.state.progress.step, trainer.clock
        self._first = (step, passed) if step == self._begin + 1 else self._first
        if self._from is None:  # the first steps allocate, and are not timed
            self._from = (step, passed) if step - self._begin >= 5 or passed >= MEASURED else None
        elif step > self._from[0] and passed - self._from[1] >= MEASURED:
            self._told = True
            self._tell(trainer, (passed - self._from[1]) / (step - self._from[0]))

    def _tell(self, trainer: Trainer, pace: float) -> None:
        step, passed, limits = trainer.state.progress.step, trainer.clock, trainer.limits
        whole, rate = passed + pace * (limits.last_step - step), f"{1 / pace:.3g} steps a second"
        minutes = math.inf if limits.max_minutes is None else limits.max_minutes
        if whole <= 60 * minutes and self.needed <= limits.steps:
            most = "at most about" if self.early else "about"
            logger.info(f"this run takes {most} {rough_duration(whole)} here, at {rate}")
            return
        last = step + int(max(0.0, 60 * minutes - passed) / pace)
        logger.info(f"{minutes:g} minutes allow about {last:,} steps here, at {rate}")
        if last < self.needed:
            logger.warning(_too_short(minutes, last, self.needed, passed + pace * (self.needed - step)))

    def on_end(self, trainer: Trainer, reason: str) -> None:
        step, passed, minutes = trainer.state.progress.step, trainer.clock, trainer.limits.max_minutes
        if self._told or minutes is None or passed < 0.9 * 60 * minutes or step >= self.needed:
            return
        timed = step - self._first[0]
        whole = passed + (passed - self._first[1]) / timed * (self.needed - step) if timed else None
        logger.warning(_too_short(minutes, step - self._begin, self.needed, whole))


def _too_short(minutes: float, steps: int, needed: int, seconds: float | None) -> str:
    fix = "; give more" if seconds is None else f", about {rough_duration(seconds)} here"
    count = f"{steps:,} step" + "s" * (steps != 1)
    return f"--max-minutes {minutes:g} is time for {count}, and learning takes some {needed:,}{fix}"


class ProgressBar(Callback):
    """Progress bar with loss, samples a second and time left; plain lines without a terminal."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()

    def on_start(self, trainer: Trainer) -> None:
        self._bar = tqdm(
            total=trainer.limits.last_step,
            initial=trainer.state.progress.step,
            unit="step",
            desc="train",
            dynamic_ncols=True,
            disable=not self._terminal,
        )
        self._printed, self._began, self._first = -60.0, time.monotonic(), 0

    def on_step(self, trainer: Trainer) -> None:
        step, last, passed = trainer.state.progress.step, trainer.limits.last_step, time.monotonic() - self._began
        self._first = self._first or step
        self._bar.total = last
        self._bar.update()
        if not self._terminal and self._printed < 0 and passed >= DELAY and step < last:  # the first steps are slow
            self._printed = trainer.state.progress.seconds
            each = passed / (step - self._first + 1)
            self._bar.write(
                f"step {step:,}/{last:,}  {each:.3g} s a step  {clock(self._left(trainer, each))} left",
                file=sys.stderr,
            )

    def _left(self, trainer: Trainer, each: float) -> float:
        """Seconds to the end at ``each`` seconds a step."""
        left = (trainer.limits.last_step - trainer.state.progress.step) * each
        if trainer.limits.max_minutes is not None:
            left = max(0.0, min(left, 60 * trainer.limits.max_minutes - trainer.clock))
        return left

    def on_log(self, trainer: Trainer, row: dict) -> None:
        speed, work = row["samples_per_s"], _work(row)
        if self._terminal:
            self._bar.set_postfix_str(f"loss {row['loss']:.4f}, {speed:,.0f} samples/s{work}, epoch {row['epoch']}")
        elif row["seconds"] - self._printed >= 15 or row["step"] == trainer.limits.last_step:
            self._printed = row["seconds"]
            left = self._left(trainer, trainer.loader.global_batch / speed)
            self._bar.write(
                f"step {row['step']:,}/{trainer.limits.last_step:,}  epoch {row['epoch']}  loss {row['loss']:.4f}  "
                f"{speed:,.0f} samples/s{work}  {clock(left)} left",
                file=sys.stderr,
            )

    def on_bad_step(self, trainer: Trainer, row: dict) -> None:
        bad = row["bad_step"]
        logger.warning(
            f"step {row['step']:,} was skipped: loss {bad['loss']}, gradient norm {bad['grad_norm']}; "
            "metrics.jsonl names its rows"
        )

    def on_rollback(self, trainer: Trainer, row: dict) -> None:
        logger.warning(
            f"too many steps were not finite up to step {row['rolled_back_from']:,}; going on from the "
            f"checkpoint of step {row['step']:,} with {row['rate']} times the learning rate"
        )
        self._bar.n = row["step"]

    def on_epoch(self, trainer: Trainer, loss: float) -> None:
        if self._terminal and trainer.limits.last_step * trainer.loader.global_batch < 200 * len(trainer.loader):
            logger.info(f"epoch {trainer.epoch}: mean loss {loss:.4f}")

    def close(self) -> None:
        if hasattr(self, "_bar"):
            self._bar.close()


def _work(row: dict) -> str:
    """Arithmetic per second, and its share of the device's peak if known."""
    if "flops_per_s" not in row:
        return ""
    rate = row["flops_per_s"]
    text = f", {rate / 1e12:.1f} TFLOP/s" if rate >= 1e12 else f", {rate / 1e9:.3g} GFLOP/s"
    return text + (f" ({row['mfu']:.0%} of peak)" if "mfu" in row else "")


SAVE_SECONDS, FIRST_SECONDS, EVERY_SECONDS = 120.0, 20.0, 60.0
"""Between checkpoints, before the first picture, and between pictures, where no number of steps is given."""
LATEST_SECONDS = 40.0
"""Before the first picture where a step takes long."""


class CheckpointCallback(Callback):
    """Write a checkpoint every ``every`` steps (None: every two minutes), every ``every_epochs`` epochs (0: never) and
    at the end of the run. None is written within a series of bad steps. Writing overlaps training, and is complete
    when the run ends.
    """

    def __init__(self, writer: CheckpointWriter, *, every: int | None, every_epochs: int) -> None:
        self.writer, self.every, self.every_epochs = writer, every, every_epochs
        self._saved_step, self._saved_at = -1, 0.0
        self._epoch_due = self._started = False

    @property
    def trouble(self) -> UserError | None:  # type: ignore[override]
        """Error of the last write."""
        return self.writer.trouble

    def on_start(self, trainer: Trainer) -> None:
        step = trainer.state.progress.step
        self._saved_step = step if (self.writer.folder / checkpoint_name(step)).exists() else -1
        self._started = True

    def on_epoch(self, trainer: Trainer, loss: float) -> None:
        self._epoch_due = bool(self.every_epochs) and trainer.epoch % self.every_epochs == 0

    def on_step(self, trainer: Trainer) -> None:
        if self.every is None:
            due = self._epoch_due or trainer.clock - self._saved_at >= SAVE_SECONDS
        else:
            due = self._epoch_due or (self.every and trainer.state.progress.step % self.every == 0)
        if due and trainer.flush() and trainer.state.progress.bad_row == 0:  # or they would drive out the good ones
            self.save(trainer)
        self._epoch_due = False

    def on_end(self, trainer: Trainer, reason: str) -> None:
        self.save(trainer)
        with sync_errors():
            self.writer.wait()

    def on_error(self, trainer: Trainer) -> None:
        progress = trainer.state.progress
        if self._started and self.trouble is None and progress.step and not progress.bad_row:
            self.on_end(trainer, "error")

    def kept(self) -> str:
        return last_checkpoint(self.writer.folder)

    def checkpoint_before(self, step: int) -> Path | None:
        with sync_errors():
            self.writer.wait()
        older = [path for path in list_checkpoints(self.writer.folder) if checkpoint_step(path) < step]
        return older[-1] if older else None

    def on_rollback(self, trainer: Trainer, row: dict) -> None:
        self._saved_step = row["step"]

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint of the last step, unless there is one."""
        if trainer.state.progress.step == self._saved_step or not trainer.flush():
            return
        began = time.monotonic()
        with sync_errors():
            self.writer.wait()  # whose contents the next one may overwrite
        self.writer.write(trainer.state.progress.step, trainer.state.contents(), trainer.ended_epoch)
        trainer.metrics.blocked += time.monotonic() - began
        self._saved_step, self._saved_at = trainer.state.progress.step, trainer.clock

    def close(self) -> None:
        self.writer.close()


class PeriodicCallback(Callback):
    """Call :meth:`run` every ``every`` steps (0: never) and at the end, with EMA weights if any.

    None is by time: soon after the start, then about every minute, and never more than a tenth of the time. A call
    interrupted by a kill is repeated on resumption.
    """

    watches = ""
    """What it does if it only watches: an error of :meth:`run` is then told, once, and the run goes on."""

    def __init__(self, every: int | None) -> None:
        self.every, self._seen, self._due, self._calls = every, -1, FIRST_SECONDS, 0
        self.spared = Spared(self.watches)

    @abstractmethod
    def run(self, step: int) -> None:
        """Act after ``step`` steps; on all processes."""

    @abstractmethod
    def has_run(self, step: int) -> bool:
        """Whether the results of a step are complete; on the first process."""

    def on_start(self, trainer: Trainer) -> None:
        """Repeat an interrupted call at the checkpoint's step."""
        step = trainer.state.progress.step
        self._seen = step if broadcast_object(self.has_run(step)) else -1
        if step != self._seen and self.every and step and step % self.every == 0:
            self.run_now(trainer)

    def on_step(self, trainer: Trainer) -> None:
        step = trainer.state.progress.step
        due = self._is_due(trainer) if self.every is None else self.every and step % self.every == 0
        if due and step != self._seen:  # seen: the step was rolled back
            self.run_now(trainer)

    def _is_due(self, trainer: Trainer) -> bool:
        """Whether it is time; for the first call, if the next step may end too late."""
        self._calls += 1
        late = self._due == FIRST_SECONDS and trainer.clock * (1 + 1 / self._calls) >= LATEST_SECONDS
        return trainer.clock >= self._due or late

    def on_end(self, trainer: Trainer, reason: str) -> None:
        if self.every != 0 and not reason.startswith("SIG") and trainer.state.progress.step != self._seen:
            self.run_now(trainer)

    def on_rollback(self, trainer: Trainer, row: dict) -> None:
        self._seen = row["step"]

    def run_now(self, trainer: Trainer) -> None:
        """Call :meth:`run`, unless the last steps were rolled back."""
        if not trainer.flush():
            return
        net, ema, began = trainer.state.net, trainer.state.ema, time.monotonic()
        self._seen = trainer.state.progress.step
        net.eval()
        try:
            with (
                self.spared(collective=True) if self.watches else nullcontext(),
                nullcontext() if ema is None else ema.applied(),
            ):
                self.run(self._seen)
        finally:
            net.train()
        if self.every is None:
            took = broadcast_object(time.monotonic() - began)
            self._due = trainer.clock + took + max(EVERY_SECONDS, 10 * took)
