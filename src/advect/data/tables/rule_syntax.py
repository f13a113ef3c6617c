"""Text of a rule as comparisons, sums and functions of columns. Nothing is evaluated but what is listed here."""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from advect.core.errors import UserError, did_you_mean
from advect.data.tables.arrow import arrow_time_unit
from advect.data.tables.columns import Categories, Column, Number

LONGEST = 1000
"""Maximum length of a rule in characters."""

_QUOTED = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|`([^`]*)`")
_FORMS = "write 'total == a + b', '0 <= a <= b' or 'a == f(b)', with names that are no single words in quotes"
_OPERATORS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
_ARITHMETIC = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_NANOSECONDS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "D": 86_400 * 10**9}


def refusal(text: str, why: str) -> UserError:
    """The error of a rule."""
    return UserError(f"--rule {text if len(text) < 200 else text[:200] + '...'!r} {why}")


@dataclass(frozen=True)
class Arithmetic:
    """Number of each row: a column at ``place``, by ``codes`` of its categories; a constant; or ``op`` of others.

    Called with rows (N, K) it gives values (N,), and the size (N,) of their terms, for rounding.
    """

    op: str = ""
    parts: tuple[Arithmetic, ...] = ()
    place: int | None = None
    codes: tuple[float, ...] = ()
    constant: float = 0.0

    @cached_property
    def places(self) -> tuple[int, ...]:
        """The columns."""
        own = {p for part in self.parts for p in part.places} | ({self.place} if self.place is not None else set())
        return tuple(sorted(own))

    @property
    def bare(self) -> bool:
        """Whether it is a column or a constant."""
        return not self.op

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.place is not None:
            value = x[:, self.place]
            if self.codes:
                table = torch.tensor(self.codes, dtype=x.dtype, device=x.device)
                value = torch.where(value.isnan(), torch.nan, table[value.nan_to_num().long()])
            return value, value.abs()
        if not self.op:
            value = torch.full((len(x),), self.constant, dtype=x.dtype, device=x.device)
            return value, value.abs()
        (a, size), *rest = (part(x) for part in self.parts)
        if not rest:
            return -a, size
        ((b, other),) = rest
        match self.op:
            case "+":
                return a + b, size + other
            case "-":
                return a - b, size + other
            case "*":
                return a * b, size * other
        return a / b, size / b.abs()


@dataclass(frozen=True)
class Comparison:
    """``left op right``; sums are compared up to the rounding of floats, 1e-12 of their terms, others exactly."""

    left: Arithmetic
    op: str
    right: Arithmetic
    exact: bool

    def holds(self, x: Tensor) -> Tensor:
        """Whether it holds in rows (N, K), (N,) bool; also where a value is missing."""
        (a, size), (b, other) = self.left(x), self.right(x)
        slack = torch.zeros_like(a) if self.exact else 1e-12 * (size + other)
        less = {"<": a - b < -slack, "<=": a - b <= slack, ">": b - a < -slack, ">=": b - a <= slack}
        found = less[self.op] if self.op in less else ((a - b).abs() <= slack) == (self.op == "==")
        places = list({*self.left.places, *self.right.places})
        return (found & a.isfinite() & b.isfinite()) | x[:, places].isnan().any(1)


@dataclass(frozen=True)
class Function:
    """``target == f(arguments)``."""

    target: int
    arguments: tuple[int, ...]


@dataclass(frozen=True)
class Equality:
    """``target == expression``."""

    target: int
    expression: Arithmetic


@dataclass(frozen=True)
class Parsed:
    """A rule as read."""

    text: str
    kind: Function | Equality | tuple[Comparison, ...]


def parse_rule(text: str, columns: Sequence[Column], *, conditions: Collection[str] = ()) -> Parsed:
    """Read a rule over ``columns``. Raises UserError; for ``conditions``, which are not drawn, saying so."""
    try:
        return Parsed(text, _Reader(text, columns, conditions).read())
    except UserError:
        plain = _QUOTED.sub("", text)
        for name in sorted((*(c.name for c in columns), *conditions), key=len, reverse=True):
            if name and (not name.isidentifier() or keyword.iskeyword(name)) and name in plain:
                raise refusal(text, f'has the column {name!r} without quotes; write "{name}"') from None
        raise


@dataclass(frozen=True)
class _Side:
    """A side of a comparison: "number", "time" or "names" of a column, or "text"."""

    kind: str
    value: Arithmetic = Arithmetic()
    text: str = ""


class _Reader:
    """Reads one rule."""

    def __init__(self, text: str, columns: Sequence[Column], conditions: Collection[str]) -> None:
        self.text, self.columns, self.conditions = text, columns, conditions
        self.places = {column.name: i for i, column in enumerate(columns)}
        self._backquoted: list[str] = []

    def refused(self, why: str) -> UserError:
        return refusal(self.text, why)

    def read(self) -> Function | Equality | tuple[Comparison, ...]:
        node = self._tree()
        if not isinstance(node, ast.Compare):
            why = "joins rules; give each a --rule of its own" if isinstance(node, ast.BoolOp) else "compares nothing"
            raise self.refused(why if "joins" in why else f"{why}; {_FORMS}")
        ops = [_OPERATORS.get(type(op), "") for op in node.ops]
        if "" in ops:
            raise self.refused("compares by another word than < <= > >= == !=; take one of these")
        sides = [node.left, *node.comparators]
        calls = [side for side in sides if isinstance(side, ast.Call)]
        if calls and (len(sides) > 2 or len(calls) > 1 or ops != ["=="]):
            raise self.refused("has f beside other things than a column; write it as 'a == f(b, c)'")
        if calls:
            return self._function(sides[0] if sides[1] is calls[0] else sides[1], calls[0])
        read = [self._side(side) for side in sides]
        numbers = all(side.kind == "number" for side in read)
        if "==" in ops and numbers:
            if len(read) > 2:
                raise self.refused("has == in a chain; give the equality a --rule of its own")
            return self._equality(*read)
        return tuple(map(self._comparison, read[:-1], ops, read[1:]))

    def _tree(self) -> ast.expr:
        plain = _QUOTED.sub("", self.text)
        if len(self.text) > LONGEST or "#" in plain:
            raise self.refused(f"has # or over {LONGEST} characters; {_FORMS}")
        try:
            return ast.parse(_QUOTED.sub(self._stand_in, self.text).strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            single = re.search(r"(?<![=<>!])=(?!=)", plain)
            raise self.refused("has =; write == for equality" if single else f"is no rule; {_FORMS}") from None

    def _stand_in(self, found: re.Match[str]) -> str:
        """A word for a name in backquotes, which Python has not."""
        if found[1] is None:
            return found[0]
        self._backquoted.append(found[1])
        return f" __backquoted_{len(self._backquoted) - 1} "

    def _column(self, node: ast.expr) -> int | None:
        """Place of the column that a name, or a text, stands for; None for no such node, or another text."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value
            if name not in self.places and name not in self.conditions:
                return None
        elif isinstance(node, ast.Name):
            quoted = re.fullmatch(r"__backquoted_(\d+)", node.id)
            name = self._backquoted[int(quoted[1])] if quoted else node.id
        else:
            return None
        if name in self.conditions:
            raise self.refused(f"names the condition {name!r}, which is not drawn; take it out of --conditions")
        if name not in self.places:
            raise self.refused(f"names {name!r}, which is no column{did_you_mean(name, self.places)}")
        return self.places[name]

    def _kind(self, place: int) -> str:
        """What a column holds: "number", "time" or "names"; else refused."""
        column = self.columns[place]
        if isinstance(column, Categories):
            return "names"
        assert isinstance(column, Number)
        unit = arrow_time_unit(column.arrow) if column.arrow else column.unit
        if unit:
            return "time"
        if unit is None or column.origin or column.step != 1:
            what = "durations or times of day" if unit is None else "whole numbers beyond 2^53"
            raise self.refused(f"takes {column.name!r}, which holds {what}; make them smaller numbers")
        return "number"

    def _function(self, left: ast.expr, call: ast.Call) -> Function:
        target, name = self._column(left), call.func
        if not (isinstance(name, ast.Name) and name.id == "f") or call.keywords or not call.args:
            raise self.refused("has a function that is not f of columns; write it as 'a == f(b, c)'")
        if target is None:
            raise self.refused("has f beside other things than a column; write it as 'a == f(b, c)'")
        found = []
        for node in call.args:
            place = self._column(node)
            if place is None or place == target or place in found:
                raise self.refused("has an f of other things than other columns, each once; write 'a == f(b, c)'")
            found.append(place)
        return Function(target, tuple(found))

    def _side(self, node: ast.expr) -> _Side:
        place = self._column(node)
        if place is not None:
            return _Side(self._kind(place), Arithmetic(place=place))
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return _Side("text", text=node.value)
        return _Side("number", self._arithmetic(node))

    def _arithmetic(self, node: ast.expr) -> Arithmetic:
        place = self._column(node)
        if place is not None:
            kind = self._kind(place)
            if kind != "number":
                raise self.refused(
                    f"counts with {self.columns[place].name!r}, which holds {kind}; "
                    + ("compare it with == or != alone" if kind == "names" else "compare it with other times alone")
                )
            return Arithmetic(place=place)
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                if not abs(value) <= 1e300:
                    raise self.refused("has a number beyond 1e300; give a smaller one")
                return Arithmetic(constant=float(value))
            case ast.Constant(value=str() as value):
                raise self.refused(f"counts with {value!r}, which is no column{did_you_mean(value, self.places)}")
            case ast.UnaryOp(op=ast.UAdd(), operand=part):
                return self._arithmetic(part)
            case ast.UnaryOp(op=ast.USub(), operand=part):
                return Arithmetic("-", (self._arithmetic(part),))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                return Arithmetic(_ARITHMETIC[type(op)], (self._arithmetic(left), self._arithmetic(right)))
        raise self.refused(f"has more than columns, numbers and + - * /; {_FORMS}")

    def _equality(self, left: _Side, right: _Side) -> Equality | tuple[Comparison, ...]:
        if left.value.place is None:
            left, right = right, left
        target, expression = left.value.place, right.value
        if target is None and not (left.value.places and right.value.places):  # a * b == 0
            return (self._comparison(left, "==", right),)
        if target is None:
            raise self.refused("has no column alone on one side of ==; write it as 'a == b + c'")
        if target in expression.places:
            raise self.refused(f"has {self.columns[target].name!r} on both sides; write what it equals in others")
        return Equality(target, expression)

    def _comparison(self, left: _Side, op: str, right: _Side) -> Comparison:
        kinds = {left.kind, right.kind}
        if kinds == {"number"}:
            if not left.value.places and not right.value.places:
                raise self.refused("compares numbers alone; name a column")
            return Comparison(left.value, op, right.value, left.value.bare and right.value.bare)
        if kinds == {"time"} and op != "==":
            return Comparison(*self._aligned(left, op, right))
        if "names" in kinds and kinds <= {"names", "text"} and op in ("!=", "=="):
            if "text" not in kinds and op == "==":
                raise self.refused("equates two columns of names; write one as f of the other, 'a == f(b)'")
            return Comparison(*self._coded(left, op, right))
        if kinds <= {"number", "text"}:
            text = left.text or right.text
            raise self.refused(f"compares with the text {text!r}, which is no column{did_you_mean(text, self.places)}")
        raise self.refused(
            "compares what cannot be compared; numbers go with numbers, times with times by < <= > >= !=, "
            "names with names by !=, and with a name in quotes by == or !="
        )

    def _aligned(self, left: _Side, op: str, right: _Side) -> tuple[Arithmetic, str, Arithmetic, bool]:
        """Times in one unit after one origin, exactly."""
        columns = [self.columns[p] for side in (left, right) for p in side.value.places]
        units = [arrow_time_unit(c.arrow) if c.arrow else c.unit for c in columns if isinstance(c, Number)]
        finest = min(_NANOSECONDS[unit] for unit in units if unit)
        factors = [_NANOSECONDS[unit] // finest for unit in units if unit]
        starts = [c.origin * k for c, k in zip(columns, factors, strict=True) if isinstance(c, Number)]
        sides = []
        for side, column, k, start in zip((left, right), columns, factors, starts, strict=True):
            assert isinstance(column, Number)
            scaled = Arithmetic("*", (side.value, Arithmetic(constant=float(column.step * k))))
            sides.append(Arithmetic("+", (scaled, Arithmetic(constant=float(start - min(starts))))))
        return sides[0], op, sides[1], True

    def _coded(self, left: _Side, op: str, right: _Side) -> tuple[Arithmetic, str, Arithmetic, bool]:
        """Names by their numbers among all of both columns."""
        numbers: dict[str, int] = {}
        sides = {}
        for i, side in enumerate((left, right)):
            if side.value.place is not None:
                column = self.columns[side.value.place]
                assert isinstance(column, Categories)
                codes = tuple(float(numbers.setdefault(str(name), len(numbers))) for name in column.names)
                sides[i] = Arithmetic(place=side.value.place, codes=codes)
        for i, side in enumerate((left, right)):
            if side.kind == "text":
                if side.text not in numbers:
                    near = did_you_mean(side.text, numbers)
                    raise self.refused(f"has {side.text!r}, which is neither a column nor a name in the other{near}")
                sides[i] = Arithmetic(constant=float(numbers[side.text]))
        return sides[0], op, sides[1], True
