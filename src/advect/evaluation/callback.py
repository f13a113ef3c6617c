"""Evaluation during training."""

from __future__ import annotations

from collections.abc import Callable

import torch

from advect.checkpoint.manifest import HELD_OUT_LOSS
from advect.core.errors import UserError
from advect.data import Dataset
from advect.distributed.comm import sync_errors
from advect.evaluation.evaluator import EvalRows, Evaluator, SampleRequest
from advect.evaluation.feature_network import FeatureNetwork
from advect.evaluation.features import LEARNED, PIXELS, FeatureSpace
from advect.evaluation.held_out import BestWeights, Store
from advect.evaluation.workspace import MemoryWorkspace, open_cache
from advect.metrics.base import find_metrics
from advect.model.flow import Flow
from advect.training.trainer import Trainer

FEWEST = 20
"""Fewest rows of either split."""


def online_evaluator(flow: Flow, dataset: Dataset, *, samples: int, features: str | None) -> Evaluator:
    """Evaluator for training: the modality's two distances, in memory except for the cache.

    ``features`` as in :class:`~advect.evaluation.features.FeatureConfig`. Collective. Raises UserError for too few
    rows, and unreadable or unsuitable ``features``.
    """
    dataset = dataset.real
    for split, part in (("training", dataset.train), ("held-out", dataset.held_out)):
        if len(part) < FEWEST:
            raise UserError(
                f"--eval-every compares with {FEWEST} {split} samples or more, and these data have {len(part):,}; "
                "hold out another share of them (--held-out), or leave --eval-every out"
            )
    with sync_errors():
        space = FeatureSpace(flow, dataset)
        if features is not None:
            space.modality.check_features(f"--eval-features {features}")
        if features not in (None, LEARNED, PIXELS):
            space = FeatureSpace(flow, dataset, FeatureNetwork(features, device=flow.device))
            space.data(dataset.held_out, torch.zeros(1, dtype=torch.int64))
        metrics, _ = find_metrics(space.modality.online_metrics, (), (), space.modality.name)
        rows, cache = EvalRows.choose(dataset, samples), open_cache()
    if features != PIXELS:
        space = space.learned(cache, named=features == LEARNED)
    return Evaluator(space, metrics, rows, MemoryWorkspace(show=False), cache)


def measure(evaluator: Evaluator, request: SampleRequest) -> dict[str, float]:
    """Metrics of samples and, as NAME_floor, of training data, on the first process."""
    result, floor = evaluator.measure(request), evaluator.floor
    if result is None or floor is None:
        return {}
    return result["metrics"] | {f"{name}_floor": floor[name] for name in evaluator.metrics if name in floor}


class EvalCallback(BestWeights):
    """Metrics of samples, which use the same noise each time; ``loss`` computes the held-out loss."""

    watches = "the evaluation"

    def __init__(self, evaluator: Evaluator, loss: Callable[[], float], store: Store, *, seed: int, **options) -> None:
        super().__init__(store, **options)
        self.evaluator, self.loss, self.samples = evaluator, loss, len(evaluator.rows.floor)
        self._request = SampleRequest(n=self.samples, seed=seed)

    def on_start(self, trainer: Trainer) -> None:
        features = self.evaluator.space.features
        name = features.name if features.sha256 is None else f"{features.name} ({features.sha256[:8]})"
        self.protocol = {"eval_samples": self.samples, "eval_features": name}
        self.store.tell(
            f"every {self.every:,} steps {self.samples:,} samples are held against held-out data in {name}"
        )
        _ = self.evaluator.floor  # looking at the data may take minutes, and fail, before the first step
        super().on_start(trainer)

    def measure(self, trainer: Trainer) -> dict[str, float]:
        values = measure(self.evaluator, self._request)
        return values | ({"held_out_loss": self.loss()} if self.keep == HELD_OUT_LOSS else {})

    def measured(self, trainer: Trainer, better: bool) -> None:
        self.store.tell(self._words() + ("; the best up to now" if better else ""))

    def _words(self) -> str:
        """The last row as text."""
        row, words = self.row, []
        for name, value in row.items():
            if isinstance(value, float) and not name.endswith(("_floor", "_se")):
                error = f" +- {row[f'{name}_se']:.2g}" if f"{name}_se" in row else ""
                floor = f" (training data {row[f'{name}_floor']:.4g})" if f"{name}_floor" in row else ""
                words.append(f"{name.removeprefix('eval_').replace('_', ' ')} {value:.4g}{error}{floor}")
        return f"step {self.row['step']:,}, against held-out data: {', '.join(words)}"
