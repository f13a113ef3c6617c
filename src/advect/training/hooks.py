"""What a run leaves behind while it trains: the metrics, a progress bar, checkpoints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from advect.core.files import write_text_whole
from advect.training.checkpoint import checkpoint_name, keep_last, write_checkpoint
from advect.training.trainer import Hook, Trainer


class MetricsFile(Hook):
    """``metrics.jsonl``: one JSON object a logged step. On resumption rows beyond the checkpoint are dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_start(self, trainer: Trainer) -> None:
        if self.path.exists():
            keep = [
                line for line in self.path.read_text(encoding="utf-8").splitlines() if self._is_past(line, trainer)
            ]
            write_text_whole(self.path, "".join(line + "\n" for line in keep))
        self._file = self.path.open("a", encoding="utf-8")

    @staticmethod
    def _is_past(line: str, trainer: Trainer) -> bool:
        try:
            return json.loads(line)["step"] <= trainer.state.progress.step
        except (ValueError, KeyError, TypeError):
            return False

    def write(self, row: dict) -> None:
        """Append a row and hand it to the operating system at once."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def on_log(self, trainer: Trainer, row: dict) -> None:
        self.write(row)

    def on_epoch(self, trainer: Trainer, loss: float) -> None:
        self.write({"step": trainer.state.progress.step, "epoch": trainer.epoch, "epoch_loss": loss})

    def close(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


class ProgressBar(Hook):
    """Steps done with loss, samples a second and time left; plain lines where the output is not a terminal."""

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
        self._printed = -60.0

    def on_step(self, trainer: Trainer) -> None:
        self._bar.update()

    def on_log(self, trainer: Trainer, row: dict) -> None:
        speed, work = row["samples_per_s"], _work(row)
        if self._terminal:
            self._bar.set_postfix_str(f"loss {row['loss']:.4f}, {speed:,.0f} samples/s{work}, epoch {row['epoch']}")
        elif row["seconds"] - self._printed >= 15 or row["step"] == trainer.limits.last_step:
            self._printed = row["seconds"]
            left = (trainer.limits.last_step - row["step"]) * trainer.loader.batch_size / speed
            print(
                f"step {row['step']:,}/{trainer.limits.last_step:,}  epoch {row['epoch']}  loss {row['loss']:.4f}  "
                f"{speed:,.0f} samples/s{work}  {_clock(left)} left",
                file=sys.stderr,
                flush=True,
            )

    def on_epoch(self, trainer: Trainer, loss: float) -> None:
        if self._terminal and trainer.limits.last_step * trainer.loader.batch_size < 200 * len(trainer.loader):
            self._bar.write(f"epoch {trainer.epoch}: mean loss {loss:.4f}", file=sys.stderr)

    def close(self) -> None:
        if hasattr(self, "_bar"):
            self._bar.close()


def _work(row: dict) -> str:
    """The network's arithmetic a second, and its share of the device's peak where that is known."""
    if "flops_per_s" not in row:
        return ""
    rate = row["flops_per_s"]
    text = f", {rate / 1e12:.1f} TFLOP/s" if rate >= 1e12 else f", {rate / 1e9:.3g} GFLOP/s"
    return text + (f" ({row['mfu']:.0%} of peak)" if "mfu" in row else "")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Checkpoints(Hook):
    """Writes a checkpoint every ``every`` steps, after every ``every_epochs``-th epoch, and at the end of the run.

    0 turns the first two off; ``keep`` 0 keeps all, else the newest ones.
    """

    def __init__(self, folder: Path, *, every: int, every_epochs: int, keep: int) -> None:
        self.folder, self.every, self.every_epochs, self.keep = folder, every, every_epochs, keep
        self.newest: Path | None = None
        self._saved_step = -1
        self._epoch_due = False

    def on_start(self, trainer: Trainer) -> None:
        step = trainer.state.progress.step
        self._saved_step = step if (self.folder / checkpoint_name(step)).exists() else -1

    def on_epoch(self, trainer: Trainer, loss: float) -> None:
        self._epoch_due = bool(self.every_epochs) and trainer.epoch % self.every_epochs == 0

    def on_step(self, trainer: Trainer) -> None:
        if self._epoch_due or (self.every and trainer.state.progress.step % self.every == 0):
            self.save(trainer)
        self._epoch_due = False

    def on_end(self, trainer: Trainer, reason: str) -> None:
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint of the step just finished, unless there is one."""
        step = trainer.state.progress.step
        if step != self._saved_step:
            trainer.flush()
            self.newest = write_checkpoint(self.folder, step, trainer.state.save)
            self._saved_step = step
            keep_last(self.folder, self.keep)


class EverySteps(Hook):
    """Calls ``action(step)`` every ``every`` steps, with the averaged weights in the network where there are any."""

    def __init__(self, every: int, action: Callable[[int], None]) -> None:
        self.every, self.action = every, action

    def on_step(self, trainer: Trainer) -> None:
        if self.every and trainer.state.progress.step % self.every == 0:
            self.run(trainer)

    def run(self, trainer: Trainer) -> None:
        """Call the action now, unless the loss has stopped being finite."""
        trainer.flush()
        net, ema = trainer.state.net, trainer.state.ema
        net.eval()
        try:
            if ema is None:
                self.action(trainer.state.progress.step)
            else:
                with ema.applied():
                    self.action(trainer.state.progress.step)
        finally:
            net.train()
