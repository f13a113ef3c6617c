"""A flow as a scikit-learn estimator."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor

from advect.core.errors import UserError
from advect.sklearn.adapters import LABEL, ArrayAdapter, DataAdapter, Labels, form_class, given, values_of
from advect.sklearn.fit import Fitted, exact
from advect.sklearn.settings import Settings, resolve

_DRAWS = 2**31 - 1


class FlowModel(ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, BaseEstimator):
    """A flow that learns the distribution of X, or of X given labels y, as a scikit-learn estimator.

    X is an array (N, D), a pandas data frame with columns of any types, an AnnData object (its X as it stands), or an
    array of images (N, C, H, W). Samples come back as what X was. Densities are those of the data's own units.

    Args:
        hidden: widths of the hidden layers, all equal, or one number for three of them; for images the channels at
            each resolution of a U-Net. None is (256, 256, 256), and (32, 64) for images.
        steps: training steps of a fit, and of each call of :meth:`partial_fit`. None is 8,000, and 2,000 for images.
        batch_size: rows a step.
        learning_rate: its peak, after a short warm-up and before a cosine. None is 4e-3, and 1e-3 for images.
        coupling: how noise and data are paired: "independent", "ot", "sinkhorn" or "conditional-ot" (with y).
        label_dropout: share of rows trained without their label, in [0, 1), without which nothing is known of X when
            no label is given.
        early_stopping: keep ``validation_fraction`` of the rows apart, end when their loss has not improved for
            ``n_iter_no_change`` looks, of which there are 40 in ``steps``, and take the weights of the best.
        validation_fraction: in (0, 1).
        n_iter_no_change: at least 1.
        solver: "euler", "midpoint", "heun", "rk4", "ab2", "dpmpp2m" or "dopri5", to draw samples with.
        sample_steps: its steps. Densities and latents have their own, see ``density_steps``.
        density_steps: Runge-Kutta steps of order 4 for densities and latents.
        device: "auto", which is a GPU where there is one, "cpu", "cuda", "cuda:1" ...
        options: everything else that ``advect train`` has flags for, by their names with underscores, such as
            ``{"times": "logit-normal", "ema_decay": 0.99, "network": "resmlp"}``; and of the data: "value_range" of
            images, "scaling" and "categorical" of frames, "pca" of AnnData.
        random_state: seed of training and of samples, as everywhere in scikit-learn.
        verbose: 1 for a progress bar.

    Attributes:
        flow_: the :class:`advect.Flow`, float32, on the device.
        classes_: the values of y; None without.
        n_iter_: training steps that the weights have seen.
        loss_curve_: mean training losses of the last call, 40 of them or fewer.
        validation_loss_: the lowest held-out loss of the last call with early stopping, else None.
        validation_curve_: all of them.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.

    Raises:
        UserError: a ValueError; an argument, the data or a label cannot be used, and the message says why.
    """

    def __init__(
        self,
        *,
        hidden: int | Sequence[int] | None = None,
        steps: int | None = None,
        batch_size: int = 256,
        learning_rate: float | None = None,
        coupling: str = "independent",
        label_dropout: float = 0.1,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        solver: str = "midpoint",
        sample_steps: int = 50,
        density_steps: int = 50,
        device: str = "auto",
        options: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.hidden, self.steps, self.batch_size, self.learning_rate = hidden, steps, batch_size, learning_rate
        self.coupling, self.label_dropout, self.early_stopping = coupling, label_dropout, early_stopping
        self.validation_fraction, self.n_iter_no_change = validation_fraction, n_iter_no_change
        self.solver, self.sample_steps, self.density_steps = solver, sample_steps, density_steps
        self.device, self.options, self.random_state, self.verbose = device, options, random_state, verbose

    def fit(self, X: Any, y: Any = None) -> FlowModel:
        """Learn the distribution of X, given y where there are labels (N,): numbers or text."""
        self._check_arguments()
        x = self._checked(X, reset=True)
        kind = form_class(X)
        values = None if y is None else values_of(y, len(x))
        labels = None if values is None else Labels.of(values)
        self.classes_: Any = None if labels is None else labels.classes
        settings = self._settings("image" if getattr(x, "ndim", 2) == 4 else "vector", kind)
        seed = int(check_random_state(self.random_state).randint(_DRAWS))
        return self._train(Fitted(kind(x, settings.data), labels, seed=seed), settings, x, values)

    def partial_fit(self, X: Any, y: Any = None) -> FlowModel:
        """Train ``steps`` more steps on X, with the optimiser as it was left; the first call is :meth:`fit`.

        Scalings and categories stay those of the first call, and labels must be among ``classes_``.
        """
        if not hasattr(self, "flow_"):
            return self.fit(X, y)
        self._check_arguments()
        x = self._checked(X, reset=False)
        if (y is None) != (self.classes_ is None):
            raise UserError("partial_fit needs y where fit had labels, and none where it had none")
        settings = self._settings(self.flow_.spec.kind, type(self._fitted.form))
        return self._train(self._fitted, settings, x, None if y is None else values_of(y, len(x)))

    def _check_arguments(self) -> None:
        counts = ("n_iter_no_change", "sample_steps", "density_steps")
        for name in counts if self.steps is None else ("steps", *counts):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise UserError(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.early_stopping and not 0 < self.validation_fraction < 1:
            raise UserError(f"validation_fraction must lie in (0, 1), got {self.validation_fraction}; 0.1 is usual")

    def _settings(self, kind: str, form: type[DataAdapter]) -> Settings:
        names = ("learning_rate", "batch_size", "coupling", "label_dropout", "device")
        return resolve(
            self.options,
            kind=kind,
            hidden=self.hidden,
            labelled=self.classes_ is not None,
            steps=self.steps,
            data_options=form.options,
            arguments={name: getattr(self, name) for name in names},
        )

    def _train(self, fitted: Fitted, settings: Settings, x: Any, y: np.ndarray | None) -> FlowModel:
        fitted.train(
            settings,
            fitted.form.tensor(x),
            y,
            share=self.validation_fraction if self.early_stopping else 0.0,
            patience=int(self.n_iter_no_change),
            verbose=self.verbose,
        )
        self._fitted, learned = fitted, fitted.learned
        self.n_iter_, self.loss_curve_ = learned.step, learned.losses
        self.validation_curve_ = learned.held_out_losses
        self.validation_loss_ = min(learned.held_out_losses, default=None)
        self._n_features_out = fitted.latents
        self.flow_ = fitted.flow(self.device)
        if learned.reason.startswith("SIG"):  # the engine ends at the end of a step; the model is usable
            signal.raise_signal(getattr(signal, learned.reason))
        return self

    def sample(self, n: int = 1, y: Any = None) -> Any:
        """Draw n samples, in the form that X had.

        y is one label for all, or one for each (n,); without it, labels are drawn as often as they were in training.
        """
        check_is_fitted(self)
        steps = None if self.solver == "dopri5" else int(self.sample_steps)
        seed = int(check_random_state(self.random_state).randint(_DRAWS))
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
            raise UserError(f"n must be a whole number of at least 1, got {n!r}")
        cond = given(self._fitted.labels, y, int(n)) or None
        x = self.flow_.sample(int(n), steps=steps, solver=self.solver, seed=seed, cond=cond)
        return self._fitted.form.back(x)

    def score_samples(self, X: Any, y: Any = None) -> np.ndarray:
        """The exact log-density (N,) of each row in the data's units, in nats; of X alone where no y is given."""
        return self._by_blocks("log_prob", self._units(X), y)

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of :meth:`score_samples`; larger is better.

        y is used where the model was fitted with labels, and ignored elsewhere, as pipelines give it to all steps.
        """
        check_is_fitted(self)
        return float(self.score_samples(X, y if self.classes_ is not None else None).mean())

    def transform(self, X: Any, y: Any = None) -> np.ndarray:
        """The latents, float64, of the shape that X has in model units: standard normal where the fit is good."""
        return self._by_blocks("encode", self._units(X), y)

    def inverse_transform(self, X: Any, y: Any = None) -> Any:
        """Data from latents, in the form that the data had: :meth:`transform` undone."""
        check_is_fitted(self)
        z = torch.from_numpy(np.array(check_array(X, allow_nd=True), np.float64))
        self._check_shape(z.shape)
        return self._fitted.form.back(torch.from_numpy(self._by_blocks("decode", z, y)))

    def _check_shape(self, shape: Sequence[int]) -> None:
        own = self.flow_.spec.shape
        if tuple(shape[1:]) != own:
            raise UserError(f"X must have shape (n, {', '.join(map(str, own))}), got {tuple(shape)}")

    def _by_blocks(self, what: str, x: Tensor, y: Any) -> np.ndarray:
        """A method of the exact flow over blocks of rows, as its memory grows with them."""
        flow, cond = exact(self.flow_), given(self._fitted.labels, y, len(x))
        if LABEL in self.flow_.spec.conditions and not cond and not self.flow_.null:
            raise UserError("the model was fitted with label_dropout=0, so it knows nothing without labels; give y")
        rows = 1024
        parts = []
        for first in range(0, len(x), rows):
            block = slice(first, first + rows)
            part = {name: value[block] for name, value in cond.items()}
            options: dict[str, Any] = {"cond": part or None, "steps": int(self.density_steps), "solver": "rk4"}
            parts.append(getattr(flow, what)(x[block], **options))
        return torch.cat(parts).numpy().astype(np.float64)

    def _units(self, X: Any) -> Tensor:
        """X in data units, (N, *S)."""
        check_is_fitted(self)
        return self._fitted.form.tensor(self._checked(X, reset=False))

    def _checked(self, X: Any, *, reset: bool) -> Any:
        """X of a form that is known, its features those of the fit unless ``reset``."""
        form = form_class(X)
        if not reset and form is not type(self._fitted.form):
            fitted = type(self._fitted.form).__name__[:-4].lower()
            raise UserError(f"X is another form of data than the one fitted, {fitted}s")
        if form is not ArrayAdapter:
            named = X.var_names.to_frame().T if hasattr(X, "var_names") else X
            validate_data(self, X=named, reset=reset, skip_check_array=True)
            return X
        images = getattr(X, "ndim", 2) == 4
        x: Any = validate_data(self, X=X, reset=reset, dtype="numeric", allow_nd=images)
        if images and not reset:
            self._check_shape(x.shape)
        return x

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()  # the flow may lie on a device that the reader has not
        return {name: value for name, value in state.items() if name != "flow_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_fitted" in state:
            self.flow_ = self._fitted.flow(self.device)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64"]
        return tags
