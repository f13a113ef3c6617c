"""Columns of words as Arrow arrays of strings: which patterns they fit, and which distinct ones there are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from advect.core.errors import optional_import


def text_of(words: Sequence[str | None] | np.ndarray) -> Any:
    """Words (N,), None where missing, as :func:`infer_text` takes them."""
    arrow = optional_import("pyarrow", "tables")
    return arrow.chunked_array([arrow.array(words, arrow.string())])


def compute() -> Any:
    return optional_import("pyarrow.compute", "tables")


def among(words: Any, some: Collection[str]) -> Any:
    """Mask (N,) of words that are one of ``some``."""
    return compute().is_in(words, value_set=optional_import("pyarrow", "tables").array(list(some), "string"))


def fits(words: Any, pattern: str, *, start: bool = False) -> Any:
    """Mask (N,) of words that a regular expression matches as a whole, or at their start."""
    return compute().match_substring_regex(words, f"^(?:{pattern})" + ("" if start else "$"))


def every(words: Any, pattern: str, *, start: bool = False) -> bool:
    """Whether :func:`fits` holds for all words; most patterns fail within the first few."""
    if len(words) > HEAD and not all_of(fits(words[:HEAD], pattern, start=start)):
        return False
    return all_of(fits(words, pattern, start=start))


def some(words: Any, pattern: str) -> bool:
    """Whether a regular expression matches the start of any word."""
    return any_of(fits(words, pattern, start=True))


HEAD = 1000
"""Words tried before all."""


def all_of(mask: Any) -> bool:
    return compute().all(mask, min_count=0).as_py()


def any_of(mask: Any) -> bool:
    return compute().any(mask, min_count=0).as_py()


def distinct_of(words: Any) -> tuple[list[str], np.ndarray]:
    """Distinct words in order of appearance, and which of them (N,) each word is."""
    chunks = words.dictionary_encode().unify_dictionaries().chunks
    return chunks[0].dictionary.to_pylist(), np.concatenate([chunk.indices.to_numpy() for chunk in chunks])


def commonest(words: Any) -> str:
    counts = words.value_counts()
    return counts.field("values")[int(np.argmax(counts.field("counts").to_numpy()))].as_py()
