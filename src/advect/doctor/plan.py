"""Which network and batch size suit data and machine, from what a step of them would keep in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from advect.config.build import build_network
from advect.config.config import NetworkConfig
from advect.core.types import Category, Conditions, DataSpec, Length, Quantity
from advect.doctor.report import Figure, Finding

STATE_BYTES = 20
"""Bytes of a parameter in training: weight, gradient, the optimiser's two moments and the average, in float32."""

SHARE = 0.6
"""Of the free memory, what a plan takes: allocators, libraries and other programs need the rest."""

STEPS_AN_EPOCH, LARGEST, SMALLEST = 20, 512, 8


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Figures for choosing a batch size.

    Attributes:
        network, preset: the kind of network, and the preset that has it.
        parameters: of the network.
        kept: bytes that a training step keeps for each sample, in float32.
        free: bytes of memory that are free on ``device``.
        train: training samples.
        usual: the batch size of the preset, or the usual one.
        fixed: whether ``usual`` was asked for, so that it is judged and not chosen.
    """

    network: str
    preset: str
    parameters: int
    kept: float
    free: int
    device: str
    train: int
    usual: int
    fixed: bool = False

    def memory(self, batch: int) -> float:
        """Bytes that training with this batch size takes."""
        return STATE_BYTES * self.parameters + self.kept * batch

    @property
    def most(self) -> int:
        """The largest batch that fits; 0 where none does."""
        return max(int((SHARE * self.free - STATE_BYTES * self.parameters) / self.kept), 0)

    @property
    def batch(self) -> int:
        """The batch size to take: the usual one, less where it does not fit or leaves too few steps an epoch."""
        if self.fixed:
            return self.usual
        by_data = max(self.train // STEPS_AN_EPOCH, SMALLEST)
        return _power(min(self.usual, by_data, max(self.most, 1), LARGEST))


def check_plan(p: Plan) -> Finding:
    """What network and batch size to take, and whether they fit the memory."""
    figures: dict[str, Figure] = {
        "network": p.network,
        "parameters": p.parameters,
        "batch size": p.batch,
        "memory for it (GiB)": p.memory(p.batch) / 2**30,
        f"free on {p.device} (GiB)": p.free / 2**30,
        "largest batch that fits": p.most,
        "steps an epoch": math.ceil(p.train / p.batch),
    }
    if p.most < (p.batch if p.fixed else 1):
        return Finding(
            "problem",
            "Training would take more memory than there is",
            figures,
            f"--batch-size {_power(p.most)}, or --accumulate {math.ceil(p.batch / p.most)}, or --grad-checkpointing"
            if p.most
            else "a smaller network",
        )
    if p.fixed:
        return Finding("ok", "The configuration fits the memory", figures)
    why = "memory" if p.most < min(p.usual, p.train // STEPS_AN_EPOCH) else "steps an epoch"
    reason = "as usual" if p.batch >= _power(p.usual) else f"less than the usual {p.usual}, because of the {why}"
    return Finding("ok", f"It suggests preset {p.preset} with --batch-size {p.batch}, {reason}", figures)


def measure_network(config: NetworkConfig, spec: DataSpec) -> tuple[int, float]:
    """The parameters of a network, and the bytes that its forward pass keeps for each sample; nothing is computed.

    Raises UserError where the network does not take such data.
    """
    rows = 2
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        if not isinstance(x, torch.nn.Parameter):
            kept[x.untyped_storage()._cdata] = x
        return x

    with torch.device("meta"):
        net = build_network(config, spec)
        x, t, cond = torch.empty(rows, *spec.shape), torch.empty(rows), _conditions(spec, rows)
        weights = {p.untyped_storage()._cdata for p in net.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            net(x, t, cond).sum()
    held = sum(x.untyped_storage().nbytes() for key, x in kept.items() if key not in weights)
    count = sum(p.numel() for p in net.parameters())
    return count, max(held / rows, 4.0 * x[0].numel())


def _conditions(spec: DataSpec, rows: int) -> Conditions | None:
    cond: Conditions = {}
    for name, condition in spec.conditions.items():
        match condition:
            case Category():
                cond[name] = torch.zeros(rows, dtype=torch.int64)
            case Quantity():
                cond[name] = torch.zeros(rows, len(condition.mean))
            case Length():
                cond[name] = torch.full((rows,), spec.shape[0])
    return cond or None


def _power(n: int) -> int:
    """The largest power of two up to n; 1 for less."""
    return 2 ** max(n, 1).bit_length() // 2
