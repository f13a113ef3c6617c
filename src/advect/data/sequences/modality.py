"""Sequences: an archive and a table of one row a step, lines."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from PIL import Image
from torch import Tensor

from advect.core.registry import register
from advect.core.types import LENGTH, Batch, Conditions
from advect.data.modality import Modality, write_npz
from advect.data.sequences.dataset import SequenceMetadata, steps_of
from advect.data.sequences.plot import series_plot
from advect.data.tables.dataset import write_table


@register("sequence")
class SequencesModality(Modality[SequenceMetadata]):
    """Sequences (L, C): samples.npz with ``values`` and ``lengths``, and, with pandas, samples.csv of steps."""

    layout = "sequence"
    usual_preset = "sequences"
    shown = 3
    trajectories = 4

    def describe(self, shape: Sequence[int]) -> str:
        steps, channels = shape
        return f"sequences of up to {steps:,} steps in {channels:,} channel{'s' * (channels != 1)}"

    def write_data(self, x: Tensor, conditions: Conditions, folder: Path, first: int) -> list[Path]:
        named = {name: value for name, value in conditions.items() if name != LENGTH}
        arrays = {"values": x, **({"lengths": conditions[LENGTH]} if LENGTH in conditions else {})}
        files = [write_npz(folder, arrays, named, self.spec)]
        if find_spec("pandas") is not None:
            channels = [f"value_{i}" for i in range(x.shape[2])]
            plain = {"channels": channels, "id": "id", "order": "step", "conditions": []}
            files.append(folder / "samples.csv")
            write_table(files[-1], steps_of(x, conditions, self.metadata or plain, first=first))
        return files

    def plot(self, x: Tensor, conditions: Conditions, reference: Batch | None = None) -> Image.Image:
        """Samples as lines, beside those of the data."""
        names = tuple(self.metadata.get("channels", ()))
        if reference is None:
            return series_plot(x, conditions.get(LENGTH), names=names)
        real = (reference.cond or {}).get(LENGTH)
        return series_plot(x, conditions.get(LENGTH), reference.x1, real, names=names)
