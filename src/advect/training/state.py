"""Everything that a training run changes, and its way to the disk and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from advect.checkpoint.async_writer import Stage, StateSnapshot
from advect.checkpoint.sharded import SHARDS, load_shards
from advect.checkpoint.weights import check_same_shapes, load_part, load_weights, read_shapes
from advect.core.errors import UserError
from advect.distributed.comm import current
from advect.distributed.parallel import Parallel, as_sharded, gather_whole, local
from advect.training.ema import EMA
from advect.training.ema import EMA_FILE as EMA_FILE
from advect.training.precision import LossScaler, on_meta

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
    """How far a run is: finished steps, samples seen, seconds of training, and means that span checkpoints.

    ``bad`` counts the steps that were skipped as not finite, ``bad_row`` those in a row up to now; ``rate`` is what
    the learning rate is multiplied with, below 1 once the run has been rolled back.
    """

    step: int = 0
    seen: int = 0
    seconds: float = 0.0
    loss: Mean = field(default_factory=Mean)
    grad_norm: Mean = field(default_factory=Mean)
    epoch_loss: Mean = field(default_factory=Mean)
    bad: int = 0
    bad_row: int = 0
    rate: float = 1.0

    @staticmethod
    def from_dict(values: dict) -> Progress:
        progress = Progress(**{f.name: values[f.name] for f in fields(Progress) if f.name in values})
        for name in ("loss", "grad_norm", "epoch_loss"):
            setattr(progress, name, Mean(**values[name]))
        return progress


class Stateful(Protocol):
    """Something else that a run changes, such as an objective that learns its times, as plain numbers."""

    def state_dict(self) -> dict[str, list[float]]: ...
    def load_state_dict(self, state: dict[str, list[float]]) -> None: ...


class Optimizer(Protocol):
    """What moves the weights. ``tensors`` are what a checkpoint keeps of it, by name, and ``load`` takes them back."""

    def step(self, lr: float, bad: Tensor | None = None, /) -> None: ...
    def tensors(self) -> dict[str, Tensor]: ...
    def load(self, tensors: dict[str, Tensor], step: int) -> None: ...


class TrainState:
    """Network, optimiser, EMA, ``extra``, loss scale and progress.

    ``metadata``, JSON that says how to rebuild the network, lies in the header of every weight file, so each alone
    can be sampled from; ``data`` are tensors too large for it, in a file of their own. ``parallel`` says how processes
    share the network, and ``twin`` is a copy of it without values, for those that cannot be copied once shared.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Optimizer,
        ema: EMA | None,
        metadata: str = "{}",
        extra: Stateful | None = None,
        data: Mapping[str, Tensor] | None = None,
        parallel: Parallel | None = None,
        twin: nn.Module | None = None,
    ) -> None:
        self.data = dict(data or {})
        self.parallel, self.twin = parallel or Parallel(), on_meta(net) if twin is None else twin
        self.net, self.optimizer, self.ema, self.metadata, self.extra = net, optimizer, ema, metadata, extra
        self.loss_scaler: LossScaler | None = None
        self.progress = Progress()
        self._stage = Stage()

    @property
    def sharded(self) -> bool:
        """Whether each process keeps a part of every tensor."""
        return self.parallel.kind == "fsdp"

    def save(self, folder: Path) -> None:
        """Write the files of a checkpoint into ``folder``, from one process."""
        self.contents().write(folder)

    def contents(self) -> StateSnapshot:
        """A copy on the CPU of all that a checkpoint holds, of a sharded run this process's part of it.

        The memory of the last one may be used again.
        """
        copy, files = self._stage.copy, self.ema.shadows if self.ema else {}
        weights = copy(self.net.state_dict(), "model")
        averages = {file: copy(self._as_params(shadow), file) for file, shadow in files.items()}
        moments = copy(self._as_params(self.optimizer.tensors()), "optimizer")
        self._stage.finish()
        contents = StateSnapshot(texts={PROGRESS: json.dumps(self._facts()) + "\n"})
        contents.headers = {file: {"advect": self.metadata} for file in (MODEL, *files)}
        if self.data:
            contents.tensors[DATA] = copy(self.data, "data")
        if not self.sharded:
            contents.tensors |= {MODEL: weights, OPTIMIZER: moments}
            contents.tensors |= {file: {**weights, **averaged} for file, averaged in averages.items()}
            return contents
        groups = {"model": weights, "optimizer": moments}
        groups |= {f"ema{i}": averaged for i, averaged in enumerate(averages.values())}
        contents.shards = {f"{group}.{name}": x for group, named in groups.items() for name, x in named.items()}
        contents.gathered = {MODEL: ("model",)} | {file: ("model", f"ema{i}") for i, file in enumerate(averages)}
        return contents

    def whole_average(self, file: str) -> dict[str, Tensor]:
        """The content of one average's weight file, on the CPU; of a sharded run all processes must ask."""
        assert self.ema is not None
        weights = self.net.state_dict()
        shadow = self.ema.shadows[file]
        return {name: gather_whole(shadow.get(name, local(x)), x).detach().cpu() for name, x in weights.items()}

    def _facts(self) -> dict:
        facts = {**asdict(self.progress), "ema_updates": self.ema.updates if self.ema else 0}
        facts["world"] = current().world
        facts["extra"] = self.extra.state_dict() if self.extra else {}
        if self.loss_scaler is not None:
            facts["loss_scale"] = self.loss_scaler.state_dict()
        return facts

    def _as_params(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of this process's, each named after a parameter but for a first word, as shards of whole ones."""
        if not self.sharded:
            return dict(tensors)
        params = named_params(self.net)
        owners = {name: params.get(name, params.get(name.partition(".")[2])) for name in tensors}
        return {name: x if (p := owners[name]) is None else as_sharded(x, p) for name, x in tensors.items()}

    def load(self, folder: Path) -> None:
        """Continue from a verified checkpoint; UserError says what differs where it is of another network.

        It may have been written by another number of processes, sharded or not.
        """
        values = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        updates, extra, scale = values.pop("ema_updates"), values.pop("extra", {}), values.pop("loss_scale", None)
        if self.ema is not None:
            self.ema.check_files(folder)
        self._load_weights(folder)
        self._load_optimizer(folder, values["step"])
        if self.ema is not None:
            self.ema.load({file: self._read(folder / file) for file in self.ema.shadows}, updates)
        if self.extra is not None and self.extra.state_dict().keys() == extra.keys():
            self.extra.load_state_dict(extra)
        self.progress = Progress.from_dict(values)
        if self.loss_scaler is not None and scale is not None:
            self.loss_scaler.load_state_dict(scale)

    def _load_weights(self, folder: Path) -> None:
        here = self.net.state_dict()
        check_same_shapes(read_shapes(folder / MODEL), here, folder)
        for name, value in self._read(folder / MODEL).items():
            local(here[name]).copy_(value)

    def _read(self, path: Path) -> dict[str, Tensor]:
        """The tensors of a file, named after the network's but for a first word, as far as this process keeps them."""
        return load_part(path, self.net.state_dict()) if self.sharded else load_weights(path)

    def _load_optimizer(self, folder: Path, step: int) -> None:
        mine = self._as_params(self.optimizer.tensors())
        if (folder / SHARDS).is_dir():
            found, missing = load_shards(folder / SHARDS, mine, "optimizer")
        else:
            found = self._read(folder / OPTIMIZER)
            missing = mine.keys() - found.keys() - {"updates"}
        if missing:
            raise UserError(
                f"checkpoint {folder} was written by another optimiser, without {min(missing)}; resume it with the "
                "--optimizer in its config.yaml"
            )
        self.optimizer.load(found, step)


def named_params(net: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name."""
    return {name: p for name, p in net.named_parameters() if p.requires_grad}
