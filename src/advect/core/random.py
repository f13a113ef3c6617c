"""Counter-based random numbers: pure functions of (seed, step, draw, position, element).

No state is stored: a resumed run draws the same numbers, and so do the rows of a batch split over processes (Salmon et
al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). The hash is the finaliser of SplitMix64 (Steele, Lea & Flood
2014), keyed before and inside, in int64 tensor operations: the same bits on every device.

A ``generator`` argument is a :class:`CounterRng`, a ``torch.Generator``, or None for PyTorch's global state. Weights
and layers, which take none, draw from a :class:`LayerRng`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum, unique
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode

from advect.core.errors import UserError

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_M1, _M2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(x: int) -> int:
    """Reinterpret an unsigned 64-bit integer as int64."""
    x &= _MASK
    return x - (1 << 64) if x >> 63 else x


def mix(*words: int) -> int:
    """Hash integers, in order, to an unsigned 64-bit number."""
    h = 0
    for word in words:
        h = (h + word + _GOLDEN) & _MASK
        h = ((h ^ (h >> 30)) * _M1) & _MASK
        h = ((h ^ (h >> 27)) * _M2) & _MASK
        h ^= h >> 31
    return h


def mix_each(h: np.ndarray, words: np.ndarray) -> np.ndarray:
    """:func:`mix` one more word into each hash: h and words (N,) uint64; h is overwritten."""
    h += words
    h += np.uint64(_GOLDEN)
    for shift, factor in ((30, _M1), (27, _M2)):
        h ^= h >> np.uint64(shift)
        h *= np.uint64(factor)
    h ^= h >> np.uint64(31)
    return h


@unique
class Stream(IntEnum):
    """Independent streams of random numbers, see :func:`stream_seed`; numbers are permanent."""

    INIT = 0  # weights of a new network
    ORDER = 1  # order of the examples
    AUGMENTATION = 2
    LAYERS = 3  # dropout
    STEP = 4  # source, coupling, time and path of a training step
    HELD_OUT_LOSS = 5  # the same for the held-out loss
    LOG_PROB = 6  # Hutchinson's probes
    INITIAL_NOISE = 7  # x0 of samples
    COUNTS = 8  # cells counted around their expectation
    INVERTED_ROWS = 9  # data carried back to t = 0 for reflow pairs
    LIKELIHOOD = 10  # seed of log_prob for each batch of the likelihood metric
    PAIRS = 11  # seed of each round of reflow
    CONDITIONS = 12  # conditions of samples
    DEQUANTISE = 13  # uniform noise on grey levels
    SHARDS = 14  # order of shards
    SHARD_ROWS = 15  # order within a group of shards
    SUBSAMPLE = 16  # rows of an evaluation
    HELD_OUT = 17  # split of the data
    TRUNCATED_SVD = 18
    WASSERSTEIN = 19  # directions of the sliced distance
    KID = 20
    CLASSIFIER_TWO_SAMPLE = 21
    FID_INFINITY = 22
    DOCTOR = 23
    BUCKETS = 24  # order of batches of one image size each
    FEATURE_NETWORK = 25  # training of the features of images
    BOOTSTRAP = 26  # resampled rows of an interval
    PRIOR = 27  # parameters of simulations
    SIMULATION = 28  # seeds of simulators
    CALIBRATION = 29  # ties of ranks, reference points, bands
    CALIBRATION_DRAWS = 30  # draws given a held-out row's condition
    ROUNDS = 31  # parameters of later rounds of simulations
    CHILDREN = 32  # numbers of children of parents


def stream_seed(seed: int, stream: Stream, *words: int) -> int:
    """Seed (64 bits) of ``stream`` in a run of ``seed``; ``words`` number independent parts."""
    return mix(seed, stream, *words)


Bits = np.ndarray | Tensor
"""int64: NumPy on the CPU (three times faster for small operations), PyTorch elsewhere."""


def _arange(start: int, stop: int, device: torch.device | None) -> Bits:
    if device is None or device.type == "cpu":
        return np.arange(start, stop, dtype=np.int64)
    return torch.arange(start, stop, device=device)


def _hash(counter: Bits, key: int) -> Bits:
    """64 random bits for each element of ``counter``, in place; masks make the shifts logical."""
    counter *= _signed(_GOLDEN)
    counter += _signed(mix(key, 1))
    counter ^= (counter >> 30) & ((1 << 34) - 1)
    counter *= _signed(_M1)
    counter += _signed(mix(key, 2))
    counter ^= (counter >> 27) & ((1 << 37) - 1)
    counter *= _signed(_M2)
    counter ^= (counter >> 31) & ((1 << 33) - 1)
    return counter


def _real(bits: Bits, dtype: torch.dtype) -> Bits:
    """The numbers as float64 if dtype is, else float32."""
    double = dtype == torch.float64
    if isinstance(bits, np.ndarray):
        return bits.astype(np.float64 if double else np.float32)
    return bits.to(torch.float64 if double else torch.float32)


def _tensor(values: Bits) -> Tensor:
    return torch.from_numpy(values) if isinstance(values, np.ndarray) else values


class CounterRng:
    """Random numbers for rows ``start .. start + count`` of a global batch of ``total`` rows at one step.

    Draws are numbered in call order. The first axis of every draw is the ``count`` rows.
    """

    def __init__(self, seed: int, step: int, count: int, *, start: int = 0, total: int | None = None) -> None:
        self.count, self.start, self.total = count, start, start + count if total is None else total
        if not 0 <= start <= start + count <= self.total:
            raise UserError(f"rows {start} to {start + count} do not lie in a batch of {self.total}")
        self._key, self._draw = mix(seed, step), 0
        self._places: np.ndarray | None = None

    @classmethod
    def at(cls, seed: int, step: int, places: np.ndarray, *, total: int) -> CounterRng:
        """Random numbers for the rows ``places`` (B,) int64 of the batch, in any order; without permutations."""
        rng = cls(seed, step, len(places))  # which may be more than there are, as places may come again
        rng.total = total
        if len(places) and not (places.min() >= 0 and places.max() < total):
            raise UserError(f"rows {places.min()} to {places.max()} do not lie in a batch of {total}")
        rng._places = places
        return rng

    def _bits(self, width: int, device: torch.device | None) -> Bits:
        """Random bits for the next draw, ``width`` words a row."""
        self._draw += 1
        if self._places is None:
            counter = _arange(self.start * width, (self.start + self.count) * width, device)
        else:
            counter = (self._places[:, None] * width + np.arange(width)).reshape(-1)
            if device is not None and device.type != "cpu":
                counter = torch.from_numpy(counter).to(device)
        return _hash(counter, mix(self._key, self._draw))

    def _width(self, shape: Sequence[int]) -> int:
        if not shape or shape[0] != self.count:
            raise UserError(f"a draw of shape {tuple(shape)} does not fit a CounterRng of {self.count} rows")
        return math.prod(shape[1:])

    def uniform(
        self, shape: Sequence[int], *, device: torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Uniform numbers in [0, 1): multiples of 2^-53 (float64) or 2^-24 (float32, rounded for other types)."""
        width, n = self._width(shape), 53 if dtype == torch.float64 else 24
        bits = self._bits(width, device)
        bits >>= 64 - n
        bits &= (1 << n) - 1
        u = _real(bits, dtype)
        u *= 2.0**-n
        return _tensor(u).to(dtype).view(*shape)

    def normal(
        self, shape: Sequence[int], *, device: torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Standard normal numbers (Box & Muller 1958), two from each 64 bits, within 6.8 deviations."""
        width = self._width(shape)
        half = (width + 1) // 2
        bits = self._bits(half, device)
        u, angle = _real((bits >> 32) & ((1 << 32) - 1), dtype), _real(bits & ((1 << 32) - 1), dtype)
        u += 0.5
        u *= 2.0**-32
        angle *= 2 * math.pi * 2.0**-32
        xp: Any = np if isinstance(u, np.ndarray) else torch
        radius = xp.log(u)
        radius *= -2.0
        radius = xp.sqrt(radius).reshape(self.count, half)
        angle = angle.reshape(self.count, half)
        z = xp.concatenate([xp.cos(angle) * radius, xp.sin(angle) * radius], 1)
        return _tensor(z)[:, :width].to(dtype).reshape(*shape)

    def permutation(self, *, device: torch.device | None = None) -> Tensor:
        """This rows' part (count,) of a random permutation of the ``total`` rows."""
        assert self._places is None, "a permutation is of whole batches"
        self._draw += 1
        bits = _hash(_arange(0, self.total, device), mix(self._key, self._draw))
        return _tensor(bits.argsort())[self.start : self.start + self.count]


Generator = CounterRng | torch.Generator | None


def normal(
    shape: Sequence[int], generator: Generator = None, *, device: torch.device | None = None, dtype: torch.dtype
) -> Tensor:
    """Standard normal tensor of ``shape``."""
    if isinstance(generator, CounterRng):
        return generator.normal(shape, device=device, dtype=dtype)
    return torch.randn(tuple(shape), generator=generator, device=device, dtype=dtype)


def uniform(
    shape: Sequence[int],
    generator: Generator = None,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform tensor on [0, 1) of ``shape``."""
    if isinstance(generator, CounterRng):
        return generator.uniform(shape, device=device, dtype=dtype)
    return torch.rand(tuple(shape), generator=generator, device=device, dtype=dtype)


def permutation(n: int, generator: Generator = None, *, device: torch.device | None = None) -> tuple[Tensor, int]:
    """Positions (n,) of the rows in a random permutation, and its length: n, or a CounterRng's ``total``."""
    if isinstance(generator, CounterRng):
        return generator.permutation(device=device), generator.total
    return torch.randperm(n, generator=generator, device=device), n


class LayerRng:
    """Random numbers for what takes no generator, the initialisation of a network and layers such as dropout.

    Within :meth:`used`, in the thread that enters it, PyTorch's random functions draw from generators of one seed,
    one a device, in place of the global ones: the same numbers on a CPU as after ``torch.manual_seed``.
    """

    def __init__(self, seed: int = 0) -> None:
        self._generators: dict[torch.device, torch.Generator] = {}
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Start again at ``seed``, of 64 bits."""
        self._seed = seed
        for generator in self._generators.values():
            generator.manual_seed(seed)

    def on(self, device: torch.device) -> torch.Generator:
        """The generator of ``device``."""
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]

    def copy(self) -> LayerRng:
        """Another that draws the same numbers from here on."""
        twin = LayerRng(self._seed)
        twin._generators = {device: generator.clone_state() for device, generator in self._generators.items()}
        return twin

    @contextmanager
    def used(self, *, by_all: bool = True) -> Iterator[LayerRng]:
        """Context in which layers draw from it: all random functions, or without ``by_all`` those that ask for
        :func:`layer_rng`, at no cost to others.
        """
        before = _of_thread.__dict__.get("rng"), _of_thread.__dict__.get("by_all", False)
        _of_thread.rng, _of_thread.by_all = self, by_all
        mode = _Redirect(self) if by_all else None
        try:
            if mode is None:
                yield self
            else:
                with mode:
                    yield self
        finally:
            _of_thread.rng, _of_thread.by_all = before


_of_thread = threading.local()


def layer_rng() -> tuple[LayerRng | None, bool]:
    """The :class:`LayerRng` in use in this thread, if any, and whether by all random functions."""
    return _of_thread.__dict__.get("rng"), _of_thread.__dict__.get("by_all", False)


class RandomOps(TorchDispatchMode):
    """Context of this thread that counts the operators of PyTorch that draw from a global generator.

    Entered without the flags that PyTorch's modes set for the whole process, which threads would leave set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __enter__(self) -> Self:
        _push_mode(self)
        return self

    def __exit__(self, *raised: object) -> None:
        _pop_mode()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += self.draws(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    @staticmethod
    def draws(func: Any, args: Any, kwargs: Any) -> bool:
        """Whether a call draws from a global generator; attention does if it drops out."""
        if torch.Tag.nondeterministic_seeded not in func.tags or kwargs.get("generator") is not None:
            return False
        for place, argument in enumerate(func._schema.arguments):
            if argument.name in ("dropout_p", "dropout"):
                return bool(args[place] if place < len(args) else kwargs.get(argument.name, argument.default_value))
        return True


class _Redirect(RandomOps):
    """Gives the random operators of this thread a generator."""

    def __init__(self, rng: LayerRng) -> None:
        super().__init__()
        self._rng = rng

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.draws(func, args, kwargs):
            return func(*args, **kwargs)
        device = torch.device(kwargs.get("device") or next((x.device for x in args if isinstance(x, Tensor)), "cpu"))
        if device.type == "meta":
            return func(*args, **kwargs)
        generator = self._rng.on(device)
        if func is torch.ops.aten.native_dropout.default:
            return _dropout(*args, generator=generator)
        return _with_generator(func)(*args, **kwargs, generator=generator)


def _dropout(x: Tensor, p: float, train: bool | None, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Output and mask of ``native_dropout``."""
    keep = torch.empty_like(x, dtype=torch.bool)
    if train is False:
        return x.clone(), keep.fill_(True)
    keep.bernoulli_(1 - p, generator=generator)
    return x * keep * (0.0 if p == 1 else 1 / (1 - p)), keep


def _with_generator(func: Any) -> Any:
    """The overload of a random operator that takes a generator. Raises UserError if there is none."""
    packet, name = func.overloadpacket, func._overloadname
    names = (name, {"default": "generator"}.get(name, ""), f"{name}_generator", "low_generator_dtype")
    for overload in (getattr(packet, n) for n in names if n in packet.overloads()):
        if any(a.name == "generator" for a in overload._schema.arguments):
            return overload
    raise UserError(f"a layer of the network draws by {func}, which takes no generator; use dropout or torch.rand")
