"""Joining the files of consecutive parts into one, with the memory of a part."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm

from advect.core.errors import optional_import
from advect.data.numpy_files import read_header


def join_npz(parts: Sequence[Path], path: Path, bar: tqdm) -> None:
    """Arrays of .npz files one after the other along their first axis, in the smallest common type.

    The members of the archive are streamed, an array of a part at a time.
    """
    forms = [_npz_forms(part) for part in parts]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as archive:
        for name, (shape, _) in forms[0].items():
            found = [form[name] for form in forms]
            dtype = np.result_type(*(dtype for _, dtype in found))
            rows = sum(own[0] for own, _ in found)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                _write_header(member, (rows, *shape[1:]), dtype)
                for part in parts:
                    with np.load(part, allow_pickle=False) as arrays:
                        flat = np.ascontiguousarray(arrays[name], dtype).reshape(-1)
                        member.write(flat.view(np.uint8).data)
                    bar.update(1 / len(forms[0]))


def _write_header(member: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> None:
    facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, facts)


def _npz_forms(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and type of each array of an .npz file, from their headers."""
    forms = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                forms[name.removesuffix(".npy")] = read_header(member)
    return forms


_BLOCK = 1 << 20


def join_csv(parts: Sequence[Path], path: Path, bar: tqdm) -> None:
    """Text tables one after the other, under one header."""
    with path.open("wb") as whole:
        for k, part in enumerate(parts):
            with part.open("rb") as lines:
                header = lines.readline()
                while header.count(b'"') % 2:  # a name with a line break
                    header += lines.readline()
                if k == 0:
                    whole.write(header)
                while block := lines.read(_BLOCK):
                    whole.write(block)
            bar.update()


def join_parquet(parts: Sequence[Path], path: Path, bar: tqdm) -> None:
    """Parquet tables one after the other, a row group or more a part, in their common types."""
    arrow, parquet = optional_import("pyarrow", "tables"), optional_import("pyarrow.parquet", "tables")
    schemas = [parquet.read_schema(part) for part in parts]
    schema = arrow.unify_schemas(schemas, promote_options="permissive")
    alike = next((own for own in schemas if own.equals(schema)), schemas[0])  # whose pandas types hold
    schema = schema.with_metadata(alike.metadata)
    with parquet.ParquetWriter(path, schema) as whole:
        for part in parts:
            whole.write_table(parquet.ParquetFile(part).read().cast(schema))
            bar.update()


def join_text(parts: Sequence[Path], path: Path, bar: tqdm) -> None:
    """Texts one after the other, each of which ends its last line."""
    with path.open("wb") as whole:
        for part in parts:
            with part.open("rb") as text:
                while block := text.read(_BLOCK):
                    whole.write(block)
            bar.update()


def join_npy(parts: Sequence[Path], path: Path, bar: tqdm) -> None:
    """Arrays of .npy files of one type, one after the other along their first axis."""
    arrays = [np.load(part, mmap_mode="r", allow_pickle=False) for part in parts]
    with path.open("wb") as whole:
        _write_header(whole, (sum(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype)
        for array in arrays:
            whole.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            bar.update()


JOINED: Mapping[str, Callable[[Sequence[Path], Path, tqdm], None]] = {
    ".npz": join_npz,
    ".csv": join_csv,
    ".parquet": join_parquet,
    ".txt": join_text,
    ".fasta": join_text,
    ".npy": join_npy,
}
"""How files of a suffix are joined."""
