"""Questions: entries of samples that are known, and the flow of the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.types import GIVEN, LENGTH, Conditions
from advect.masks import known_level
from advect.model.coordinates import Coordinates
from advect.paths import MixturePath
from advect.solvers import Velocity

if TYPE_CHECKING:
    from advect.model.flow import Flow


@dataclass(frozen=True)
class Given:
    """What is known of n samples: ``model`` (n, *S) in model units and ``own`` (n, *data shape), NaN where asked.

    ``level`` (n, *S) is what the flow's samples are less than those, if any.
    """

    model: Tensor
    own: Tensor
    level: Tensor | None = None

    def rows(self, rows: range | slice | Tensor) -> Given:
        """That of some rows."""
        at = slice(rows.start, rows.stop) if isinstance(rows, range) else rows
        return Given(self.model[at], self.own[at], None if self.level is None else self.level[at])

    def relative(self, conditions: Conditions) -> Given:
        """That of a flow of samples relative to what is known, under conditions (n,)."""
        return Given(self.model, self.own, known_level(self.model, conditions.get(LENGTH)))

    @property
    def condition(self) -> Tensor:
        """The condition ``GIVEN`` (n, *S) of the network."""
        return self.model if self.level is None else self.model - self.level

    def put(self, x: Tensor) -> Tensor:
        """Samples x (..., n, *S) of the flow in model units with the known entries in place."""
        x = x if self.level is None else x + self.level
        return torch.where(self.model.isnan(), x, self.model.to(x.dtype))

    def restore(self, x: Tensor) -> Tensor:
        """x (..., n, *data shape) in data units with the known entries as they were given."""
        return torch.where(self.own.isnan(), x, self.own.to(x.dtype))


def read_given(flow: Flow, given: Any, n: int) -> Given:
    """:func:`known_entries` for a flow that was trained for it; those read before are n rows of them.

    Raises UserError for another flow.
    """
    if isinstance(given, Given):
        return given
    if flow.discrete:
        _check_masks(flow)
    elif not flow.masked:
        raise UserError(
            "given needs a flow that was given entries in training; train with --mask random, say, or take "
            "flow.sample_posterior (--posterior pigdm)"
        )
    return known_entries(flow, given, n)


def _check_masks(flow: Flow) -> None:
    """Raise UserError unless a flow of tokens starts from masks: known tokens are then a state like others."""
    if not isinstance(flow.path, MixturePath) or not flow.path.masked:
        raise UserError("known tokens need a flow that starts from masks; train with --source masked")


def known_entries(flow: Flow, given: Any, n: int) -> Given:
    """What a user gives of n samples: one sample or n of them in data units, NaN where they are asked for.

    Raises UserError for another number of samples, and as ``Modality.given``.
    """
    own = given_values(flow, given, n)
    _ = flow.modality.entries  # tells where there are none
    rules = flow.transform.constraints
    if rules is None:
        return Given(flow.modality.given(own).float(), own)
    known = rules.known(own)
    _ = flow.modality.given(own)  # raises for what cannot be asked
    model = torch.where(known.isnan()[:, flow.modality.groups], torch.nan, flow.transform.forward(known))
    return Given(model.float(), known)


def given_values(flow: Flow, given: Any, n: int) -> Tensor:
    """Values (n, *data shape) of n samples, NaN where asked for. Raises UserError for another number of samples."""
    own, shape = flow.modality.given_rows(given), flow.data_shape
    if own.shape == shape:
        own = own.expand(n, *shape)
    if own.shape != (n, *shape):
        raise UserError(
            f"given must have shape {shape}, or {(n, *shape)} with a row a sample, NaN where it is asked for; got "
            f"{tuple(own.shape)}"
        )
    return own


def still(field: Velocity, given: Tensor) -> Velocity:
    """``field`` (B, *S), 0 where ``given`` (B, *S) is known; of two heads on axis 1 both."""
    asked = given.isnan()

    def moving(x: Tensor, t: Tensor) -> Tensor:
        u = field(x, t)
        heads = u.shape[1] // asked.shape[1]
        return torch.where(asked if heads == 1 else torch.cat([asked] * heads, 1), u, 0.0)

    return moving


@dataclass(frozen=True)
class Question:
    """Rows (b,) of n samples in which the same elements (k,) of flattened samples are asked for.

    ``log_det`` is that of the transform of these elements, ``level`` (b, *S) what the flow's samples are less.
    """

    rows: np.ndarray
    asked: Tensor
    log_det: float
    level: Tensor | None = None

    def of(self, some: Tensor) -> Question:
        """That of ``some`` (m,) of its rows."""
        level = None if self.level is None else self.level[some.to(self.level.device)]
        return Question(self.rows[some.cpu().numpy()], self.asked, self.log_det, level)

    def asked_of(self, model: Tensor) -> Tensor:
        """The elements asked for (b, k), of all samples (n, *S), as the flow has them."""
        return self._whole(model).flatten(1)[:, self.asked.to(model.device)]

    def _whole(self, model: Tensor) -> Tensor:
        """These rows of all samples (n, *S), as the flow has them."""
        own = model[self.rows]
        return own if self.level is None else own - self.level.to(own)

    def field(self, flow: Flow, way: Coordinates, conditions: Conditions, model: Tensor) -> Velocity:
        """The field of the elements asked for (b, k), the others being those of the samples ``model`` (n, *S)."""
        whole, asked = self._whole(model), self.asked.to(model.device)
        known = whole.flatten(1).index_fill(1, asked, torch.nan).reshape(whole.shape)
        cond = {name: value[self.rows] for name, value in conditions.items()} | {GIVEN: known}
        field = flow._field(way, cond)

        def reduced(y: Tensor, t: Tensor) -> Tensor:
            x = whole.flatten(1).to(y.dtype).index_copy(1, asked, y)
            return field(x.reshape(whole.shape), t).flatten(1)[:, asked]

        return reduced


def questions(flow: Flow, x: Tensor, given: Any) -> Iterator[Question]:
    """The questions about x (n, *data shape), by what is asked for.

    ``given`` holds, for one sample or each, the known values with NaN where entries are asked for, or True where they
    are known. Raises UserError where a known value is not that of x, and for sources that are not standard normal.
    """
    if not flow.source.standard_normal:
        raise UserError(
            "log_prob of given entries needs a Gaussian source, and this flow starts from "
            f"{type(flow.source).__name__}"
        )
    marks = torch.as_tensor(given)
    if marks.dtype == torch.bool:
        given = torch.where(marks, x.double(), torch.nan)
    found, slopes = read_given(flow, given, len(x)), flow.transform.log_slopes(flow.spec.shape).flatten()
    if not torch.equal(found.restore(x), x):
        raise UserError("given holds values that x has not; give those of x, or a mask of True where they are known")
    patterns, of = found.model.isnan().flatten(1).unique(dim=0, return_inverse=True)
    for i, pattern in enumerate(patterns):
        asked, rows = pattern.nonzero()[:, 0], (of == i).nonzero()[:, 0]
        level = known_level(found.model[rows]) if flow.relative else None
        yield Question(rows.numpy(), asked, slopes[asked].sum().item(), level)
