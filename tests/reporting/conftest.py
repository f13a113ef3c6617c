"""A run folder made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from advect.data.figure import save_png
from advect.data.images.modality import image_grid

CONFIG = """preset: digits
data: {}
training:
  batch_size: 128
  learning_rate: 0.001
  max_steps: null
output:
  solver: midpoint
"""


def quality(words: str, shape: list[int]) -> dict:
    """What an evaluation writes to quality.json."""
    curves = {
        "euler": {"nfe": [1, 2, 4], "distance": [9.0, 3.0, 0.5]},
        "midpoint": {"nfe": [2, 4], "distance": [1.0, 0.3]},
    }
    classes = [{"name": "zero", "samples": 50, "share": 0.9}, {"name": "<b>one</b>", "samples": 50, "share": 1.0}]
    return {
        "format": 1,
        "seed": 3,
        "data": {"words": words, "marginals": len(shape) < 3, "shape": shape, "low": 0.0, "high": 16.0, "train": 1234},
        "frechet": {
            "features": "pixel space",
            "dimensions": 64,
            "variance_kept": 1.0,
            "samples": 100,
            "held_out": 80,
            "floor": 0.15,
            "best": {"solver": "midpoint", "nfe": 4, "distance": 0.3},
            "curves": curves,
        },
        "samples_by": {"solver": "midpoint", "nfe": 4},
        "fidelity": {
            "label": {
                "share": 0.95,
                "classifier_accuracy": 0.987,
                "by_class": classes,
                "samples": 100,
                "fitted_on": 80,
                "checked_on": 90,
            }
        },
        "memorisation": {
            "percentile": 0.01,
            "threshold": 2.0,
            "share_closer": 0.01,
            "median_sample": 5.0,
            "median_held_out": 5.5,
        },
    }


def whole_run(run: Path, *, shape: tuple[int, ...] = (1, 8, 8), pictures: int = 3, pixels: int = 48) -> Path:
    """A whole run folder of images or vectors of ``shape``."""
    rng = np.random.default_rng(0)
    (run / "samples").mkdir(parents=True)
    (run / "evaluation").mkdir()
    (run / "config.yaml").write_text(CONFIG)
    (run / "environment.json").write_text(
        json.dumps({"command": "advect train digits --seed 3", "device": "cpu", "versions": {"torch": "2.13.0"}})
    )
    rows = [
        {"step": s, "seen": 128 * s, "epoch": s // 10, "loss": 1 / s, "grad_norm": 0.5, "lr": 1e-3}
        | {"samples_per_s": 4000.0, "seconds": 0.5 * s}
        for s in range(1, 201)
    ]
    rows += [{"step": 100, "held_out_loss": 0.125}, {"step": 200, "epoch": 20, "epoch_loss": 0.1}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    channels = shape[0] if len(shape) == 3 else 1
    for i in range(pictures):
        x = torch.from_numpy(rng.random((64, channels, pixels, pixels)))
        save_png(image_grid(x, 0, 1), run / "samples" / f"step-{100 * i:08d}.png")
    words = " x ".join(map(str, shape)) + " images" if len(shape) == 3 else f"{shape[0]}-dimensional vectors"
    (run / "evaluation/quality.json").write_text(json.dumps(quality(words, list(shape))))

    def draw(*lead: int) -> np.ndarray:
        return rng.random((*lead, *shape), dtype=np.float32) * 16

    np.savez(run / "evaluation/trajectories.npz", t=np.linspace(0, 1, 10), x=draw(10, 8))
    distances = {"sample_distances": rng.random(100), "held_out_distances": rng.random(80)}
    near = {"samples": draw(12), "neighbours": draw(12, 3), "distances": rng.random((12, 3))}
    np.savez(run / "evaluation/neighbours.npz", **near, **distances)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run on small grey images."""
    return whole_run(tmp_path / "digits")


@pytest.fixture
def make_run() -> Callable[..., Path]:
    """The function that makes one."""
    return whole_run
