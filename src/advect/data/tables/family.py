"""Two tables with a key: rows of one, the children, each of a row of the other, its parent.

A child is learned given the other columns of its parent, as conditions. The key itself is never learned: children are
drawn for parents that are given, as many for each as a law of counts says, and take the parent's key over.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError, did_you_mean, optional_import, quoted_flag
from advect.core.random import CounterRng, Stream, stream_seed
from advect.data.parquet_columns import PARQUET
from advect.data.repeats import split_rows
from advect.data.tables.columns import Column
from advect.data.tables.counts import CountLaw, count_law_from_config, features_of
from advect.data.tables.csv_files import require_columns
from advect.data.tables.files import read_table
from advect.data.tables.given import series_units, word_units
from advect.data.tables.infer_columns import condition_codes, read_condition
from advect.data.tables.opened import Opened, names_of, open_table
from advect.data.tables.raw_csv import read_raw

logger = logging.getLogger(__name__)


class FamilyFacts(TypedDict):
    """JSON of a table of children: its ``key``, its own ``columns`` with the key in its place, its parents' columns
    that are conditions, and the law of ``counts`` given these.
    """

    key: str
    columns: list[str]
    parents: list[str]
    counts: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Family:
    """Children joined with their parents.

    Attributes:
        columns: of the children, without the key, then of the parents.
        values: (N, K) in their table units, NaN where missing.
        parents: (P, J) those of the parents alone.
        place: (N,) parent of each child.
        facts: for the weight files.
    """

    columns: dict[str, Column]
    values: np.ndarray
    parents: np.ndarray
    place: np.ndarray
    facts: FamilyFacts

    def split(self, held_out: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Training and held-out children: those of a parent share a side. Raises UserError without training ones."""
        train, _ = split_rows(self.parents, held_out, seed=seed)
        own = np.isin(self.place, train)
        if not own.any():
            raise UserError("no child is left to train on, as all have parents that are held out; give --held-out 0")
        return np.flatnonzero(own), np.flatnonzero(~own)


@dataclass(eq=False)
class Kin:
    """The parents of a table that is about to be read, and its keys once it is."""

    key: str
    order: Sequence[str]
    opened: Opened
    keys: Any = None

    @property
    def names(self) -> list[str]:
        """The parents' columns but the key."""
        return [name for name in self.opened.names if name != self.key]

    def without_keys(self, children: Opened) -> Opened:
        """The children without the column of the keys, which is kept here when it is read."""

        def columns() -> Iterator[tuple[Any, Mapping[str, Any]]]:
            for series, form in children.columns:
                if series.name == self.key:
                    self.keys = series.reset_index(drop=True)
                else:
                    yield series, form

        return Opened([name for name in children.names if name != self.key], children.attrs, columns())

    def join(self, columns: dict[str, Column], values: np.ndarray, how: Mapping[str, Any]) -> Family:
        """Children, of their columns and values (N, K), with their parents, read with the words ``how``.

        Raises UserError for keys that are missing, that two parents share, or that no parent has.
        """
        keys, above, own = None, {}, []
        for series, form in self.opened.columns:
            if series.name == self.key:
                keys = series
                continue
            above[series.name], found = read_condition(series, form=form or None, **how[series.name])
            own.append(found)
        _check_keys(keys, self.key, "the parents")
        assert keys is not None
        place, parents = _places(keys, self.keys, self.key), np.stack(own, 1)
        counts = np.bincount(place, minlength=len(keys))
        law = CountLaw.fit(features_of(list(above.values()), parents), counts)
        logger.info(
            f"{len(keys):,} parents with {counts.min():,} to {counts.max():,} children, {counts.mean():.3g} on average"
        )
        facts: FamilyFacts = {
            "key": self.key,
            "columns": list(self.order),
            "parents": list(above),
            "counts": law.to_config(),
        }
        return Family(columns | above, np.concatenate([values, parents[place]], 1), parents, place, facts)


def open_kin(
    data: Any, parent: Any, key: str | None, drop: Sequence[str], categorical: Sequence[str], words: Mapping[str, Any]
) -> tuple[Opened, Kin | None]:
    """Open a table, of children without their keys where there is a ``parent`` table; ``drop`` and others are of both.

    Raises UserError as :func:`open_table`, and unless both have the key and share no other column.
    """
    if parent is None:
        if key is not None:
            raise UserError(f"key {key!r} tells the parent of a row, and there are no parents; give --parent, too")
        return open_table(data, drop, categorical, words), None
    children, parents = names_of(data), names_of(parent)
    _check_names(children, parents, key, drop)
    assert key is not None
    for argument, some in {"drop": drop, "numeric": words["numeric"]}.items():
        require_columns([*children, *parents], some, argument)

    def opened(table: Any, names: Sequence[str]) -> Opened:
        own = {**words, "numeric": [c for c in words["numeric"] if c in names]}
        return open_table(table, [c for c in drop if c in names], [*categorical, key], own)

    given, above = opened(data, children), opened(parent, parents)
    kin = Kin(key, given.names, above)
    if len(given.names) < 2:
        raise UserError(f"the children have no column but {key!r}, so nothing to learn; give others")
    if not kin.names:
        raise UserError(f"the parents have no column but {key!r}, so nothing to draw children by; train without them")
    return kin.without_keys(given), kin


def _places(keys: Any, own: Any, key: str) -> np.ndarray:
    """Parent (N,), of ``keys`` (P,), of each child's ``own`` (N,). Raises UserError for children without one."""
    absent = own.isna()
    if absent.any():
        raise UserError(
            f"the key {key!r} is missing in {int(absent.sum()):,} of {len(own):,} children, the first in row"
            f" {int(absent.to_numpy().argmax())}; remove or mend these rows"
        )
    by_key = {value: i for i, value in enumerate(keys.tolist())}
    found = np.array([by_key.get(value, -1) for value in own.tolist()], np.int64)
    if (found < 0).any():
        lost = np.flatnonzero(found < 0)
        first = own.iloc[lost[0]]
        plain = lambda word: str(word).strip().lstrip("0") or "0"
        same = next((value for value in by_key if plain(value) == plain(first)), None)
        alike = "" if same is None else f" (a parent has {same!r}; write both alike)"
        raise UserError(
            f"{len(lost):,} of {len(own):,} children have a {key!r} that no parent has, the first {first!r}{alike};"
            " remove these rows, or add their parents"
        )
    return found


def _check_keys(keys: Any, key: str, what: str) -> None:
    """Raise UserError where a key (P,) is missing, or that of two parents."""
    if keys.isna().any():
        raise UserError(f"{what} have no {key!r} in row {int(keys.isna().to_numpy().argmax())}; fill it in")
    twice = keys[keys.duplicated()]
    if len(twice):
        raise UserError(
            f"{what} have the {key!r} {twice.iloc[0]!r} twice ({len(twice):,} rows repeat a key); keep one row a key"
        )


def _check_names(children: Sequence[str], parents: Sequence[str], key: str | None, drop: Sequence[str]) -> None:
    """Raise UserError unless the columns' names of both tables have the key, and share nothing else."""
    if key is None:
        shared = [name for name in children if name in parents]
        maybe = f", such as {quoted_flag('key', shared[0])}" if shared else ""
        raise UserError(f"parent needs key, the column that tells which parent a row has{maybe}; give --key")
    for what, names in (("data", children), ("parent", parents)):
        if key not in names:
            raise UserError(f"key has {key!r}, which is no column of {what}{did_you_mean(key, names)}")
    if key in drop:
        raise UserError(f"the key {key!r} is in drop; take it out, as it is never learned")
    both = [name for name in children if name in parents and name != key and name not in drop]
    if both:
        raise UserError(
            f"children and parents both have a column {both[0]!r}; rename one, or leave both out with"
            f" {quoted_flag('drop', both[0])}"
        )


def check_facts(facts: FamilyFacts, order: Sequence[str], told: Sequence[Column]) -> None:
    """Raise UserError unless a family is one of a table with the columns ``order`` and the conditions ``told``."""
    by_name = {column.name: column for column in told}
    own, parents = facts["columns"], facts["parents"]
    whole = sorted([*own, *parents]) == sorted([*order, facts["key"]]) and own.count(facts["key"]) == 1
    if not whole or not parents or not set(parents) <= by_name.keys():
        raise UserError("the columns of children and parents are not those of the table; take another file")
    columns = [by_name[name] for name in parents]
    blank = np.full((1, len(columns)), np.nan)
    count_law_from_config(facts["counts"], features_of(columns, blank).shape[1])


@dataclass(frozen=True, eq=False)
class Children:
    """Children to draw: conditions (n, ...) as a network takes them, and keys (n,), those of their parents.

    ``says`` is a line about them.
    """

    cond: dict[str, Tensor]
    keys: Any
    says: str

    def __len__(self) -> int:
        return len(self.keys)


def draw_children(path: Path, facts: FamilyFacts, columns: Sequence[Column], seed: int) -> Children:
    """Numbers of children of the parents in a file, and what each child is drawn by; parent i depends on seed and i.

    Args:
        path: CSV or Parquet file with the key and the parents' columns, in any order.
        facts: of the table of children.
        columns: the parents', of ``facts["parents"]``.
        seed: of the counts.

    Raises:
        UserError: a column is missing, a value is none that its column can have, a key is missing or that of two
            parents, or no parent has a child.
    """
    key = facts["key"]
    keys, values = _read_file(path, key, columns)
    if not len(keys):
        raise UserError(f"{path} has no rows; give at least one parent")
    _check_keys(keys, key, f"the parents in {path}")
    for column, own in zip(columns, values, strict=True):
        if not column.missing and np.isnan(own).any():
            row = int(np.isnan(own).argmax())
            raise UserError(f"{path} has no {column.name!r} in row {row}, and all parents of the data do; fill it in")
    features = features_of(columns, np.stack(values, 1))
    rng = CounterRng(stream_seed(seed, Stream.CHILDREN), 0, len(keys))
    u = rng.uniform((len(keys),), dtype=torch.float64).numpy()
    counts = count_law_from_config(facts["counts"], features.shape[1]).sample(features, u)
    if not counts.any():
        raise UserError(f"none of the {len(keys):,} parents in {path} has a child by this seed; give another --seed")
    place = np.repeat(np.arange(len(keys)), counts)
    cond = {c.name: torch.from_numpy(condition_codes(c, own)[place]) for c, own in zip(columns, values, strict=True)}
    says = f"{path.name}: {len(place):,} children of {len(keys):,} parents"
    return Children(cond, keys.iloc[place].reset_index(drop=True), says)


def _read_file(path: Path, key: str, columns: Sequence[Column]) -> tuple[Any, list[np.ndarray]]:
    """Keys (P,) of the parents in a file, NaN where missing, and the values (P,) of each column in table units."""
    if path.name.lower().endswith(PARQUET):
        frame = read_table(path)
        _check_there(path, [key, *(c.name for c in columns)], list(frame.columns))
        return frame[key], [series_units(str(path), frame[c.name], c) for c in columns]
    raw = read_raw(path)
    _check_there(path, [key, *(c.name for c in columns)], raw.names)
    words = optional_import("pandas", "tables").Series(raw.column(key), dtype=object)
    return words.mask(words == ""), [word_units(raw, c) for c in columns] if raw.rows else []


def _check_there(path: Path, names: Sequence[str], there: Sequence[str]) -> None:
    for name in names:
        if name not in there:
            raise UserError(f"{path} lacks the column {name!r} of the parents{did_you_mean(name, there)}")
    if other := [name for name in there if name not in names]:
        logger.info(f"note: {path.name} has columns that children are not drawn by: {', '.join(map(repr, other))}")
