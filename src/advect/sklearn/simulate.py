"""Simulations for posteriors: in parallel, resumable, and with those that fail left out."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from joblib import Parallel, delayed
from torch import Tensor

from advect.core.bounds import Count
from advect.core.errors import UserError
from advect.core.files import atomic_write, claim_folder, explain_disk_errors, read_file, regular
from advect.core.progress import Progress
from advect.core.random import Stream, stream_seed
from advect.sklearn.model import check_whole
from advect.sklearn.prior_laws import prior_of
from advect.sklearn.settings import warn

Simulator = Callable[[np.ndarray, np.random.Generator], Any]

_PARTS = 50
"""Parts, about, in which simulations are kept."""


class Simulations(NamedTuple):
    """Parameters theta (N, D) of the simulations x (N, *S) that came out finite, and how many of those asked for
    failed.
    """

    theta: np.ndarray
    x: np.ndarray
    failed: int


def from_simulator(
    simulator: Simulator,
    prior: Any,
    n: int,
    *,
    batch_size: int | None = None,
    workers: int = 1,
    parallel: Literal["processes", "threads"] = "processes",
    folder: str | os.PathLike[str] | None = None,
    failures: type[Exception] | tuple[type[Exception], ...] = (),
    seed: int = 0,
    progress: bool = True,
) -> Simulations:
    """n simulations of parameters drawn from the prior.

    Each call of the simulator has a random generator of its own, made of the seed and its number: the result
    depends on neither workers nor interruptions.

    Args:
        simulator: ``simulator(theta, rng) -> x`` of one theta (D,) with a ``numpy.random.Generator``; with
            ``batch_size`` of theta (m, D) at once, x (m, *S).
        prior: as of :meth:`FlowPosterior.fit`, one with samples.
        batch_size: rows of theta that a call takes; None is one, without an axis for it.
        workers: processes, which need a simulator that can be pickled, or threads, that simulate side by side.
        parallel: "processes" or "threads".
        folder: keeps finished simulations; the same call again goes on from them.
        failures: kinds of exceptions that mean a failed simulation, as NaN and infinite values do; others are raised.
        progress: show a bar.

    Warns of the share of failed simulations. Raises UserError for a prior without samples, for simulations of several
    shapes, for a folder of other simulations, and if all failed.
    """
    check_whole("n", n, Count)
    law = prior_of(prior)
    return simulate(
        simulator,
        law.sample(int(n), seed),
        batch_size=batch_size,
        workers=workers,
        parallel=parallel,
        folder=folder,
        failures=failures,
        seed=seed,
        progress=progress,
    )


def simulate(
    simulator: Simulator,
    theta: np.ndarray,
    *,
    batch_size: int | None = None,
    workers: int = 1,
    parallel: str = "processes",
    folder: str | os.PathLike[str] | None = None,
    failures: type[Exception] | tuple[type[Exception], ...] = (),
    seed: int = 0,
    progress: bool = True,
) -> Simulations:
    """Simulations of given parameters theta (n, D); arguments of :func:`from_simulator`."""
    for name, value in (("workers", workers), ("batch_size", 1 if batch_size is None else batch_size)):
        check_whole(name, value, Count)
    if parallel not in ("processes", "threads"):
        raise UserError(f"parallel must be 'processes' or 'threads', got {parallel!r}")
    job = _Job(simulator, batch_size, failures, seed)
    size = batch_size or 1
    rows = size * math.ceil(len(theta) / (size * _PARTS))
    parts = [range(first, min(first + rows, len(theta))) for first in range(0, len(theta), rows)]
    place = None if folder is None else Path(folder)
    with nullcontext() if place is None else claim_folder(place, "folder"):
        kept = None if place is None else _Kept(place, theta, job)
        with Progress(len(theta), "simulate", "simulation", show=progress) as bar:
            found = list(_run(job, theta, parts, kept, workers, parallel, bar))
    return _joined(theta, [x for part in found for x in part])


class _Job(NamedTuple):
    simulator: Simulator
    batch_size: int | None
    failures: type[Exception] | tuple[type[Exception], ...]
    seed: int

    def __call__(self, theta: np.ndarray, first: int) -> list[np.ndarray | None]:
        """Simulations of a call on theta (m, D), of which the first is number ``first``; None for failed ones."""
        rng = np.random.default_rng(stream_seed(self.seed, Stream.SIMULATION, first))
        try:
            given = theta[0].copy() if self.batch_size is None else theta.copy()
            x = _numbers(self.simulator(given, rng))
        except self.failures:
            return [None] * len(theta)
        if self.batch_size is None:
            return [np.atleast_1d(x) if np.isfinite(x).all() else None]
        if x.ndim == 0 or len(x) != len(theta):
            raise UserError(
                f"the simulator took theta {theta.shape} and gave x of shape {x.shape}; give a row for each"
            )
        x = x[:, None] if x.ndim == 1 else x
        return [row if np.isfinite(row).all() else None for row in x]


def _numbers(x: Any) -> np.ndarray:
    x = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
    try:
        return np.asarray(x, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"the simulator gave {type(x).__name__}, which is no array of numbers") from None


def _run(
    job: _Job,
    theta: np.ndarray,
    parts: list[range],
    kept: _Kept | None,
    workers: int,
    parallel: str,
    bar: Progress,
) -> Iterator[list[np.ndarray | None]]:
    """Simulations of each part, kept ones as they are."""
    size, pool = job.batch_size or 1, Parallel(workers, prefer=parallel, return_as="generator")
    for number, part in enumerate(parts):
        found = None if kept is None else kept.read(number, len(part))
        if found is None:
            starts = range(part.start, part.stop, size)
            calls = (delayed(job)(theta[i : min(i + size, part.stop)], i) for i in starts)
            found = []
            for rows in cast(Iterator[list[np.ndarray | None]], pool(calls)):
                found += rows
                bar.update(len(rows))
            if kept is not None:
                kept.write(number, found)
        else:
            bar.update(len(found))
        yield found


class _Kept:
    """Finished parts in a folder, of one call of :func:`simulate`."""

    def __init__(self, folder: Path, theta: np.ndarray, job: _Job) -> None:
        name = f"{job.batch_size} {job.seed} {theta.shape}".encode()
        self.folder, self._sign = folder, hashlib.sha256(name + theta.tobytes()).hexdigest()
        sign = folder / "simulations.txt"
        if sign.exists() and read_file(sign).decode(errors="replace").strip() != self._sign:
            raise UserError(f"folder {folder} holds simulations of another prior, n, seed or batch_size; take another")
        with explain_disk_errors("repeat the call"):
            atomic_write(sign, lambda path: path.write_text(self._sign + "\n"))

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.npz"

    def read(self, number: int, rows: int) -> list[np.ndarray | None] | None:
        """A part, or None if it is not there. Raises UserError if it is damaged."""
        path = self._path(number)
        if not path.exists():
            return None
        try:
            with np.load(regular(path), allow_pickle=False) as file:
                good, x = file["good"], file["x"]
            if good.shape != (rows,) or len(x) != good.sum() or not np.isfinite(x).all():
                raise ValueError("of another size")
        except Exception as error:
            raise UserError(f"{path} is damaged ({error}); delete it, and it is simulated anew") from error
        values = iter(x)
        return [next(values) if there else None for there in good]

    def write(self, number: int, found: list[np.ndarray | None]) -> None:
        good = np.array([x is not None for x in found])
        x = _stacked([x for x in found if x is not None])

        def save(path: Path) -> None:
            with path.open("wb") as file:  # by name NumPy would add an ending
                np.savez(file, good=good, x=x)

        with explain_disk_errors("repeat the call"):
            atomic_write(self._path(number), save)


def _stacked(rows: list[np.ndarray]) -> np.ndarray:
    if len(shapes := {x.shape for x in rows}) > 1:
        raise UserError(f"the simulator gave x of several shapes, {sorted(shapes)[:3]}; give all of one")
    return np.stack(rows) if rows else np.zeros((0, 1))


def _joined(theta: np.ndarray, found: list[np.ndarray | None]) -> Simulations:
    good = np.array([x is not None for x in found])
    failed = int((~good).sum())
    if failed == len(theta):
        raise UserError(f"all {failed:,} simulations failed, with NaN, infinite values or an exception of `failures`")
    if failed:
        warn(
            f"{failed:,} of {len(theta):,} simulations failed ({failed / len(theta):.1%}) and are left out: the "
            "posterior is that given success"
        )
    return Simulations(theta[good], _stacked([x for x in found if x is not None]), failed)
