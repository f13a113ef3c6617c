"""What a model is once it is fitted: the form of its data, its labels, its weights, and where training goes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.types import DataSpec
from advect.data import Source
from advect.data.memory import MemorySplit
from advect.data.source import random_split
from advect.estimator.forms import Form
from advect.estimator.labels import LABEL, Labels
from advect.estimator.learning import Learned, learn
from advect.estimator.settings import Settings
from advect.runs.build import build_network, pick_device
from advect.runs.flow import Flow
from advect.runs.method import build_noise, build_path, label_dropout, noise_facts


class Fitted:
    """A form, labels and a seed, and after :meth:`train` a flow. It can be pickled, and lies on no device.

    Attributes:
        spec: of the data in model units; its conditions are those of the first stretch of training.
        learned: what the last stretch left; ``settings`` are the ones that it took.
    """

    learned: Learned
    settings: Settings
    spec: DataSpec

    def __init__(self, form: Form, labels: Labels | None, *, seed: int) -> None:
        self.form, self.labels, self.seed = form, labels, seed
        self._noise: dict[str, Any] = {}

    def train(
        self,
        settings: Settings,
        x: Tensor,
        y: np.ndarray | None,
        *,
        share: float,
        patience: int,
        verbose: int,
    ) -> None:
        """Train the steps of ``settings`` on x (N, *S) in data units, with labels y (N,) where there are some.

        A ``share`` > 0 of the rows is kept apart to stop early by, with ``patience``, see :func:`learn`.
        """
        source = self._source(x, y, share)
        first = not hasattr(self, "learned")
        if first:
            self._noise = noise_facts(settings.method, source)
        self.learned = learn(
            settings,
            source,
            self._noise,
            steps=settings.steps,
            patience=patience,
            seed=self.seed,
            kept=None if first else self.learned.kept,
            verbose=verbose,
        )
        self.settings, self.spec = settings, source.spec

    def _source(self, x: Tensor, y: np.ndarray | None, share: float) -> Source:
        rows = self.form.transform.forward(x).numpy()
        cond, conditions = {}, {}
        if self.labels is not None and y is not None:
            cond[LABEL] = self.labels.codes(y)
            conditions[LABEL] = self.labels.category(cond[LABEL])
        if hasattr(self, "spec"):
            conditions = self.spec.conditions
        train, rest = random_split(len(rows), share, seed=self.seed)
        if share and not len(rest):
            raise UserError(f"early_stopping needs at least 2 rows, n_samples = {len(rows)}; leave it out")
        part = lambda indices: MemorySplit(rows[indices], {k: v[indices] for k, v in cond.items()})
        return Source(
            name="the data",
            spec=DataSpec(rows.shape[1:], "image" if rows.ndim == 4 else "vector", conditions),
            transform=self.form.transform,
            train=part(train),
            held_out=part(rest),
            fingerprint="",
        )

    @property
    def latents(self) -> int:
        """The numbers in a latent."""
        return int(np.prod(self.spec.shape))

    def flow(self, device: str) -> Flow:
        """The flow of the weights, on the device of that name."""
        place, method = pick_device(device), self.settings.method
        with torch.random.fork_rng():
            net = build_network(self.settings.network, self.spec)
        net.load_state_dict(self.learned.weights)
        return Flow(
            net.to(place).eval(),
            self.spec,
            self.form.transform,
            path=build_path(method),
            source=build_noise(self._noise),
            prediction=method.prediction,
            margin=method.margin,
            null=label_dropout(method, self.spec) > 0,
            device=place,
        )
