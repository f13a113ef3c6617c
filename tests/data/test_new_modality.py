"""A modality that another package defines: choices, training, writing, plots and messages follow from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from advect.config.arguments import usual_preset
from advect.config.build import build_network, networks_for
from advect.config.config import network
from advect.core import registry
from advect.core.errors import UserError
from advect.core.registry import register, unregister
from advect.core.types import Batch, Conditions, DataSpec
from advect.data.base import ArraySplit, Dataset
from advect.data.modality import EstimatorDefaults, Modality
from advect.data.transforms import Identity
from advect.model.flow import Flow
from advect.sklearn.settings import resolve


class Chords(Dataset):
    """Chords of three notes (3,)."""

    def __init__(self) -> None:
        x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
        train, held_out = ArraySplit(x[:40]), ArraySplit(x[40:])
        spec = DataSpec((3,), "chord", {})
        super().__init__(
            name="chords", spec=spec, transform=Identity(), train=train, held_out=held_out, fingerprint="0"
        )


@pytest.fixture
def chord() -> Iterator[type[Modality]]:
    @register("chord")
    class ChordModality(Modality):
        """Chords: a text file of notes."""

        layout, usual_preset, marginals = "vector", "moons", False
        metrics = ("energy",)
        estimator = EstimatorDefaults("resmlp", 70, 0.5)

        def describe(self, shape: Sequence[int]) -> str:
            return f"chords of {shape[0]} notes"

        def write_data(self, x: Tensor, conditions: Conditions, folder: Path, first: int) -> list[Path]:
            (folder / "samples.json").write_text(json.dumps(x.tolist()))
            return [folder / "samples.json"]

        def plot(self, x: Tensor, conditions: Conditions, reference: Batch | None = None) -> Image.Image:
            return Image.new("RGB", (len(x), 1))

    yield ChordModality
    unregister(ChordModality)


def test_its_choices_follow_from_the_class(chord: type[Modality]) -> None:
    assert registry.choices("modality") == ("cells", "image", "sequence", "table", "tokens", "vector", "chord")
    assert usual_preset("chord") == "moons" and networks_for("chord") == networks_for("vector")
    unset: dict = {"hidden": None, "steps": None, "arguments": {"learning_rate": None}}
    found = resolve({}, modality="chord", rows=100, labelled=False, data_options=(), **unset)
    assert (found.network.network, found.steps, found.training.learning_rate) == ("resmlp", 70, 0.5)
    with pytest.raises(
        UserError, match=r"unet does not take chord data \(3,\); use --network mlp or --network resmlp"
    ):
        build_network(network("unet"), DataSpec((3,), "chord", {}))


def test_its_samples_are_written_its_way(chord: type[Modality], tmp_path: Path) -> None:
    data = Chords()
    assert isinstance(data.modality, chord) and data.modality.describe((3,)) == "chords of 3 notes"
    net = build_network(network("mlp", width=8, depth=2), data.spec)
    flow = Flow(net, data.spec, data.transform)
    samples = flow.sample(5, steps=2)
    assert [f.name for f in flow.modality.write(samples.x, {}, tmp_path)] == ["samples.json", "samples.png"]
    assert json.loads((tmp_path / "samples.json").read_text()) == samples.x.tolist()
    assert Image.open(tmp_path / "samples.png").size == (5, 1)
    with pytest.raises(UserError, match=r"--features x\.pt is for images, and these are chord data"):
        flow.modality.check_features("--features x.pt")


def test_a_flow_whose_modality_is_not_installed_says_so() -> None:
    with pytest.raises(UserError, match="modality 'chord' is not known"):
        _ = Chords().modality
