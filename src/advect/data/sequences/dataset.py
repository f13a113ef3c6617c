"""Sequences of equal or varying length, and samples as sequences or tables."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError, optional_import
from advect.core.registry import register
from advect.core.types import LENGTH, Condition, Conditions, DataSpec, Length
from advect.data.arrays import ArrayType, array_header
from advect.data.base import ArraySplit, Dataset, Detected, Preview
from advect.data.repeats import copied
from advect.data.sequences.files import Ragged, is_sequence_array, is_table, read_arrays, read_steps, step_columns
from advect.data.sequences.transform import SequenceScale
from advect.data.splits import split_groups
from advect.data.tables.columns import Categories, Column, Number, column_from_config
from advect.data.tables.files import FileStyle, is_table_file
from advect.data.tables.infer_columns import column_values, condition_of


class SequenceMetadata(TypedDict):
    """JSON that :func:`steps_of` needs to write tables without the data.

    Names of channels and of the columns of sequences (``id``) and steps (``order``); configurations of the channels'
    columns, of the conditions' and of the order's, with its values if all sequences share them. ``names`` are the
    columns of a table in its order and ``style`` that of its file; ``type`` is that of arrays.
    """

    channels: list[str]
    columns: list[dict[str, Any]]
    order_values: list[float] | None
    order_column: dict[str, Any] | None
    id: str
    order: str | None
    conditions: list[dict[str, Any]]
    names: list[str]
    style: FileStyle | None
    type: ArrayType


@register("sequences")
class Sequences(Dataset):
    """Sequences (L, C), each channel standardised over real steps; padding is 0 in model units.

    If lengths differ, the condition ``LENGTH`` (B,) int64 in 1 .. L gives them. Copies of a sequence, and windows of
    one, share a side of the split.

    Args:
        data: array (N, L, C), list of (L_i, C), ``.npy`` or ``.npz`` file (``values``, and ``lengths`` if they
            differ), or a table with one row per step: CSV or Parquet file or pandas DataFrame.
        lengths: real steps of each sequence in one array (see :func:`read_arrays`).
        id_column: table column that identifies sequences.
        order_column: table column that orders steps, such as a time.
        value_columns: table columns of the channels; default all others.
        labels: conditions of arrays by name, (N,) each.
        conditions: columns of a table, or names of arrays (N,) in an archive. Reals become a ``Quantity``, texts and
            whole numbers a ``Category``.
        missing, decimal, date_order: reading of CSV, as for ``Table``.
        max_length: maximum length; None for no limit.
        long: treatment of longer sequences: "truncate" keeps the first steps, "window" cuts consecutive windows of
            ``max_length`` steps and the rest.
        held_out: share of the sequences held out at random, in [0, 1).
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
        missing: Sequence[str] = (),
        decimal: Literal["auto", ".", ","] = "auto",
        date_order: Literal["auto", "dmy", "mdy"] = "auto",
        max_length: int | None = None,
        long: Literal["truncate", "window"] = "truncate",
        held_out: float = 0.1,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        if isinstance(conditions, str) or isinstance(value_columns, str):
            raise UserError("conditions and value_columns must be several names, got one text; write (name,)")
        names = id_column, order_column, value_columns
        if is_table(data):
            words = {"missing": missing or None, "decimal": decimal, "date_order": date_order}
            ragged = _read_table(data, lengths, *names, conditions, words)
        elif id_column is not None or order_column is not None or value_columns:
            raise UserError(
                "id_column, order_column and value_columns are for tables of one row a step; leave them out"
            )
        else:
            ragged = read_arrays(data, lengths, labels or conditions)
        ragged, groups = _shorten(ragged, max_length, long)
        train, rest = split_groups(groups, held_out, seed=seed)
        is_train = np.zeros(len(groups), bool)
        is_train[train] = True

        self._columns, self._order = ragged.columns, ragged.order
        self._channels, self._keys = ragged.channels, (id_column or "id", order_column)
        self._names, self._style, self._type = ragged.names, ragged.style, ragged.kind
        self._told = [column for column, _ in ragged.conditions.values()]
        sizes = np.array([len(x) for x in ragged.steps], np.int64)
        parts = [np.concatenate([ragged.steps[i] for i in part]) for part in (train, rest) if len(part)]
        transform = SequenceScale.fit(*parts, ragged=bool(sizes.min() < sizes.max()))
        specs, cond = _conditions(ragged, sizes, is_train)
        x = _padded(ragged.steps, int(sizes.max()), transform)
        super().__init__(
            name=name or (Path(data).name if isinstance(data, str | os.PathLike) else "sequences"),
            spec=DataSpec(x.shape[1:], "sequence", specs),
            transform=transform,
            train=ArraySplit(x, cond, rows=train),
            held_out=ArraySplit(x, cond, rows=rest),
            fingerprint=_fingerprint(ragged, train),
        )

    @property
    def metadata(self) -> SequenceMetadata:
        return {
            "channels": list(self._channels),
            "columns": [column.to_config() for column in self._columns],
            "order_values": None if self._order is None else self._order[1],
            "order_column": None if self._order is None else self._order[0].to_config(),
            "id": self._keys[0],
            "order": self._keys[1],
            "conditions": [column.to_config() for column in self._told],
            "names": list(self._names),
            "style": self._style,
            "type": self._type,
        }


def sequences_of(x: Tensor | np.ndarray, cond: Conditions | None) -> list[np.ndarray]:
    """Samples (B, L, C) in data units as a list of (L_i, C), cut to the lengths in ``cond`` if given."""
    whole = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
    if not cond or LENGTH not in cond:
        return list(whole)
    return [row[:length] for row, length in zip(whole, cond[LENGTH].tolist(), strict=True)]


def steps_of(
    x: Tensor | np.ndarray,
    cond: Conditions | None,
    facts: SequenceMetadata,
    *,
    first: int = 0,
    text: bool = False,
) -> Any:
    """Samples as a pandas DataFrame with one row per step, and the table's columns in its order: id from ``first``.

    Channels have the table's types. So has the order if all sequences of the data share its values; else the column
    ``step`` counts from 0 in its place, as it does for arrays.

    Args:
        x: (B, L, C) in data units.
        cond: as given to networks; null or absent conditions become missing values.
        facts: ``Sequences.metadata``.
        text: write values as in the text file instead of restoring types.

    Raises:
        UserError: x has other channels, or pandas is not installed.
    """
    pd = optional_import("pandas", "tables")
    channels = list(facts["channels"])
    if x.ndim != 3 or x.shape[2] != len(channels):
        raise UserError(f"x must be (B, L, {len(channels)}) in data units, got {tuple(x.shape)}; apply inverse")
    rows = sequences_of(x, cond)
    sizes = [len(row) for row in rows]
    place = np.repeat(np.arange(len(rows)), sizes)
    step = np.concatenate([np.arange(size) for size in sizes]) if sizes else place
    known = facts.get("order_values")
    series = lambda column, values: column.to_text(values) if text else column.to_series(values)
    parts: list[Any] = [pd.DataFrame({facts["id"]: first + place})]
    number = "step_number" if "step" in (*channels, *facts["names"]) else "step"
    if known and (config := facts.get("order_column")):
        parts.append(series(column_from_config(config), np.array(known, np.float64)[step]))
    elif facts["order"] is not None or not facts["names"]:
        parts.append(pd.Series(step, name=number))
    for column in map(column_from_config, facts["conditions"]):
        given = (cond or {}).get(column.name)
        told = torch.full((len(x),), torch.nan) if given is None else column_values(column, given.detach().cpu())
        parts.append(series(column, told.double().numpy()[place]))
    values = np.concatenate(rows) if rows else np.empty((0, len(channels)))
    configs = [column_from_config(config) for config in facts["columns"]] or [None] * len(channels)
    for name, column, own in zip(channels, configs, values.T, strict=True):
        parts.append(pd.Series(own, name=name) if column is None else series(column, _possible(column, own)))
    frame = pd.concat(parts, axis=1)
    return frame[[name if name in frame else number for name in facts["names"]]] if facts["names"] else frame


def _possible(column: Column, x: np.ndarray) -> np.ndarray:
    """Channel (S,) in table units, rounded to values that the column can have."""
    own = torch.from_numpy(np.ascontiguousarray(x)).double()
    if isinstance(column, Number):
        own = column.rounded(own)
    elif isinstance(column, Categories):
        own = own.round().clamp(0, len(column.names) - 1)
    return own.numpy()


def _read_table(
    data: Any,
    lengths: Any,
    id_column: str | None,
    order_column: str | None,
    value_columns: Sequence[str],
    conditions: Sequence[str],
    words: dict[str, Any],
) -> Ragged:
    """Sequences of a table of one row a step; ``words`` say how its text is read."""
    if id_column is None or lengths is not None:
        raise UserError("Sequences.id_column is not given; name the column of the table that tells sequences apart")
    columns = {"id": id_column, "order": order_column, "values": value_columns, "conditions": tuple(conditions)}
    return read_steps(data, **columns, **words)


def _shorten(ragged: Ragged, max_length: int | None, long: str) -> tuple[Ragged, np.ndarray]:
    """Sequences cut to ``max_length``, and the group (N,) of each that a split must keep together."""
    if long not in ("truncate", "window"):
        raise UserError(f"long must be 'truncate' or 'window', got {long!r}")
    if max_length is not None and max_length < 1:
        raise UserError(f"max_length must be at least 1 step, got {max_length}; None cuts none")
    if max_length is not None and long == "truncate":
        ragged = replace(ragged, steps=[x[:max_length] for x in ragged.steps])
    contents = [x.shape[0].to_bytes(8) + (x + 0.0).tobytes() for x in ragged.steps]
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    groups = np.unique(digests, return_inverse=True)[1].reshape(-1)
    groups = np.where(copied(_heads(ragged.steps), groups), groups, len(groups) + np.arange(len(groups)))
    groups = np.unique(groups, return_inverse=True)[1].reshape(-1)
    if max_length is None or long == "truncate":
        return ragged, groups
    owner = np.repeat(np.arange(len(ragged.steps)), [-(-len(x) // max_length) for x in ragged.steps])
    steps = [x[i : i + max_length] for x in ragged.steps for i in range(0, len(x), max_length)]
    conditions = {key: (column, values[owner]) for key, (column, values) in ragged.conditions.items()}
    return replace(ragged, steps=steps, conditions=conditions), groups[owner]


def _heads(steps: list[np.ndarray], values: int = 256) -> np.ndarray:
    """First values of each sequence (N, K), NaN after its end."""
    width = min(max(x.size for x in steps), values)
    heads = np.full((len(steps), width), np.nan)
    for row, x in zip(heads, steps, strict=True):
        row[: x.size] = x.reshape(-1)[:width]
    return heads


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


def _padded(steps: list[np.ndarray], length: int, transform: SequenceScale) -> np.ndarray:
    """Sequences in model units (N, length, C) float32."""
    x = np.zeros((len(steps), length, steps[0].shape[1]), np.float32)
    for row, values in zip(x, steps, strict=True):
        row[: len(values)] = transform.forward(torch.from_numpy(values)[None])[0].numpy()
    return x


def _fingerprint(ragged: Ragged, train: np.ndarray) -> str:
    """sha256 (hex) of steps, conditions with names, and split."""
    columns = {key: getattr(column, "names", ()) for key, (column, _) in ragged.conditions.items()}
    digest = hashlib.sha256(json.dumps([ragged.channels, columns]).encode())
    for x in (*ragged.steps, *(values for _, values in ragged.conditions.values())):
        digest.update(repr(x.shape).encode() + (x + 0.0).tobytes())
    digest.update(train.tobytes())
    return digest.hexdigest()
