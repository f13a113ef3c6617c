"""Everything that a training run changes, and its way to the disk and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from advect.core.errors import UserError
from advect.training.ema import EMA as EMA
from advect.training.ema import Ema
from advect.training.scale import LossScale

MODEL, OPTIMIZER, DATA, PROGRESS = (
    "model.safetensors",
    "state/optimizer.safetensors",
    "state/data.safetensors",
    "state/run.json",
)


@dataclass
class Mean:
    """A running mean of numbers; sums in float64, so that its parts can be stored and continued exactly."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.total += value
        self.count += 1

    def take(self) -> float:
        """Return the mean and start anew."""
        mean = self.total / max(1, self.count)
        self.total, self.count = 0.0, 0
        return mean


@dataclass
class Progress:
    """How far a run is: finished steps, samples seen, seconds of training, and means that span checkpoints."""

    step: int = 0
    seen: int = 0
    seconds: float = 0.0
    loss: Mean = field(default_factory=Mean)
    grad_norm: Mean = field(default_factory=Mean)
    epoch_loss: Mean = field(default_factory=Mean)

    @staticmethod
    def from_dict(values: dict) -> Progress:
        means = {name: Mean(**values[name]) for name in ("loss", "grad_norm", "epoch_loss")}
        return Progress(values["step"], values["seen"], values["seconds"], **means)


class Stateful(Protocol):
    """Something else that a run changes, such as an objective that learns its times, as plain numbers."""

    def state_dict(self) -> dict[str, list[float]]: ...
    def load_state_dict(self, state: dict[str, list[float]]) -> None: ...


class Optimizer(Protocol):
    """What moves the weights. ``tensors`` are what a checkpoint keeps of it, by name, and ``load`` takes them back."""

    def step(self, lr: float) -> None: ...
    def tensors(self) -> dict[str, Tensor]: ...
    def load(self, tensors: dict[str, Tensor], step: int) -> None: ...


class TrainState:
    """Network, optimiser, average, ``extra``, loss scale and progress; ``card`` says how to rebuild the network.

    ``card`` travels in the header of all weight files, so that each of them alone can be sampled from; ``data`` are
    tensors too large for it, in a file beside them where there are any.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Optimizer,
        ema: Ema | None,
        card: str = "{}",
        extra: Stateful | None = None,
        data: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.data = dict(data or {})
        self.net, self.optimizer, self.ema, self.card, self.extra = net, optimizer, ema, card, extra
        self.scale: LossScale | None = None
        self.progress = Progress()

    def save(self, folder: Path) -> None:
        """Write the files of a checkpoint into ``folder``."""
        (folder / "state").mkdir()
        save_file(_plain(self.net.state_dict()), folder / MODEL, metadata={"advect": self.card})
        self.save_averages(folder, self.ema.shadows if self.ema else ())
        save_file(_plain(self.optimizer.tensors()), folder / OPTIMIZER)
        if self.data:
            save_file(_plain(self.data), folder / DATA)
        progress = {**asdict(self.progress), "ema_updates": self.ema.updates if self.ema else 0}
        progress["extra"] = self.extra.state_dict() if self.extra else {}
        if self.scale is not None:
            progress["loss_scale"] = self.scale.state_dict()
        (folder / PROGRESS).write_text(json.dumps(progress) + "\n", encoding="utf-8")

    def save_averages(self, folder: Path, files: Iterable[str]) -> None:
        """Write the averages of these names, each as a weight file with the tensors that are not averaged."""
        for file in files:
            assert self.ema is not None
            weights = {**self.net.state_dict(), **self.ema.shadows[file]}
            save_file(_plain(weights), folder / file, metadata={"advect": self.card})

    def load(self, folder: Path) -> None:
        """Continue from a verified checkpoint; UserError says what differs where it is of another network."""
        weights = load_weights(folder / MODEL)
        check_same_shapes(weights, self.net.state_dict(), folder)
        self.net.load_state_dict(weights)
        values = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        updates, extra, scale = values.pop("ema_updates"), values.pop("extra", {}), values.pop("loss_scale", None)
        if self.extra is not None and self.extra.state_dict().keys() == extra.keys():
            self.extra.load_state_dict(extra)
        self.progress = Progress.from_dict(values)
        if self.scale is not None and scale is not None:
            self.scale.load_state_dict(scale)
        self._load_optimizer(folder)
        if self.ema is not None:
            self.ema.check_files(folder)
            self.ema.load({file: load_weights(folder / file) for file in self.ema.shadows}, updates)

    def _load_optimizer(self, folder: Path) -> None:
        found = load_weights(folder / OPTIMIZER)
        missing = self.optimizer.tensors().keys() - found.keys() - {"updates"}
        if missing:
            raise UserError(
                f"checkpoint {folder} was written by another optimiser, without {min(missing)}; resume it with the "
                "--optimizer in its config.yaml"
            )
        self.optimizer.load(found, self.progress.step)


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; UserError when it is none."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); take another checkpoint") from error


def check_same_shapes(found: dict[str, Tensor], wanted: dict[str, Tensor], source: Path) -> None:
    """Raise a UserError that names the first differences between a file's tensors and a network's."""
    differs = [
        f"{name} is {tuple(found[name].shape)} there and {tuple(wanted[name].shape)} here"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    differs += [f"{name} is only here" for name in wanted if name not in found]
    differs += [f"{name} is only there" for name in found if name not in wanted]
    if differs:
        more = f" and {len(differs) - 3} more" if len(differs) > 3 else ""
        raise UserError(
            f"{source} belongs to another network: {'; '.join(differs[:3])}{more}; "
            "use the flags that the run was started with (its config.yaml)"
        )


def named_params(net: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name."""
    return {name: p for name, p in net.named_parameters() if p.requires_grad}
