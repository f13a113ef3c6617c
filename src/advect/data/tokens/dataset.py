"""Data sets of tokens: rows of text, FASTA records, arrays of whole numbers, or windows of a stream."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypedDict

import numpy as np
from msgspec import Meta

from advect.core.bounds import Count, Share
from advect.core.errors import UserError
from advect.core.registry import register
from advect.core.types import LENGTH, Condition, DataSpec, Length
from advect.data.base import Dataset, Detected, Preview, check_share
from advect.data.splits import split_groups
from advect.data.tables.columns import column_from_config
from advect.data.tables.files import FileStyle, is_table_file
from advect.data.tables.infer_columns import condition_of
from advect.data.tokens.files import FASTA, LINE, TokenRows, Unit, is_text, is_token_array, read_tokens
from advect.data.tokens.split import TokenSplit
from advect.data.tokens.transform import MOST, TokenTransform

WINDOW = 256
"""Tokens of a window of a stream by default."""


class TokenMetadata(TypedDict):
    """JSON to write samples: what a token is, how sequences stand in their file, and the columns of it."""

    unit: Unit
    layout: Literal["lines", "stream", "fasta", "array", "table"]
    words: list[str]
    newline: Literal["\n", "\r\n"]
    width: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    dtype: Annotated[str, Meta(pattern=r"^(bool|u?int(8|16|32|64))$")]
    column: str
    conditions: list[dict[str, Any]]
    style: FileStyle | None


@register("tokens")
class Tokens(Dataset):
    """Sequences of tokens, for discrete flow matching: characters or words of text, FASTA, or whole numbers.

    In data units code points, places of words in the sorted vocabulary, or the numbers themselves. The vocabulary is
    what the data have. If lengths differ, the condition ``LENGTH`` (B,) int64 in 1 .. L gives them. Equal sequences
    share a side of the split; of a stream the last part is held out.

    Args:
        data: ``.txt`` of one sequence a line or of a stream of text, FASTA, CSV or Parquet with a ``column`` of texts,
            ``.npy`` or ``.npz`` (``values``, and ``lengths`` if they differ) of whole numbers (N, L) or a stream (T,);
            or a list of texts, a data frame, an array.
        layout: of ``.txt``: "lines" of a sequence each, a "stream" cut in windows, or "auto": lines where there are
            ten or more, none of them blank or of more than 2,048 characters.
        unit: a token is a character, or a word between single blanks.
        column: of a table, its texts.
        lengths: tokens of each row of one array.
        labels: conditions of arrays and lists by name, (N,) each.
        conditions: columns of a table, or names of arrays (N,) in an archive.
        max_length: largest number of tokens; by default that of the longest sequence, and windows of 256 of a stream.
        long: treatment of longer sequences: "truncate" keeps the first tokens, "window" cuts consecutive windows.
        held_out: share of the sequences held out at random, of a stream its end, in [0, 1).
        seed: seed of the split.
        name: name in reports; default the file's name.

    Raises:
        UserError: the data or an argument is invalid.
    """

    place: ClassVar[str | None] = "the file of text, FASTA or whole numbers"
    usual_preset: ClassVar[str | None] = "tokens"
    part_given: ClassVar[tuple[str, ...]] = ("lengths", "labels", "seed", "name")

    @classmethod
    def recognises(cls, path: Path) -> Detected | None:
        if path.is_file() and path.name.lower().endswith(FASTA):
            return Detected(80, "FASTA", "tokens")
        if is_text(path):
            return Detected(75, "text", "tokens")
        if is_table_file(path):  # which is a table, unless tokens are asked for
            return Detected(4, "a CSV or Parquet table with a column of texts", "tokens")
        there = path.is_file() and is_token_array(path)  # vectors, unless tokens are asked for
        return Detected(5, "a .npy or .npz file of whole numbers as tokens", "tokens") if there else None

    @classmethod
    def preview(cls, path: Path) -> Preview:
        if not is_text(path):
            return Preview("sequences of tokens")
        rows = read_tokens(
            path, layout="auto", unit="characters", column=None, conditions=(), lengths=None, labels=None
        )
        count = len(rows.sizes)
        if rows.layout == "lines":
            return Preview(f"text of {count:,} lines, a sequence each (else --layout stream)")
        return Preview(f"text of {len(rows.codes):,} characters, cut in windows (else --layout lines)")

    def __init__(
        self,
        data: Any,
        *,
        layout: Literal["auto", "lines", "stream"] = "auto",
        unit: Literal["characters", "words"] = "characters",
        column: str | None = None,
        lengths: Any = None,
        labels: Mapping[str, Any] | None = None,
        conditions: Sequence[str] = (),
        max_length: Count | None = None,
        long: Literal["truncate", "window"] = "truncate",
        held_out: Share = 0.1,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        for option, value, known in (
            ("layout", layout, ("auto", "lines", "stream")),
            ("unit", unit, ("characters", "words")),
            ("long", long, ("truncate", "window")),
        ):
            if value not in known:
                raise UserError(f"{option} must be {' or '.join(map(repr, known))}, got {value!r}")
        if isinstance(conditions, str):
            raise UserError("conditions must be several names, got one text; write (name,)")
        check_share(held_out)
        rows = read_tokens(
            data, layout=layout, unit=unit, column=column, conditions=conditions, lengths=lengths, labels=labels
        )
        self.rows, stream = rows, rows.layout == "stream"
        for option, value in (("layout", layout != "auto"), ("unit", unit == "words")):
            text = rows.layout in ("lines", "stream") and rows.unit != "numbers"
            if value and not text and not (option == "unit" and rows.unit == "words"):
                raise UserError(f"{option} is for text, and these are {rows.unit} of a {rows.layout}; leave it out")
        codes, places = _vocabulary(rows)
        cut = _windows(rows, max_length or WINDOW) if stream else _shortened(rows, max_length, long)
        rows, owner = cut
        length = int(rows.sizes.max())
        if stream:
            train, rest = _split_stream(rows, length, held_out)
        else:
            train, rest = split_groups(_equal(rows, owner), held_out, seed=seed)
        is_train = np.zeros(len(rows.sizes), bool)
        is_train[train] = True
        specs: dict[str, Condition] = {}
        cond: dict[str, np.ndarray] = {}
        for key, (one, values) in rows.conditions.items():
            specs[key], cond[key] = condition_of(one, values[owner], is_train)
        if int(rows.sizes.min()) < length:
            counts = np.bincount(rows.sizes[train] - 1, minlength=length)
            specs[LENGTH], cond[LENGTH] = Length(tuple((counts / len(train)).tolist())), rows.sizes
        splits = []
        for part in (train, rest):
            own = {key: values[part] for key, values in cond.items()}
            reach = int(rows.starts[part[-1]]) + length if stream and part is train else None
            size = {"length": length, "size": len(codes), "cond": own, "numbers": part}
            splits.append(TokenSplit(places, rows.starts[part], rows.sizes[part], **size, reach=reach))
        super().__init__(
            name=name or (Path(data).name if isinstance(data, str | os.PathLike) else "tokens"),
            spec=DataSpec((length, len(codes)), "tokens", specs),
            transform=TokenTransform(tuple(codes.tolist())),
            train=splits[0],
            held_out=splits[1],
            fingerprint=_fingerprint(rows, places, codes, train, cond),
        )

    @property
    def metadata(self) -> TokenMetadata:
        rows = self.rows
        return {
            "unit": rows.unit,
            "layout": rows.layout,
            "words": list(rows.words),
            "newline": "\r\n" if rows.newline == "\r\n" else "\n",
            "width": rows.width,
            "dtype": rows.dtype,
            "column": rows.column,
            "conditions": [column.to_config() for column, _ in rows.conditions.values()],
            "style": rows.style,
        }


def _vocabulary(rows: TokenRows) -> tuple[np.ndarray, np.ndarray]:
    """The codes (K,) of all tokens, rising, and the place (T,) of each token among them, in a small type."""
    whole = rows.sizes.sum() == len(rows.codes)
    used = (
        rows.codes
        if whole
        else np.concatenate([rows.codes[a : a + n] for a, n in zip(rows.starts, rows.sizes, strict=True)])
    )
    codes = np.unique(used).astype(np.int64)
    if len(codes) > MOST:
        what = "words" if rows.unit == "words" else "different tokens"
        raise UserError(f"there are {len(codes):,} {what}, and a vocabulary has at most {MOST:,}; join the rare ones")
    if len(codes) == 1:
        raise UserError("all tokens are the same, so that there is nothing to learn; give other data")
    kind = np.uint8 if len(codes) <= 256 else np.uint16
    return codes, np.searchsorted(codes, rows.codes.astype(np.int64)).clip(max=len(codes) - 1).astype(kind)


def _windows(rows: TokenRows, length: int) -> tuple[TokenRows, np.ndarray]:
    """Consecutive windows of a stream, without a shorter rest, unless it is all there is."""
    total = len(rows.codes)
    length = min(length, total)
    starts = np.arange(0, total - length + 1, length, dtype=np.int64)
    windows = replace(rows, starts=starts, sizes=np.full(len(starts), length, np.int64))
    return windows, np.zeros(len(starts), np.int64)


def _shortened(rows: TokenRows, most: int | None, long: str) -> tuple[TokenRows, np.ndarray]:
    """Sequences of at most so many tokens, and the sequence (N,) that each is of."""
    longest = int(rows.sizes.max())
    if most is None:
        if longest > LINE:
            raise UserError(
                f"the longest sequence has {longest:,} tokens; give max_length (--max-length), such as {WINDOW}, and "
                "long='window' (--long window) to use all of each"
            )
        return rows, np.arange(len(rows.sizes))
    if long == "truncate":
        return replace(rows, sizes=np.minimum(rows.sizes, most)), np.arange(len(rows.sizes))
    counts = -(-rows.sizes // most)
    owner = np.repeat(np.arange(len(counts)), counts)
    step = np.concatenate([np.arange(n) for n in counts]) * most
    sizes = np.minimum(rows.sizes[owner] - step, most)
    return replace(rows, starts=rows.starts[owner] + step, sizes=sizes), owner


def _equal(rows: TokenRows, owner: np.ndarray) -> np.ndarray:
    """Group (N,) of rows of equal tokens, or of one sequence."""
    if len(owner) and owner[-1] != len(owner) - 1:
        return owner
    contents = [rows.codes[a : a + n].tobytes() for a, n in zip(rows.starts, rows.sizes, strict=True)]
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    return np.unique(digests, return_inverse=True)[1].reshape(-1)


def _split_stream(rows: TokenRows, length: int, held_out: float) -> tuple[np.ndarray, np.ndarray]:
    """Windows to train on, and the last, held-out ones."""
    n = len(rows.starts)
    count = min(max(round(n * held_out), 1), n - 1) if held_out else 0
    return np.arange(n - count), np.arange(n - count, n)


def _fingerprint(
    rows: TokenRows, places: np.ndarray, codes: np.ndarray, train: np.ndarray, cond: Mapping[str, np.ndarray]
) -> str:
    digest = hashlib.sha256(repr((rows.unit, rows.layout, rows.words, places.dtype.str)).encode())
    for array in (places, codes, rows.starts, rows.sizes, train, *(cond[name] for name in sorted(cond))):
        digest.update(np.ascontiguousarray(array).tobytes())
    for column, _ in rows.conditions.values():
        digest.update(repr(column_from_config(column.to_config())).encode())
    return digest.hexdigest()
