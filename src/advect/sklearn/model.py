"""Flow as a scikit-learn estimator."""

from __future__ import annotations

import math
import numbers
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor

from advect.config.plan import FEWEST, Plan, large_batch, long_average, long_warmup, rare_values
from advect.core.bounds import Count, SampleCount, Steps, bounds_of, check_bounds
from advect.core.errors import UserError
from advect.model.conditions import Encoded
from advect.model.flow import Flow
from advect.sklearn.adapters import ArrayAdapter, DataAdapter, adapter_class, check_options, columns_of_numbers
from advect.sklearn.conditioning import Conditioning, Labels, conditioning_of, label_condition
from advect.sklearn.fitting import FittedFlow, fit_flow
from advect.sklearn.mixture import double_precision, mixed_log_prob, sample_mixture
from advect.sklearn.mixture_base import no_base, usual_base
from advect.sklearn.settings import Settings, resolve, warn

_SEEDS = 2**31 - 1

MOST = 10_000
"""Rows up to which early stopping is on by default."""

PASSES = 200
"""Passes over few rows from which training that holds out none warns."""

BATCH = 256
"""Batch size by default, also of fewer rows: each is then seen with several draws of noise and time."""

GAP = 1.0
"""Nats an element by which memorised rows are likelier than others."""


_COUNTS: dict[str, Any] = {"steps": Count, "n_iter_no_change": Count, "sample_steps": Steps, "density_steps": Steps}


def check_whole(name: str, value: Any, bounds: Any) -> None:
    """Raise UserError unless an argument is a whole number within bounds."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UserError(f"{name} must be a whole number, got {value!r}")
    check_bounds(name, value, bounds_of(bounds))


def check_minutes(minutes: Any) -> None:
    """Raise UserError unless ``minutes`` is None or a finite number above 0."""
    if minutes is not None and (not isinstance(minutes, numbers.Real) or not 0 < float(minutes) < math.inf):
        raise UserError(f"max_minutes must be a finite number of minutes above 0, got {minutes!r}; 5 is usual")


def own_generator(random_state: Any) -> np.random.RandomState:
    """That of ``random_state``; for None a new one, and not NumPy's global one, which other threads may draw from."""
    return np.random.RandomState() if random_state is None else check_random_state(random_state)


class FlowModel(ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, BaseEstimator):
    """A scikit-learn estimator of the distribution of X, or of X given y: labels, real numbers or columns of a frame.

    X is an array (N, D), a pandas data frame with columns of any types, an AnnData object (its X as it is), or images
    (N, C, H, W). Samples have the same form; densities are in the data's units.

    Args:
        hidden: equal widths of the hidden layers, or one number for three of them; for images the channels at each
            resolution of a U-Net. None is three of 256, of 128 for up to 1,000 rows, or (32, 64) for images.
        steps: training steps of :meth:`fit` and of each :meth:`partial_fit`. None is 8,000, or 2,000 for images.
        batch_size: rows per step.
        max_minutes: time for :meth:`fit` or :meth:`partial_fit`, whose schedules end with it.
        learning_rate: peak of warm-up and cosine decay. None is 4e-3, or 1e-3 for images.
        coupling: pairing of noise and data: "independent", "ot", "sinkhorn" or "conditional-ot" (with y).
        label_dropout: share of rows trained without their label, in [0, 1); needed to use the model without y.
        early_stopping: hold out ``validation_fraction`` of the rows, or for up to 200 rows each fifth in turn, stop
            after ``n_iter_no_change`` evaluations without a lower held-out loss of the averaged weights (at first
            every 20 steps, then after a tenth more, and not before 500) and take those of the lowest; :meth:`fit`
            then trains anew on up to 2,000 rows, all of them, for as many steps. With folds, density and samples are
            those of an equal mixture of the five flows and the last, ``flow_``. "auto" does so for 10 to 10,000 rows
            that are no images.
        validation_fraction: in (0, 1).
        n_iter_no_change: at least 1.
        base: "mixture": the network corrects the flow of a Gaussian mixture of X, whose number of components and floor
            held-out rows choose, and is kept only if it makes them likelier; else ``n_iter_`` is 0, and densities are
            the mixture's own. None: no mixture. "auto": a mixture for 201 to 10,000 whitened rows of few columns,
            without y, that early stopping watches.
        solver: "euler", "midpoint", "heun", "rk4", "ab2", "dpmpp2m" or "dopri5", for :meth:`sample`.
        sample_steps: its steps.
        density_steps: steps of "rk4" for densities and latents.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1" ...
        options: other flags of ``advect train``, named with underscores, such as
            ``{"times": "logit-normal", "ema_decay": 0.99, "network": "resmlp"}``; of the data "value_range" (images),
            "scaling", "categorical" and "rule" (frames: ``{"rule": ["low <= high"]}``), "whiten" (both), "pca"
            (AnnData), and "drop_copies" (True leaves out rows that repeat an earlier one, with its label, beyond
            coincidence).
        random_state: seed of training and of samples; None draws new ones, never from NumPy's global generator.
        verbose: 1 for a progress bar.

    Attributes:
        flow_: the :class:`advect.Flow` that was trained on all rows, float32, on the device; latents are its own.
        classes_: the distinct labels, or None.
        n_iter_: training steps behind the weights.
        loss_curve_: mean training losses of the last call, at most 40.
        validation_curve_, validation_loss_: held-out losses of the last call, and the lowest or None.
        copies_: rows of X that the last call left out with "drop_copies", or None.
        train_score_: median log density of at most 128 training rows, or None.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Raises UserError, a ValueError, for unusable arguments, data or labels. Warns, at :meth:`fit` and :meth:`score`,
    where training rows are likelier than others by more than a nat a column: then the model memorises.
    """

    def __init__(
        self,
        *,
        hidden: int | Sequence[int] | None = None,
        steps: int | None = None,
        batch_size: int = BATCH,
        max_minutes: float | None = None,
        learning_rate: float | None = None,
        coupling: str = "independent",
        label_dropout: float = 0.1,
        early_stopping: bool | str = "auto",
        validation_fraction: float = 0.15,
        n_iter_no_change: int = 10,
        base: str | None = "auto",
        solver: str = "midpoint",
        sample_steps: int = 50,
        density_steps: int = 20,
        device: str = "auto",
        options: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.hidden, self.steps, self.batch_size, self.learning_rate = hidden, steps, batch_size, learning_rate
        self.coupling, self.label_dropout, self.early_stopping = coupling, label_dropout, early_stopping
        self.validation_fraction, self.n_iter_no_change = validation_fraction, n_iter_no_change
        self.max_minutes, self.base = max_minutes, base
        self.solver, self.sample_steps, self.density_steps = solver, sample_steps, density_steps
        self.device, self.options, self.random_state, self.verbose = device, options, random_state, verbose

    def fit(self, X: Any, y: Any = None) -> FlowModel:
        """Fit the distribution of X, given y, if any: labels (N,), reals (N,) or (N, d), or a frame's columns."""
        self._check_arguments()
        x = self._check_data(X, reset=True)
        adapter = adapter_class(X)
        given = None if y is None else conditioning_of(y, len(x))
        self.classes_: Any = given.classes if isinstance(given, Labels) else None
        of_data = adapter.modality(x), columns_of_numbers(x), adapter.objective(x)
        settings = self._settings(adapter, len(x), given is not None, *of_data)
        seed = int(self._generator().randint(_SEEDS))
        return self._train(adapter(x, settings.data), given, settings, x, y, seed)

    def partial_fit(self, X: Any, y: Any = None) -> FlowModel:
        """Train ``steps`` more steps on X, with the optimiser's state; the first call is :meth:`fit`.

        Scalings and categories stay those of the first call; labels must be in ``classes_``.
        """
        if not hasattr(self, "flow_"):
            return self.fit(X, y)
        self._check_arguments()
        x = self._check_data(X, reset=False)
        if (y is None) != (self._conditioning is None):
            raise UserError("partial_fit needs y where fit had labels, and none where it had none")
        fitted = self._fitted
        of_data = self.flow_.spec.modality, columns_of_numbers(x), fitted.settings.method.objective
        settings = self._settings(type(fitted.adapter), fitted.rows, y is not None, *of_data)
        return self._train(fitted.adapter, self._conditioning, settings, x, y, fitted.seed, fitted)

    def _takes_base(
        self, settings: Settings, adapter: DataAdapter, rows: Tensor, cond: Mapping[str, Tensor], stopping: bool
    ) -> bool:
        """Whether the network corrects a mixture. Raises UserError if it is asked for and cannot."""
        if self.base is None:
            return False
        trouble = no_base(settings, rows, bool(cond), stopping)
        if self.base == "mixture" and trouble is not None:
            raise UserError(f"base is 'mixture', but {trouble}; give base=None")
        return trouble is None and (
            self.base == "mixture" or (adapter.whiten and usual_base(rows, settings.training.max_minutes))
        )

    def _generator(self) -> np.random.RandomState:
        return own_generator(self.random_state)

    def _check_arguments(self) -> None:
        for name, bounds in _COUNTS.items():
            value = getattr(self, name)
            if name != "steps" or value is not None:
                check_whole(name, value, bounds)
        check_minutes(self.max_minutes)
        if self.early_stopping not in (True, False, "auto"):
            raise UserError(f"early_stopping must be True, False or 'auto', got {self.early_stopping!r}")
        if self.base not in ("auto", "mixture", None):
            raise UserError(f"base must be 'auto', 'mixture' or None, got {self.base!r}")
        if self.early_stopping and not 0 < self.validation_fraction < 1:
            raise UserError(f"validation_fraction must lie in (0, 1), got {self.validation_fraction}; 0.1 is usual")

    def _settings(
        self, adapter: type[DataAdapter], rows: int, labelled: bool, modality: str, columns: int, objective: str
    ) -> Settings:
        check_options(self.options or {}, adapter)
        names = ("learning_rate", "batch_size", "max_minutes", "coupling", "label_dropout", "device")
        return resolve(
            self.options,
            modality=modality,
            hidden=self.hidden,
            labelled=labelled,
            steps=self.steps,
            rows=rows,
            data_options=adapter.options,
            columns=columns,
            objective=objective,
            arguments={name: getattr(self, name) for name in names},
        )

    def _train(
        self,
        adapter: DataAdapter,
        conditioning: Conditioning | None,
        settings: Settings,
        x: Any,
        y: Any,
        seed: int,
        previous: FittedFlow | None = None,
    ) -> FlowModel:
        rows = adapter.to_tensor(x)
        cond = {} if conditioning is None else conditioning.rows(y, len(rows))
        self._warn_of_settings(settings, len(rows), np.asarray(y) if isinstance(conditioning, Labels) else None)
        few = rows.ndim == 2 and FEWEST <= len(rows) <= MOST
        stopping = few if self.early_stopping == "auto" else self.early_stopping
        fitted = fit_flow(
            adapter,
            settings,
            rows,
            cond,
            {} if conditioning is None else conditioning.conditions,
            seed=seed,
            validation=self.validation_fraction if stopping else 0.0,
            patience=int(self.n_iter_no_change),
            verbose=self.verbose,
            previous=previous,
            base=self._takes_base(settings, adapter, rows, cond, bool(stopping)),
        )
        self._fitted, self._conditioning = fitted, conditioning
        self.n_iter_ = fitted.step
        self.loss_curve_ = fitted.losses
        self.validation_curve_ = fitted.held_out_losses
        self.validation_loss_ = min(fitted.held_out_losses, default=None)
        self.train_score_, self.copies_ = fitted.train_score, fitted.copies
        self._warn_of_memory(fitted.gap, "held-out rows")
        passes = self.n_iter_ * self.batch_size // len(rows)
        if few and not stopping and passes > PASSES:
            warn(
                f"{len(rows)} rows are trained on {passes:,} times each and none is held out, so nothing tells if "
                "the model memorises; take early_stopping='auto'"
            )
        self._n_features_out = math.prod(fitted.spec.shape)
        self._build_flows()
        if fitted.stop_reason.startswith("SIG"):  # training ended at the end of a step, so the model is usable
            signal.raise_signal(getattr(signal, fitted.stop_reason))
        return self

    def sample(self, n: int = 1, y: Any = None, *, given: Any = None) -> Any:
        """Sample n samples of the kind of X, for y, one for all or n, default by training frequencies.

        A model with options={"mask": "random"} takes ``given``, one row or n of the kind of X, NaN or missing where
        they are asked for; what is given comes back as it is.
        """
        check_is_fitted(self)
        known = None if given is None else self._fitted.adapter.given(self.check_given(given))
        steps = None if self.solver == "dopri5" else int(self.sample_steps)
        rng = self._generator()
        check_whole("n", n, SampleCount)
        cond = label_condition(self._conditioning, y, int(n))
        if known is not None and len(known) not in (1, n):
            raise UserError(f"given must have one row, or the {n:,} that are asked for, got {len(known):,}")
        x = sample_mixture(self._flows, int(n), cond, rng, given=known, steps=steps, solver=self.solver)
        return self._fitted.adapter.from_tensor(x)

    def score_samples(self, X: Any, y: Any = None) -> np.ndarray:
        """Exact log density (N,) of each row, in nats and data units; without y of X alone."""
        x = self._tensor(X)
        scores = [self._in_blocks("log_prob", x, y, flow) for flow in self._flows]
        return mixed_log_prob(scores).numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of :meth:`score_samples`; y is ignored by a model without labels."""
        check_is_fitted(self)
        labelled = self._conditioning is not None
        scores = self.score_samples(X, y if labelled else None)
        if self.train_score_ is not None and (y is not None or not labelled):
            self._warn_of_memory(self.train_score_ - float(np.median(scores)), "X")
        return float(scores.mean())

    def _warn_of_settings(self, settings: Settings, rows: int, y: np.ndarray | None) -> None:
        """Warn of too few rows, in all or of a label, and of options that keep training from learning."""
        if rows < FEWEST:
            number = "1 row is" if rows == 1 else f"{rows} rows are"
            warn(f"{number} too few to learn a distribution from: the model repeats them; give {FEWEST} or more")
        t, given = settings.training, dict(self.options or {})
        batch, warmup = t.batch_size or BATCH, t.lr_warmup_steps or 0
        found = [large_batch(Plan(rows, batch, settings.steps, warmup, "", usual=BATCH))]
        found.append(long_warmup(settings.steps, warmup))
        found += [long_average(settings.steps, t.ema_decay)] if "ema_decay" in given and t.use_ema else []
        if y is not None:
            values, counts = np.unique(y, return_counts=True)
            found.append(rare_values("y", dict(zip(map(str, values), counts.tolist(), strict=True))))
        for trouble in found:
            if trouble is not None:
                warn(trouble)

    def _warn_of_memory(self, gap: float | None, what: str) -> None:
        """Warn if training rows are likelier than others by ``gap`` of more than a nat an element."""
        if gap is not None and gap > GAP * math.prod(self._fitted.spec.shape):
            warn(
                f"training rows are likelier than {what} by {gap:.1f} nats: the model memorises them, or the rows "
                "differ in kind; take early_stopping='auto', a smaller hidden or more rows"
            )

    def transform(self, X: Any, y: Any = None) -> np.ndarray:
        """Latents, float64, shaped like X in model units: standard normal for a good fit."""
        return self._in_blocks("encode", self._tensor(X), y, self.flow_).numpy()

    def inverse_transform(self, X: Any, y: Any = None) -> Any:
        """Data from latents, the inverse of :meth:`transform`."""
        check_is_fitted(self)
        z = torch.from_numpy(np.array(check_array(X, allow_nd=True), np.float64))
        self._check_shape(z.shape)
        return self._fitted.adapter.from_tensor(self._in_blocks("decode", z, y, self.flow_))

    def _check_shape(self, shape: Sequence[int]) -> None:
        expected = self.flow_.spec.shape
        if tuple(shape[1:]) != expected:
            raise UserError(f"X must have shape (n, {', '.join(map(str, expected))}), got {tuple(shape)}")

    def _in_blocks(self, what: str, x: Tensor, y: Any, flow: Flow) -> Tensor:
        """Apply a method of a flow, in float64, to blocks of rows, which bounds memory."""
        flow, cond = double_precision(flow), label_condition(self._conditioning, y, len(x))
        if self._conditioning is not None and not cond and not self.flow_.null:
            raise UserError("the model was fitted with label_dropout=0, so it knows nothing without labels; give y")
        rows = 1024
        parts = []
        for first in range(0, len(x), rows):
            block = slice(first, first + rows)
            part = {name: Encoded(value.values[block]) for name, value in cond.items()}
            options: dict[str, Any] = {"cond": part or None, "steps": int(self.density_steps), "solver": "rk4"}
            parts.append(getattr(flow, what)(x[block], **options))
        return torch.cat(parts).double()

    def _tensor(self, X: Any) -> Tensor:
        """X in data units, (N, *S)."""
        check_is_fitted(self)
        return self._fitted.adapter.to_tensor(self._check_data(X, reset=False))

    def check_given(self, X: Any) -> Any:
        """X, of the kind and with the features fitted, whose missing values are asked for."""
        return self._check_data(X, reset=False, holes=True)

    def _check_data(self, X: Any, *, reset: bool, holes: bool = False) -> Any:
        """Validate X, with the features of the fit unless ``reset``, and with ``holes`` if they are allowed."""
        adapter = adapter_class(X)
        if not reset and adapter is not type(self._fitted.adapter):
            raise UserError(f"X is another kind of data than the one fitted, {self._fitted.adapter.label}")
        if adapter is not ArrayAdapter:
            named = X.var_names.to_frame().T if hasattr(X, "var_names") else X
            validate_data(self, X=named, reset=reset, skip_check_array=True)
            return X
        images = getattr(X, "ndim", 2) == 4
        finite: Any = "allow-nan" if holes or dict(self.options or {}).get("holes") else True
        x: Any = validate_data(self, X=X, reset=reset, dtype="numeric", allow_nd=images, ensure_all_finite=finite)
        if images and not reset:
            self._check_shape(x.shape)
        return x

    def _build_flows(self) -> None:
        self._flows = self._fitted.flows(self.device)
        self.flow_ = self._flows[0]

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()  # the flows may lie on a device that the reader has not
        return {name: value for name, value in state.items() if name not in ("flow_", "_flows")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_fitted" in state:
            self._build_flows()

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64"]
        return tags
