"""What an evaluation leaves in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from advect.core.files import write_whole
from advect.core.types import DataSpec
from advect.evaluation.fidelity import Fidelity
from advect.evaluation.memorisation import PERCENTILE, Memorisation
from advect.evaluation.quality import Quality

FORMAT = 1


def describe_data(spec: DataSpec, train: Tensor) -> dict[str, Any]:
    """Kind and shape of the data, and the range of the training values, which pictures use."""
    return {
        "kind": spec.kind,
        "shape": list(spec.shape),
        "low": float(train.min()),
        "high": float(train.max()),
        "train": len(train),
    }


def describe_quality(quality: Quality) -> dict[str, Any]:
    """The distances, the space they were taken in, and how many samples they compare."""
    solver, nfe, distance = quality.best
    return {
        "features": quality.features.name,
        "dimensions": quality.features.dimensions,
        "variance_kept": quality.features.variance_kept,
        "samples": quality.samples,
        "held_out": quality.held_out,
        "floor": quality.floor,
        "best": {"solver": solver, "nfe": nfe, "distance": distance},
        "curves": {name: {"nfe": list(c), "distance": list(c.values())} for name, c in quality.curves.items()},
    }


def describe_fidelity(found: Fidelity) -> dict[str, Any]:
    """The shares, and how many rows they were taken from."""
    classes = [{"name": name, "samples": n, "share": share} for name, n, share in found.by_class]
    return vars(found) | {"by_class": classes}


def describe_memorisation(memory: Memorisation) -> dict[str, Any]:
    """The distances in a few numbers."""
    return {
        "percentile": PERCENTILE,
        "threshold": memory.threshold,
        "share_closer": memory.share_closer,
        "median_sample": float(memory.sample_distances.median()),
        "median_held_out": float(memory.held_out_distances.median()),
    }


def memorisation_arrays(memory: Memorisation) -> dict[str, Tensor]:
    """The tensors of a Memorisation by their names."""
    return {name: value for name, value in vars(memory).items() if isinstance(value, Tensor)}


def write_arrays(path: Path, arrays: dict[str, Tensor]) -> None:
    """Write tensors as a compressed .npz without pickle, whole or not at all; float64 becomes float32."""
    plain = {name: (x.float() if x.is_floating_point() else x).numpy() for name, x in arrays.items()}

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **plain)

    write_whole(path, write)
