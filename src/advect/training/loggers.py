"""TensorBoard and Weights & Biases."""

from __future__ import annotations

import secrets
import threading
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor

from advect.core.errors import UserError, optional_import
from advect.core.files import atomic_write_text, read_file
from advect.training.guards import Spared
from advect.training.trainer import Callback, Trainer

_NO_CURVES = ("step", "seen", "seconds")


class Logger(Callback):
    """Logged rows as curves under ``train/``, gradients as histograms, further scalars and pictures."""

    @abstractmethod
    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""

    @abstractmethod
    def histogram(self, name: str, values: np.ndarray, step: int) -> None:
        """Add a histogram of finite ``values``."""

    @abstractmethod
    def picture(self, name: str, image: Image.Image, step: int) -> None:
        """Add a picture."""

    def on_log(self, trainer: Trainer, row: dict) -> None:
        self.scalars({f"train/{name}": row[name] for name in row if name not in _NO_CURVES}, row["step"])

    def on_gradients(self, trainer: Trainer, grads: dict[str, Tensor], step: int) -> None:
        for name, grad in grads.items():
            self.histogram(f"gradients/{name}", grad.detach().float().cpu().numpy().ravel(), step)

    def on_epoch(self, trainer: Trainer, loss: float) -> None:
        self.scalars({"train/epoch_loss": loss}, trainer.state.progress.step)


class SparedLogger(Logger):
    """A logger whose errors are told once, and do not end the run; a UserError at its start does."""

    def __init__(self, inner: Logger, name: str) -> None:
        self.inner, self.spared = inner, Spared(name)

    def on_start(self, trainer: Trainer) -> None:
        mistake = None
        with self.spared():
            try:
                self.inner.on_start(trainer)
            except UserError as error:
                mistake = error
        if mistake is not None:
            raise mistake

    def on_rollback(self, trainer: Trainer, row: dict) -> None:
        with self.spared():
            self.inner.on_rollback(trainer, row)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        with self.spared():
            self.inner.scalars(values, step)

    def histogram(self, name: str, values: np.ndarray, step: int) -> None:
        with self.spared():
            self.inner.histogram(name, values, step)

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        with self.spared():
            self.inner.picture(name, image, step)

    def on_end(self, trainer: Trainer, reason: str) -> None:
        with self.spared():
            self.inner.on_end(trainer, reason)

    def close(self) -> None:
        with self.spared():
            self.inner.close()


class TensorBoardLogger(Logger):
    """Event files in a folder. Resumption purges those after the checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_start(self, trainer: Trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self._hook = threading.excepthook
        threading.excepthook = self._without_its_thread
        self._writer = SummaryWriter(str(self.folder), purge_step=trainer.state.progress.step + 1)

    def on_rollback(self, trainer: Trainer, row: dict) -> None:
        self.close()
        self.on_start(trainer)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def histogram(self, name: str, values: np.ndarray, step: int) -> None:
        self._writer.add_histogram(name, values, step)

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def _without_its_thread(self, failure: threading.ExceptHookArgs) -> None:
        """Print no traceback of the writing thread: its error is raised by the next call, too."""
        if type(failure.thread).__name__ != "_AsyncWriterThread":
            self._hook(failure)

    def close(self) -> None:
        try:
            if hasattr(self, "_writer"):
                self._writer.close()
        finally:
            if hasattr(self, "_hook"):
                threading.excepthook = self._hook


class WandbLogger(Logger):
    """A run on Weights & Biases; with ``mode`` "offline" a folder for ``wandb sync``.

    ``folder/id`` stores the run's identifier for resumption. Raises UserError if the library is missing or login
    fails.
    """

    def __init__(
        self,
        folder: Path,
        *,
        mode: Literal["online", "offline"],
        project: str,
        name: str,
        config: Mapping[str, object],
    ) -> None:
        self.folder, self.mode, self.project, self.name, self.config = folder, mode, project, name, config
        self._wandb = optional_import("wandb", "wandb")
        self._ended = False
        if mode == "online":
            try:
                self._wandb.login()
            except self._wandb.Error as error:
                raise UserError(
                    f"--wandb online cannot log in ({_line(error)}); run wandb login once, or use --wandb offline"
                ) from error

    def on_start(self, trainer: Trainer) -> None:
        try:
            self._run = self._wandb.init(
                dir=str(self.folder.parent),  # it writes to a folder called wandb in there
                project=self.project,
                name=self.name,
                id=self._id(),
                config=dict(self.config),
                mode=self.mode,
                resume="allow" if self.mode == "online" else None,
                reinit="create_new",
                settings=self._wandb.Settings(console="off", silent=True, save_code=False),
            )
        except self._wandb.Error as error:
            raise UserError(f"--wandb {self.mode} cannot start ({_line(error)}); try --wandb offline") from error

    def _id(self) -> str:
        file = self.folder / "id"
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write_text(file, secrets.token_hex(4) + "\n")
        return read_file(file).decode().strip()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def histogram(self, name: str, values: np.ndarray, step: int) -> None:
        self._run.log({name: self._wandb.Histogram(values)}, step=step)

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        self._run.log({name: self._wandb.Image(image.convert("RGB"))}, step=step)

    def on_end(self, trainer: Trainer, reason: str) -> None:
        self._ended = True

    def close(self) -> None:
        if hasattr(self, "_run"):
            self._run.finish(exit_code=0 if self._ended else 1)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
