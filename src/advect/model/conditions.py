"""Conditions as a user names them, by labels of the data, and as a network takes them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError, did_you_mean
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.types import NULL, Category, Condition, Conditions, DataSpec, Length, Quantity
from advect.data.base import label_number


@dataclass(frozen=True)
class Encoded:
    """A condition as a network takes it and data sets hand it out: codes (n,), or standardised numbers (n, d)."""

    values: Tensor


class _Cycle:
    def __repr__(self) -> str:
        return "cycle"


CYCLE = _Cycle()
"""Each value in turn, whatever the labels are called."""

ConditionValue = Any
"""One value for all samples, "cycle" for each value in turn, or a list or array of n values, one a sample.

A value is that in the data: the label of a category, a number or text; the numbers, or their text "a,b,c", of a
quantity in its own units; or a length. None, or "none" where no label is called so, is the null of a category or
quantity. Lists, tuples, NumPy arrays, tensors and pandas series are taken.
"""


def encoded(cond: Conditions | None) -> dict[str, Encoded]:
    """Conditions of a batch of data, to be given to a flow as they are."""
    return {name: Encoded(value) for name, value in (cond or {}).items()}


def resolve_conditions(
    spec: DataSpec,
    n: int,
    cond: Mapping[str, ConditionValue] | Sequence[str] | None,
    seed: int,
    rows: range | None = None,
) -> Conditions:
    """Network inputs for each condition of ``spec``: integers (n,), or standardised (n, d).

    ``cond`` has values by name, or words NAME=VALUE. Conditions not in it are sampled from the training frequencies,
    quantities from examples; row i depends on seed and i alone. ``rows`` restricts the result. Raises UserError for an
    unknown condition or value.
    """
    given: dict[str, Any] = dict(cond) if isinstance(cond, Mapping) else dict(parse_conditions(cond or (), spec))
    for name in given:
        if name not in spec.conditions:
            where = did_you_mean(str(name), spec.conditions) if spec.conditions else "; this flow has none"
            raise UserError(f"condition {name!r} is not known{where}")
    rows = range(n) if rows is None else rows
    values, turns = {}, _Turns(rows)
    for i, (name, condition) in enumerate(spec.conditions.items()):
        if name not in given:
            rng = CounterRng(stream_seed(seed, Stream.CONDITIONS), i, len(rows), start=rows.start, total=n)
            u = rng.uniform((len(rows),), dtype=torch.float64)
            values[name] = _sampled(condition, u)
        elif isinstance(given[name], Encoded):
            values[name] = _of_data(name, given[name].values, condition, n, rows)
        elif isinstance(condition, Quantity):
            values[name] = _vectors(name, given[name], condition, n, rows, turns)
        else:
            values[name] = _codes(name, given[name], condition, n, rows, turns)
    return values


_MOST = (1 << 63) - 1
"""More rows than there are."""


class _Turns:
    """Each value in turn of several conditions, so that samples have each combination of their values equally often.

    With c values after conditions whose combinations recur every P rows, row i has the value (i + k) mod c: values of
    one condition follow each other, and the shift k = (i // lcm(P, c)) mod gcd(P, c) brings the other pairs.
    """

    def __init__(self, rows: range) -> None:
        self.rows, self.period = rows, 1

    def take(self, count: int) -> Tensor:
        """Places (n,) in 0 .. count - 1 of the next condition."""
        common, shifts = math.lcm(self.period, count), math.gcd(self.period, count)
        self.period *= count
        i = torch.arange(self.rows.start, self.rows.stop)
        return (i + i // min(common, _MOST) % shifts) % count


def _sampled(condition: Condition, u: Tensor) -> Tensor:
    """Values at quantiles u (n,) in [0, 1) of the training data."""
    if isinstance(condition, Quantity):
        examples = _standardised(condition, condition.examples)
        return examples[(u * len(examples)).long()]
    shares = torch.tensor(condition.frequencies, dtype=torch.float64).cumsum(0)
    places = torch.searchsorted(shares, u, right=True).clamp_(max=len(shares) - 1)
    return places + 1 if isinstance(condition, Length) else places


def _of_data(name: str, values: Tensor, condition: Condition, n: int, rows: range) -> Tensor:
    shape = (n, len(condition.mean)) if isinstance(condition, Quantity) else (n,)
    if values.shape != shape:
        raise UserError(f"condition {name!r} must have shape {shape}, a row a sample, got {tuple(values.shape)}")
    some = values[rows.start : rows.stop].cpu()
    return some.float() if isinstance(condition, Quantity) else some.long()


def _codes(
    name: str, value: ConditionValue, condition: Category | Length, n: int, rows: range, turns: _Turns
) -> Tensor:
    listed = _listed(value)
    if listed is not None:
        if len(listed) != n:
            raise UserError(f"condition {name!r} must have {n} values, one a sample, got {len(listed)}")
        known: dict[Any, int] = {}
        some = [_scalar(one) for one in listed[rows.start : rows.stop]]
        for one in some:
            if not isinstance(one, Hashable):
                raise UserError(f"condition {name!r} must have one value a sample, got {one!r}")
            key = (type(one), one)
            known[key] = known[key] if key in known else _code(name, one, condition)
        return torch.tensor([known[type(one), one] for one in some])
    value = _scalar(value)
    if value is CYCLE or (value == "cycle" and not _is_label(condition, value)):
        low, count = (1, len(condition.frequencies)) if isinstance(condition, Length) else (0, len(condition.names))
        return low + turns.take(count)
    return torch.full((len(rows),), _code(name, value, condition))


def _listed(value: ConditionValue) -> list[Any] | None:
    """The values in a list or array (n,); None for one value. A list of lists keeps its rows."""
    if isinstance(value, str | bytes) or not (isinstance(value, Sequence) or hasattr(value, "__array__")):
        return None
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, Sequence):
        return list(value)
    array = np.asarray(value)
    return None if array.ndim == 0 else list(array)


def _scalar(value: Any) -> Any:
    """One value as Python has it: a NumPy scalar, or an array of one, as its number or text; NaN is None."""
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else value
    if isinstance(value, np.floating) and not isinstance(value, float):
        value = float(str(value))  # 0.1 and not 0.10000000149
    elif hasattr(value, "item") and np.size(value) == 1:
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return None if value is None or value != value or str(value) == "<NA>" else value


def _is_label(condition: Condition, value: str) -> bool:
    return isinstance(condition, Category) and value in condition.names


def is_one_label(condition: Condition, value: ConditionValue) -> bool:
    """Whether a value is a label of a category, the same for all samples."""
    value = None if _listed(value) is not None else _scalar(value)
    asks = isinstance(value, str) and value in ("cycle", "none") and not _is_label(condition, value)
    return isinstance(condition, Category) and value is not None and not asks


def _code(name: str, value: Any, condition: Category | Length) -> int:
    """The code of a label, or a length."""
    if value is None or (value == "none" and not _is_label(condition, value)):
        if isinstance(condition, Length):
            raise UserError(f"condition {name!r} is always given; name one of 1 to {len(condition.frequencies)}")
        return NULL
    if isinstance(condition, Length):
        return _length(name, value, len(condition.frequencies))
    code = label_place(value, condition)
    if code is None:
        what = f"{value!r}" if isinstance(value, str | int | float) else str(value)
        raise UserError(f"condition {name!r} has no value {what}{did_you_mean(str(value), condition.names)}")
    return code


def _length(name: str, value: Any, longest: int) -> int:
    number = as_number(value)
    if number is None or number != int(number):
        raise UserError(f"condition {name!r} has no value {value!r}; it is a whole number of 1 to {longest}")
    if not 1 <= number <= longest:
        raise UserError(f"condition {name!r} must lie in 1 to {longest}, got {value}")
    return int(number)


def label_place(value: Any, category: Category) -> int | None:
    """The place of a label among the names: of its text, of an equal number, or of its number in the data."""
    names = category.names
    if str(value) in names:
        return names.index(str(value))
    if isinstance(value, bool | np.bool_):
        words = ("true", "yes") if value else ("false", "no")
        places = [i for i, name in enumerate(names) if name.lower() in words]
        if len(places) == 1:
            return places[0]
    number = label_number(value) if isinstance(value, str) else as_number(value)
    if number is None:
        return None
    same = [i for i, name in enumerate(names) if label_number(name) == number]
    if len(same) == 1:
        return same[0]
    return category.numbers.index(int(number)) if number in category.numbers else None


def as_number(value: Any) -> int | float | None:
    """A value, or its text, as a number, whole ones exactly; None where it is none."""
    if isinstance(value, int | float):
        return value if math.isfinite(value) else None
    for kind in (int, float):
        try:
            number = kind(value)
        except (TypeError, ValueError):
            continue
        return number if math.isfinite(number) and "_" not in str(value) else None
    return None


def _vectors(name: str, value: ConditionValue, quantity: Quantity, n: int, rows: range, turns: _Turns) -> Tensor:
    d, listed = len(quantity.mean), _listed(value)
    if listed is None:
        value = _scalar(value)
        if value is None or value == "none":
            return torch.full((len(rows), d), math.nan)
        if value == "cycle":
            return _standardised(quantity, quantity.examples)[turns.take(len(quantity.examples))]
    elif not (len(listed) == d and all(_listed(one) is None for one in listed)):
        return _standardised(quantity, _rows(name, listed, quantity, n)[rows.start : rows.stop])
    row = _row(name, value if listed is None else listed, quantity)
    if len(row) != d or not all(map(math.isfinite, row)):
        raise UserError(f"condition {name!r} needs {d} finite numbers ({', '.join(quantity.names)}), got {value!r}")
    return _standardised(quantity, [row]).expand(len(rows), d).clone()


def _rows(name: str, listed: Sequence[Any], quantity: Quantity, n: int) -> list[list[float]]:
    """A row of numbers for each of n samples, NaN where none are given."""
    d = len(quantity.mean)
    found = []
    for one in listed:
        entries = _listed(one)
        entries = [_scalar(one)] if entries is None else entries
        row = [math.nan] * d if entries == [None] else _row(name, [_nan(entry) for entry in entries], quantity)
        found.append(row)
    if len(found) != n or any(len(row) != d for row in found):
        shape = f"{n} numbers" if d == 1 else f"shape ({n}, {d})"
        got = (len(found), len(found[0])) if found else (0,)
        raise UserError(f"condition {name!r} must have {shape}, a row a sample, got {got}")
    if any(map(math.isinf, (value for row in found for value in row))):
        raise UserError(f"condition {name!r} needs finite numbers, or NaN where it is not given")
    return found


def _nan(entry: Any) -> Any:
    return math.nan if _scalar(entry) is None else entry


def _row(name: str, value: Any, quantity: Quantity) -> list[float]:
    """The numbers in 3.5, (1, 2) or "1,2"; of dates and large whole numbers, those after the quantity's origin."""
    words = value.split(",") if isinstance(value, str) else value if isinstance(value, Sequence) else [value]
    if quantity.unit:
        return [_time(name, word, quantity) for word in words]
    try:
        if quantity.origin:
            return [(int(word) - quantity.origin) / quantity.step for word in words]
        return [float(word) for word in words]
    except (TypeError, ValueError):
        raise UserError(f"condition {name!r} needs numbers such as 1.5 or 1.5,2; got {value!r}") from None


def _time(name: str, value: Any, quantity: Quantity) -> float:
    """A date or time, as text or an object that has an ISO form, in units of the quantity; NaN stays."""
    if isinstance(value, float) and math.isnan(value):
        return value
    text = value if isinstance(value, str) else getattr(value, "isoformat", lambda: str(value))()
    from advect.data.tables.text import read_iso  # tables are not loaded for other data

    stamp = read_iso(text)
    if stamp is None:
        raise UserError(f"condition {name!r} needs an ISO date such as 2024-01-31 or 2024-01-31T10:00; got {value!r}")
    count, unit = int(stamp.astype(np.int64)) * _NS[np.datetime_data(stamp.dtype)[0]], _NS[quantity.unit]
    return (count - quantity.origin * unit) / (unit * quantity.step)


_NS = {"D": 86_400 * 10**9, "h": 3_600 * 10**9, "m": 60 * 10**9, "s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


def _standardised(quantity: Quantity, rows: Sequence[Sequence[float]]) -> Tensor:
    """Rows (n, d) in data units, standardised."""
    x = torch.tensor(rows, dtype=torch.float64).reshape(-1, len(quantity.mean))
    mean, std = (torch.tensor(moments, dtype=torch.float64) for moments in (quantity.mean, quantity.std))
    return ((x - mean) / std).float()


def number_or_name(word: str | None) -> float | str | None:
    """``--diffusion`` as a number if it is one."""
    try:
        return None if word is None else float(word)
    except ValueError:
        return word


def parse_conditions(words: Sequence[str], spec: DataSpec | None = None) -> dict[str, str]:
    """``--cond NAME=VALUE ...`` as values by name; names of ``spec`` may hold "=" themselves.

    Raises UserError for other words, and for a condition that is given twice.
    """
    cond: dict[str, str] = {}
    for word in words:
        places = [i for i, letter in enumerate(word) if letter == "=" and 0 < i < len(word) - 1]
        splits = [(word[:i], word[i + 1 :]) for i in places]
        if not splits:
            raise UserError(f"--cond {word} should be NAME=VALUE, such as label=7")
        known = [] if spec is None else [(name, value) for name, value in splits if name in spec.conditions]
        # Of the names a and a=b the word a=b=c may mean either: whichever has such a value, else the longer one.
        fitting = [(name, value) for name, value in known if spec and _is_label(spec.conditions[name], value)]
        name, value = (fitting or known or splits[:1])[-1]
        if spec is not None and name in cond:
            raise UserError(f"--cond gives {name} twice, as {cond[name]} and {value}; give one of them")
        cond[name] = value
    return cond
