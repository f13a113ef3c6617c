"""Tokens: text, FASTA, tables and arrays of samples, pictures of text, and counts of neighbouring tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from advect.core.errors import UserError, optional_import
from advect.core.registry import register
from advect.core.types import LENGTH, Batch, Conditions, Length
from advect.data.captions import condition_words
from advect.data.given import GivenRows, check_asked, check_given, samples_name
from advect.data.modality import Modality, Recipe, Verdict, condition_columns, write_npz
from advect.data.numpy_files import load_arrays, save_arrays
from advect.data.tables.columns import Column, column_from_config
from advect.data.tables.files import write_in_style
from advect.data.tables.infer_columns import check_told, column_values
from advect.data.tokens.dataset import TokenMetadata
from advect.data.tokens.files import read_whole_text, write_text
from advect.data.tokens.panel import text_panel
from advect.data.tokens.transform import TokenTransform

LAYOUTS = {
    "characters": ("lines", "stream", "fasta", "table"),
    "words": ("lines", "table"),
    "numbers": ("array", "stream"),
}
"""How tokens of each kind stand in files."""

MASK = "▢"
"""A mask, in the texts of unfinished samples."""

PAIRS = 256
"""Numbers that counts of neighbouring tokens are shared among."""


@register("tokens")
class TokensModality(Modality[TokenMetadata]):
    """Tokens (L,), in model units rows (L, K): samples.txt, .fasta, .csv, .parquet, .npy or .npz, as the data were."""

    layout = "sequence"
    example_shape = (16, 8)
    record = TokenMetadata
    usual_preset = "tokens"
    tokens = True
    marginals = False
    metrics = ("bits_per_token", "ngrams", "energy", "class_accuracy")
    online_metrics = ("energy",)
    reflow_metrics = ("energy",)
    recipe = Recipe(batch_size=64, epochs=200, least_steps=2000, cpu_steps=10_000, gpu_steps=200_000)
    most_plotted = 64
    trajectories = 4
    space = "shares of tokens and of pairs of neighbours"
    value_name = "shares"

    def describe(self, shape: Sequence[int]) -> str:
        length, size = self.spec.shape
        return f"sequences of up to {length:,} tokens of a vocabulary of {size:,}"

    @classmethod
    def check_range(cls, *, mean: float, std: float, extreme: float) -> Verdict:
        return Verdict("ok", "The tokens are rows of ones and zeros")

    @classmethod
    def check_constant(cls, share: float) -> Verdict:
        return Verdict("ok", "Some tokens are never at some places")

    @cached_property
    def _codes(self) -> np.ndarray:
        assert isinstance(self.transform, TokenTransform)
        return np.array(self.transform.codes, np.int64)

    @cached_property
    def _told(self) -> list[Column]:
        return list(map(column_from_config, self.metadata["conditions"]))

    @property
    def separator(self) -> str:
        style = self.metadata["style"]
        return style["separator"] or "," if style else ","

    def check_facts(self) -> None:
        facts, codes = self.metadata, self._codes
        if len(codes) != self.spec.shape[-1] or len(self.spec.shape) != 2:
            raise UserError(f"the vocabulary has {len(codes)} tokens for {self.spec.shape}; take another file")
        least, most = {"words": (0, len(facts["words"]) - 1), "numbers": (-(2**53), 2**53)}.get(
            facts["unit"], (0, 0x10FFFF)
        )
        if codes[0] < least or codes[-1] > most:
            raise UserError(f"the vocabulary has codes that no {facts['unit']} have; take another file")
        fits = facts["layout"] in LAYOUTS[facts["unit"]]
        if not fits or (facts["layout"] == "table") != (facts["style"] is not None):
            raise UserError("the layout of the tokens is not that of their file; take another file")
        lengths = self.spec.conditions.get(LENGTH)
        if isinstance(lengths, Length) and len(lengths.frequencies) != self.spec.shape[0]:
            raise UserError(f"lengths must be 1 to {self.spec.shape[0]}, got shares of {len(lengths.frequencies)}")
        check_told(self._told, self.spec.conditions)

    def rows(self, x: Tensor, conditions: Conditions) -> list[np.ndarray]:
        """Samples x (n, L) in data units as codes (L_i,) each, int64, -1 for masks of unfinished samples."""
        whole = x.detach().cpu().double().nan_to_num(-1.0).numpy().astype(np.int64)
        lengths = conditions.get(LENGTH)
        if lengths is None:
            return list(whole)
        return [row[:n] for row, n in zip(whole, lengths.tolist(), strict=True)]

    def texts(self, x: Tensor, conditions: Conditions | None = None) -> list[str]:
        """Samples x (n, L) in data units, with the conditions that they were drawn under, as texts.

        ``flow.modality.texts(samples.x, samples.encoded)``. Masks are "▢", numbers are separated by blanks.
        """
        unit, words = self.metadata["unit"], self.metadata["words"]
        found = self.rows(x, conditions or {})
        if unit == "characters":
            return ["".join(chr(code) if code >= 0 else MASK for code in row.tolist()) for row in found]
        name = (lambda code: words[code]) if unit == "words" else str
        masked = unit == "words" or self._codes[0] >= 0
        return [" ".join(MASK if code < 0 and masked else name(code) for code in row.tolist()) for row in found]

    @property
    def groups(self) -> Tensor:
        """A token is an entry."""
        length, size = self.spec.shape
        return torch.arange(length)[:, None].expand(length, size)

    def given(self, x: Tensor) -> Tensor:
        """Tokens (n, L) in data units, NaN where asked for, in model units (n, L, K), NaN where asked for."""
        check_given(x, self.spec.shape[:1])
        return torch.where(x.isnan()[..., None], torch.nan, self.transform.forward(x))

    def given_rows(self, given: Any) -> Tensor:
        return given.own if isinstance(given, GivenRows) else super().given_rows(given)

    def read_given(self, path: Path) -> GivenRows:
        """Lines of a text file with "_" for characters that are asked for, "▢" where data have "_"; or an array with
        NaN.
        """
        length, told = self.spec.shape[0], LENGTH in self.spec.conditions
        if self.metadata["unit"] == "numbers":
            arrays = load_arrays(path)
            x = torch.from_numpy(np.atleast_2d(arrays[samples_name(path, arrays)]).astype(np.float64))
            return GivenRows(self.given(x), {LENGTH: [length] * len(x)} if told else {}, x)
        if self.metadata["unit"] != "characters" or self.metadata["layout"] not in ("lines", "stream"):
            raise UserError(f"{path} is given, and known tokens are read from lines of characters; use Flow.sample")
        mark = MASK if ord("_") in self._codes else "_"
        lines = read_whole_text(path).removesuffix("\n").split("\n")
        x = torch.full((len(lines), length), torch.nan, dtype=torch.float64)
        for row, line in zip(x, lines, strict=True):
            if not 0 < len(line) <= length:
                raise UserError(
                    f"{path} has a line of {len(line)} characters, and samples have 1 to {length}; mend it"
                )
            row[: len(line)] = torch.tensor([torch.nan if char == mark else ord(char) for char in line])
        check_asked(str(path), x.isnan().numpy())
        return GivenRows(self.given(x), {LENGTH: list(map(len, lines))} if told else {}, x)

    def write_data(self, x: Tensor, conditions: Conditions, folder: Path, first: int) -> list[Path]:
        facts, layout = self.metadata, self.metadata["layout"]
        if facts["unit"] == "numbers":
            return [self._write_array(x, conditions, folder)]
        texts = self.texts(x, conditions)
        if layout == "table":
            return [self._write_table(texts, conditions, folder)]
        path = folder / ("samples.fasta" if layout == "fasta" else "samples.txt")
        write_text(path, texts, layout, newline=facts["newline"], width=facts["width"], first=first)
        return [path]

    def _write_array(self, x: Tensor, conditions: Conditions, folder: Path) -> Path:
        values = x.detach().cpu().double().numpy().astype(self.metadata["dtype"])
        if not conditions and self.metadata["layout"] == "array":
            save_arrays(folder / "samples.npy", {"": values})
            return folder / "samples.npy"
        lengths = {"lengths": conditions[LENGTH]} if LENGTH in conditions else {}
        named = {name: value for name, value in conditions.items() if name != LENGTH}
        return write_npz(folder, {"values": values, **lengths}, named, self.spec)

    def _write_table(self, texts: list[str], conditions: Conditions, folder: Path) -> Path:
        pd, style = optional_import("pandas", "tables"), self.metadata["style"]
        assert style is not None
        columns = [pd.Series(texts, name=self.metadata["column"], dtype=object)]
        for column in self._told:
            told = torch.full((len(texts),), torch.nan).double()
            if column.name in conditions:
                told = column_values(column, conditions[column.name].detach().cpu())
            text = style["suffix"] == ".csv"
            columns.append(column.to_text(told.numpy()) if text else column.to_series(told.numpy()))
        return write_in_style(folder, pd.concat(columns, axis=1), style)

    def check_output(self, *, individual: bool = False) -> None:
        super().check_output(individual=individual)
        if style := self.metadata["style"]:
            optional_import("pandas", "tables")
            for column in self._told:
                column.check_written(text=style["suffix"] == ".csv")

    def plot(self, x: Tensor, conditions: Conditions, reference: Batch | None = None) -> Image.Image:
        """Text of samples, under their conditions, beside data."""
        named = {name: value for name, value in conditions.items() if name != LENGTH}
        _, words = condition_words(condition_columns(named, self.spec))
        words = [word.replace("\n", ", ") for word in words]
        data = [] if reference is None else self.texts(reference.x1[:64], _first(reference.cond or {}, 64))
        return text_panel(self.texts(x, conditions), words, data)

    def feature_space(self, x: Tensor) -> Tensor:
        """Samples (n, L) in data units as roots of the shares of their tokens and pairs of neighbours, (n, D).

        Beyond :data:`PAIRS` of either, several share a number. Distances are Hellinger's.
        """
        codes = torch.from_numpy(self._codes).double()
        places = torch.searchsorted(codes, x.detach().cpu().double().nan_to_num(codes[0].item()).contiguous())
        places = places.clamp(max=len(codes) - 1)
        size = min(len(codes), PAIRS)
        count = min(len(codes) ** 2, PAIRS)
        pairs = places[:, :-1] * len(codes) + places[:, 1:]
        parts = [_shares(places % size, size), _shares(_scattered(pairs, count), count)]
        return torch.cat(parts, 1).sqrt().float()


def _first(cond: Conditions, n: int) -> Conditions:
    return {name: value[:n] for name, value in cond.items()}


def _scattered(pairs: Tensor, count: int) -> Tensor:
    """Numbers below ``count`` of pairs (n, L), scattered where there are more."""
    return pairs if int(pairs.max() if pairs.numel() else 0) < count else pairs * 2654435761 % 4294967291 % count


def _shares(places: Tensor, size: int) -> Tensor:
    """Shares (n, size) of places (n, L) in 0 .. size - 1."""
    found = torch.zeros(len(places), size, dtype=torch.float64)
    found.scatter_add_(1, places, torch.ones_like(places, dtype=torch.float64))
    return found / max(places.shape[1], 1)
