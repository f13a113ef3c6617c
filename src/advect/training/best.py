"""Which checkpoint of a run is the best up to now: the file ``best`` beside the checkpoints."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from advect.core.files import write_text_whole

BEST = "best"


@dataclass(frozen=True)
class Best:
    """A checkpoint by its name, such as ``step-00001000``, and the smallest ``value`` of ``metric``, which it has."""

    name: str
    metric: str
    value: float


def read_best(folder: Path) -> Best | None:
    """What ``best`` in a folder of checkpoints says; None where there is none, or it is damaged."""
    try:
        values = json.loads((folder / BEST).read_text(encoding="utf-8"))
        return Best(str(values["name"]), str(values["metric"]), float(values["value"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_best(folder: Path, best: Best | None) -> None:
    """Make ``best`` in a folder say so, in one step; None removes it."""
    if best is not None:
        write_text_whole(folder / BEST, json.dumps(asdict(best)) + "\n")
    else:
        (folder / BEST).unlink(missing_ok=True)
