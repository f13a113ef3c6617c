"""Model cards of strangers: each crafted one is one sentence, and nothing is built by what it claims."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import advect
from advect.core.errors import UserError
from advect.core.memory import check_memory, in_bytes
from advect.model.load import METADATA

Card = dict[str, Any]


@pytest.fixture(scope="module")
def weights(digits_run: Path) -> Path:
    """A weight file of a run with a condition."""
    return sorted(digits_run.glob("checkpoints/step-*/model.safetensors"))[-1]


def crafted(weights: Path, place: Path, change: Callable[[Card], Any]) -> Path:
    """Copy of a weight file whose card is changed in place, or is what the change returns."""
    with safe_open(weights, framework="pt") as file:
        card, tensors = json.loads(file.metadata()[METADATA]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    text = change(card)
    save_file(tensors, place, {METADATA: text if isinstance(text, str) else json.dumps(card)})
    return place


def put(*path: Any) -> Callable[[Card], None]:
    """Change that sets the entry at ``path[:-1]`` to the last value."""
    *names, last, value = path

    def change(card: Card) -> None:
        for name in names:
            card = card[name]
        card[last] = value

    return change


def drop(*path: str) -> Callable[[Card], None]:
    """Change that removes the entry at ``path``."""

    def change(card: Card) -> None:
        for name in path[:-1]:
            card = card[name]
        del card[path[-1]]

    return change


CHANGES = {
    "not JSON": lambda card: "{",
    "a list": lambda card: "[]",
    "deep": lambda card: "[" * 100_000,
    "deep within": put("facts", "x", json.loads("[" * 100 + "]" * 100)),
    "an endless number": lambda card: '{"format": ' + "9" * 5000 + "}",
    "no format": drop("format"),
    "a format in words": put("format", "six"),
    "an entry of a newer version": put("quantum", 1),
    "no spec": drop("spec"),
    "a shape of text": put("spec", "shape", ["a"]),
    "a shape of nothing": put("spec", "shape", []),
    "a shape below one": put("spec", "shape", [1, 0, 8]),
    "a shape beyond 64 bits": put("spec", "shape", [1, 10**30, 8]),
    "a shape of a million axes": put("spec", "shape", [1] * 10**6),
    "another modality": put("spec", "modality", "smell"),
    "a modality of another layout": put("spec", "modality", "vector"),
    "no network": drop("config", "network"),
    "another network": put("config", "network", "network", "brain"),
    "a network of another width": put("config", "network", "model_channels", 4096),
    "a network without end": put("config", "network", "num_res_blocks", 10**12),
    "a width of text": put("config", "network", "model_channels", "wide"),
    "a width of a list": put("config", "network", "model_channels", [[]]),
    "an unknown option": put("config", "network", "colour", "red"),
    "no method": drop("config", "method"),
    "another path": put("config", "method", "path", "winding"),
    "a jitter that is none": put("config", "method", "sigma_min", -1.0),
    "training that is no section": put("config", "training", []),
    "training without precision": drop("config", "training", "mixed_precision"),
    "a condition of another kind": put("spec", "conditions", "label", "kind", "mood"),
    "a condition without names": drop("spec", "conditions", "label", "names"),
    "a condition of a million names": put("spec", "conditions", "label", "names", ["x"] * 10**6),
    "shares above one": put("spec", "conditions", "label", "frequencies", [7.0] * 10),
    "shares of NaN": put("spec", "conditions", "label", "frequencies", [float("nan")] * 10),
    "another transform": put("transform", "kind", "blur"),
    "a transform of text": put("transform", "low", "dark"),
    "a transform with more": put("transform", "gamma", 2),
    "another noise": put("noise", "kind", "brown"),
    "noise of nothing": put("noise", {}),
    "a transform of another size": put(
        "transform", {"kind": "standardize", "mean": [0.0] * 3, "std": [1.0] * 3, "constant": []}
    ),
    "images of a million pixels a side": put("spec", "shape", [1, 2**31 - 1, 2**31 - 1]),
    "tensors that are not there": put("tensors", ["transform.mean"]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_crafted_card_is_one_sentence(weights: Path, tmp_path: Path, change: Callable[[Card], Any]) -> None:
    file = crafted(weights, tmp_path / "model.safetensors", change)
    with pytest.raises(UserError) as error:
        advect.load(file, device="cpu")
    words = str(error.value)
    assert words and "\n" not in words and str(file) in words and len(words) < 700


def test_an_unchanged_card_loads_and_a_newer_entry_is_named_as_such(weights: Path, tmp_path: Path) -> None:
    assert (
        advect.load(crafted(weights, tmp_path / "same.safetensors", lambda card: None))
        .sample(1, steps=1)
        .x.isfinite()
        .all()
    )
    with pytest.raises(UserError, match="an entry 'quantum', which this advect does not know; install the newer one"):
        advect.load(crafted(weights, tmp_path / "new.safetensors", put("quantum", 1)))


def test_tensors_of_another_size_than_the_card_claims_are_refused_before_the_network_is_built(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.device] = []
    linear = torch.nn.Linear.reset_parameters
    note = lambda layer: (made.append(layer.weight.device), linear(layer))[1]
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", note)
    file = crafted(weights, tmp_path / "m.safetensors", put("config", "network", "model_channels", 60_000))
    with pytest.raises(UserError, match="belongs to another network"):
        advect.load(file, device="cpu")
    assert {device.type for device in made} == {"meta"}


def test_memory_is_told_before_it_is_taken() -> None:
    check_memory("this takes", 1e6, "take less")
    with pytest.raises(
        UserError, match=r"^this takes at least 1 EB|^this takes at least 1,000 PB of memory, and there are"
    ):
        check_memory("this takes", 1e18, "take less")
    assert [in_bytes(n) for n in (5, 1500, 999.6e6, 1.5e12)] == ["5 bytes", "1.5 kB", "1 GB", "1.5 TB"]
    with pytest.raises(UserError, match=r"^training a network of [0-9,]+ parameters takes at least .* GB"):
        advect.FlowModel(hidden=(60_000, 60_000, 60_000), steps=1).fit(torch.randn(32, 2).numpy())


@pytest.mark.parametrize("value", ["x", -1, 1e30, None, [], {}, True])
@pytest.mark.parametrize("name", ["sigma_min", "prediction", "t_eps", "label_dropout", "path"])
def test_values_of_a_recorded_method_have_their_type(weights: Path, tmp_path: Path, name: str, value: Any) -> None:
    file = crafted(weights, tmp_path / "m.safetensors", put("config", "method", name, value))
    if value is None and name in ("sigma_min", "label_dropout"):
        assert advect.load(file, device="cpu").sample(1, steps=1).x.isfinite().all()
        return
    with pytest.raises(UserError) as error:
        advect.load(file, device="cpu")
    assert str(file) in str(error.value) and "\n" not in str(error.value)
