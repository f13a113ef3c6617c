"""Forecasts: the question of the next steps of series, its answers as tables, and a fan plot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from advect.core.errors import UserError, optional_import
from advect.data.figure import SAMPLES, TEXT, caption, new_figure, style, to_image
from advect.data.sequences.dataset import SequenceMetadata
from advect.data.sequences.given import StepFile
from advect.data.tables.columns import Column, Number, column_from_config

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, eq=False)
class ForecastQuestion:
    """The last known steps of each series of a file, and the ``horizon`` after them.

    Attributes:
        file: the series.
        facts: ``Sequences.metadata``.
        steps: length L of the sequences of the flow.
        horizon: steps to draw, below L.
        history: most known steps; None for as many as L leaves.

    Raises:
        UserError: horizon and history are longer than the flow's sequences, or a series has no value there.
    """

    file: StepFile
    facts: SequenceMetadata
    steps: int
    horizon: int
    history: int | None = None

    def __post_init__(self) -> None:
        fix = "train on longer sequences (--max-length)"
        if self.horizon >= self.steps:
            raise UserError(
                f"--horizon {self.horizon} leaves no known step in the {self.steps} that the flow was trained on;"
                f" give at most {self.steps - 1}, or {fix}"
            )
        if self.history is not None and self.history + self.horizon > self.steps:
            raise UserError(
                f"--history {self.history} and --horizon {self.horizon} are {self.history + self.horizon} steps, and"
                f" the flow was trained on {self.steps}; give fewer, or {fix}"
            )
        if not any(isinstance(column, Number) for column in self.columns):
            raise UserError("the flow's channels are categories, which have no quantiles; see advect impute")
        for name, x in zip(self.file.names(), self.known(), strict=True):
            if np.isnan(x[:, : len(self.columns)]).all():
                of = f" of {name}" if name else ""
                raise UserError(f"the last {len(x)} steps{of} have no value; give the steps that are known")

    @property
    def columns(self) -> list[Column]:
        """The channels."""
        return list(map(column_from_config, self.facts["columns"]))

    @property
    def order(self) -> Number | None:
        """The times, if the data have them."""
        order = None if self.facts["order"] is None else column_from_config(self.facts["order"])
        assert order is None or isinstance(order, Number)
        return order

    @property
    def timed(self) -> bool:
        """Whether samples have times of their own."""
        return self.order is not None and self.facts["order_values"] is None

    def known(self) -> list[np.ndarray]:
        """The known steps (h_i, K) of each series."""
        most = self.steps - self.horizon if self.history is None else self.history
        return [x[-most:] for x in self.file.steps]

    def given(self) -> np.ndarray:
        """Sequences (n, L, K) in table units, NaN where asked for."""
        width = len(self.columns) + self.timed
        x = np.full((len(self.file.steps), self.steps, width), np.nan)
        for row, own in zip(x, self.known(), strict=True):
            row[: len(own)] = own[:, :width]
        return x

    def lengths(self) -> np.ndarray:
        """Steps (n,) of each sequence, the drawn ones included."""
        return np.array([len(x) + self.horizon for x in self.known()])

    def answer(self, x: np.ndarray) -> ForecastDraws:
        """The draws among samples (n * draws, L, K) of :meth:`given`, the draws of a series one after another."""
        n, known = len(self.file.steps), self.known()
        x = x.reshape(n, -1, *x.shape[1:])
        ahead = np.stack([own[:, len(h) : len(h) + self.horizon] for own, h in zip(x, known, strict=True)])
        times = None
        if self.order is not None:
            last = np.array([own[-1, -1] for own in self.file.steps])[:, None, None]
            if self.timed:  # the gaps of the draws, as times themselves end with those of the data
                before = np.stack([own[:, len(h) - 1 : len(h)] for own, h in zip(x, known, strict=True)])
                gaps = np.diff(np.concatenate([before, ahead], 2)[..., -1], axis=2)
            else:
                own = np.concatenate([np.diff(own[:, -1]) for own in self.file.steps])
                gaps = np.full(ahead.shape[:3], np.median(own) if len(own) else 1.0)
            times = last + gaps.cumsum(2)
        return ForecastDraws(self, ahead[..., : len(self.columns)], times)


@dataclass(frozen=True, eq=False)
class ForecastDraws:
    """Draws x (n, draws, horizon, C) of the next steps in table units, and their times (n, draws, horizon)."""

    question: ForecastQuestion
    x: np.ndarray
    times: np.ndarray | None

    def frame(self, *, text: bool) -> Any:
        """A row for each draw and step, in the columns of the data, with the number of the draw from 1 on."""
        draws = np.arange(1, 1 + self.x.shape[1])[None, :, None]
        return self._frame(self.question.columns, self.x, self.times, "draw", draws, text)

    def quantiles(self, *, text: bool) -> Any:
        """A row for each of ``QUANTILES`` and step, of the columns of numbers; times are their medians."""
        columns = self.question.columns
        numbers = [i for i, column in enumerate(columns) if isinstance(column, Number)]
        x = np.moveaxis(np.quantile(self.x[..., numbers], QUANTILES, axis=1), 0, 1)
        times = None if self.times is None else np.repeat(np.median(self.times, 1, keepdims=True), len(QUANTILES), 1)
        kept = [columns[i] for i in numbers]
        return self._frame(kept, x, times, "quantile", np.array(QUANTILES)[None, :, None], text)

    def _frame(
        self, columns: list[Column], x: np.ndarray, times: np.ndarray | None, title: str, marks: np.ndarray, text: bool
    ) -> Any:
        """Rows of x (n, m, horizon, C) with ``marks`` (1, m, 1) under a title."""
        pd = optional_import("pandas", "tables")
        file, order, shape = self.question.file, self.question.order, x.shape[:3]
        series = np.broadcast_to(np.arange(len(x))[:, None, None], shape).ravel()
        write = lambda column, own: column.to_text(own) if text else column.to_series(own)
        parts: dict[str, Any] = {}
        if file.frame is None:
            parts["id"] = pd.Series(series)
        elif file.id is not None:
            parts[file.id] = file.frame[file.id].iloc[file.starts[series]].reset_index(drop=True)
        if order is not None and times is not None:
            parts[order.name] = write(order, np.ascontiguousarray(times.ravel()))
        elif file.frame is None:
            ends = np.array([len(own) for own in file.steps])[:, None, None]
            parts["step"] = pd.Series(np.broadcast_to(ends + np.arange(shape[2]), shape).ravel())
        for name in file.conditions:
            if file.frame is not None:
                parts[name] = file.frame[name].iloc[file.starts[series]].reset_index(drop=True)
        for column, own in zip(columns, np.moveaxis(x, -1, 0).reshape(len(columns), -1), strict=True):
            own = column.rounded(torch.from_numpy(own)).numpy() if isinstance(column, Number) else own
            parts[column.name] = write(column, np.ascontiguousarray(own))
        names = [name for name in self.question.facts["names"] if name in parts]
        parts = {name: parts[name] for name in [*names, *(name for name in parts if name not in names)]}
        title = title if title not in parts else f"{title}_number"
        parts[title] = pd.Series(np.broadcast_to(marks, shape).ravel())
        return pd.concat(list(parts.values()), axis=1, keys=list(parts))


PANELS, COLUMNS, SHOWN = 12, 2, 4
"""Most panels of a fan plot and their columns, and known steps shown for each drawn one."""


def fan_plot(draws: ForecastDraws) -> Image.Image:
    """Median, and intervals of 50% and 90%, of the first series and channels after their known steps."""
    question = draws.question
    columns, names = question.columns, question.file.names()
    numbers = [i for i, c in enumerate(columns) if isinstance(c, Number) and not c.unit] or list(range(len(columns)))
    series = max(PANELS // len(numbers), 1)
    panels = [(i, c) for i in range(min(len(names), series)) for c in numbers][:PANELS]
    rows = -(-len(panels) // COLUMNS)
    figure = new_figure(1024, 190 * rows + 50)
    grid = figure.subplots(rows, min(COLUMNS, len(panels)), squeeze=False)
    for axes, place in zip(grid.flat, panels, strict=False):
        i, c = place
        style(axes)
        title = ", ".join(caption(part) for part in (names[i], columns[c].name) if part)
        axes.set_title(title, fontsize=8, color=TEXT, loc="left")
        _fan(axes, draws, i, c)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=4, fontsize=6.5, frameon=False, labelcolor=TEXT)
    return to_image(figure)


def _fan(axes: Axes, draws: ForecastDraws, i: int, c: int) -> None:
    """Draw channel c of series i."""
    question = draws.question
    own = question.known()[i][-SHOWN * question.horizon :]
    behind = own[:, -1] if question.order is not None else np.arange(1.0 - len(own), 1)
    ahead = np.arange(1.0, 1 + question.horizon) if draws.times is None else np.median(draws.times[i], 0)
    if question.order is None:
        axes.set_xlabel("steps after the last known one", fontsize=6, color=TEXT)
    behind, ahead = _as_dates(question.order, behind), _as_dates(question.order, ahead)
    low, below, middle, above, high = np.quantile(draws.x[i, ..., c], QUANTILES, axis=0)
    last = own[-1, c]
    joined = np.concatenate([behind[-1:], ahead])  # the fan opens at the last known value
    fan = lambda y: np.concatenate([[last], y]) if np.isfinite(last) else y
    where = joined if np.isfinite(last) else ahead
    axes.plot(behind, own[:, c], color=TEXT, linewidth=1.0, label="known", marker="." if len(own) == 1 else None)
    axes.fill_between(where, fan(low), fan(high), color=SAMPLES, alpha=0.2, linewidth=0, label="90%")
    axes.fill_between(where, fan(below), fan(above), color=SAMPLES, alpha=0.35, linewidth=0, label="50%")
    axes.plot(where, fan(middle), color=SAMPLES, linewidth=1.2, label="median")
    if behind.dtype.kind == "M":
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator(maxticks=6)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.xaxis.get_offset_text().set_fontsize(6)


def _as_dates(order: Number | None, x: np.ndarray) -> np.ndarray:
    """Table units (n,) of times as datetime64 for the axis; other numbers stay."""
    if order is None or not order.unit:
        return x
    return (np.rint(x * order.step).astype(np.int64) + order.origin).astype(f"M8[{order.unit}]")
