"""From the method's section of a configuration to path, source, coupling, times, weight and objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advect.config.config import MethodConfig
from advect.config.data_formats import build_dataset as build_dataset
from advect.config.network_sections import (
    DiTConfig,
    MLPConfig,
    NetworkConfig,
    ResidualMLPConfig,
    SequenceTransformerConfig,
    UNetConfig,
    name_of,
)
from advect.core.errors import UserError
from advect.core.types import DataSpec, Length, Quantity
from advect.couplings import ConditionalOT, Coupling, ExactOT, Independent, Sinkhorn
from advect.data import Dataset
from advect.losses import FlowMatching, Loss, ScoreMatching
from advect.networks import MLP, DiT, ResidualMLP, SequenceTransformer, UNet, Vector
from advect.paths import (
    AffinePath,
    BetaLinear,
    BrownianBridge,
    CondOT,
    Cosine,
    LipmanOT,
    Path,
    Polynomial,
    Schedule,
    Trigonometric,
    VariancePreserving,
)
from advect.sources import Empirical, Gaussian, MatchedGaussian, SourceDistribution, SparseGaussian
from advect.times import (
    Constant,
    Importance,
    LogitNormal,
    Shifted,
    Stratified,
    TimeDistribution,
    Uniform,
    UShaped,
)
from advect.weights import InverseSNR, MinSNR, OneMinusTSquared, TSquared, Weight

FITS = {"image": ("unet", "dit"), "vector": ("mlp", "resmlp"), "sequence": ("transformer",)}
"""The networks that take each kind of data."""


def build_network(config: NetworkConfig, spec: DataSpec, *, grad_checkpointing: bool = False) -> nn.Module:
    """Make the network for data of this shape and these conditions. Raises UserError where they do not fit."""
    name = name_of(config)
    if name not in FITS[spec.kind]:
        usual = " or ".join(f"--network {fitting}" for fitting in FITS[spec.kind])
        raise UserError(f"--network {name} does not take {spec.kind} data {spec.shape}; use {usual}")
    options: dict[str, Any] = {f.name: getattr(config, f.name) for f in fields(config)}
    options["conditions"] = _sizes(spec)
    if isinstance(config, MLPConfig):
        if grad_checkpointing:
            raise UserError("--grad-checkpointing does nothing for an mlp; leave it out, or use --network resmlp")
        return MLP(spec.shape[0], **options)
    options["grad_checkpointing"] = grad_checkpointing
    match config:
        case UNetConfig():
            net = UNet(spec.shape, **options)
            return net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        case DiTConfig():
            return DiT(spec.shape, **options)
        case SequenceTransformerConfig():
            return SequenceTransformer(spec.shape, **options)
        case ResidualMLPConfig():
            return ResidualMLP(spec.shape[0], **options)


def _sizes(spec: DataSpec) -> dict[str, int | Vector]:
    """The conditions as networks count them; a length is not embedded, but read from the condition itself."""
    return {
        name: Vector(len(condition.mean)) if isinstance(condition, Quantity) else len(condition.names)
        for name, condition in spec.conditions.items()
        if not isinstance(condition, Length)
    }


_SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "cond-ot": CondOT,
    "vp": VariancePreserving,
    "trigonometric": Trigonometric,
    "cosine": Cosine,
    "ddpm": BetaLinear,
    "polynomial": lambda: Polynomial(2),
}
COUPLINGS: dict[str, type[Coupling]] = {
    "independent": Independent,
    "ot": ExactOT,
    "sinkhorn": Sinkhorn,
    "conditional-ot": ConditionalOT,
    "pairs": Independent,  # they come as pairs
}


def build_path(method: MethodConfig, noise: Mapping[str, Any] | None = None) -> Path:
    """The path from ``noise``, the facts of its start, to data. Raises UserError for a bridge without width."""
    start = method.source if noise is None else noise["kind"]
    gaussian = start == "gaussian" and method.coupling == "independent"
    if method.path == "bridge":
        if method.sigma_min == 0:
            raise UserError("--path bridge needs its width: give --sigma-min, 0.5 say, in model units")
        return BrownianBridge(method.sigma_min)
    if method.path == "lipman-ot":
        return AffinePath(LipmanOT(method.sigma_min or 1e-4), gaussian_source=gaussian)
    return AffinePath(_SCHEDULES[method.path](), sigma_min=method.sigma_min, gaussian_source=gaussian)


def fit_source(method: MethodConfig, source: Dataset) -> dict[str, Any]:
    """What :func:`build_source_distribution` needs, as plain values: the kind, and its statistics.

    Data that bring their own starts, such as control cells, are "empirical". Raises UserError for a --source beside.
    """
    if source.source_samples() is not None:
        if method.source != "gaussian":
            raise UserError(f"--source {method.source} and data that bring their own starts contradict; leave it out")
        return {"kind": "empirical"}
    if method.source != "matched":
        return {"kind": method.source}
    x1 = source.train.fetch(np.arange(min(len(source.train), 10_000))).x1
    return {"kind": "matched", "std": float(x1.std())}


def source_tensors(source: Dataset) -> dict[str, Tensor]:
    """Tensors that :func:`build_source_distribution` needs besides: the source samples of the data, if any."""
    starts = source.source_samples()
    return {} if starts is None else Empirical(starts[0], cond=starts[1]).tensors()


def build_source_distribution(
    facts: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
) -> SourceDistribution:
    """The source distribution of :func:`fit_source` and :func:`source_tensors`."""
    match facts["kind"]:
        case "empirical":
            return Empirical.from_tensors(tensors or {}, noise=facts.get("noise", 0.0))
        case "gaussian":
            return Gaussian()
        case "matched":
            return MatchedGaussian(std=facts["std"])
        case _:
            return SparseGaussian()


def _build_times(name: str) -> TimeDistribution:
    match name:
        case "uniform":
            return Uniform()
        case "logit-normal":
            return Stratified(LogitNormal())
        case "u-shaped":
            return Stratified(UShaped())
        case "shifted":
            return Stratified(Shifted())
        case "importance":
            return Stratified(Importance())
        case "start":
            return Constant(0.0)
        case _:
            return Stratified()


def _build_weight(name: str, path: Path, space: str) -> Weight | None:
    if name == "uniform":
        return None
    if name in ("t2", "one-minus-t2"):
        return TSquared() if name == "t2" else OneMinusTSquared()
    if not isinstance(path, AffinePath):
        raise UserError(f"--weight {name} needs the signal-to-noise ratio of an affine path; take another --path")
    if name == "inverse-snr":
        return InverseSNR(path.schedule)
    if space == "score":
        raise UserError("--weight min-snr is not defined for a loss of the score; give --loss noise, data or velocity")
    return MinSNR(path.schedule, prediction=space)  # pyright: ignore[reportArgumentType]


def label_dropout(method: MethodConfig, spec: DataSpec) -> float:
    """The share of samples trained without their conditions; a length is always given.

    Raises UserError where one is asked for and the data have no conditions.
    """
    droppable = any(not isinstance(condition, Length) for condition in spec.conditions.values())
    if method.label_dropout is None:
        return 0.1 if droppable else 0.0
    if method.label_dropout > 0 and not droppable:
        raise UserError(f"--label-dropout is {method.label_dropout}, but the data have no labels; set it to 0")
    return method.label_dropout


def build_loss(
    method: MethodConfig, spec: DataSpec, noise: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
) -> Loss:
    """Make the objective. Raises UserError for settings that contradict each other or the data."""
    dropout = label_dropout(method, spec)
    if method.coupling == "conditional-ot" and not spec.conditions:
        raise UserError("--coupling conditional-ot needs labels, and the data have none; take --coupling ot")
    path, times = build_path(method, noise), _build_times(method.times)
    if method.objective == "score-matching":
        return _score_matching(method, path, times, dropout)
    if method.prediction != "velocity" and not (
        isinstance(path, AffinePath) and (path.gaussian_source or path.sigma_min == 0)
    ):
        raise UserError(
            f"--prediction {method.prediction} gives no velocity to sample with on --path {method.path} --sigma-min "
            f"{method.sigma_min} with this source and coupling; predict the velocity"
        )
    space = method.prediction if method.loss == "same" else method.loss
    return FlowMatching(
        path=path,
        source=build_source_distribution(noise, tensors),
        coupling=COUPLINGS[method.coupling](),
        times=times,
        weight=_build_weight(method.weight, path, space),
        prediction=method.prediction,
        loss=space,
        penalty=method.penalty,
        margin=method.margin,
        cond_dropout=dropout,
    )


def _score_matching(method: MethodConfig, path: Path, times: TimeDistribution, dropout: float) -> ScoreMatching:
    if method.prediction not in ("score", "noise"):
        raise UserError(f"--objective score-matching needs --prediction score or noise, got {method.prediction}")
    if not isinstance(path, AffinePath) or not path.gaussian_source:
        raise UserError("--objective score-matching needs an affine --path, --source gaussian, --coupling independent")
    if method.loss != "same" or method.weight != "uniform":
        raise UserError("--objective score-matching weights its loss by sigma^2 itself; leave --loss and --weight out")
    if method.penalty != "squared":
        raise UserError(
            f"--penalty {method.penalty} and --objective score-matching contradict: a score is the mean of what it is "
            "fitted to, which only squares find; leave --penalty out"
        )
    return ScoreMatching(
        path=path,
        times=times,
        prediction=method.prediction,
        margin=method.margin,
        cond_dropout=dropout,
    )
