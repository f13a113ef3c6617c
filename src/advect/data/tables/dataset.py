"""Tables with columns of any types from CSV, Parquet or pandas, and samples as tables."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NotRequired

import numpy as np
import torch
from torch import Tensor

from advect.core.bounds import Share
from advect.core.errors import UserError, optional_import, quoted_flag
from advect.core.registry import register
from advect.core.types import Conditions, DataSpec
from advect.data.base import ArraySplit, Dataset, Detected, Preview
from advect.data.holes import Holes
from advect.data.repeats import split_rows
from advect.data.splits import row_blocks
from advect.data.tables.coded import coded
from advect.data.tables.columns import Column, Number, column_from_config
from advect.data.tables.csv_files import require_columns
from advect.data.tables.family import FamilyFacts, open_kin
from advect.data.tables.files import FileStyle, is_table_file, style_of
from advect.data.tables.infer_columns import column_values, condition_of, fit_number, read_column, read_condition
from advect.data.tables.opened import Opened
from advect.data.tables.packed import Packed
from advect.data.tables.rules import learn_rules
from advect.data.tables.scaling import require_scaling
from advect.data.tables.transform import TableTransform
from advect.data.transforms import fit_codes, transform_from_config

logger = logging.getLogger(__name__)

_KEY = re.compile(r"(^|_)(id|key|index|no|nr)$")
"""Names of keys."""

_KEYS = 20
"""Fewest rows whose numbers may be told to be keys."""


class TableMetadata(FileStyle):
    """JSON that :func:`frame_of` needs to make data frames without the data.

    ``order`` of all columns; configurations of the transform and of the condition columns.
    """

    order: list[str]
    transform: dict[str, Any]
    conditions: list[dict[str, Any]]
    family: NotRequired[FamilyFacts]
    """Of a table of children."""


@register("table")
class Table(Dataset):
    """Table rows as vectors (D,): scaled numbers, categories as +-1 codes, an indicator where values are missing.

    Numbers, whole numbers, booleans, categories, text, times and missing values return in their own types. Copies of a
    row share a side of the split; rows equal by coincidence do not, and values of a column of few reach both sides.
    Constant columns are restored, not learned.

    Args:
        data: file (see :func:`read_table`) or pandas DataFrame.
        conditions: columns used as conditions: numbers become a ``Quantity``; others, and whole numbers of at most
            ``FEW`` values, a ``Category``; missing values are null.
        continuous_conditions: further condition columns of numbers, always a ``Quantity``.
        scaling: scaling of numbers, "quantile" (to standard normal) or "standard" (mean 0, deviation 1).
        drop: columns to leave out.
        categorical: columns of numbers or text whose values are names, such as postcodes.
        numeric: CSV columns of numbers that look like codes, such as 007.
        missing: CSV words that are missing values in every column. Default: NA, None and the like among numbers, dates
            and booleans, not among words; empty fields always.
        decimal: decimal mark of CSV, "." or ","; "auto" infers it from all values of a column.
        date_order: order of text dates such as 03/04/2020, "dmy" or "mdy"; "auto" infers it from all values.
        holes: missing values are unknown ones of the same law: never learned or drawn. Otherwise being missing is
            itself learned, and drawn as often.
        parent: file or DataFrame of parents, of which each row of ``data`` is a child: their columns but the key are
            further conditions, and children are drawn for parents that are given, see ``tables/family.py``.
        key: column of both tables that tells the parent of a row; never learned.
        rule: what always holds among columns, such as "total == a + b", "0 <= low <= high" or "code == f(name)";
            columns that follow from others are put in, and rows that break a comparison are drawn anew.
        held_out: share of the rows held out at random, in [0, 1).
        seed: seed of the split.
        name: name in reports; default the file's name.

    Raises:
        UserError: the file, a column or an argument is invalid.
    """

    place: ClassVar[str | None] = "the CSV or Parquet file"
    usual_preset: ClassVar[str | None] = "table"
    part_given: ClassVar[tuple[str, ...]] = ("seed", "name")

    @classmethod
    def recognises(cls, path: Path) -> Detected | None:
        return Detected(60, "a CSV or Parquet table", "table") if is_table_file(path) else None

    @classmethod
    def preview(cls, path: Path) -> Preview:
        return Preview("a table of one row a sample")

    def __init__(
        self,
        data: Any,
        *,
        conditions: Sequence[str] = (),
        continuous_conditions: Sequence[str] = (),
        scaling: Literal["quantile", "standard"] = "quantile",
        drop: Sequence[str] = (),
        categorical: Sequence[str] = (),
        numeric: Sequence[str] = (),
        missing: Sequence[str] = (),
        decimal: Literal["auto", ".", ","] = "auto",
        date_order: Literal["auto", "dmy", "mdy"] = "auto",
        holes: bool = False,
        parent: str | None = None,
        key: str | None = None,
        rule: Sequence[str] = (),
        held_out: Share = 0.1,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        require_scaling(scaling)
        words = {"numeric": numeric, "missing": missing or None, "decimal": decimal, "date_order": date_order}
        given, kin = open_kin(data, parent, key, drop, categorical, words)
        above = [] if kin is None else kin.names
        names = [*given.names, *above]
        wanted = {"conditions": conditions, "continuous_conditions": continuous_conditions, "categorical": categorical}
        for argument, some in wanted.items():
            require_columns(names, some, argument)
        told = [column for column in names if column in {*conditions, *continuous_conditions, *above}]

        self._style = style_of(data, given.attrs, names)
        how: dict[str, dict[str, Any]] = {c: {"categorical": c in categorical} for c in names}
        for c in names:
            how[c] |= {"continuous": c in continuous_conditions} if c in told else {"date_order": date_order}
        columns, values = _read(given, told, how)
        family = None if kin is None else kin.join(columns, values, how)
        if family is not None:
            columns, values = family.columns, family.values
        note_keys(columns, values, told)
        if len(values) == 1:
            raise UserError(f"{name or data_name(data)} has one row, and a law takes several to learn; give more")
        learned = [i for i, c in enumerate(columns) if c not in told]
        drawn = [column for c, column in columns.items() if c not in told]
        rules = learn_rules(rule, drawn, values[:, learned], conditions=told, unknown=holes) if rule else ()
        # The split needs the values and the scalings need the split.
        train, rest = split_rows(values, held_out, seed=seed) if family is None else family.split(held_out, seed=seed)
        is_train = np.zeros(len(values), bool)
        is_train[train] = True
        for (c, column), own in zip(columns.items(), values.T, strict=True):
            if isinstance(column, Number):
                columns[c] = fit_number(column, own[is_train], "standard" if c in told else scaling)
            if holes and c not in told:
                columns[c] = replace(columns[c], missing=False)
            if c not in told and (scaling == "quantile" or not isinstance(column, Number)):
                columns[c] = coded(columns[c], own, own[is_train])

        self._order = list(columns)
        self._family = None if family is None else family.facts
        self._told = [columns[c] for c in told]
        transform = TableTransform([columns[self._order[i]] for i in learned], rules)
        packed = Packed(sum(transform.widths), transform.code_places)
        x = np.empty((len(values), packed.width), np.float32)
        for block in row_blocks(values, 1 << 17):
            x[block] = packed.pack(transform.forward(torch.from_numpy(values[block][:, learned])).numpy())
        specs = {c: condition_of(columns[c], values[:, self._order.index(c)], is_train) for c in told}
        cond = {c: v for c, (_, v) in specs.items()}
        blocks = (packed.forward(torch.from_numpy(x[train[i]])) for i in row_blocks(train, 1 << 14))
        super().__init__(
            name=name or data_name(data),
            spec=DataSpec(
                (packed.elements,),
                "table",
                {c: spec for c, (spec, _) in specs.items()},
                codes=fit_codes(transform.code_places, blocks),
            ),
            transform=transform,
            train=ArraySplit(x, cond, packed, rows=train),
            held_out=ArraySplit(x, cond, packed, rows=rest),
            fingerprint=_fingerprint(values, train, transform, self._told, self._family),
        )
        self.holes = Holes.find(self) if holes else None

    @property
    def metadata(self) -> TableMetadata:
        facts: TableMetadata = {
            **self._style,
            "order": self._order,
            "transform": self.transform.to_config(),
            "conditions": [column.to_config() for column in self._told],
        }
        if self._family is not None:
            facts["family"] = self._family
        return facts


def frame_of(x: Tensor, cond: Conditions | None, facts: TableMetadata, *, text: bool = False) -> Any:
    """Samples as a pandas DataFrame like the training table, conditions in their places.

    Args:
        x: (B, K) in table units, from the transform's ``inverse``.
        cond: as given to networks; null or absent conditions become missing values.
        facts: ``Table.metadata``.
        text: write values as in the text file instead of restoring types.

    Raises:
        UserError: x has other columns, or pandas is not installed.
    """
    pd = optional_import("pandas", "tables")
    transform = transform_from_config(facts["transform"])
    assert isinstance(transform, TableTransform)
    if x.ndim != 2 or x.shape[1] != len(transform.columns):
        raise UserError(f"x must be (B, {len(transform.columns)}) in table units, got {tuple(x.shape)}; apply inverse")
    parts = [transform.to_frame(x, text=text)]
    for column in map(column_from_config, facts["conditions"]):
        given = (cond or {}).get(column.name)
        values = torch.full((len(x),), torch.nan) if given is None else column_values(column, given.detach().cpu())
        own = values.double().numpy()
        parts.append(column.to_text(own) if text else column.to_series(own))
    return pd.concat(parts, axis=1)[list(facts["order"])]


def _read(given: Opened, told: Sequence[str], how: Mapping[str, Any]) -> tuple[dict[str, Column], np.ndarray]:
    """Columns, conditions among them, and their values (N, K) in table units; each is read with the words ``how``."""
    values, columns = np.empty((0, 0)), {}
    for i, (series, form) in enumerate(given.columns):
        c, read = series.name, read_condition if series.name in told else read_column
        if not i:
            values = np.empty((len(series), len(given.names)), order="F")
        columns[c], values[:, i] = read(series, form=form or None, **how[c])
        del series  # freed before the next is read
    return columns, values


def data_name(data: Any) -> str:
    """Name of a path, or "table"."""
    return Path(data).name if isinstance(data, str | os.PathLike) else "table"


def note_keys(columns: Mapping[str, Column], values: np.ndarray, told: Sequence[str]) -> None:
    """Tell of learned columns of whole numbers, another in each of the rows, with a key's name or without a gap."""
    for (name, column), x in zip(columns.items(), values.T, strict=True):
        if not isinstance(column, Number) or column.decimals != 0 or column.unit or column.missing or name in told:
            continue
        alike = _KEY.search(name.lower()) or column.high - column.low == len(x) - 1
        if alike and len(x) >= _KEYS and len(np.unique(x)) == len(x):
            logger.info(
                f"note: column {name!r} has another whole number in each row, as a key has; it is learned as a number,"
                f" so that samples may repeat one; {quoted_flag('drop', name)} leaves it out"
            )


def _fingerprint(
    values: np.ndarray, train: np.ndarray, transform: TableTransform, told: list[Column], family: FamilyFacts | None
) -> str:
    """sha256 (hex) of values, split, columns but not their pandas types, and numbers of children."""
    digest = hashlib.sha256()
    # One by one, as the text of all columns of a wide table is long.
    for i, part in enumerate((*transform.columns, *told, *transform.rules)):
        meaning = part.to_config()
        for key in ("dtype", "category_dtype", "form", "arrow"):
            meaning.pop(key, None)
        digest.update((", " if i else "[").encode() + json.dumps(meaning, sort_keys=True).encode())
    digest.update(b"]")
    digest.update(repr(values.shape).encode())
    for block in row_blocks(values, 1 << 17):
        digest.update(np.ascontiguousarray(values[block] + 0.0).tobytes())
    digest.update(train.tobytes())
    digest.update(json.dumps(family, sort_keys=True).encode() if family is not None else b"")
    return digest.hexdigest()
