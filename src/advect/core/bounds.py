"""Ranges of numbers, declared with the argument: ``width: Annotated[int, Meta(ge=1, le=65_536)]``.

Constructors, flags, ``config.yaml``, the help and the records of files (``core.records``) read the same declaration.
"""

from __future__ import annotations

import inspect
import math
import numbers
import sys
from collections.abc import Callable, Iterator
from functools import WRAPPER_ASSIGNMENTS, cache, wraps
from typing import Annotated, Any, TypeVar, get_args

from msgspec import Meta

from advect.core.errors import UserError

Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
"""Number of things, at least one."""
CountOrZero = Annotated[int, Meta(ge=0, le=2**31 - 1)]
"""Number of things, or 0 for none."""
SampleCount = Annotated[int, Meta(ge=1, le=10**12)]
"""Samples of one call."""
BatchSize = Annotated[int, Meta(ge=1, le=2**24)]
"""Samples held in memory at once."""
Width = Annotated[int, Meta(ge=1, le=2**16)]
"""Units or channels of a layer."""
Depth = Annotated[int, Meta(ge=1, le=1000)]
"""Layers or blocks."""
Pixels = Annotated[int, Meta(ge=1, le=2**14)]
"""Height or width of an image."""
Steps = Annotated[int, Meta(ge=1, le=100_000)]
"""Steps of a solver."""
Evaluations = Annotated[int, Meta(ge=1, le=10_000)]
"""Evaluations of the network a sample."""
Seed = Annotated[int, Meta(ge=0, lt=2**63)]
"""Seed of random numbers; beyond 64 bits, two would draw the same."""
Share = Annotated[float, Meta(ge=0, lt=1)]
"""Share or probability below one."""
NonNegative = Annotated[float, Meta(ge=0, le=10**6)]
"""Factor of one term among others."""
Positive = Annotated[float, Meta(gt=0, le=10**6)]
"""Number above 0 that float32 computes with."""
GuidanceScale = Annotated[float, Meta(ge=0, le=1000)]
"""Scale of classifier-free guidance."""
DiffusionScale = Annotated[float, Meta(ge=0, le=1000)]
"""Scale of g(t) in the SDE."""
Finite = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
"""Any number but NaN and the infinite ones."""
Time = Annotated[float, Meta(ge=0, le=1)]
"""Time from the noise, 0, to the data, 1."""
Processes = Annotated[int, Meta(ge=1, le=1024)]
"""Local processes."""

F = TypeVar("F", bound=Callable)


def bounds_of(type_: Any) -> Meta | None:
    """Range declared in an annotation, of one number or of each of several."""
    if isinstance(type_, Meta):
        return type_
    inner = getattr(type_, "__metadata__", ())
    return next((found for part in (*inner, *get_args(type_)) if (found := bounds_of(part)) is not None), None)


def check_bounds(label: str, value: Any, bounds: Meta | None, default: Any = None) -> None:
    """Raise UserError naming ``label`` and a default number, unless all numbers in ``value`` are within the bounds."""
    if bounds is None:
        return
    for number in _numbers(value):
        if not _within(number, bounds):
            usual = f"; {_as_text(default)} is usual" if next(_numbers(default), None) is not None else ""
            raise UserError(f"{label} must be {in_words(bounds, number)}, got {_as_text(value)}{usual}")


def in_words(bounds: Meta, number: float = 0) -> str:
    """The range after "must be"; that a ``number`` has to be finite only where it is not."""
    words = ("finite" * (not _finite(number)), _low(bounds), _high(bounds))
    return " and ".join(word for word in words if word)


def interval(bounds: Meta) -> str:
    """The range for the help: "[0, 1)", or "at least 1" where the other end is merely too large for a computer."""
    low, high = (bounds.ge if bounds.gt is None else bounds.gt), (bounds.le if bounds.lt is None else bounds.lt)
    if low is None or high is None or high >= 10**9:
        return _low(bounds) or _high(bounds)
    first, last = "[" if bounds.gt is None else "(", "]" if bounds.lt is None else ")"
    return f"{first}{low}, {high}{last}"


def _low(bounds: Meta) -> str:
    if bounds.gt is not None:
        return f"above {bounds.gt:,}"
    return "" if bounds.ge is None else f"at least {bounds.ge:,}"


def _high(bounds: Meta) -> str:
    if bounds.lt is not None:
        return f"below {_limit(bounds.lt)}"
    return "" if bounds.le is None else f"at most {_limit(bounds.le)}"


def _limit(high: float) -> str:
    return "2^63" if high == 2**63 else f"{high:,}" if isinstance(high, int) else f"{high:,g}"


def _finite(number: float) -> bool:
    return isinstance(number, numbers.Integral) or math.isfinite(number)


def _within(number: float, bounds: Meta) -> bool:
    return (
        number == number  # not NaN; whole numbers may be beyond floats
        and (bounds.ge is None or number >= bounds.ge)
        and (bounds.gt is None or number > bounds.gt)
        and (bounds.le is None or number <= bounds.le)
        and (bounds.lt is None or number < bounds.lt)
    )


def _numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        yield value
    elif isinstance(value, tuple | list | range):
        for one in value:
            yield from _numbers(one)


def _as_text(value: Any) -> str:
    try:
        text = " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    except ValueError:  # Python writes no whole numbers of over 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 40 else f"{text[:37]}..."


def bounded(of: F) -> F:
    """Decorator of a class or function: its arguments are checked against the bounds of their annotations."""
    if inspect.isclass(of):
        inner: Any = of.__init__
        own = "__init__" in vars(of)
        # An inherited constructor's annotations are those of another module.
        assigned = WRAPPER_ASSIGNMENTS if own else [name for name in WRAPPER_ASSIGNMENTS if name != "__annotations__"]

        @wraps(inner, assigned=assigned)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            for name, *checked in _given(of, args, kwargs):
                check_bounds(f"{type(self).__name__}.{name}", *checked)
            inner(self, *args, **kwargs)

        of.__init__ = __init__  # pyright: ignore[reportAttributeAccessIssue]
        return of  # pyright: ignore[reportReturnType]

    @wraps(of)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for given in _given(of, args, kwargs):
            check_bounds(*given)
        return of(*args, **kwargs)

    return checked  # pyright: ignore[reportReturnType]


def _given(of: Callable, args: tuple, kwargs: dict[str, Any]) -> Iterator[tuple[str, Any, Meta, Any]]:
    """Name, value, bounds and default of the given arguments that have bounds."""
    for place, name, bounds, default in _declared(of):
        if name in kwargs:
            yield name, kwargs[name], bounds, default
        elif place is not None and place < len(args):
            yield name, args[place], bounds, default


@cache
def _declared(of: Callable) -> tuple[tuple[int | None, str, Meta, Any], ...]:
    """Place, name, bounds and default of the arguments with bounds; the place of a keyword is None."""
    of, found = inspect.unwrap(of), []
    for place, (name, parameter) in enumerate(inspect.signature(of).parameters.items()):
        bounds = bounds_of(annotation_of(of, name, parameter.annotation))
        if bounds is not None:
            keyword = parameter.kind is inspect.Parameter.KEYWORD_ONLY
            found.append((None if keyword else place, name, bounds, parameter.default))
    return tuple(found)


def annotation_of(of: Callable, name: str, annotation: Any, constructor: str = "__init__") -> Any:
    """Annotation of an argument as a type; None if it does not resolve."""
    if not isinstance(annotation, str):
        return annotation
    if not inspect.isclass(of):
        return _evaluated(annotation, getattr(of, "__globals__", {}))
    for base in of.__mro__:
        init = base.__dict__.get(constructor)
        fields = inspect.get_annotations(base)
        if name in fields or name in getattr(init, "__annotations__", {}):
            found = _evaluated(fields.get(name, annotation), vars(sys.modules[base.__module__]))
            if found is not None:  # a dataclass repeats the annotations of its bases, whose modules know the names
                return found
    return None


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    try:
        return eval(annotation, names) if isinstance(annotation, str) else annotation
    except NameError:
        return None
