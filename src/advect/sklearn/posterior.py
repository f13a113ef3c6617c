"""Posteriors of the parameters of simulators, learned from simulations."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from advect.core.bounds import Count, SampleCount, Steps
from advect.core.errors import UserError
from advect.core.random import Stream, stream_seed
from advect.model.conditions import Encoded
from advect.model.flow import Flow
from advect.sklearn.adapters import ArrayAdapter, check_options
from advect.sklearn.composition import compose, product_law
from advect.sklearn.embedding import embedding_of
from advect.sklearn.fitting import FittedFlow, fit_flow
from advect.sklearn.location import LinearLocation
from advect.sklearn.mixture import double_precision, mixed_log_prob, sample_mixture
from advect.sklearn.model import BATCH, check_minutes, check_whole, own_generator
from advect.sklearn.observations import Observed, as_numbers, check_inside, read_pairs
from advect.sklearn.prior_laws import prior_of
from advect.sklearn.priors import Prior
from advect.sklearn.rounds import DRAWS, KeptRounds, Proposals, Region, joined, truncated_draws
from advect.sklearn.settings import Settings, resolve, warn
from advect.sklearn.simulate import Simulations, Simulator, simulate

_SEEDS = 2**31 - 1

_ROWS = 1024
"""Rows of a block of densities, and of a batch of samples, which bounds memory."""

STEPS, ROWS = 8000, 10_000
"""Training steps by default, for so many simulations."""

FOLDED = 10_000
"""Most simulations of which each fifth is held out in turn, so that the density is that of six flows."""

_MOMENTS = 500
"""Draws of each posterior by which several are composed."""

_COUNTS: dict[str, Any] = {"steps": Count, "n_iter_no_change": Count, "sample_steps": Steps, "density_steps": Steps}


class FlowPosterior(BaseEstimator):
    """The posterior p(theta | x) of a simulator's parameters, learned from pairs of parameters and simulations.

    A conditional flow (Wildberger et al. 2023, "Flow matching for scalable simulation-based inference") in
    coordinates in which the prior, if its parameters are independent, is N(0, I): no draw ever leaves the prior.

    Args:
        hidden: equal widths of the hidden layers, or one number for three of them. None is three of 256, of 128
            for up to 1,000 simulations.
        steps: most training steps. None is 8,000 for up to 10,000 simulations, and more by the root of their number.
        batch_size: rows per step.
        max_minutes: time for :meth:`fit`, whose schedule ends with it.
        learning_rate: peak of warm-up and cosine decay. None is 4e-3.
        early_stopping: hold out each fifth of up to 10,000 simulations in turn, ``validation_fraction`` of more, stop
            after ``n_iter_no_change`` evaluations without a lower held-out loss of the averaged weights, and take
            those of the lowest. Of fifths the posterior is an equal mixture of their flows and one of all simulations.
        validation_fraction: in (0, 1).
        n_iter_no_change: at least 1.
        solver: "euler", "midpoint", "heun", "rk4", "ab2", "dpmpp2m" or "dopri5", for :meth:`sample`.
        sample_steps: its steps.
        density_steps: steps of "rk4" for densities.
        location: "linear", a ridge regression on x, what is left of which the flow learns, of parameters without
            edges and those that it tells nearly all of; or None.
        embedding: what makes features of x and is trained with the flow: "auto", a transformer for series (T, C) and a
            U-Net for images (C, H, W); the name of a registered network; a module (B, *S) -> (B, k), of which a copy
            is trained; None takes all numbers as they are.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1" ...
        options: other flags of ``advect train``, named with underscores, such as
            ``{"network": "resmlp", "dropout": 0.1, "weight_decay": 0.5}``, which memorises less.
        random_state: seed of training and of draws; None takes new ones, never from NumPy's global generator.
        verbose: 1 for a progress bar.

    Attributes:
        flow_: the :class:`advect.Flow` of what is left of the parameters' coordinates, of all simulations.
        n_iter_: training steps behind the weights.
        loss_curve_, validation_curve_: mean training losses, and held-out losses.
        n_parameters_: D.

    Raises UserError, a ValueError, for unusable arguments or data.
    """

    def __init__(
        self,
        *,
        hidden: int | Sequence[int] | None = None,
        steps: int | None = None,
        batch_size: int = BATCH,
        max_minutes: float | None = None,
        learning_rate: float | None = None,
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        solver: str = "midpoint",
        sample_steps: int = 50,
        density_steps: int = 20,
        device: str = "auto",
        location: str | None = "linear",
        embedding: str | nn.Module | None = "auto",
        options: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.hidden, self.steps, self.batch_size, self.max_minutes = hidden, steps, batch_size, max_minutes
        self.learning_rate, self.early_stopping = learning_rate, early_stopping
        self.validation_fraction, self.n_iter_no_change = validation_fraction, n_iter_no_change
        self.solver, self.sample_steps, self.density_steps = solver, sample_steps, density_steps
        self.location, self.embedding = location, embedding
        self.device, self.options, self.random_state, self.verbose = device, options, random_state, verbose

    def fit(self, theta: Any, x: Any, prior: Any = None) -> FlowPosterior:
        """Learn from parameters theta (N, D), drawn from the prior, and their simulations x (N,), (N, d) or (N, *S).

        ``prior``: a torch distribution, a list of independent ones, (low, high), "positive", "simplex", or None for
        all real numbers. Finite (low, high) are a uniform law; with infinite ones, and by name, only the support is
        known, and the prior is that of theta. Raises UserError for theta outside.
        """
        self._check_arguments()
        theta, x = read_pairs(theta, x)
        self._refined: np.ndarray | None = None
        law = prior_of(prior, theta.shape[1])
        check_inside(theta, law)
        z, _ = law.to_latent(theta)
        if (constant := np.ptp(theta, 0) == 0).any():
            raise UserError(
                f"column {int(constant.argmax())} of theta is constant, so nothing is to be learned; drop it"
            )
        seed = int(own_generator(self.random_state).randint(_SEEDS))
        observed = Observed(x, embedding_of(self.embedding, x.shape[1:], seed))
        location = LinearLocation(x.reshape(len(x), -1), z, law.edges) if self.location == "linear" else None
        rest = z if location is None else z - location.predict(x.reshape(len(x), -1))
        adapter = ArrayAdapter(rest, {})
        fitted = fit_flow(
            adapter,
            self._settings(len(z)),
            torch.from_numpy(rest),
            observed.rows(x, len(x)),
            observed.conditions,
            seed=seed,
            validation=self.validation_fraction if self.early_stopping else 0.0,
            patience=int(self.n_iter_no_change),
            verbose=self.verbose,
            encoders=observed.encoders,
            folded=FOLDED,
        )
        self._fitted: FittedFlow = fitted
        self._prior: Prior = law
        self._observed, self._location = observed, location
        self.n_iter_, self.n_parameters_ = fitted.step, theta.shape[1]
        self.loss_curve_, self.validation_curve_ = fitted.losses, fitted.held_out_losses
        self._build_flows()
        if fitted.stop_reason.startswith("SIG"):  # training ended at the end of a step, so the posterior is usable
            signal.raise_signal(getattr(signal, fitted.stop_reason))
        return self

    def fit_rounds(
        self,
        simulator: Simulator,
        prior: Any,
        x_obs: Any,
        simulations: int = 1000,
        rounds: int = 3,
        *,
        folder: str | os.PathLike[str] | None = None,
        seed: int = 0,
        **of_simulator: Any,
    ) -> FlowPosterior:
        """Learn the posterior given one observation x_obs (*S) in rounds of so many simulations each.

        Those after the first are of the prior where the posterior up to then has all but 1e-4 of its mass
        (:mod:`~advect.sklearn.rounds`), and each fit is to all simulations there. ``folder`` keeps them: the same call
        again goes on from it. ``of_simulator`` are further arguments of :func:`from_simulator`, batch_size, workers,
        parallel, failures and progress. Asked of another observation, the posterior warns. Raises UserError as
        :meth:`fit` and :func:`from_simulator` do.
        """
        self._check_arguments()
        for name, value in (("simulations", simulations), ("rounds", rounds)):
            check_whole(name, value, Count)
        law, observed = prior_of(prior), as_numbers(x_obs, "x_obs")
        if not np.isfinite(observed).all():
            raise UserError("x_obs holds NaN or infinite values, for which no posterior is learned")
        first = law.sample(int(simulations), seed)
        kept, found = KeptRounds(folder, first, observed), None
        for number in range(1, int(rounds) + 1):
            if found is None:
                given = Proposals(first, np.zeros(0, bool))
            else:
                there = kept.read(number)
                given = self._proposals(law, found, observed, len(first), (seed, number)) if there is None else there
                kept.keep(number, given)
            own = {"seed": stream_seed(seed, Stream.ROUNDS, number), "folder": kept.place(number)}
            new = simulate(simulator, given.theta, **of_simulator | own)
            found = new if found is None else joined(found, given.inside, new)
        assert found is not None
        self._fit_round(law, found, observed)
        return self

    def _fit_round(self, law: Prior, found: Simulations, x_obs: np.ndarray) -> np.ndarray:
        """Fit to simulations, and return the observation (1, *S)."""
        self.fit(found.theta, found.x, law)
        x, _ = self._observed.read(x_obs)
        if len(x) > 1:
            raise UserError(f"x_obs must be one observation, got {len(x)}; compose several by sample_iid after fit")
        self._refined = x
        return x

    def _proposals(
        self, law: Prior, found: Simulations, x_obs: np.ndarray, n: int, seed: tuple[int, int]
    ) -> Proposals:
        """n parameters of a later round of a number, by the simulations found."""
        x = self._fit_round(law, found, x_obs)
        rng = np.random.default_rng(stream_seed(seed[0], Stream.ROUNDS, seed[1], 1))
        rough = [self.flow_]
        log_density = lambda z: self._latent_log_prob(z, x, np.zeros(len(z), int), rough)
        draw = lambda m: self._draw_latents(x, m)
        region = Region(log_density, draw(DRAWS))
        theta = law.to_theta(truncated_draws(law, region, draw, n, rng))
        return Proposals(theta, region.contains(law.to_latent(found.theta)[0]))

    def _read(self, x_obs: Any) -> tuple[np.ndarray, bool]:
        """Observations (B, *S), and whether it is one alone; warns of those that the posterior was not learned for."""
        x, single = self._observed.read(x_obs)
        self._observed.warn_if_far(x)
        refined = getattr(self, "_refined", None)
        if refined is not None and (x != refined).any():
            warn(
                "this posterior was refined for one observation and is asked of another, for which it had few "
                "simulations; fit_rounds for that one, or fit for all"
            )
        return x, single

    def _settings(self, rows: int) -> Settings:
        check_options(self.options or {}, ArrayAdapter)
        steps = int(STEPS * max(1.0, rows / ROWS) ** 0.5) if self.steps is None else self.steps
        return resolve(
            self.options,
            modality="vector",
            hidden=self.hidden,
            labelled=True,
            steps=steps,
            rows=rows,
            data_options=(),
            arguments={
                "batch_size": self.batch_size,
                "max_minutes": self.max_minutes,
                "device": self.device,
                "learning_rate": self.learning_rate,
                "coupling": "independent",
                "label_dropout": 0.0,
            },
        )

    def _check_arguments(self) -> None:
        for name, bounds in _COUNTS.items():
            value = getattr(self, name)
            if name != "steps" or value is not None:
                check_whole(name, value, bounds)
        check_minutes(self.max_minutes)
        if self.location not in ("linear", None):
            raise UserError(f"location must be 'linear' or None, got {self.location!r}")
        if not isinstance(self.early_stopping, bool | np.bool_):
            raise UserError(f"early_stopping must be True or False, got {self.early_stopping!r}")
        if self.early_stopping and not 0 < self.validation_fraction < 1:
            raise UserError(f"validation_fraction must lie in (0, 1), got {self.validation_fraction}; 0.1 is usual")

    def sample(self, x_obs: Any, n: int = 1000) -> np.ndarray:
        """n draws (n, D) given one observation, or (B, n, D) given B of them, float64, all inside the prior."""
        check_is_fitted(self)
        check_whole("n", n, SampleCount)
        x, single = self._read(x_obs)
        theta = self._prior.to_theta(self._draw_latents(x, int(n)))
        return theta if single else theta.reshape(len(x), int(n), -1)

    def _draw_latents(self, x: np.ndarray, n: int) -> np.ndarray:
        """Latents (B n, d) of n draws for each observation of x (B, *shape). Raises UserError if any is NaN."""
        cond = {name: Encoded(value.repeat_interleave(n, 0)) for name, value in self._observed.rows(x, len(x)).items()}
        steps = None if self.solver == "dopri5" else int(self.sample_steps)
        rng = own_generator(self.random_state)
        options: dict[str, Any] = {"steps": steps, "solver": self.solver, "batch_size": _ROWS}
        z = sample_mixture(self._flows, len(x) * n, cond, rng, **options).double().numpy()
        if np.isnan(z).any():
            raise UserError("the flow's draws are no numbers; take a lower learning_rate, or more sample_steps")
        return z + self._center(x).repeat(n, 0)

    def _center(self, x: np.ndarray) -> np.ndarray:
        """Where the latents (B, d) lie given observations x (B, *S), by the regression, or 0."""
        if self._location is None:
            return np.zeros((len(x), self._prior.latent))
        return self._location.predict(x.reshape(len(x), -1))

    def log_prob(self, theta: Any, x_obs: Any) -> np.ndarray:
        """Normalised log posterior densities, in nats and the units of theta, -inf outside the prior.

        (n,) of theta (n, D) given one observation, or n, a row each; (B, n) of theta (B, n, D) given B observations.
        On a simplex the density is per unit of all parameters but the last.
        """
        check_is_fitted(self)
        x, single = self._read(x_obs)
        values = as_numbers(theta, "theta")
        values = values[:, None] if values.ndim == 1 and self.n_parameters_ == 1 else values
        shape = values.shape[:-1]
        each = len(shape) == 2 and not single
        if (
            values.ndim not in (2, 3)
            or values.shape[-1] != self.n_parameters_
            or not ((len(shape) == 1 and (single or len(values) == len(x))) or (each and len(values) == len(x)))
        ):
            raise UserError(
                f"theta must have shape (n, {self.n_parameters_}), for one observation or n of them, or (B, n, "
                f"{self.n_parameters_}) for B, got {np.shape(theta)} for {len(x)}"
            )
        flat = values.reshape(-1, self.n_parameters_)
        places = np.repeat(np.arange(len(x)), len(flat) // len(x)) if len(flat) else np.zeros(0, int)
        inside, found = self._prior.contains(flat), np.full(len(flat), -np.inf)
        z, log_det = self._prior.to_latent(flat[inside])
        found[inside] = log_det + self._latent_log_prob(z, x, places[inside])
        return found.reshape(shape)

    def sample_iid(self, x_obs: Any, n: int = 1000) -> np.ndarray:
        """n draws (n, D) given all of x_obs (k, *S), independent observations of one theta; needs a prior with a law.

        By importance resampling of p(theta)^(1 - k) prod_i p(theta | x_i), with a warning where few proposals count.
        """
        check_whole("n", n, SampleCount)
        return self._prior.to_theta(self._composed(x_obs, int(n))[0])

    def log_prob_iid(self, theta: Any, x_obs: Any) -> np.ndarray:
        """Log densities (n,) of theta (n, D) given all of x_obs (k, *S), as :meth:`sample_iid`; the constant that
        normalises them is estimated by its proposals.
        """
        _, log_integral, x = self._composed(x_obs, 1)
        values = as_numbers(theta, "theta")
        if values.ndim != 2 or values.shape[1] != self.n_parameters_:
            raise UserError(f"theta must have shape (n, {self.n_parameters_}), got {values.shape}")
        inside, found = self._prior.contains(values), np.full(len(values), -np.inf)
        z, log_det = self._prior.to_latent(values[inside])
        found[inside] = self._log_product(z, x) + log_det - log_integral
        return found

    def _composed(self, x_obs: Any, n: int) -> tuple[np.ndarray, float, np.ndarray]:
        """n latents given all observations, the log integral of their unnormalised density, and the observations."""
        check_is_fitted(self)
        x, _ = self._read(x_obs)
        rng = own_generator(self.random_state)
        self._prior.check_law("a density, which several observations need")
        prior, _ = self._prior.to_latent(self._prior.sample(_MOMENTS, int(rng.randint(_SEEDS))))
        each = self._draw_latents(x, _MOMENTS).reshape(len(x), _MOMENTS, -1)
        z, log_integral = compose(lambda z: self._log_product(z, x), product_law(each, prior), n, rng)
        return z, log_integral, x

    def _log_product(self, z: np.ndarray, x: np.ndarray) -> np.ndarray:
        """log p(z)^(1 - k) prod_i p(z | x_i) (n,) of latents z (n, d) and observations x (k, *S)."""
        places = np.repeat(np.arange(len(x)), len(z))
        total = self._latent_log_prob(np.tile(z, (len(x), 1)), x, places).reshape(len(x), -1).sum(0)
        theta = self._prior.to_theta(z)
        return total + (1 - len(x)) * (self._prior.log_prob(theta) - self._prior.to_latent(theta)[1])

    def _latent_log_prob(
        self, z: np.ndarray, x: np.ndarray, places: np.ndarray, flows: Sequence[Flow] = ()
    ) -> np.ndarray:
        """Log densities (n,) of latents z (n, d), row i given the observation x[places[i]], by default of all flows in
        float64.
        """
        rows, parts, z = self._observed.rows(x, len(x)), [np.zeros(0)], z - self._center(x)[places]
        options: dict[str, Any] = {"steps": int(self.density_steps), "solver": "rk4"}
        for first in range(0, len(z), _ROWS):
            some = slice(first, first + _ROWS)
            cond = {name: Encoded(value[places[some]]) for name, value in rows.items()}
            block: Tensor = torch.from_numpy(z[some])
            each = [flow.log_prob(block, cond=cond, **options).double() for flow in flows or self._exact]
            parts.append(mixed_log_prob(each).numpy())
        return np.concatenate(parts)

    def _build_flows(self) -> None:
        self._flows = self._fitted.flows(self.device)
        self._exact = [double_precision(flow) for flow in self._flows]
        self.flow_ = self._flows[0]

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()  # the flows may lie on a device that the reader has not
        return {name: value for name, value in state.items() if name not in ("flow_", "_flows", "_exact")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_fitted" in state:
            self._build_flows()
