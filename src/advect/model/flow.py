"""Trained flow: sampling, encoding, densities."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from advect.core.bounds import (
    BatchSize,
    DiffusionScale,
    GuidanceScale,
    Pixels,
    SampleCount,
    Seed,
    Steps,
    Time,
    bounded,
)
from advect.core.device import full_precision
from advect.core.errors import UserError
from advect.core.lazy_imports import LazyMethod
from advect.core.memory import BATCH_COPIES, check_memory
from advect.core.progress import BatchProgress, Progress
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.types import GIVEN, LENGTH, Conditions, without_padding
from advect.model.conditions import ConditionValue
from advect.model.coordinates import Coordinates
from advect.model.given import read_given
from advect.model.integrators import Integrator, make_integrator, make_interpolant_integrator
from advect.model.redraw import Draw, Integrate, ToData
from advect.model.sampler_config import SamplerConfig
from advect.model.samples import Samples, checked_rows
from advect.model.velocity_field import VelocityField
from advect.paths import AffinePath
from advect.solvers import (
    DiffusionCoefficient,
    SDESolver,
    Solver,
    TimeGrid,
    bits_per_dim,
    dequantise,
    get_solver,
)
from advect.solvers.integrate import CountedVelocity
from advect.solvers.time_grids import resolve_grid
from advect.sources import InitialNoise, noise_of


class Flow(VelocityField):
    """A trained network with the ways to use it: samples, latents, densities; arguments as :class:`VelocityField`."""

    @bounded
    @torch.no_grad()
    def sample(
        self,
        n: SampleCount,
        *,
        steps: Steps | None = None,
        solver: str | Solver | SDESolver | None = None,
        grid: str | TimeGrid | None = None,
        diffusion: DiffusionScale | str | DiffusionCoefficient | None = None,
        seed: Seed = 0,
        cond: Mapping[str, ConditionValue] | Sequence[str] | None = None,
        guidance: GuidanceScale = 1.0,
        guidance_interval: tuple[Time, Time] | None = None,
        image_size: tuple[Pixels, Pixels] | None = None,
        given: Any = None,
        trajectory: bool = False,
        batch_size: BatchSize = 256,
        rows: range | None = None,
        model_units: bool = False,
        progress: bool | tqdm = False,
    ) -> Samples:
        """Sample n samples (n, *S) in data units, on the CPU: float32, for tables and sequences float64.

        Sample i depends on the seed and i alone; rows of a table that break its rules are drawn anew. An empirical
        source starts from rows with the same categories, if any. Padding of sequences is zero.

        Args:
            steps, solver, grid: default those of the run's sample grids; "dopri5" is adaptive.
            diffusion: g(t), a number or a name, of the SDE, by "ab2", "euler-maruyama" or "heun".
            cond: for each condition it names, a value in the data such as a label, or n of them, see
                ``ConditionValue``; others follow the training frequencies.
            guidance: scale of classifier-free guidance, within ``guidance_interval`` of t if given.
            image_size: height and width of images by a network that takes others than it was trained on, a DiT.
            given: known entries of one sample, or of each of n, in data units, NaN where they are asked for; they come
                back as they are. For flows trained with --mask.
            trajectory: return the states at ``times``, (len(times), n, *S): those of the grid and of the
                exact steps at the ends (see :class:`Coordinates`).
            rows: a range within 0 .. n, to sample a share.
            model_units: skip the transform to data units, and its rules.
            progress: show a bar, or update one.

        Raises UserError for a bad argument.
        """
        config = SamplerConfig(solver, steps, grid, diffusion, guidance, guidance_interval, image_size)
        config = config.resolve(self.sampler, trajectory=trajectory)
        noise, integrator = self._takes_score(config), self._integrator(config, trajectory)
        rows = checked_rows(n, rows)
        if trajectory and given is not None and self.relative:
            raise UserError("trajectory is True, but states of a flow of --mask-relative have no level; leave it out")
        self._check_guidance(guidance, guidance_interval)
        shape = self._shape(image_size, given)
        self._check_memory(len(rows), min(batch_size, len(rows)), shape)
        conditions = self.conditions(n, cond, seed, rows=rows)
        known = None if given is None else read_given(self, given, n).rows(rows)
        known = known.relative(conditions) if known is not None and self.relative else known
        all_given = conditions if known is None else {**conditions, GIVEN: known.condition}
        field_of = lambda part: self._field(integrator.coordinates, part, guidance, guidance_interval, noise=noise)
        to_data = ToData(self.transform, conditions, known, trajectory)
        draw = Draw(self, Integrate(integrator, field_of), all_given, to_data, n, rows, seed, batch_size)
        calls = self.nfe(config) if progress is not False else None
        x, nfe = draw(shape, model_units=model_units, progress=progress, calls=calls)
        return Samples(x, conditions, nfe, self.spec, integrator.times if trajectory else None)

    @bounded
    def noise(
        self, n: SampleCount, *, seed: Seed = 0, cond: Mapping[str, ConditionValue] | Sequence[str] | None = None
    ) -> Tensor:
        """The initial states (n, *S) from which :meth:`sample` of the same n, seed and conditions starts."""
        given = self._on_device(self.conditions(n, cond, seed))
        return self.initial_noise.sample(noise_of(seed, range(n), n), self.spec.shape, given, device=self.device).cpu()

    if TYPE_CHECKING:
        from advect.model.hub import push_to_hub as push_to_hub
        from advect.model.hub import save_pretrained as save_pretrained
        from advect.model.measures import log_prob_bound as log_prob_bound
        from advect.model.measures import straightness as straightness
        from advect.model.posterior import sample_posterior as sample_posterior

        export: Callable[..., list[Path]]  # of a layer above, by its name alone
    else:
        push_to_hub, save_pretrained = LazyMethod("advect.model.hub"), LazyMethod("advect.model.hub")
        export, sample_posterior = LazyMethod("advect.export.files"), LazyMethod("advect.model.posterior")
        log_prob_bound, straightness = LazyMethod("advect.model.measures"), LazyMethod("advect.model.measures")

    def _check_guidance(self, guidance: float, interval: tuple[float, float] | None) -> None:
        if guidance != 1 and not self.spec.conditions.keys() - {LENGTH}:
            raise UserError(f"guidance is {guidance}, but this flow has no conditions to guide by; leave it at 1")
        if guidance != 1 and not self.null:
            raise UserError(f"guidance is {guidance}, but the flow was trained with --label-dropout 0; leave it at 1")
        if guidance == 1 and interval is not None:
            raise UserError("guidance_interval is given, but guidance is 1, which is none; give a guidance such as 2")

    def _check_memory(self, n: int, batch: int, shape: tuple[int, ...]) -> None:
        """Raise UserError if n samples of this shape, or a batch of them, exceed the memory."""
        size = 4 * math.prod(shape)
        check_memory(f"{n:,} samples of shape {shape} take", n * size, "draw fewer at a time")
        what = f"a batch of {batch:,} samples of shape {shape} takes"
        check_memory(what, BATCH_COPIES * batch * size, "lower batch_size", self.device)

    def _shape(self, image_size: tuple[int, int] | None, given: Any = None) -> tuple[int, ...]:
        """Shape of a sample in model units. Raises UserError for a size that network, source or ``given`` entries do
        not take.
        """
        if image_size is None or image_size == self.spec.shape[1:]:
            return self.spec.shape
        if self.modality.layout != "image":
            raise UserError(f"image_size is {image_size}, but this flow makes {self.spec.modality} data; leave it out")
        shape = (self.spec.shape[0], *image_size)
        check = getattr(self.net, "check_size", None)
        if check is None:
            raise UserError(f"image_size is {image_size}, but this network has a size of its own; leave it out")
        check(shape)
        if not self.source.standard_normal:
            raise UserError(
                f"image_size is {image_size}, but {type(self.source).__name__} has the size of the data; leave it out"
            )
        if given is not None:
            raise UserError(f"image_size is {image_size}, but given has the size of the data; leave one of them out")
        return shape

    def _initial_states(
        self,
        n: int,
        rows: range,
        conditions: Conditions,
        seed: int,
        batch_size: int,
        progress: bool | tqdm,
        shape: tuple[int, ...] | None = None,
        calls: int | None = None,
    ) -> Iterator[tuple[Tensor, Conditions, CounterRng, BatchProgress]]:
        """Batches of initial states (B, *S), conditions (B,) and random numbers for ``rows`` of n samples, each with
        its progress in ``calls`` of the network.
        """
        with (
            nullcontext(progress)
            if isinstance(progress, tqdm)
            else Progress(len(rows), "sample", "sample", show=progress) as bar
        ):
            for first in rows[::batch_size]:
                last = min(first + batch_size, rows.stop)
                rng = noise_of(seed, range(first, last), n)
                here = slice(first - rows.start, last - rows.start)
                part = self._on_device({name: value[here] for name, value in conditions.items()})
                batch = BatchProgress(bar, last - first, calls)
                x0 = self.initial_noise.sample(rng, shape or self.spec.shape, part, device=self.device)
                yield x0, part, rng, batch
                batch.finish()

    def _takes_score(self, config: SamplerConfig) -> bool:
        """Whether the field is that of both heads, velocity and noise."""
        return self.learned_score and config.diffusion is not None

    def _integrator(self, config: SamplerConfig, trajectory: bool) -> Integrator:
        if self._takes_score(config):
            return make_interpolant_integrator(config, self._t_eps, self.path, self.source, trajectory=trajectory)
        steps = self.learns_steps
        return make_integrator(config, self.coordinates, self.path, self.source, trajectory=trajectory, steps=steps)

    def nfe(self, config: SamplerConfig) -> int | None:
        """Evaluations a sample by ``config``, those of the exact steps at the ends included; None if adaptive.

        Counted on a field that is zero.
        """
        config = config.resolve(self.sampler)
        if config.adaptive:
            return None
        field = CountedVelocity(lambda x, t: x.new_zeros(len(x), 1 + self._takes_score(config)))
        self._integrator(config, trajectory=False)(field, torch.zeros(1, 1), noise_of(0, range(1), 1))
        return field.rows

    @property
    def initial_noise(self) -> InitialNoise:
        """Distribution at t = 0: source and jitter."""
        return InitialNoise(self.source, self.path.sigma_min if isinstance(self.path, AffinePath) else 0.0)

    @bounded
    @torch.no_grad()
    def encode(
        self,
        x: Tensor,
        *,
        cond: Mapping[str, ConditionValue] | None = None,
        steps: Steps = 50,
        solver: str = "rk4",
        guidance: GuidanceScale = 1.0,
        guidance_interval: tuple[Time, Time] | None = None,
    ) -> Tensor:
        """Integrate data x (n, *S) to noise z (n, *S) at t = 0; inverse of :meth:`decode` of the same guidance."""
        self._check_guidance(guidance, guidance_interval)
        given = self._given(len(x), cond)
        model = self.transform.forward(self._checked(x, self.data_shape))
        guide = {"guidance": guidance, "interval": guidance_interval}
        return self.to_noise(model, given, solver=solver, steps=steps, **guide)

    @torch.no_grad()
    def to_noise(
        self,
        x1: Tensor,
        cond: Conditions,
        *,
        solver: str | Solver = "rk4",
        steps: int = 50,
        guidance: float = 1.0,
        interval: tuple[float, float] | None = None,
    ) -> Tensor:
        """Integrate x1 (n, *S), in model units, back to noise (n, *S) at t = 0, in float32."""
        way, times, method = self._way(solver, steps)
        with self._full_precision() as exact:
            field = exact._field(way, cond, guidance, interval)
            y = way.back(field, without_padding(x1, cond).to(self.device), method, times)
        return without_padding(y.float().cpu(), cond)

    def _way(self, solver: str | Solver, steps: int) -> tuple[Coordinates, list[float], Solver]:
        """Coordinates, times t and solver for encodings and densities; an adaptive solver chooses its own steps."""
        self.check_continuous("the way back to noise")
        method = get_solver(solver)
        if method.two_times or method.jumps:
            raise UserError(f"solver {method.name!r} leads from noise to samples alone, without a density; take 'rk4'")
        times = [0.0, 1.0] if method.adaptive else resolve_grid("uniform", steps, 50, t0=0.0, t1=1.0)
        return self.coordinates if method.adaptive else self.coordinates.until_last(times), times, method

    @bounded
    @torch.no_grad()
    def decode(
        self,
        z: Tensor,
        *,
        cond: Mapping[str, ConditionValue] | None = None,
        steps: Steps = 50,
        solver: str = "rk4",
        guidance: GuidanceScale = 1.0,
        guidance_interval: tuple[Time, Time] | None = None,
    ) -> Tensor:
        """Integrate noise z (n, *S) to data (n, *S) in data units, guided as in :meth:`sample` if asked."""
        self._check_guidance(guidance, guidance_interval)
        given = self._given(len(z), cond)
        way, times, method = self._way(solver, steps)
        x0 = without_padding(self._checked(z, self.spec.shape), given).to(self.device)
        with self._full_precision() as exact:
            field = exact._field(way, given, guidance, guidance_interval)
            rng = CounterRng(stream_seed(0, Stream.INITIAL_NOISE), 1, len(z))
            x = way.finish(field, way.solve(field, way.enter(field, x0, rng), method, times)[-1])
        return without_padding(self.transform.inverse(x.float().cpu()), given)

    if TYPE_CHECKING:
        from advect.model.density import log_prob as log_prob
    else:
        log_prob = LazyMethod("advect.model.density")

    @contextmanager
    def _full_precision(self) -> Iterator[Flow]:
        """This flow with its network in float32: densities and encodings need derivatives and inverses."""
        exact = copy.copy(self)  # other threads sample in the precision of training
        exact.autocast = None
        with full_precision(self.device):
            yield exact

    def bits_per_dim(self, x: Tensor, *, seed: int = 0, **options) -> Tensor:
        """``-log2 p(x) / D`` (n,), with the options of :meth:`log_prob`.

        Integers of a flow of integers get uniform noise first, of the unit around them, for a bound of the bits that
        code them (Theis et al. 2016, "A note on the evaluation of generative models").
        """
        if getattr(self.transform, "integer", False) and bool((x == x.round()).all()):
            rng = CounterRng(stream_seed(seed, Stream.DEQUANTISE), 0, len(x))
            x = dequantise(x, generator=rng) - 0.5
        return bits_per_dim(self.log_prob(x, seed=seed, **options), x[0].numel())

    @staticmethod
    def _checked(x: Tensor, shape: tuple[int, ...]) -> Tensor:
        x = x if isinstance(x, Tensor) else torch.as_tensor(x, dtype=torch.float32)
        if x.shape[1:] != shape or len(x) == 0:
            raise UserError(f"x must have shape (n, {', '.join(map(str, shape))}), got {tuple(x.shape)}")
        return x
