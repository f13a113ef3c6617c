"""Rows of one call, drawn batch by batch; those that break rules of the data are drawn anew.

Drawing anew gives exactly the flow's law given the rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from advect.core.errors import UserError
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.types import GIVEN, Conditions, without_padding
from advect.data import Transform
from advect.distributed.comm import all_max
from advect.model.given import Given
from advect.model.integrators import Integrator
from advect.solvers import Velocity
from advect.solvers.integrate import CountedVelocity

if TYPE_CHECKING:
    from advect.model.flow import Flow

ATTEMPTS = 1000
"""Maximum number of times that a row is drawn."""

LEAST = 0.01
"""Smallest share of obeying draws; with it a row has none in all attempts once in 23,000."""

Rows = slice | Tensor


@dataclass(frozen=True)
class ToData:
    """Final states, or trajectories, of a call's rows in data units, with what is known of them."""

    transform: Transform
    conditions: Conditions
    known: Given | None
    trajectory: bool = False

    def __call__(self, x: Tensor, at: Rows = slice(None)) -> Tensor:
        """States x (..., b, *S) in model units of the rows ``at``."""
        x = torch.stack([self._inverse(state, at) for state in x]) if self.trajectory else self._inverse(x, at)
        if self.known is None:
            return x
        known, rules = self.known.rows(at), self.transform.constraints
        x = known.restore(x)
        return x if rules is None else known.restore(rules.derived(x.flatten(0, -2)).view_as(x))

    def _inverse(self, x: Tensor, at: Rows) -> Tensor:
        return without_padding(self.transform.inverse(x), {name: v[at] for name, v in self.conditions.items()})


Solve = Callable[[Tensor, Conditions, CounterRng, Tensor, Callable[[], object]], tuple[Tensor, int]]
"""Final states, or trajectories, of initial states (b, *S) under conditions (b,), of rows (b,); and evaluations, each
of which is told.
"""


@dataclass(frozen=True)
class Integrate:
    """A :data:`Solve` by an integrator along the field of some conditions."""

    integrator: Integrator
    field: Callable[[Conditions], Velocity]

    def __call__(
        self, x0: Tensor, part: Conditions, rng: CounterRng, at: Tensor, each: Callable[[], object]
    ) -> tuple[Tensor, int]:
        field = CountedVelocity(self.field(part), each)
        integrator = self.integrator.holding(part.get(GIVEN))
        return integrator(field, x0, rng).float().cpu(), field.rows


@dataclass(frozen=True)
class Draw:
    """How the rows of one call of ``Flow.sample`` are drawn: ``rows`` of n, under ``conditions`` (len(rows), ...)."""

    flow: Flow
    solve: Solve
    conditions: Conditions
    to_data: ToData
    n: int
    rows: range
    seed: int
    batch_size: int

    def __call__(
        self, shape: tuple[int, ...], *, model_units: bool, progress: bool | tqdm, calls: int | None
    ) -> tuple[Tensor, int | float]:
        """Samples (len(rows), *S), or trajectories, of ``shape`` in model units, and evaluations a sample.

        In data units unless ``model_units``; ``calls`` of the network are expected.
        """
        parts, evaluations, first, known = [], 0, 0, self.to_data.known
        conditions, seed, size = self.conditions, self.seed, self.batch_size
        states = self.flow._initial_states(self.n, self.rows, conditions, seed, size, progress, shape, calls)
        for x0, part, rng, done in states:
            x, cost = self.solve(x0, part, rng, torch.arange(first, first + len(x0)), done.step)
            parts.append(x)
            evaluations, first = evaluations + cost, first + len(x0)
        x = torch.cat(parts, dim=1 if self.to_data.trajectory else 0)
        x = x if known is None else known.put(x)
        if not model_units:
            x = self.to_data(x)
            if self.flow.transform.constraints is not None:
                x, more = self._redrawn(x)
                evaluations += more
        nfe = evaluations / len(self.rows)
        return x, int(nfe) if nfe.is_integer() else nfe

    def _redrawn(self, x: Tensor) -> tuple[Tensor, int]:
        """Rows x (len(rows), K), or trajectories, in data units, with those drawn anew that break a rule.

        Also the number of velocity evaluations. Row i becomes the first of its attempts that obeys, each a function of
        the seed, i and its number. Raises UserError if few obey.
        """
        rules = self.flow.transform.constraints
        assert rules is not None
        final = lambda states: states[-1] if self.to_data.trajectory else states
        broken = rules.broken(final(x))
        drawn, obeyed, evaluations = len(broken), int((~broken.any(1)).sum()), 0
        attempts, bad = torch.ones(len(broken), dtype=torch.int64), broken.any(1).nonzero()[:, 0]
        while self._any(len(bad)):
            at = (bad if len(bad) else torch.zeros(1, dtype=torch.int64))[: self.batch_size]
            tries = min(self.batch_size // len(at), int(attempts[at].max()), ATTEMPTS)
            places = at.repeat_interleave(tries)
            numbers = attempts[places] + torch.arange(tries).repeat(len(at))
            made, cost = self._draw(places, numbers)
            broken = rules.broken(final(made))
            good = (~broken.any(1)).reshape(len(at), tries)
            evaluations, drawn, obeyed = evaluations + cost, drawn + good.numel(), obeyed + int(good.sum())
            attempts[at] += tries
            if len(bad):
                some = good.any(1)
                first = torch.arange(len(at))[some] * tries + good[some].int().argmax(1)
                x[..., at[some], :] = made[..., first, :]
                bad = torch.cat([at[~some], bad[len(at) :]])
            if self._any(int(len(bad) and (attempts[bad].max() >= ATTEMPTS or ATTEMPTS <= drawn > obeyed / LEAST))):
                text = rules.rules[int(broken.sum(0).argmax())].text
                raise UserError(
                    f"only {obeyed:,} of {drawn:,} rows drawn obey the rules of --rule, of which {text!r} is broken"
                    " most; train longer, ask for what agrees with them, or leave that rule out"
                )
        return x, evaluations

    def _draw(self, at: Tensor, numbers: Tensor) -> tuple[Tensor, int]:
        """Attempts ``numbers`` (b,) of the rows ``at`` (b,) of this call, and the velocity evaluations."""
        places, flow = (self.rows.start + at) * ATTEMPTS * 2 + numbers, self.flow
        total = self.n * ATTEMPTS * 2
        rng = CounterRng.at(stream_seed(self.seed, Stream.INITIAL_NOISE, 1), 0, places.numpy(), total=total)
        part = flow._on_device({name: value[at] for name, value in self.conditions.items()})
        x0 = flow.initial_noise.sample(rng, flow.spec.shape, part, device=flow.device)
        x, evaluations = self.solve(x0, part, rng, at, lambda: None)
        known = self.to_data.known
        x = x if known is None else known.rows(at).put(x)
        return self.to_data(x, at), evaluations

    def _any(self, count: int) -> bool:
        """Whether there are any; of a sharded network, which all processes call equally often, on any process."""
        sharded = any(hasattr(p, "to_local") for p in self.flow.net.parameters())
        return bool(all_max([count])[0] if sharded else count)
