"""State of a training run, saved to and loaded from checkpoints."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from torch import Tensor, nn

from advect.checkpoint.async_writer import Stage, StateSnapshot
from advect.checkpoint.tensor_files import SHARDS, check_same_shapes, load_part, load_shards, load_weights, read_shapes
from advect.core.bounds import Count, CountOrZero
from advect.core.errors import UserError
from advect.core.records import OpenRecord, as_record, read_record
from advect.distributed.comm import current
from advect.distributed.parallel import Parallel, as_sharded, gather_whole, local
from advect.training.ema import EMA
from advect.training.ema import EMA_FILE as EMA_FILE
from advect.training.optim import LossScaler, Optimizer

logger = logging.getLogger(__name__)

MODEL, OPTIMIZER, DATA, PROGRESS = (
    "model.safetensors",
    "state/optimizer.safetensors",
    "state/data.safetensors",
    "state/run.json",
)


@dataclass
class Mean:
    """Running mean as a float64 sum and count, exact across checkpoints."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.total += value
        self.count += 1

    def take(self) -> float:
        """Return the mean and reset."""
        mean = self.total / max(1, self.count)
        self.total, self.count = 0.0, 0
        return mean


@dataclass
class Progress:
    """Finished steps, samples seen, seconds of training, and running means.

    ``bad`` counts skipped non-finite steps, ``bad_row`` the current series; ``rate`` multiplies the learning rate,
    below 1 after a rollback. ``plans`` holds a pair (step, last step) for each change of the run's length.
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
    plans: list[list[int]] = field(default_factory=list)


class RunFacts(OpenRecord):
    """What a checkpoint's run.json holds beside :class:`Progress`."""

    ema_updates: CountOrZero
    world: Count = 1
    extra: dict[str, list[float]] = msgspec.field(default_factory=dict)
    loss_scale: dict[str, float] | None = None


def read_progress(folder: Path) -> tuple[Progress, RunFacts]:
    """Content of a checkpoint's run.json. Raises UserError if it is missing or of another form."""
    file, fix = folder / PROGRESS, "take another checkpoint"
    values = read_record(file, dict[str, Any], fix)
    own = {f.name: values[f.name] for f in fields(Progress) if f.name in values}
    return as_record(own, Progress, file, fix), as_record(values, RunFacts, file, fix)


class Stateful(Protocol):
    """Further state as plain numbers, such as that of learned times."""

    def state_dict(self) -> dict[str, list[float]]: ...
    def load_state_dict(self, state: dict[str, list[float]]) -> None: ...


class TrainState:
    """Network, optimiser, EMA, ``extra``, loss scale and progress.

    Args:
        metadata: JSON that rebuilds the network, stored in the header of every weight file.
        data: tensors too large for the header, stored in a file of their own.
        parallel: how processes share the network.
        twin: copy of the network on the meta device, for networks that cannot be copied once sharded.
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
        """Whether each process holds a shard of every tensor."""
        return self.parallel.kind == "fsdp"

    def save(self, folder: Path) -> None:
        """Write the files of a checkpoint into ``folder``, from one process."""
        self.contents().write(folder)

    def contents(self) -> StateSnapshot:
        """Copy on the CPU of all that a checkpoint holds (this process's shards). May reuse the memory of the previous
        copy.
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
        """Content of an average's weight file, on the CPU; collective for a sharded run."""
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
        """Local tensors, named after parameters with an optional prefix, as shards of the whole ones."""
        if not self.sharded:
            return dict(tensors)
        params = named_params(self.net)
        owners = {name: params.get(name, params.get(name.partition(".")[2])) for name in tensors}
        return {name: x if (p := owners[name]) is None else as_sharded(x, p) for name, x in tensors.items()}

    def load(self, folder: Path) -> None:
        """Restore a verified checkpoint, from any number of processes, sharded or not.

        Raises UserError if it is of another network or optimiser.
        """
        progress, facts = read_progress(folder)
        if self.ema is not None:
            self.ema.check_files(folder)
        self._load_weights(folder)
        self._load_optimizer(folder, progress.step)
        if self.ema is not None:
            self.ema.load({file: self._read(folder / file) for file in self.ema.shadows}, facts.ema_updates)
        self._load_extra(folder, facts.extra)
        self.progress = progress
        if self.loss_scaler is not None and facts.loss_scale is not None:
            self.loss_scaler.load_state_dict(facts.loss_scale)

    def _load_extra(self, folder: Path, state: dict) -> None:
        here = self.extra.state_dict() if self.extra is not None else {}
        if here and state and here.keys() != state.keys():
            there, mine = ", ".join(sorted(state)), ", ".join(sorted(here))
            raise UserError(
                f"checkpoint {folder} holds the state of other training times, {there}, and this run has {mine};"
                " resume it with the --times in its config.yaml"
            )
        if here.keys() != state.keys():
            what = "is left out" if state else "begins anew"
            logger.info(f"note: the state of the training times {what}, as the checkpoint has other times")
        elif self.extra is not None:
            self.extra.load_state_dict(state)

    def _load_weights(self, folder: Path) -> None:
        here = self.net.state_dict()
        check_same_shapes(read_shapes(folder / MODEL), here, folder)
        for name, value in self._read(folder / MODEL).items():
            local(here[name]).copy_(value)

    def _read(self, path: Path) -> dict[str, Tensor]:
        """Tensors of a file, named after the network's with an optional prefix; this process's shards."""
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
    """Trainable parameters by name."""
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def on_meta(net: nn.Module) -> nn.Module:
    """Copy of the network on the meta device, without gradient checkpointing."""
    memo: dict[int, Any] = {}
    for p in net.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
    for b in net.buffers():
        memo[id(b)] = torch.empty_like(b, device="meta")
    twin = deepcopy(net, memo).train()
    for module in twin.modules():
        if hasattr(module, "grad_checkpointing"):
            module.grad_checkpointing = False  # pyright: ignore[reportArgumentType]
    return twin
