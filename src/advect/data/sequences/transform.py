"""Columns of padded sequences to model units and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from advect.core.errors import UserError
from advect.core.records import Record, as_record
from advect.data.tables.arrow import arrow_time_unit
from advect.data.tables.columns import Column, Number, column_from_config
from advect.data.tables.infer_columns import array_column, fit_number
from advect.data.tables.transform import TableTransform
from advect.data.transforms import Transform


@dataclass(frozen=True)
class SequenceTransform(Transform):
    """Columns of sequences (B, L, K) in table units to (B, L, D), each step as a row of :class:`TableTransform`.

    Padding is NaN in table units and 0 in model units; other NaN, of unknown values, stay. With ``start``, the last
    column is the time of each step: its model units are the start, the same at every step, and the gap to the step
    before; one that is constant takes no dimension. Of dates, cosine and sine of the start's place in the year, week
    and day follow, since seasons of a long span are not to be seen in its scaled value. A start outside those of the
    data is encoded as the nearest of them, at its own place. The inverse takes the mean start, moves it to the nearest
    of that place, and adds up gaps that the data could have.

    The inverse takes steps whose model units are all 0 for padding, and returns what 0 stands for there.

    Args:
        columns: of the channels, without the time.
        ragged: whether lengths differ.
        start: time of a sequence's first step; None without times.
        gap: time between steps; None without times.
        periods: in which the start has a place, in table units, the longest first.

    Raises:
        UserError: all columns are constant, or start is given without gap.
    """

    columns: Sequence[Column]
    ragged: bool = False
    start: Number | None = None
    gap: Number | None = None
    periods: Sequence[float] = ()
    kind: ClassVar[str] = "sequence"

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "periods", tuple(self.periods))
        if (self.start is None) != (self.gap is None):
            raise UserError("start and gap of the times belong together; give both or none")
        _ = self._table

    @classmethod
    def fit(
        cls,
        steps: Sequence[np.ndarray],
        train: np.ndarray,
        columns: Sequence[Column] | None = None,
        *,
        scaling: str = "auto",
        timed: bool = False,
    ) -> SequenceTransform:
        """Fit scalings to the sequences (L_i, K) of indices ``train``.

        Args:
            steps: all sequences in table units.
            train: indices of those that scalings are fitted to; ranges are those of all.
            columns: of the channels, and last of the times if ``timed``; default those of plain numbers.
            scaling: "auto", "quantile" or "standard", see :func:`fit_scaling`.
            timed: whether the last column is the time of each step.
        """
        rows = np.concatenate([steps[i] for i in train])
        if columns is None:
            columns = [array_column(f"value_{i}", x)[0] for i, x in enumerate(np.concatenate(steps).T)]
        built = [
            fit_number(c, x, scaling) if isinstance(c, Number) else c for c, x in zip(columns, rows.T, strict=True)
        ]
        lengths = {len(x) for x in steps}
        if not timed:
            return cls(built, len(lengths) > 1)
        time = columns[-1]
        assert isinstance(time, Number)
        starts, gaps = (lambda some: np.array([x[0, -1] for x in some])), _gaps
        some = [steps[i] for i in train]
        start = _part(time, starts(steps), starts(some), "quantile")
        gap = _part(time, gaps(steps), gaps(some), scaling)
        return cls(built[:-1], len(lengths) > 1, start, gap, _periods(time, start.high - start.low))

    @cached_property
    def _table(self) -> TableTransform:
        times = () if self.start is None or self.gap is None else (self.start, self.gap)
        return TableTransform((*self.columns, *times))

    def forward(self, x: Tensor) -> Tensor:
        """Table units (B, L, K) to model units (B, L, D); where lengths differ, empty steps at the end are padding."""
        empty = x.isnan().all(-1) & self.ragged
        return self.encode(x, empty.flip(1).cumprod(1).flip(1).bool())

    def encode(self, x: Tensor, padding: Tensor) -> Tensor:
        """Table units (B, L, K) to model units (B, L, D): 0 in steps of ``padding`` (B, L), NaN for unknown values."""
        x = x.double()
        if self.start is None:
            z = self._rows(x)
        else:
            times, first = x[..., -1], x[:, :1, -1]
            start = first.clamp(self.start.low, self.start.high)
            gaps = torch.cat([torch.full_like(first, torch.nan), times.diff(dim=1)], 1)
            z = self._rows(torch.cat([x[..., :-1], torch.stack([start.expand_as(times), gaps], -1)], -1))
            gap = sum(column.width for column in (*self.columns, self.start))
            z[:, 0, gap:] = torch.where(first.isnan(), torch.nan, 0.0).to(z)
            z = torch.cat([z, self._places(first).float().expand(*z.shape[:2], -1)], -1)
        return torch.where(padding[..., None], 0.0, z)

    def groups(self, steps: int) -> Tensor:
        """Number (L, D) int64, step * K + column, of the value of L steps in K columns that each element is of.

        Start and places of all steps are of the time of the first step.
        """
        widths = [column.width for column in self.columns]
        time = len(widths)
        column = torch.arange(time).repeat_interleave(torch.tensor(widths, dtype=torch.long))
        if self.start is None or self.gap is None:
            return torch.arange(steps)[:, None] * time + column
        shared = torch.tensor([True] * self.start.width + [False] * self.gap.width + [True] * 2 * len(self.periods))
        column = torch.cat([column, torch.full_like(shared, time, dtype=torch.long)])
        step = torch.arange(steps)[:, None] * ~torch.cat([torch.zeros(sum(widths), dtype=torch.bool), shared])
        return step * (time + 1) + column

    def _rows(self, x: Tensor) -> Tensor:
        return self._table.forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def _places(self, first: Tensor) -> Tensor:
        """Cosines and sines (B, 1, 2 P) of starts (B, 1) in the P periods."""
        angle = first[..., None] * (
            2 * torch.pi / torch.tensor(self.periods, dtype=torch.float64, device=first.device)
        )
        return torch.cat([angle.cos(), angle.sin()], -1)

    def inverse(self, x: Tensor) -> Tensor:
        """Model units (B, L, D) to table units (B, L, K) float64."""
        width = sum(self._table.widths)
        if self.start is None:
            return self._steps(x)
        real = (x != 0).any(-1)
        real = (real | ~real.any(1, keepdim=True))[..., None]
        mean = (x.double() * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
        at = sum(column.width for column in self.columns)
        first = self.start.inverse(mean[:, 0, at : at + self.start.width])
        places = mean[:, 0, width:].T.reshape(2, len(self.periods), x.shape[0])
        for period, cos, sin in zip(self.periods, *places, strict=True):
            turns = torch.atan2(sin, cos) / (2 * torch.pi) - first / period
            first = first + (turns - turns.round()) * period
        y = self._steps(x[..., :width])
        gaps = torch.cat([torch.zeros_like(y[:, :1, -1]), y[:, 1:, -1]], 1)
        times = self.start.rounded(first)[:, None] + gaps.cumsum(1)
        times = times if self.start.decimals is None else times.round(decimals=self.start.decimals)
        return torch.cat([y[..., :-2], times[..., None]], -1)

    def unrounded(self, x: Tensor) -> Tensor:
        """Times have no derivative."""
        if self.start is None:
            return self._table.unrounded(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        own = x[..., : sum(self._table.widths)].flatten(0, 1)
        channels = self._table.unrounded(own).unflatten(0, x.shape[:2])[..., :-2]
        return torch.cat([channels, self.inverse(x.detach())[..., -1:]], -1)

    def _steps(self, z: Tensor) -> Tensor:
        return self._table.inverse(z.flatten(0, 1)).unflatten(0, z.shape[:2])

    def features(self, x: Tensor) -> Tensor:
        """Model units of x (B, L, K), in which padding is 0: zeros at the end if lengths differ."""
        last = (x == 0).all(-1) & self.ragged
        return self.encode(x, last.flip(1).cumprod(1).flip(1).bool())

    def log_slopes(self, shape: Sequence[int]) -> Tensor:
        self.log_det(1)
        return self._table.log_slopes(()).expand(tuple(shape))

    def log_det(self, elements: int) -> float:
        """log |det d forward / dx| of a sample of ``elements`` elements, all steps real.

        Raises:
            UserError: lengths differ, times are learned, or as :meth:`TableTransform.log_det`.
        """
        if self.ragged:
            raise UserError("sequences of different lengths have no common log_det; train on those of one length")
        if self.start is not None:
            raise UserError(
                f"sequences differ in their times {self.start.name!r}, which have no density; leave --order-column out"
            )
        return elements // len(self.columns) * self._table.log_det(len(self.columns))

    def to_config(self) -> dict[str, Any]:
        own = {name: None if (c := getattr(self, name)) is None else c.to_config() for name in ("start", "gap")}
        own |= {"columns": [c.to_config() for c in self.columns], "periods": list(self.periods)}
        return {"kind": self.kind, "ragged": self.ragged, **own}

    @classmethod
    def from_config(cls, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> SequenceTransform:
        own = as_record({**config, **tensors}, _Entries, "the sequence transform")
        times = [None if one is None else column_from_config(one) for one in (own.start, own.gap)]
        if not all(time is None or isinstance(time, Number) for time in times):
            raise UserError("the start and gap of the times must be numbers; take another file")
        return cls(list(map(column_from_config, own.columns)), own.ragged, *times, own.periods)  # pyright: ignore


class _Entries(Record):
    columns: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    ragged: bool = False
    start: dict[str, Any] | None = None
    gap: dict[str, Any] | None = None
    periods: tuple[Annotated[float, Meta(gt=0, le=1e30)], ...] = ()


def _gaps(steps: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.diff(x[:, -1]) for x in steps])


def _periods(time: Number, span: float) -> list[float]:
    """Year, week and day in the units of a column of dates or times, those of at most ``span``."""
    unit = (arrow_time_unit(time.arrow) or "") if time.arrow else time.unit
    if not unit:
        return []
    day = float(np.timedelta64(1, "D") / np.timedelta64(1, unit)) / time.step
    return [days * day for days in (365.2425, 7.0, 1.0) if 1 < days * day <= span]


def _part(time: Number, every: np.ndarray, train: np.ndarray, scaling: str) -> Number:
    """Column of a part of the times: of all values (N,), fitted to those of training."""
    every = every if len(every) else np.zeros(1)
    if time.decimals is not None:
        every, train = every.round(time.decimals), train.round(time.decimals)
    column = Number(
        name=time.name,
        dtype="float64",
        scaling=time.scaling,
        low=float(every.min()),
        high=float(every.max()),
        decimals=time.decimals,
    )
    return fit_number(column, train if len(train) else every, scaling)
