"""A trained flow: load it, sample from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from advect.core.errors import UserError, did_you_mean
from advect.core.random import CounterRng, mix
from advect.core.types import NULL, Category, Conditions, DataSpec
from advect.data import Transform
from advect.runs.build import build_network, pick_device, pick_precision
from advect.runs.card import Card
from advect.sampling import guided_velocity, integrate
from advect.sources import Gaussian
from advect.training.checkpoint import find_checkpoint, verify_checkpoint
from advect.training.state import EMA, MODEL, check_same_shapes, load_weights

ConditionValue = int | str | None | Tensor
"""One value for all samples (its number or its name; "none" or None: not given), "cycle" for each value in turn,
or a tensor (n,) of numbers."""


class Flow:
    """A network with the data's shape, conditions and transform: everything that sampling needs.

    ``net(x_t (B, *S), t (B,), cond)`` predicts the velocity in model units.
    """

    def __init__(
        self,
        net: nn.Module,
        spec: DataSpec,
        transform: Transform,
        *,
        device: torch.device | None = None,
        autocast: torch.dtype | None = None,
        steps: int = 50,
        solver: str = "midpoint",
    ) -> None:
        self.net, self.spec, self.transform = net, spec, transform
        self.device, self.autocast, self.steps, self.solver = device or torch.device("cpu"), autocast, steps, solver

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        steps: int | None = None,
        solver: str | None = None,
        seed: int = 0,
        cond: Mapping[str, ConditionValue] | None = None,
        guidance: float = 1.0,
        trajectory: bool = False,
        batch_size: int = 256,
        progress: bool = False,
    ) -> Tensor:
        """Draw n samples (n, *S) in data units, float32, on the CPU.

        ``steps`` and ``solver`` are by default those of the run's own sample grids. Sample i depends on the seed
        and i alone, not on n or ``batch_size``. ``cond`` gives a value for each condition it names; conditions that
        it does not name are drawn as often as they occur in the training data. ``guidance`` other than 1 needs a
        flow with conditions (classifier-free guidance). With ``trajectory`` the states at all grid times come back,
        (steps + 1, n, *S). Raises UserError for a bad argument.
        """
        if n < 1:
            raise UserError(f"the number of samples must be at least 1, got {n}")
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}; 256 is usual")
        if guidance != 1 and not self.spec.conditions:
            raise UserError(f"guidance is {guidance}, but this flow has no conditions to guide by; leave it at 1")
        conditions = self.conditions(n, cond, seed)
        self.net.eval()
        parts = []
        with tqdm(total=n, unit="sample", desc="sample", disable=not progress) as bar:
            for first, last in _chunks(n, batch_size):
                rows = CounterRng(mix(seed, 1), 0, last - first, start=first, total=n)
                x0 = Gaussian().sample((last - first, *self.spec.shape), rows, device=self.device)
                part = {name: value[first:last].to(self.device) for name, value in conditions.items()}
                with torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext():
                    x = integrate(
                        guided_velocity(self.net, part, guidance),
                        x0,
                        solver=solver or self.solver,
                        steps=self.steps if steps is None else steps,
                        trajectory=trajectory,
                    )
                parts.append(x.float().cpu())
                bar.update(last - first)
        x = torch.cat(parts, dim=1 if trajectory else 0)
        if trajectory:
            return torch.stack([self.transform.inverse(state) for state in x])
        return self.transform.inverse(x)

    def conditions(self, n: int, cond: Mapping[str, ConditionValue] | None = None, seed: int = 0) -> Conditions:
        """The conditions that :meth:`sample` uses: for each a tensor (n,) of numbers, NULL for not given."""
        cond = dict(cond or {})
        for name in cond:
            if name not in self.spec.conditions:
                where = did_you_mean(name, self.spec.conditions) if self.spec.conditions else "; this flow has none"
                raise UserError(f"condition {name!r} is not known{where}")
        values = {}
        for i, (name, category) in enumerate(self.spec.conditions.items()):
            if name in cond:
                values[name] = _numbers(name, cond[name], category, n)
            else:
                u = CounterRng(mix(seed, 2), i, n).uniform((n,), dtype=torch.float64)
                shares = torch.tensor(category.frequencies, dtype=torch.float64).cumsum(0)
                values[name] = torch.searchsorted(shares, u, right=True).clamp_(max=len(shares) - 1)
        return values


def _chunks(n: int, size: int) -> Iterator[tuple[int, int]]:
    for first in range(0, n, size):
        yield first, min(first + size, n)


def _numbers(name: str, value: ConditionValue, category: Category, n: int) -> Tensor:
    if isinstance(value, Tensor):
        if value.shape != (n,):
            raise UserError(
                f"condition {name!r} must have shape ({n},), one number a sample, got {tuple(value.shape)}"
            )
        numbers = value.long().cpu()
    elif value == "cycle":
        numbers = torch.arange(n) % len(category.names)
    else:
        numbers = torch.full((n,), _number(name, value, category))
    if ((numbers < NULL) | (numbers >= len(category.names))).any():
        raise UserError(f"condition {name!r} must lie in 0 to {len(category.names) - 1}, got {value}")
    return numbers


def _number(name: str, value: int | str | None, category: Category) -> int:
    if value is None or value == "none":
        return NULL
    if isinstance(value, int):
        return value
    if value in category.names:
        return category.names.index(value)
    if value.isdecimal():
        return int(value)
    raise UserError(f"condition {name!r} has no value {value!r}{did_you_mean(value, category.names)}")


def load(path: str | Path, *, ema: bool = True, device: str = "auto") -> Flow:
    """Load a trained flow from a run folder, a checkpoint or a weight file, with EMA weights by default.

    A run folder means its newest checkpoint, which is verified first. Raises UserError when nothing is there, the
    checkpoint is damaged or of a newer format, or EMA weights are asked of a run without.
    """
    path = Path(path)
    if path.is_file():
        file = path
    else:
        checkpoint = find_checkpoint(path)
        verify_checkpoint(checkpoint)
        file = checkpoint / (EMA if ema and (checkpoint / EMA).is_file() else MODEL)
    card = read_card(file)
    place = pick_device(device)
    net = build_network(card.network, card.spec)
    weights = load_weights(file)
    check_same_shapes(weights, net.state_dict(), file)
    net.load_state_dict(weights)
    return Flow(
        net.to(place).eval(),
        card.spec,
        card.transform,
        device=place,
        autocast=pick_precision(card.config["training"]["mixed_precision"], place),
        steps=card.config["output"]["sample_steps"],
        solver=card.config["output"]["solver"],
    )


def read_card(file: Path) -> Card:
    """The card of a weight file."""
    try:
        with safe_open(file, framework="pt") as tensors:
            text = (tensors.metadata() or {}).get("advect")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is not a whole safetensors file ({error}); take another checkpoint") from error
    return Card.from_text(text, file)
