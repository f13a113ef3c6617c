"""What the columns of Parquet files hold, from their schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from advect.core.errors import optional_import

PARQUET = (".parquet", ".pq")


def parquet_fields(path: Path) -> list[Any]:
    """Fields of a Parquet file, or of the first in a folder; empty if there is none."""
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))[:1]
    if not files or not files[0].name.lower().endswith(PARQUET):
        return []
    try:
        import pyarrow.parquet

        return list(pyarrow.parquet.read_schema(files[0]))
    except (ImportError, OSError, ValueError):
        return []


def image_columns(path: Path) -> list[str]:
    """Columns of Parquet files that can hold images: bytes, or a struct with ``bytes``."""
    return [
        field.name
        for field in parquet_fields(path)
        if str(field.type) in ("binary", "large_binary") or f"{field.name}.bytes" in {c.name for c in field.flatten()}
    ]


def is_vector_type(kind: Any) -> bool:
    """Whether an Arrow type is lists of real numbers, of fixed length or not."""
    types = optional_import("pyarrow", "tables").types
    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        return False
    return types.is_integer(kind.value_type) or types.is_floating(kind.value_type)


def vector_columns(path: Path) -> list[str]:
    """Columns of a Parquet file that hold lists of numbers."""
    return [field.name for field in parquet_fields(path) if is_vector_type(field.type)] if path.is_file() else []
