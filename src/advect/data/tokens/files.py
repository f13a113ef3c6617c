"""Tokens from text, FASTA, tables with a column of texts, and arrays of whole numbers; and samples written as such."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from advect.core.errors import UserError, did_you_mean, optional_import
from advect.core.files import atomic_write
from advect.core.memory import check_memory
from advect.data.numpy_files import load_arrays
from advect.data.sequences.files import read_label
from advect.data.tables.columns import Column
from advect.data.tables.csv_files import find_separator
from advect.data.tables.files import FileStyle, is_table_file, read_table, style_of
from advect.data.tables.infer_columns import read_condition
from advect.data.text_files import open_bytes, open_text

TEXT, FASTA = (".txt", ".text", ".txt.gz", ".text.gz"), (".fasta", ".fa", ".fna", ".faa", ".ffn", ".fas")
FASTA = (*FASTA, *(f"{suffix}.gz" for suffix in FASTA))
LINE = 2048
"""Most characters of a line that is taken for a sequence by default."""

Layout = Literal["lines", "stream", "fasta", "array", "table"]
Unit = Literal["characters", "words", "numbers"]

PAGE = "\f"
"""Line after each sample of a stream of text."""


@dataclass(frozen=True)
class TokenRows:
    """Sequences of tokens, one after the other.

    Attributes:
        codes: (T,) whole numbers; of characters their code points, of words their places in ``words``.
        starts, sizes: (N,) the first place and number of tokens of each; a stream is one.
        unit, layout: what a token is, and how sequences stand in the file.
        words: those of the vocabulary, sorted.
        conditions: by name, a column and values (N,) in table units.
        newline: end of lines.
        width: of lines in FASTA, 0 for none.
        dtype: of an array.
        column: of a table.
        style: of a table's file.
    """

    codes: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    unit: Unit
    layout: Layout
    words: tuple[str, ...] = ()
    conditions: Mapping[str, tuple[Column, np.ndarray]] = field(default_factory=dict)
    newline: str = "\n"
    width: int = 0
    dtype: str = "int64"
    column: str = ""
    style: FileStyle | None = None


def is_text(path: Path) -> bool:
    """Whether a file is text rather than a table: .txt with one field a line, or lines of other numbers of them, which
    are mostly no numbers.
    """
    if not path.is_file() or not path.name.lower().endswith(TEXT):
        return False
    try:
        with open_text(path) as lines:
            head = [line.rstrip("\r\n") for line in islice(lines, 200)]
        with open_text(path) as lines:
            separator = find_separator(lines)
    except (OSError, EOFError, ValueError, UserError):
        return False
    full = [line for line in head if line.strip()]
    if not full or any("\0" in line for line in head):
        return False
    words = [line.split() if separator == " " else line.split(separator) for line in full]
    numbers = sum(_is_number(word) for row in words[1:] or words for word in row)
    if 2 * numbers > sum(map(len, words[1:] or words)):
        return False
    counts = set(map(len, words))
    return counts == {1} or len(counts) > 1


def _is_number(word: str) -> bool:
    try:
        float(word.replace(",", "."))
    except ValueError:
        return False
    return True


def is_token_array(path: Path) -> bool:
    """Whether a NumPy file may hold tokens: whole numbers of one or two axes."""
    from advect.data.arrays import array_header

    header = array_header(path)
    return header is not None and header.dtype.kind in "iub" and len(header.shape) in (1, 2)


def read_tokens(
    data: Any,
    *,
    layout: str,
    unit: str,
    column: str | None,
    conditions: Sequence[str],
    lengths: Any,
    labels: Mapping[str, Any] | None,
) -> TokenRows:
    """Tokens of a file, list of texts, or array. Raises UserError for what holds none."""
    if isinstance(data, str | os.PathLike):
        path = Path(data).expanduser()
        if not path.is_file():
            raise UserError(f"{str(data)!r} does not exist or is not a file; check its name")
        name = path.name.lower()
        if column is not None or (is_table_file(path) and not name.endswith(TEXT)):
            return _of_table(path, column, conditions, unit)
        if name.endswith((".npy", ".npz")):
            arrays = load_arrays(path)
            values = arrays.get("values", next(iter(arrays.values())) if len(arrays) == 1 else None)
            if values is None:
                raise UserError(f"{path} has the arrays {', '.join(arrays)}, none called 'values'; name the tokens so")
            return _of_array(values, arrays.get("lengths"), _named(arrays, conditions, path))
        _refuse(conditions, f"{path} is no table or archive, so that it has no conditions")
        return _of_fasta(path) if name.endswith(FASTA) else _of_text(path, layout, unit)
    if _is_frame(data):
        return _of_table(data, column, conditions, unit)
    _refuse(conditions, "the tokens are no file; give labels")
    if isinstance(data, list | tuple) and data and all(isinstance(one, str) for one in data):
        rows = _of_strings(list(data), unit, "the list", "lines")
        return _labelled(rows, labels)
    if isinstance(data, str):
        raise UserError("data is one text; give a list of texts, or a path")
    if isinstance(data, list | tuple):
        pieces = [_whole(one, f"sequence {i}") for i, one in enumerate(data)]
        flat = np.concatenate(pieces) if pieces else np.empty(0, np.int64)
        return _of_array(flat, np.array(list(map(len, pieces)), np.int64), labels or {})
    return _of_array(data, lengths, labels or {})


def _is_frame(data: Any) -> bool:
    return hasattr(data, "columns")


def _refuse(conditions: Sequence[str], why: str) -> None:
    if conditions:
        raise UserError(f"conditions has {conditions[0]!r}, but {why}; leave it out")


def _named(arrays: Mapping[str, np.ndarray], names: Sequence[str], path: Path) -> dict[str, np.ndarray]:
    for name in names:
        if name not in arrays:
            raise UserError(f"conditions has {name!r}, which {path} has not{did_you_mean(name, arrays)}")
    return {name: arrays[name] for name in names}


def _labelled(rows: TokenRows, labels: Mapping[str, Any] | None) -> TokenRows:
    told = {name: read_label(name, values, len(rows.sizes)) for name, values in (labels or {}).items()}
    return TokenRows(**{**vars(rows), "conditions": told})


def read_whole_text(path: Path) -> str:
    """Content of a text file. Raises UserError unless it is UTF-8 without zero bytes."""
    check_memory(f"{path} holds text, which takes", 8 * path.stat().st_size, "give a part of it")
    try:
        with open_bytes(path) as file:
            content = file.read()
    except (OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}); save it again") from error
    try:
        text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text at byte {error.start:,}; save it as UTF-8") from error
    if "\0" in text:
        raise UserError(f"{path} has a zero byte, so that it is no text; give text, FASTA, a table or an array")
    if not text:
        raise UserError(f"{path} is empty; give some text")
    return text


def code_points(text: str) -> np.ndarray:
    """Code points (T,) uint32 of a text."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _of_text(path: Path, layout: str, unit: str) -> TokenRows:
    text = read_whole_text(path)
    body = text.removesuffix("\n").removesuffix("\r")
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = body.split(newline)
    if layout == "auto":
        one = len(lines) >= 10 and all(line.strip() for line in lines) and max(map(len, lines)) <= LINE
        layout = "lines" if one or unit == "words" else "stream"
    if layout == "stream":
        if unit == "words":
            raise UserError("words are of sequences of one line each, and the layout is a stream; take lines")
        codes = code_points(text)
        return TokenRows(codes, np.zeros(1, np.int64), np.array([len(codes)]), "characters", "stream", newline=newline)
    rows = _of_strings(lines, unit, str(path), "lines")
    return TokenRows(**{**vars(rows), "newline": newline})


def _of_strings(texts: Sequence[str], unit: str, what: str, layout: Layout) -> TokenRows:
    """Rows of texts, none of them empty."""
    empty = next((i for i, text in enumerate(texts) if not text), None)
    if empty is not None or not texts:
        where = "no rows" if not texts else f"an empty row {empty}"
        fix = ", or take it as one stream by --layout stream" if layout == "lines" else ""
        raise UserError(f"{what} has {where}, which is no sequence; take it out{fix}")
    if unit != "words":
        sizes = np.array(list(map(len, texts)), np.int64)
        return TokenRows(code_points("".join(texts)), sizes.cumsum() - sizes, sizes, "characters", layout)
    split = [text.split(" ") for text in texts]
    sizes = np.array(list(map(len, split)), np.int64)
    words, codes = np.unique(np.array([word for row in split for word in row], np.str_), return_inverse=True)
    return TokenRows(codes.reshape(-1), sizes.cumsum() - sizes, sizes, "words", layout, tuple(words.tolist()))


def _of_fasta(path: Path) -> TokenRows:
    records: list[list[str]] = []
    for number, line in enumerate(read_whole_text(path).splitlines(), 1):
        if line.startswith(">"):
            records.append([])
        elif line.strip() and not line.startswith(";"):
            if not records:
                raise UserError(
                    f"{path} has a sequence before its first header, in line {number}; begin it with >NAME"
                )
            records[-1].append(line.strip())
    rows = _of_strings(["".join(record) for record in records], "characters", str(path), "fasta")
    several = [len(record[0]) for record in records if len(record) > 1]
    return TokenRows(**{**vars(rows), "width": max(several, default=0)})


def _of_table(data: Any, column: str | None, conditions: Sequence[str], unit: str) -> TokenRows:
    optional_import("pandas", "tables")
    path = isinstance(data, str | os.PathLike)
    frame = read_table(data, text=[column] if column else ()) if path else data.reset_index(drop=True)
    what = str(data) if path else "the table"
    if column is None:
        raise UserError(f"{what} is a table; name the column with its texts by --column")
    for name in (column, *conditions):
        if name not in frame.columns:
            raise UserError(f"{what} has no column {name!r}{did_you_mean(name, map(str, frame.columns))}")
    missing = frame[column].isna().to_numpy(bool)
    if missing.any():
        raise UserError(f"column {column!r} misses a text in row {int(missing.argmax())}; take that row out")
    texts = frame[column].tolist()
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"column {column!r} holds {frame[column].dtype}, and tokens are of texts; name another column")
    forms = frame.attrs.get("forms", {})
    told = {name: read_condition(frame[name], form=forms.get(name)) for name in conditions}
    rows = _of_strings(texts, unit, f"column {column!r}", "table")
    style = style_of(data, frame.attrs, (column, *conditions))
    return TokenRows(**{**vars(rows), "conditions": told, "column": column, "style": style})


def _whole(x: Any, what: str) -> np.ndarray:
    """An array of whole numbers."""
    array = np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x)
    if array.dtype.kind not in "biu":
        raise UserError(
            f"{what} holds {array.dtype}, and tokens are whole numbers or texts; convert it, or see Sequences"
        )
    if array.size and (int(array.max()) > 2**53 or int(array.min()) < -(2**53)):
        raise UserError(f"{what} has numbers beyond 2^53; number the tokens 0, 1, ...")
    return array


def _of_array(x: Any, lengths: Any, labels: Mapping[str, Any]) -> TokenRows:
    """Rows of an array (N, L), of ``lengths`` (N,) if they differ; pieces of those of one (T,), or a stream."""
    x = _whole(x, "the array")
    if x.ndim not in (1, 2) or not x.size:
        raise UserError(f"tokens must be (N, L), or a stream (T,), not empty, got shape {x.shape}")
    layout: Layout = "array" if x.ndim == 2 or lengths is not None else "stream"
    width = x.shape[1] if x.ndim == 2 else 0
    sizes = np.full(len(x) if width else 1, width or len(x), np.int64)
    starts = np.arange(len(sizes), dtype=np.int64) * width
    if lengths is not None:
        sizes = np.asarray(_whole(lengths, "lengths"), np.int64)
        if sizes.ndim != 1 or sizes.min(initial=1) < 1:
            raise UserError(f"lengths must be (N,) numbers >= 1, got shape {sizes.shape} from {sizes.min(initial=1)}")
        fits = sizes.sum() == len(x) if not width else len(sizes) == len(x) and sizes.max() <= width
        if not fits:
            raise UserError(
                f"lengths, {len(sizes)} of sum {sizes.sum()}, do not fit the array {x.shape}; give one a row"
            )
        starts = starts if width else sizes.cumsum() - sizes
    rows = TokenRows(x.reshape(-1), starts, sizes, "numbers", layout, dtype=x.dtype.name)
    return _labelled(rows, labels)


def write_text(
    path: Path, texts: Iterable[str], layout: str, *, newline: str = "\n", width: int = 0, first: int = 0
) -> None:
    """Write samples as lines, as a stream whose samples end in a line of a page break, or as FASTA, atomically."""
    if layout == "fasta":
        parts = (f">sample-{first + i:06d}\n{_wrapped(text, width)}\n" for i, text in enumerate(texts))
    elif layout == "stream":
        parts = (f"{text}{newline}{PAGE}{newline}" for text in texts)
    else:
        parts = (text + newline for text in texts)
    content = "".join(parts).encode("utf-8")
    atomic_write(path, lambda partial: partial.write_bytes(content))


def _wrapped(text: str, width: int) -> str:
    return "\n".join(text[i : i + width] for i in range(0, len(text), width)) if width else text
