"""Rules among the columns of a table: read from text, checked against the data, and kept by every sample.

In ``A == f(B, C)`` and ``A == B + C`` A follows from the others, and is put in, not drawn; rows that break a
comparison are drawn anew (see ``advect.model.redraw``). x (N, K) are rows in table units, NaN where missing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advect.core.bounds import Finite
from advect.core.errors import UserError
from advect.data.tables.columns import Categories, Column, Number
from advect.data.tables.rule_syntax import Arithmetic, Comparison, Equality, Function, Parsed, parse_rule, refusal

ROUNDING = 1e-6
"""Part of a value that a sum of reals may differ by in the data, where the column has no decimal places."""


@dataclass(frozen=True)
class Rule:
    """A rule as it was written, with the function of ``A == f(B, ...)`` as learned from the data.

    Args:
        text: the rule.
        keys: (M, k) values of B, ... in table units, None where missing.
        values: (M,) those of A.
    """

    text: str
    keys: Sequence[Sequence[Finite | None]] = ()
    values: Sequence[Finite | None] = ()

    def to_config(self) -> dict[str, Any]:
        """JSON object of the arguments."""
        learned = {"keys": [list(key) for key in self.keys], "values": list(self.values)}
        return {"text": self.text, **(learned if self.keys else {})}


@dataclass(frozen=True)
class Compared:
    """Comparisons, each of which holds where a value is missing."""

    pairs: tuple[Comparison, ...]

    @cached_property
    def places(self) -> tuple[int, ...]:
        return tuple(sorted({p for pair in self.pairs for side in (pair.left, pair.right) for p in side.places}))

    def holds(self, x: Tensor) -> Tensor:
        """Whether they hold in rows (N, K), (N,) bool."""
        found = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for pair in self.pairs:
            found &= pair.holds(x)
        return found


@dataclass(frozen=True)
class Summed:
    """A number that is an expression of others, rounded as its ``column`` is, missing where one of them is."""

    target: int
    expression: Arithmetic
    column: Number

    @cached_property
    def places(self) -> tuple[int, ...]:
        return (self.target, *self.expression.places)

    def holds(self, x: Tensor) -> Tensor:
        """Whether it holds in rows (N, K), (N,) bool."""
        value, size = self.expression(x)
        own, places = x[:, self.target], self.column.decimals
        slack = size * (ROUNDING if places is None else 1e-12) + (0.0 if places is None else 0.5 * 10.0**-places)
        near = value.isfinite() & ((own - value).abs() <= slack)
        return torch.where(self._absent(x), own.isnan(), near)

    def value(self, x: Tensor) -> Tensor:
        """The target (N,) of rows (N, K)."""
        value, low, high = self.expression(x)[0], *_limits(self.column)
        if self.column.decimals is not None:
            value = value.round(decimals=self.column.decimals)
        value = value.nan_to_num(low).clamp(low, high) + 0.0  # rows without a finite value do not hold
        return torch.where(self._absent(x), torch.nan, value)

    def solved(self, x: Tensor, columns: Sequence[Column]) -> Tensor:
        """Rows (N, K), NaN where unknown, with the one unknown number of the expression where the target is known.

        It stays unknown where the expression is not linear in it, or its rounded value does not hold.
        """
        x = x.clone()
        places = list(self.expression.places)
        alone = ~x[:, self.target].isnan() & (x[:, places].isnan().sum(1) == 1)
        for place in places:
            column, rows = columns[place], (alone & x[:, place].isnan()).nonzero()[:, 0]
            if not len(rows) or not isinstance(column, Number):
                continue
            some = x[rows]
            at = lambda value, some=some, place=place: self.expression(_put(some, place, value))[0]
            slope = at(1.0) - at(0.0)
            value = (some[:, self.target] - at(0.0)) / slope
            value = value if column.decimals is None else value.round(decimals=column.decimals)
            found = _put(some, place, value + 0.0)
            linear = (at(2.0) - at(1.0) - slope).abs() <= 1e-9 * slope.abs()
            x[rows, place] = torch.where(linear & value.isfinite() & self.holds(found), found[:, place], torch.nan)
        return x

    def _absent(self, x: Tensor) -> Tensor:
        return x[:, list(self.expression.places)].isnan().any(1)


def _put(x: Tensor, place: int, value: Tensor | float) -> Tensor:
    """Rows (N, K) with another value at a place."""
    x = x.clone()
    x[:, place] = value
    return x


def _limits(column: Number) -> tuple[float, float]:
    """Smallest and largest value that the type of a column holds."""
    kind = column.dtype.lower()
    if whole := re.match(r"(u?)int(\d+)", kind):
        bits, signed = int(whole[2]), not whole[1]
        return (-(2.0 ** min(bits - 1, 53)) if signed else 0.0), 2.0 ** min(bits - signed, 53) - 1
    if kind.startswith("decimal") or kind == "object":
        return column.low, column.high
    narrow = {"float16": np.float16, "halffloat": np.float16, "float32": np.float32, "float[pyarrow]": np.float32}
    most = float(np.finfo(next((t for name, t in narrow.items() if kind.startswith(name)), np.float64)).max)
    return -most, most


@dataclass(frozen=True)
class Mapped:
    """A column that is a function of others: the one of the data, which knows the values that occur together."""

    target: int
    arguments: tuple[int, ...]
    rule: Rule

    @cached_property
    def places(self) -> tuple[int, ...]:
        return (self.target, *self.arguments)

    @cached_property
    def _table(self) -> tuple[list[Tensor], Tensor, Tensor]:
        """Levels of each argument; codes (M,) of the keys, rising; and their values."""
        keys, values = (_numbers(part) for part in (self.rule.keys, self.rule.values))
        levels = [torch.from_numpy(np.unique(column[~np.isnan(column)])) for column in keys.T]
        codes = self._codes(levels, torch.from_numpy(keys))[0]
        order = codes.argsort()
        return levels, codes[order], torch.from_numpy(values)[order]

    @staticmethod
    def _codes(levels: Sequence[Tensor], keys: Tensor) -> tuple[Tensor, Tensor]:
        """Code (N,) of the nearest levels of each of the keys (N, k), and whether they are levels."""
        code = torch.zeros(len(keys), dtype=torch.int64, device=keys.device)
        exact = torch.ones(len(keys), dtype=torch.bool, device=keys.device)
        for level, key in zip(levels, keys.unbind(1), strict=True):
            level, key = level.to(key.device), key.contiguous()
            absent = key.isnan()
            place = torch.bucketize(key.nan_to_num(), (level[1:] + level[:-1]) / 2) if len(level) else key.long() * 0
            if len(level):
                exact &= absent | (level[place] == key)
            code = code * (len(level) + 1) + torch.where(absent, len(level), place)
        return code, exact

    def _look_up(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The function's values (N,), near what occurs where it is not defined; and where it is."""
        levels, codes, values = self._table
        code, exact = self._codes(levels, x[:, list(self.arguments)])
        codes = codes.to(x.device)
        place = torch.searchsorted(codes, code).clamp(max=len(codes) - 1)
        return values.to(x.device)[place], exact & (codes[place] == code)

    def holds(self, x: Tensor) -> Tensor:
        """Whether it holds in rows (N, K), (N,) bool; not where the function is not defined."""
        (value, defined), own = self._look_up(x), x[:, self.target]
        return defined & ((own == value) | (own.isnan() & value.isnan()))

    def value(self, x: Tensor) -> Tensor:
        """The target (N,) of rows (N, K)."""
        value, defined = self._look_up(x)
        return torch.where(x[:, list(self.arguments)].isnan().any(1) & ~defined, torch.nan, value)


Constraint = Compared | Summed | Mapped


def _numbers(values: Sequence) -> np.ndarray:
    """Values as float64, NaN for None."""
    return np.array(values, dtype=object).astype(np.float64)


@dataclass(frozen=True)
class Constraints:
    """Some rules over the ``columns`` of a table.

    Raises UserError for rules that are none, contradict each other, or do not fit the columns.
    """

    columns: tuple[Column, ...]
    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        for rule, parsed in zip(self.rules, self.parsed, strict=True):
            if isinstance(parsed.kind, Function):
                _check_learned(rule, parsed.kind, self.columns)
        targets = [c.target for c in self.all if not isinstance(c, Compared)]
        twice = next((t for i, t in enumerate(targets) if t in targets[:i]), None)
        if twice is not None:
            raise UserError(f"--rule says twice what {self.columns[twice].name!r} equals; leave one of them out")
        _ = self._order  # raises for a circle

    @cached_property
    def parsed(self) -> tuple[Parsed, ...]:
        """The rules as read."""
        return tuple(parse_rule(rule.text, self.columns) for rule in self.rules)

    @cached_property
    def all(self) -> tuple[Constraint, ...]:
        """The rules in order."""
        return tuple(
            _constraint(parsed, rule, self.columns) for parsed, rule in zip(self.parsed, self.rules, strict=True)
        )

    @cached_property
    def targets(self) -> frozenset[int]:
        """Places of the columns that follow from others."""
        return frozenset(c.target for c in self.all if not isinstance(c, Compared))

    @cached_property
    def _order(self) -> list[Summed | Mapped]:
        """Those with a target, each after those that it follows from. Raises UserError for a circle."""
        left, found = [c for c in self.all if not isinstance(c, Compared)], []
        while left:
            open_ = {c.target for c in left}
            ready = [c for c in left if not open_ & set(c.places[1:])]
            if not ready:
                names = " and ".join(repr(self.columns[c.target].name) for c in left)
                raise UserError(f"--rule says of {names} that they follow from each other; leave one of them out")
            found += ready
            left = [c for c in left if c not in ready]
        return found

    def derived(self, x: Tensor) -> Tensor:
        """Rows (N, K) with the columns put in that follow from others."""
        x = x.clone()
        for constraint in self._order:
            x[:, constraint.target] = constraint.value(x)
        return x

    def broken(self, x: Tensor) -> Tensor:
        """Whether rows (N, K) break each of the R rules, (N, R)."""
        return torch.stack([~c.holds(x) for c in self.all], 1)

    def refuse(self, x: Tensor, what: str, fix: str, *, unknown: bool) -> None:
        """Raise UserError where rows (N, K) of ``what`` break a rule. NaN is missing or, if ``unknown``, any value."""
        for rule, constraint in zip(self.rules, self.all, strict=True):
            bad = ~constraint.holds(x)
            if unknown:
                bad &= ~x[:, list(constraint.places)].isnan().any(1)
            if not bad.any():
                continue
            row, count = int(bad.int().argmax()), int(bad.sum())
            words = " and ".join(f"{self.columns[p].name} = {self._word(p, x[row, p])}" for p in constraint.places)
            if isinstance(constraint, Mapped):
                expected = self._word(constraint.target, constraint.value(x[row : row + 1])[0])
                words += f", where f is {expected} in most rows" if what == "the data" else f", where f is {expected}"
            raise refusal(
                rule.text,
                f"is broken by {count:,} of {len(x):,} rows of {what}, first by row {row} with {words}; {fix}",
            )

    def _word(self, place: int, value: Tensor) -> str:
        if value.isnan():
            return "nothing"
        return str(self.columns[place].to_text(np.array([float(value)])).iloc[0])

    def known(self, x: Tensor, what: str = "given") -> Tensor:
        """Rows (N, K), NaN where not known, with the last unknown term of each known sum, which follows from it.

        Raises UserError for rows that break a rule whatever the rest is.
        """
        x = x.double()
        for constraint in self._order:
            if isinstance(constraint, Summed):
                x = constraint.solved(x, self.columns)
        self.refuse(x, what, "mend them, or leave one of these entries open", unknown=True)
        return x


def _constraint(parsed: Parsed, rule: Rule, columns: Sequence[Column]) -> Constraint:
    match parsed.kind:
        case Function(target, arguments):
            return Mapped(target, arguments, rule)
        case Equality(target, expression):
            column = columns[target]
            assert isinstance(column, Number)
            return Summed(target, expression, column)
        case pairs:
            return Compared(pairs)


def _check_learned(rule: Rule, function: Function, columns: Sequence[Column]) -> None:
    """Raise UserError unless the function that was learned fits the columns."""
    width = len(function.arguments)
    fits = len(rule.keys) == len(rule.values) > 0 and all(len(key) == width for key in rule.keys)
    column = columns[function.target]
    if fits and isinstance(column, Categories):
        fits = all(value is None or value in range(len(column.names)) for value in rule.values)
    if not fits:
        raise refusal(rule.text, f"has no function of {width} columns that fits them; train anew")


def learn_rules(
    texts: Iterable[str],
    columns: Sequence[Column],
    values: np.ndarray,
    *,
    conditions: Collection[str] = (),
    unknown: bool = False,
) -> tuple[Rule, ...]:
    """Rules with their functions from rows (N, K) of the data; ``conditions`` are further columns, not in rules.

    NaN is a value, missing, of its own in functions, and makes a sum missing; if ``unknown`` it may be any value.

    Raises UserError for a rule that is none, or that rows break.
    """
    rules = []
    for text in dict.fromkeys(texts):
        parsed, rule = parse_rule(text, columns, conditions=conditions), Rule(text)
        if isinstance(parsed.kind, Function):
            rule = _learned(rule, parsed.kind, columns, values, unknown)
        rules.append(rule)
    fix = "take these rows out of the data, or leave the rule out"
    Constraints(tuple(columns), tuple(rules)).refuse(torch.from_numpy(values), "the data", fix, unknown=unknown)
    return tuple(rules)


def _learned(rule: Rule, function: Function, columns: Sequence[Column], values: np.ndarray, unknown: bool) -> Rule:
    """The rule with its function: of each key the most common value."""
    for place in function.arguments:
        column = columns[place]
        if isinstance(column, Number) and column.decimals is None:
            raise refusal(
                rule.text,
                f"takes {column.name!r}, whose reals have over six decimal places, so that no value comes again;"
                " round it, or leave the rule out",
            )
    own = values[:, [*function.arguments, function.target]]
    own = own[~np.isnan(own).any(1)] if unknown else own
    codes, levels = np.zeros(len(own), np.int64), 1
    for column in own[:, :-1].T:
        found, place = np.unique(column, return_inverse=True)
        codes, levels = codes * len(found) + place.reshape(-1), levels * (len(found) + 1)  # one for what is missing
        if levels >= 2**62:
            raise refusal(rule.text, "takes too many columns of too many values; give fewer")
    _, first, of = np.unique(codes, return_index=True, return_inverse=True)
    if 2 * len(first) > len(own) and any(isinstance(columns[p], Number) for p in function.arguments):
        raise refusal(
            rule.text,
            f"takes {len(first):,} different values in {len(own):,} rows, too many to learn f; leave the rule out",
        )
    results, result = np.unique(own[:, -1], return_inverse=True)
    pairs, count = np.unique(of.reshape(-1) * len(results) + result.reshape(-1), return_counts=True)
    order = np.lexsort((-count, pairs // len(results)))
    best = pairs[order][np.unique((pairs // len(results))[order], return_index=True)[1]] % len(results)
    plain = lambda row: [None if np.isnan(v) else float(v) for v in row]
    return replace(rule, keys=[plain(row) for row in own[first, :-1]], values=plain(results[best]))
