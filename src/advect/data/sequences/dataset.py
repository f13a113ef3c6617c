"""Sequences of equal or varying length, and samples as sequences or tables."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypedDict

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from advect.core.bounds import Count, Finite, Share
from advect.core.errors import UserError, optional_import
from advect.core.registry import register
from advect.core.types import LENGTH, Condition, Conditions, DataSpec, Length
from advect.data.arrays import array_header
from advect.data.base import ArraySplit, Dataset, Detected, Preview
from advect.data.holes import Holes
from advect.data.sequences.files import (
    Ragged,
    SequenceIds,
    is_sequence_array,
    is_table,
    read_arrays,
    read_steps,
    step_columns,
)
from advect.data.sequences.transform import SequenceTransform
from advect.data.sequences.windows import shorten, split_in_time
from advect.data.splits import split_groups
from advect.data.tables.columns import column_from_config
from advect.data.tables.files import FileStyle, is_table_file
from advect.data.tables.infer_columns import column_values, condition_of


class IdEntries(TypedDict):
    """Arguments of :class:`SequenceIds`."""

    first: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
    prefix: str | None
    width: Annotated[int, Meta(ge=0, le=15)]


class SequenceMetadata(TypedDict):
    """JSON that :func:`steps_of` needs to write tables without the data.

    Configurations of the columns of channels, of the order and of the conditions; the values of the order if all
    sequences share them, else it is the last column of samples if there is one. Names of the id column, and of
    sequences after those of the data (:class:`SequenceIds`). Names of the columns of a table in its order, and the
    style of its file.
    """

    columns: list[dict[str, Any]]
    order: dict[str, Any] | None
    order_values: list[Finite] | None
    id: str
    ids: IdEntries
    conditions: list[dict[str, Any]]
    names: list[str]
    style: FileStyle | None


@register("sequences")
class Sequences(Dataset):
    """Sequences (L, C), channels scaled as columns of a table over real steps; padding is 0 in model units.

    Ranges, common values such as zeros, decimal places, whole numbers, booleans and words come back. So do the times
    of steps: if sequences differ in them, they are learned, see :class:`SequenceTransform`. If lengths differ, the
    condition ``LENGTH`` (B,) int64 in 1 .. L gives them. Copies of a sequence, and windows of one, share a side of the
    split.

    Args:
        data: array (N, L, C), list of (L_i, C), ``.npy`` or ``.npz`` file (``values``, and ``lengths`` if they
            differ), or a table with one row per step: CSV or Parquet file or pandas DataFrame.
        lengths: real steps of each sequence in one array (see :func:`read_arrays`).
        id_column: table column that identifies sequences; without it the rows are one series, for windows.
        order_column: table column that orders steps, such as a time.
        value_columns: table columns of the channels; default all others.
        labels: conditions of arrays by name, (N,) each.
        conditions: columns of a table, or names of arrays (N,) in an archive. Reals become a ``Quantity``, texts and
            whole numbers a ``Category``.
        scaling: scaling of numbers, "quantile" (to standard normal), "standard" (mean 0, deviation 1), or "auto":
            quantiles where one value has 5% of the steps or some lie 10 deviations from the mean.
        missing, decimal, date_order: reading of CSV, as for ``Table``.
        max_length: maximum length; None for no limit.
        long: treatment of longer sequences: "truncate" keeps the first steps, "window" cuts consecutive windows of
            ``max_length`` steps and the rest.
        stride: steps from the start of a window to that of the next, which then overlap; without the rest.
        holes: missing values, NaN in arrays, are unknown ones of the same law: never learned, and not filled in.
            Otherwise they are refused.
        held_out: share of the sequences held out at random, of windows of one series the last, in [0, 1).
        seed: seed of the split.
        name: name in reports; default the file's name.

    Raises:
        UserError: the data or an argument is invalid.
    """

    place: ClassVar[str | None] = "the file of sequences"
    usual_preset: ClassVar[str | None] = "sequences"
    part_given: ClassVar[tuple[str, ...]] = ("lengths", "labels", "seed", "name")

    @classmethod
    def recognises(cls, path: Path) -> Detected | None:
        if is_table_file(path):
            words = "a CSV or Parquet table of one row a step"
            return Detected(70 if step_columns(path) is not None else 50, words, "sequence")
        there = is_sequence_array(path)
        return Detected(40, "a .npy or .npz file of sequences (N, L, C)", "sequence") if there else None

    @classmethod
    def preview(cls, path: Path) -> Preview:
        array = array_header(path)
        if array is not None:
            regular = len(array.shape) == 3
            return Preview(f"an array of {array.shape[0]:,} sequences" if regular else "an archive of sequences")
        columns = step_columns(path)  # else the person names them
        options = {} if columns is None else {"id_column": columns[0], "order_column": columns[1]}
        return Preview("a table of one row a step", options)

    def __init__(
        self,
        data: Any,
        *,
        lengths: Any = None,
        labels: Mapping[str, Any] | None = None,
        id_column: str | None = None,
        order_column: str | None = None,
        value_columns: Sequence[str] = (),
        conditions: Sequence[str] = (),
        scaling: Literal["auto", "quantile", "standard"] = "auto",
        missing: Sequence[str] = (),
        decimal: Literal["auto", ".", ","] = "auto",
        date_order: Literal["auto", "dmy", "mdy"] = "auto",
        max_length: Count | None = None,
        long: Literal["truncate", "window"] = "truncate",
        stride: Count | None = None,
        holes: bool = False,
        held_out: Share = 0.1,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        if is_table(data) and id_column is None and (max_length is None or long != "window"):
            raise UserError(
                "Sequences.id_column is not given; name the column of the table that tells sequences apart, or "
                "take windows of one series by --max-length and --long window"
            )
        columns = {"id": id_column, "order": order_column, "values": value_columns, "conditions": conditions}
        words = {"missing": missing or None, "decimal": decimal, "date_order": date_order}
        ragged = _read(data, {"lengths": lengths, "labels": labels}, columns, words, holes)
        series = len(ragged.steps)
        ragged, groups = shorten(ragged, max_length, long, stride)
        if series == 1 and max_length:
            train, rest = split_in_time(len(groups), -(-max_length // (stride or max_length)) - 1, held_out)
        else:
            train, rest = split_groups(groups, held_out, seed=seed)
        is_train = np.zeros(len(groups), bool)
        is_train[train] = True

        sizes = np.array([len(x) for x in ragged.steps], np.int64)
        specs, cond = _conditions(ragged, sizes, is_train)
        self._ids, self._told = ragged.ids, [column for column, _ in ragged.conditions.values()]
        self._key = id_column or next(name for name in ("id", "series", "window") if name not in ragged.names)
        self._order, self._times = ragged.columns[-1] if ragged.timed else None, None
        if ragged.timed:
            ragged, self._times = _without_common_times(ragged)
        self._columns, self._style = ragged.columns[: ragged.channels], ragged.style
        self._names = ragged.names if id_column or not ragged.names else (self._key, *ragged.names)
        transform = SequenceTransform.fit(ragged.steps, train, ragged.columns, scaling=scaling, timed=ragged.timed)
        x = _padded(ragged.steps, int(sizes.max()), transform)
        super().__init__(
            name=name or (Path(data).name if isinstance(data, str | os.PathLike) else "sequences"),
            spec=DataSpec(x.shape[1:], "sequence", specs),
            transform=transform,
            train=ArraySplit(x, cond, rows=train),
            held_out=ArraySplit(x, cond, rows=rest),
            fingerprint=_fingerprint(ragged, train, scaling),
        )
        self.holes = Holes.find(self) if holes else None

    @property
    def metadata(self) -> SequenceMetadata:
        return {
            "columns": [column.to_config() for column in self._columns],
            "order": None if self._order is None else self._order.to_config(),
            "order_values": self._times,
            "id": self._key,
            "ids": {"first": self._ids.first, "prefix": self._ids.prefix, "width": self._ids.width},
            "conditions": [column.to_config() for column in self._told],
            "names": list(self._names),
            "style": self._style,
        }


def _read(
    data: Any, arrays: Mapping[str, Any], columns: Mapping[str, Any], words: Mapping[str, Any], holes: bool
) -> Ragged:
    """Sequences from a table by its ``columns``, else with the ``arrays`` of lengths and labels."""
    if isinstance(columns["conditions"], str) or isinstance(columns["values"], str):
        raise UserError("conditions and value_columns must be several names, got one text; write (name,)")
    if is_table(data):
        if extra := [name for name, value in arrays.items() if value is not None]:
            raise UserError(f"{' and '.join(extra)} are for arrays, and the sequences are a table; leave them out")
        return read_steps(data, holes=holes, **columns, **words)
    if columns["id"] is not None or columns["order"] is not None or columns["values"]:
        raise UserError("id_column, order_column and value_columns are for tables of one row a step; leave them out")
    return read_arrays(data, arrays["lengths"], arrays["labels"] or columns["conditions"], holes=holes)


def sequences_of(x: Tensor, cond: Conditions | None) -> list[np.ndarray]:
    """Samples (B, L, C) in data units as a list of (L_i, C), cut to the lengths in ``cond`` if given."""
    whole = x.detach().cpu().numpy()
    if not cond or LENGTH not in cond:
        return list(whole)
    return [row[:length] for row, length in zip(whole, cond[LENGTH].tolist(), strict=True)]


def steps_of(x: Tensor, cond: Conditions | None, facts: SequenceMetadata, *, first: int = 0, text: bool = True) -> Any:
    """Samples as a pandas DataFrame with one row per step.

    Columns are those of the table in its order, the names of sequences going on after those of the data, with
    ``first``; for arrays the id, the number of the step, ``step``, conditions and channels.

    Args:
        x: (B, L, K) in table units, from the transform's ``inverse``.
        cond: as given to networks; null or absent conditions become missing values.
        facts: ``Sequences.metadata``.
        first: number of the first sample.
        text: write text columns as they were written; else restore the types of the table read.

    Raises:
        UserError: x has other channels, or pandas is not installed.
    """
    pd = optional_import("pandas", "tables")
    columns, known = list(map(column_from_config, facts["columns"])), facts["order_values"]
    order = None if facts["order"] is None else column_from_config(facts["order"])
    width = len(columns) + (order is not None and known is None)
    if x.ndim != 3 or x.shape[2] != width:
        raise UserError(f"x must be (B, L, {width}) in table units, got {tuple(x.shape)}; apply inverse")
    rows = sequences_of(x, cond)
    sizes = [len(row) for row in rows]
    place = np.repeat(np.arange(len(rows)), sizes)
    step = np.concatenate([np.arange(size) for size in sizes]) if sizes else place
    values = np.ascontiguousarray(np.concatenate(rows).T, np.float64) if rows else np.empty((width, 0))
    series = lambda column, own: column.to_text(own) if text else column.to_series(own)
    parts: list[Any] = [pd.Series(SequenceIds(**facts["ids"]).names(first + place), name=facts["id"])]
    if order is not None:
        parts.append(series(order, values[-1] if known is None else np.array(known, np.float64)[step]))
    elif not facts["names"]:
        taken = "step" in [column.name for column in columns]
        parts.append(pd.Series(step, name="step_number" if taken else "step"))
    for column in map(column_from_config, facts["conditions"]):
        given = (cond or {}).get(column.name)
        told = torch.full((len(x),), torch.nan) if given is None else column_values(column, given.detach().cpu())
        parts.append(series(column, told.double().numpy()[place]))
    parts += [series(column, own) for column, own in zip(columns, values, strict=False)]
    frame = pd.concat(parts, axis=1)
    return frame[facts["names"]] if facts["names"] else frame


def _conditions(
    ragged: Ragged, sizes: np.ndarray, is_train: np.ndarray
) -> tuple[dict[str, Condition], dict[str, np.ndarray]]:
    specs: dict[str, Condition] = {}
    cond: dict[str, np.ndarray] = {}
    for key, (column, values) in ragged.conditions.items():
        specs[key], cond[key] = condition_of(column, values, is_train)
    if sizes.min() < sizes.max():
        counts = np.bincount(sizes[is_train] - 1, minlength=int(sizes.max()))
        specs[LENGTH], cond[LENGTH] = Length(tuple((counts / is_train.sum()).tolist())), sizes
    return specs, cond


def _without_common_times(ragged: Ragged) -> tuple[Ragged, list[float] | None]:
    """Sequences without times that all share (shorter ones their prefix), and these; None if they differ."""
    longest = max(ragged.steps, key=len)[:, -1]
    if not all((x[:, -1] == longest[: len(x)]).all() for x in ragged.steps):
        return ragged, None
    steps = [x[:, :-1] for x in ragged.steps]
    return replace(ragged, steps=steps, columns=ragged.columns[:-1], timed=False), longest.tolist()


def _padded(steps: list[np.ndarray], length: int, transform: SequenceTransform, rows: int = 1024) -> np.ndarray:
    """Sequences in model units (N, length, D) float32."""
    parts = []
    for i in range(0, len(steps), rows):
        some = steps[i : i + rows]
        x = np.full((len(some), length, some[0].shape[1]), np.nan)
        for row, values in zip(x, some, strict=True):
            row[: len(values)] = values
        padding = np.arange(length) >= np.array([len(values) for values in some])[:, None]
        parts.append(transform.encode(torch.from_numpy(x), torch.from_numpy(padding)).numpy())
    return np.concatenate(parts)


def _fingerprint(ragged: Ragged, train: np.ndarray, scaling: str) -> str:
    """sha256 (hex) of steps and conditions with names, split and scaling."""
    columns = {key: getattr(column, "names", ()) for key, (column, _) in ragged.conditions.items()}
    channels = [[column.name, getattr(column, "names", ())] for column in ragged.columns]
    digest = hashlib.sha256(json.dumps([channels, columns, scaling]).encode())
    for x in (*ragged.steps, *(values for _, values in ragged.conditions.values())):
        digest.update(repr(x.shape).encode() + (x + 0.0).tobytes())
    digest.update(train.tobytes())
    return digest.hexdigest()
