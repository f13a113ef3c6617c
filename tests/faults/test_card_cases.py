"""Cards of every modality: sound ones load, sample and are written; with one value changed they are sound or refused.

Some cases, the same ones each time; ``python -m faults.card_cases`` goes on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import advect
from advect.core.errors import UserError
from advect.core.types import Quantity
from advect.model.load import METADATA
from faults.card_cases import SOURCES, Cards, mutated, places, try_card

for needed in ("pandas", "pyarrow", "anndata"):
    pytest.importorskip(needed)


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Cards:
    return Cards(tmp_path_factory.mktemp("cards"))


@pytest.mark.parametrize("name", SOURCES)
def test_a_changed_card_is_sound_or_one_sentence(name: str, cards: Cards) -> None:
    file, card, _ = cards.sound(name)
    assert try_card(file, cards.home / "out", plots=True) == "held"
    changed = [way for way in places(card) if way[0] in ("facts", "transform", "spec")]
    for seed in range(8):
        words, found = cards.case(name, seed, changed[seed * 7919 % len(changed)])
        assert not found.startswith("broke"), (words, found)


def test_every_way_into_a_card_and_each_change_is_repeatable(cards: Cards) -> None:
    _, card, _ = cards.sound("vectors")
    assert ("spec", "conditions", "label", "names", 0) in set(places(card))
    for seed in range(50):
        changed, words = mutated(card, random.Random(seed))
        assert (changed, words) == mutated(card, random.Random(seed)) or "NaN" in words
        assert json.dumps(changed) != json.dumps(card) or " = " in words


CHANGES: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "a newer entry of facts": ("vectors", lambda card: card["facts"].update(new=1), "an entry 'new', which this"),
    "a newer entry deep within": (
        "cells-genes",
        lambda card: card["facts"]["var"]["columns"]["length"].update(unit="kb"),
        "an entry 'unit', which this advect does not know; install the newer one",
    ),
    "a newer entry of a form": (
        "table-csv",
        lambda card: card["transform"]["columns"][0].update(colour="red"),
        "column 'real' has an entry 'colour', which this advect does not know",
    ),
    "facts of images": ("images", lambda card: card["facts"].update(x=1), "an entry 'x', which this advect"),
    "no examples": (
        "table-csv",
        lambda card: card["spec"]["conditions"]["gap"].update(examples=[]),
        "condition 'gap' is not what advect writes: examples: expected array of length >= 1",
    ),
    "a gene too few": ("cells-genes", lambda card: card["facts"]["var"]["genes"].pop(), "must have 8 of them, got 7"),
    "a label too few": (
        "cells-genes",
        lambda card: card["facts"]["obs"]["type"]["labels"].pop(),
        "the condition 'type' is not that of its column of cells",
    ),
    "columns of others": (
        "table-parquet",
        lambda card: card["facts"]["transform"]["columns"][0].update(high=7e9),
        "the columns of samples and those of their file differ",
    ),
    "an order of others": ("table-csv", lambda card: card["facts"]["order"].pop(), "the order of the columns has not"),
    "a separator of letters": (
        "table-semicolon",
        lambda card: card["facts"].update(separator="and"),
        "separator: invalid enum value 'and'",
    ),
    "a type of Python": (
        "vectors-parquet",
        lambda card: card["facts"]["type"].update(dtype="object"),
        "type.dtype: expected str matching regex",
    ),
    "a range beyond the type": (
        "vectors-parquet",
        lambda card: card["facts"]["type"].update(high=[300] * 3),
        "the ranges of whole numbers do not fit the type uint8",
    ),
    "an infinite end": (
        "sequences-table",
        lambda card: card["transform"]["columns"][0].update(high=float("inf")),
        "column 'value' is not what advect writes: high",
    ),
    "shares of too few lengths": (
        "sequences-arrays",
        lambda card: card["spec"]["conditions"]["length"]["frequencies"].pop(),
        "lengths must be 1 to 6, got shares of 5",
    ),
    "a place beyond the features": (
        "vectors",
        lambda card: card["transform"].update(constant=[3]),
        "constant features must lie in 0 to 2",
    ),
}


@pytest.mark.parametrize("case", CHANGES.values(), ids=CHANGES)
def test_what_a_card_claims_is_compared(
    case: tuple[str, Callable[[Any], Any], str], cards: Cards, tmp_path: Path
) -> None:
    name, change, words = case
    _, card, tensors = cards.sound(name)
    card = json.loads(json.dumps(card))
    change(card)
    save_file(tensors, place := tmp_path / "model.safetensors", {METADATA: json.dumps(card)})
    with pytest.raises(UserError) as error:
        advect.load(place, device="cpu")
    assert words in str(error.value) and str(place) in str(error.value), error.value


def test_types_that_contradict_the_values_are_refused_before_samples_are_drawn(cards: Cards, tmp_path: Path) -> None:
    _, card, tensors = cards.sound("table-parquet")
    card = json.loads(json.dumps(card))
    for columns in (card["facts"]["transform"]["columns"], card["transform"]["columns"]):
        next(column for column in columns if column["name"] == "narrow")["high"] = 1e5  # of int8
    save_file(tensors, place := tmp_path / "model.safetensors", {METADATA: json.dumps(card)})
    flow = advect.load(place, device="cpu")
    with pytest.raises(UserError, match="column 'narrow' is not what advect writes"):
        flow.modality.check_output()


def test_a_quantity_without_examples_is_refused() -> None:
    with pytest.raises(UserError, match="a quantity has no examples to sample"):
        Quantity(("x",), (0.0,), (1.0,), ())
