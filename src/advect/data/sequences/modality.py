"""Sequences: archives and tables of steps, line plots."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from advect.core.errors import UserError
from advect.core.records import guarded
from advect.core.registry import register
from advect.core.types import LENGTH, Batch, Conditions, Length, without_padding
from advect.data.captions import condition_words, fit
from advect.data.figure import (
    ALARM,
    OTHERS,
    SAMPLES,
    TEXT,
    caption,
    new_figure,
    plot_unit,
    save_png,
    style,
    to_image,
)
from advect.data.given import GivenRows, check_asked, check_given
from advect.data.modality import Modality, condition_columns, write_npz
from advect.data.sequences.dataset import SequenceMetadata, steps_of
from advect.data.sequences.given import read_step_file
from advect.data.sequences.transform import SequenceTransform
from advect.data.tables.columns import Categories, Column, column_from_config
from advect.data.tables.files import write_in_style, write_table
from advect.data.tables.infer_columns import check_told

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS, COLUMNS, CHANNELS = 4, 4, 4
WIDTH, ROW, MARGIN = 1024, 165, 60
LINES: tuple[tuple[str, Any], ...] = ((SAMPLES, "-"), (OTHERS[0], "--"), (OTHERS[1], "-."), (OTHERS[2], ":"))


@register("sequence")
class SequencesModality(Modality[SequenceMetadata]):
    """Sequences (L, C): a table of steps if that was read, in its format; else samples.npz and samples.csv of steps.

    samples.npz has ``values`` in the type of the data, and ``lengths``; samples.csv needs pandas.
    """

    layout = "sequence"
    example_shape = (16, 4)
    record = SequenceMetadata
    usual_preset = "sequences"
    shown = 3
    trajectories = 4
    space = "the scaled channels"

    def describe(self, shape: Sequence[int]) -> str:
        steps, channels = shape
        return f"sequences of up to {steps:,} steps in {channels:,} channel{'s' * (channels != 1)}"

    @property
    def separator(self) -> str:
        style = self.metadata["style"]
        return style["separator"] or "," if style else ","

    def write_data(self, x: Tensor, conditions: Conditions, folder: Path, first: int) -> list[Path]:
        facts = self.metadata
        if style := facts["style"]:
            text = style["suffix"] == ".csv"  # sums of gaps may lie beyond what the type of times holds
            frame = guarded(
                lambda: steps_of(x, conditions, facts, first=first, text=text), "the times of these samples"
            )
            return [write_in_style(folder, frame, style)]
        named = {name: value for name, value in conditions.items() if name != LENGTH}
        values = _array(without_padding(x, conditions).numpy(), [column_from_config(c) for c in facts["columns"]])
        if LENGTH in conditions:
            values[np.arange(x.shape[1]) >= conditions[LENGTH].numpy()[:, None]] = 0
        arrays = {"values": values, **({"lengths": conditions[LENGTH]} if LENGTH in conditions else {})}
        files = [write_npz(folder, arrays, named, self.spec)]
        if find_spec("pandas") is not None:
            files.append(folder / "samples.csv")
            write_table(files[-1], steps_of(x, conditions, facts, first=first))
        return files

    def check_output(self, *, individual: bool = False) -> None:
        super().check_output(individual=individual)
        _ = self._written

    @cached_property
    def _written(self) -> None:
        """Raise UserError unless what the columns can have can be written, once."""
        style = self.metadata["style"]
        if style or find_spec("pandas") is not None:
            text = style is None or style["suffix"] == ".csv"
            start = self._steps.start
            for column, own in zip(self._channels, self._steps.columns, strict=True):
                column.check_written(text=text, others=own.ends.tolist())
            for column in self._order:
                column.check_written(text=text, others=() if start is None else start.ends.tolist())
            for column in self._told:
                column.check_written(text=text)

    @cached_property
    def _channels(self) -> list[Column]:
        return list(map(column_from_config, self.metadata["columns"]))

    @cached_property
    def _order(self) -> list[Column]:
        """The column of the order, if there is one."""
        order = self.metadata["order"]
        return [] if order is None else [column_from_config(order)]

    @cached_property
    def _told(self) -> list[Column]:
        """The columns of the conditions."""
        return list(map(column_from_config, self.metadata["conditions"]))

    def check_facts(self) -> None:
        facts, own = self.metadata, self._steps
        pairs = zip(self._channels, own.columns, strict=False)
        alike = (a.name == b.name and a.kind == b.kind and len(a.ends) == len(b.ends) for a, b in pairs)
        if len(self._channels) != len(own.columns) or not all(alike):
            raise UserError("the channels of samples and those of their file differ; take another file")
        times, timed = facts["order_values"], own.start is not None
        if timed != (bool(self._order) and times is None) or (times is not None and not self._order):
            raise UserError("the times of steps are not those of their column; take another file")
        if times is not None and len(times) < self.spec.shape[0]:
            raise UserError(f"{self.spec.shape[0]} steps must have a time each, got {len(times)}; take another file")
        names = [facts["id"], *(c.name for c in (*self._order, *self._told, *self._channels))]
        if facts["names"] and (len(set(names)) < len(names) or not set(facts["names"]) <= set(names)):
            raise UserError("the names of the table are not those of its columns; take another file")
        if (style := facts["style"]) and not {*style["index"], *style["unnamed"]} <= set(facts["names"]):
            raise UserError("the index has columns that the table has not; take another file")
        lengths = self.spec.conditions.get(LENGTH)
        if isinstance(lengths, Length) and len(lengths.frequencies) != self.spec.shape[0]:
            raise UserError(f"lengths must be 1 to {self.spec.shape[0]}, got shares of {len(lengths.frequencies)}")
        check_told(self._told, self.spec.conditions)

    @cached_property
    def _steps(self) -> SequenceTransform:
        assert isinstance(self.transform, SequenceTransform)
        return self.transform

    @property
    def groups(self) -> Tensor:
        """A channel, or the time, of a step is an entry; without a number where it is constant."""
        return self._steps.groups(self.spec.shape[0])

    def entry_name(self, entry: int) -> str:
        names = [column.name for column in self._steps.columns]
        names += [] if self._steps.start is None else [self._steps.start.name]
        step, column = divmod(entry, len(names))
        return f"{names[column]!r} at step {step}"

    def given(self, x: Tensor) -> Tensor:
        """Sequences (n, L, K) in table units, NaN where asked for, in model units (n, L, D), NaN where asked for.

        Raises UserError as :meth:`Modality.given`, and for values that a channel cannot have and times known after one
        that is asked for, which no gap tells.
        """
        steps = self._steps
        check_given(x, (self.spec.shape[0], len(steps.columns) + (steps.start is not None)))
        known = list(zip(steps.columns, x.double().unbind(2), strict=False))
        if steps.start is not None and steps.gap is not None:
            times = x[..., -1].double()
            if bool((times.isnan()[:, :-1] & ~times.isnan()[:, 1:]).any()):
                raise UserError(
                    f"given has times {steps.start.name!r} after unknown ones; give them from the first on"
                )
            known.append((steps.gap, times.diff(dim=1)))
        for column, values in known:
            if unfit := column.unfit(values.flatten().numpy()):
                place, why = unfit
                row, step = divmod(place, values.shape[1])
                raise UserError(f"given has {values[row, step]:g} in row {row}, step {step} of {column.name!r}: {why}")
        return steps.encode(x, torch.zeros(x.shape[:2], dtype=torch.bool))

    def given_rows(self, given: Any) -> Tensor:
        return torch.from_numpy(given.own[1]) if isinstance(given, GivenRows) else super().given_rows(given)

    def read_given(self, path: Path) -> GivenRows:
        """Sequences of a file in the form of the data, whose empty values, and steps after its last, are asked for."""
        file, length = read_step_file(path, self.metadata), self.spec.shape[0]
        steps, channels = self._steps, len(self._steps.columns)
        width = channels + (steps.start is not None)
        x = np.full((len(file.steps), length, width), np.nan)
        for row, own, name in zip(x, file.steps, file.names(), strict=True):
            if len(own) > length:
                of = f" of {name}" if name else ""
                raise UserError(f"{path} has {len(own)} steps{of}, and the flow was trained on {length}; give fewer")
            row[: len(own)] = own[:, :width]
        check_asked(str(path), np.isnan(np.concatenate(file.steps)[:, :channels]))
        told: dict[str, Any] = dict(file.conditions)
        if LENGTH in self.spec.conditions:
            told[LENGTH] = [len(own) for own in file.steps]
        return GivenRows(self.given(torch.from_numpy(x)), told, (file, x))

    def write_given(self, x: Tensor, conditions: Conditions, rows: GivenRows, draws: int, folder: Path) -> list[Path]:
        """A file for each draw, draw-1 and so on, as the one read with its empty values filled, and line plots."""
        file, files, columns = rows.own[0], [], list(self._steps.columns)
        for k in range(draws):
            pairs = zip(x[k::draws, :, : len(columns)].double().numpy(), file.steps, strict=True)
            files.append(file.answer([row[: len(own)] for row, own in pairs], columns, folder / f"draw-{k + 1}"))
        save_png(self.plot(x, conditions), folder / "samples.png")
        return [*files, folder / "samples.png"]

    def feature_space(self, x: Tensor) -> Tensor:
        """Sequences (n, L, K) in table units as scaled channels (n, L, D), 0 after their ends."""
        return self._steps.features(x)

    def plot(self, x: Tensor, conditions: Conditions, reference: Batch | None = None) -> Image.Image:
        """Line plots of samples beside data."""
        columns = self.metadata["columns"]
        numbers = [i for i, column in enumerate(columns) if column["kind"] == "number" and not column["unit"]]
        numbers = numbers or list(range(len(columns)))
        names = [columns[i]["name"] for i in numbers]
        words: dict[str, Any] = {"names": names, "captions": self._captions(conditions)}
        if reference is None:
            return series_plot(x[..., numbers], conditions.get(LENGTH), **words)
        cond = reference.cond or {}
        words["reference_captions"] = self._captions(cond)
        return series_plot(
            x[..., numbers], conditions.get(LENGTH), reference.x1[..., numbers], cond.get(LENGTH), **words
        )

    def _captions(self, conditions: Conditions) -> list[str]:
        """Conditions other than the length, in a line each for the plots."""
        some = {name: value[: ROWS * COLUMNS] for name, value in conditions.items() if name != LENGTH}
        title, words = condition_words(condition_columns(some, self.spec))
        alone = f"{title} " if len(some) == 1 else ""
        return [alone + own.replace("\n", ", ") for own in words]


def _array(x: np.ndarray, columns: Sequence[Column]) -> np.ndarray:
    """Table units (n, L, C) as the array that the columns are of: all of one type."""
    parts = [
        np.array(c.names)[x[..., i].astype(int)] if isinstance(c, Categories) else x[..., i]
        for i, c in enumerate(columns)
    ]
    whole = np.stack(parts, -1)
    return whole.astype(columns[0].dtype) if np.isfinite(whole).all() else whole


def series_plot(
    x: Tensor,
    lengths: Tensor | None = None,
    reference: Tensor | None = None,
    reference_lengths: Tensor | None = None,
    *,
    names: Sequence[str] = (),
    captions: Sequence[str] = (),
    reference_captions: Sequence[str] = (),
) -> Image.Image:
    """Draw the first sequences x (N, L, C) on the left, beside the first of ``reference`` (M, L, C).

    All plots share axes that span the data, or the samples if there is none. Draws up to eight of each, or sixteen
    samples without data, and the first four channels, named by ``names`` (C), under their captions. Steps from
    ``lengths`` (N,) on are padding. Raises UserError for another shape.
    """
    for value, argument in ((x, "x"), (reference, "reference")):
        if value is not None and (value.ndim != 3 or not value.numel()):
            raise UserError(f"{argument} must be sequences (N, L, C), got shape {tuple(value.shape)}")
    samples = _cut(x, lengths, ROWS * COLUMNS)
    data = [] if reference is None else _cut(reference, reference_lengths, ROWS * COLUMNS // 2)
    unit = plot_unit(*samples, *data)
    samples, data = [line / unit for line in samples], [line / unit for line in data]
    if data:
        samples = samples[: ROWS * COLUMNS // 2]
    half = COLUMNS // 2
    rows = max(-(-len(samples) // (half if data else COLUMNS)), -(-len(data) // half))
    figure = new_figure(WIDTH, ROW * rows + MARGIN)
    grid = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
    own, real = (grid[:, :half], grid[:, half:]) if data else (grid, grid[:, :0])
    for places, lines, words in ((own, samples, captions), (real, data, reference_captions)):
        for i, axes in enumerate(places.flat):
            _draw(axes, lines[i] if i < len(lines) else None)
            if i < min(len(lines), len(words)):
                axes.set_title(" ".join(fit(words[i], 170, 8)), fontsize=6.5, color=TEXT, loc="right", pad=2)
    low, high = _range(data or samples)
    grid[0, 0].set(xlim=(0, max(x.shape[1] - 1, 1)), ylim=(low, high))
    figure.supxlabel("step" + (f"; values in units of {unit:.3g}" if unit != 1 else ""), fontsize=7, color=TEXT)
    for places, title in ((own, "samples"), (real, "data")):
        if places.size:
            places[0, 0].set_title(title, fontsize=8, color=TEXT, loc="left", fontweight="bold")
    _legend(figure, x.shape[2], names)
    lost = int((~np.array([np.isfinite(line).all() for line in _cut(x, lengths, len(x))])).sum())
    if lost:
        grid[0, 1].set_title(f"{lost} of {len(x)} are not finite", fontsize=7, color=ALARM)
    return to_image(figure)


def _legend(figure, channels: int, names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    if channels == 1:
        return
    shown = [caption(name) for name in names or [f"channel {i + 1}" for i in range(channels)]][:CHANNELS]
    lines = [Line2D([], [], color=c, linestyle=s, linewidth=1.2) for c, s in LINES[: len(shown)]]
    title = f"the first {CHANNELS} of {channels} channels:" if channels > CHANNELS else None
    figure.legend(
        lines, shown, loc="outside upper right", ncols=CHANNELS, fontsize=6.5, frameon=False, title=title,
        title_fontsize=6.5, labelcolor=TEXT,
    )  # fmt: skip


def _cut(x: Tensor, lengths: Tensor | None, count: int) -> list[np.ndarray]:
    """First sequences of x (N, L, C) without padding, (L_i, at most 4)."""
    whole = x[:count, :, :CHANNELS].detach().cpu().double().numpy()
    ends = [x.shape[1]] * len(whole) if lengths is None else lengths[: len(whole)].tolist()
    return [line[:end] for line, end in zip(whole, ends, strict=True)]


def _draw(axes: Axes, line: np.ndarray | None) -> None:
    style(axes)
    if line is None:
        axes.set_axis_off()
        return
    for values, (colour, dash) in zip(line.T, LINES, strict=False):
        axes.plot(values, color=colour, linestyle=dash, linewidth=1.1, marker="." if len(values) == 1 else None)


def _range(lines: list[np.ndarray]) -> tuple[float, float]:
    """Value range of all plots, with a margin."""
    values = np.concatenate([line.ravel() for line in lines])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    room = 0.12 * (high - low) or 1.0
    return low - room, high + room
