"""What an evaluation is of: the weights of a run, and the data that it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advect.core.errors import UserError
from advect.data import Source
from advect.runs.arguments import parse_config
from advect.runs.build import build_source
from advect.runs.card import Card
from advect.runs.loading import read_card, weight_file
from advect.runs.sampling import averaged, weights_identity
from advect.training.checkpoint import checkpoint_step


@dataclass(frozen=True)
class Subject:
    """The weights at ``place``, a checkpoint or a weight file of the run in ``folder``, with their ``card``.

    ``ema`` says which of a checkpoint's weights, as in :func:`advect.runs.loading.load`.
    """

    folder: Path
    place: Path
    card: Card
    ema: bool | float

    @classmethod
    def open(cls, run: Path, place: Path, ema: bool | float) -> Subject:
        """The subject of ``run`` whose weights lie at ``place``. Raises UserError where they lie in no run folder."""
        folders = (run, *place.absolute().parents)
        folder = next((f for f in folders if (f / "config.yaml").is_file()), None)
        if folder is None:
            raise UserError(
                f"{run} is no run folder and lies in none: it has no config.yaml, which names the data to compare"
                " with; give one such as runs/digits"
            )
        return cls(folder, place, read_card(place if place.is_file() else weight_file(place, ema=ema)), ema)

    def data(self) -> Source:
        """The data of the run. Raises UserError where they are not there or have changed since."""
        _, config = parse_config(self.folder / "config.yaml")
        source = build_source(config.data)
        if source.fingerprint != self.card.fingerprint:
            raise UserError(
                f"the data of {self.folder} have changed since {self.place.name} was trained, so that held-out rows"
                " may be among those it learned; bring the old data back, or train anew"
            )
        return source

    def told(self) -> dict[str, Any]:
        """What a result file says of it."""
        average = averaged(self.place, self.ema)
        step = None if self.place.is_file() else checkpoint_step(self.place)
        return {
            "run": str(self.folder),
            "checkpoint": self.place.name,
            "step": step,
            "sha256": weights_identity(self.place, self.ema)["sha256"],
            "ema": self.card.config["training"]["ema_decay"] if average is True else average,
        }
