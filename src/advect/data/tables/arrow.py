"""Columns of Arrow types and of Python dates, times, durations and decimals, as numbers or text and back."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from advect.core.errors import UserError, optional_import


def arrow_array(series: Any) -> Any:
    """Arrow array of a Series of Arrow type, timedelta64, or Python objects of one type; else None.

    None also for text and booleans.
    """
    pd = optional_import("pandas", "tables")
    own = isinstance(series.dtype, pd.ArrowDtype) or series.dtype.kind == "m"
    if not own:
        if not pd.api.types.is_object_dtype(series.dtype):
            return None
        if {type(value).__name__ for value in series.dropna()} <= {"str", "bool"}:
            return None
    arrow = optional_import("pyarrow", "tables")
    try:
        array = arrow.array(series, from_pandas=True)
    except (arrow.ArrowInvalid, arrow.ArrowTypeError, arrow.ArrowNotImplementedError):
        return None  # whoever reads the column says what it holds
    if isinstance(array, arrow.ChunkedArray):
        array = array.combine_chunks()
    types = arrow.types
    plain = types.is_integer(array.type) or types.is_floating(array.type) or types.is_string(array.type)
    return array if own or not plain else None


def arrow_text(kind: Any) -> str:
    """Arrow type as text, inverted by :func:`arrow_series`."""
    arrow = optional_import("pyarrow", "tables")
    return base64.b64encode(arrow.schema([("x", kind)]).serialize().to_pybytes()).decode()


def arrow_values(name: str, array: Any) -> tuple[str, list[Any], bool, int | None]:
    """Values of an Arrow array: kind ("text", "number" or "real"), list, time-ness, decimal places.

    Booleans are "text"; missing values are None; time-ness tells whether values count time units.

    Raises:
        UserError: of an unsupported type.
    """
    arrow = optional_import("pyarrow", "tables")
    types, kind = arrow.types, array.type
    if types.is_dictionary(kind):
        array, kind = array.dictionary_decode(), kind.value_type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_boolean(kind):
        return "text", array.to_pylist(), False, None
    if types.is_integer(kind):
        return "number", array.to_pylist(), False, 0
    if types.is_floating(kind):
        return "real", array.cast(arrow.float64()).to_pylist(), False, None
    if types.is_decimal(kind):
        digits = [None if v is None else int(v.scaleb(kind.scale)) for v in array.to_pylist()]
        if max((abs(v) for v in digits if v is not None), default=0) >= 2**53:
            raise UserError(f"column {name!r} has decimals of over 15 digits, which no float64 holds; make it text")
        return "real", [None if v is None else v / 10**kind.scale for v in digits], False, max(kind.scale, 0)
    if types.is_temporal(kind) and not types.is_interval(kind):
        return "number", array.view(_storage(kind)).to_pylist(), True, 0
    raise UserError(f"column {name!r} has the type {kind}, which a table cannot hold; drop or convert it")


def arrow_time_unit(text: str) -> str | None:
    """NumPy unit of dates and time stamps of the type from :func:`arrow_text`; "" for numbers, None for others."""
    arrow = optional_import("pyarrow", "tables")
    kind = _type_of(text)
    if arrow.types.is_date(kind):
        return "D" if kind.bit_width == 32 else "ms"
    return kind.unit if arrow.types.is_timestamp(kind) else None if arrow.types.is_temporal(kind) else ""


def _type_of(text: str) -> Any:
    arrow = optional_import("pyarrow", "tables")
    return arrow.ipc.read_schema(arrow.py_buffer(base64.b64decode(text))).field(0).type


def arrow_series(text: str, dtype: str, values: Sequence[Any]) -> Any:
    """Values, None where missing, as a Series of the type from :func:`arrow_text`, or of ``dtype``."""
    pd, arrow = optional_import("pandas", "tables"), optional_import("pyarrow", "tables")
    kind = _type_of(text)
    if arrow.types.is_decimal(kind):
        places = max(kind.scale, 0)
        array = arrow.array([None if v is None else Decimal(f"{v:.{places}f}") for v in values], kind)
    elif arrow.types.is_temporal(kind):
        array = arrow.array(values, _storage(kind)).view(kind)
    elif arrow.types.is_dictionary(kind):
        array = arrow.array(values, kind.value_type).dictionary_encode().cast(kind)
    else:
        array = arrow.array(values, kind)
    if dtype == "object":
        return pd.Series(array.to_pylist(), dtype=object)
    if dtype.startswith("timedelta"):
        return pd.Series(array.to_pandas(), dtype=dtype)
    return pd.Series(pd.arrays.ArrowExtensionArray(array))


def _storage(kind: Any) -> Any:
    """Integer type in which Arrow stores a temporal type."""
    arrow = optional_import("pyarrow", "tables")
    return arrow.int32() if kind.bit_width == 32 else arrow.int64()
