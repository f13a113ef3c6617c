"""Construction of the parts named by a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advect.config.config import DataConfig, MethodConfig, NetworkConfig
from advect.config.section import flag, with_flags
from advect.core import registry
from advect.core.errors import UserError
from advect.core.random import LayerRng
from advect.core.types import AUGMENTATION, STEP, DataSpec, Length, Quantity
from advect.data import Dataset
from advect.losses import Loss, PosteriorHead
from advect.masks import Mask
from advect.networks import Vector
from advect.networks.base import TokenLogits, TwoTimes, VelocityAndScore, WithGiven
from advect.networks.embeddings import ConditionEmbedding
from advect.networks.encoders import Encoder
from advect.networks.evidence import WithEvidence
from advect.networks.layers import zeroed
from advect.paths import AffinePath, MixturePath, Path
from advect.sources import Empirical, SourceDistribution
from advect.times import Stratified, TimeDistribution
from advect.weights import Uniform, Weight


def build_dataset(config: DataConfig) -> Dataset:
    """Open the data. Raises UserError for missing, empty, damaged or unsuitable data."""
    cls, options = config.dataset, config.arguments("data_format")
    if cls.place is not None and config.data_dir is None:
        raise UserError(f"--data-dir is not given; name {cls.place}")
    try:
        dataset = cls.open(*([] if cls.place is None else [config.data_dir]), **options)
        if config.drop_copies:
            from advect.data.copies import without_copies

            dataset = without_copies(dataset)
    except UserError as error:
        words = with_flags(str(error), cls, {name: flag(name) for name in options})
        first = words.split(" ", 1)[0]
        raise UserError(flag(first) + words[len(first) :] if first in options else words) from error
    return _augmented(dataset, config)


def _augmented(dataset: Dataset, config: DataConfig) -> Dataset:
    """The data with the augmentation asked for, or that of such data."""
    if config.augment is None and not dataset.photographs:
        return dataset
    from advect.data.images.augmentation import augmented, usual_augmentation

    name = config.augment or usual_augmentation(type(dataset), len(dataset.train))
    return augmented(dataset, config.replaced(augment=name).build("augment"))


def build_network(
    config: NetworkConfig,
    spec: DataSpec,
    *,
    grad_checkpointing: bool = False,
    masked: bool = False,
    two_times: bool = False,
    tokens: bool = False,
    posterior: MethodConfig | AffinePath | None = None,
    seed: int = 0,
    encoders: Mapping[str, Encoder] | None = None,
) -> nn.Module:
    """Network for data of this shape and these conditions, with weights of the ``seed``.

    ``masked``: see :class:`WithGiven`; ``two_times``: see :class:`TwoTimes`; ``tokens``: see :class:`TokenLogits`;
    ``posterior``: the method or path by which it learns the posterior of categories, see :class:`WithEvidence`;
    ``encoders`` of conditions by name.
    Draws from no global generator, whatever the network's code says. Raises UserError if they do not fit.
    """
    cls: Any = config.part("network")
    if cls.takes != layout_of(spec.modality):
        usual = " or ".join(f"--network {name}" for name in networks_for(spec.modality))
        raise UserError(f"--network {config.network} does not take {spec.modality} data {spec.shape}; use {usual}")
    if grad_checkpointing and "grad_checkpointing" not in registry.parameters(cls):
        raise UserError(f"--grad-checkpointing does nothing for --network {config.network}; leave it out")
    if config.score_network == "head" and "outputs" not in registry.parameters(cls):
        raise UserError(f"--network {config.network} has one output; take --score-network separate")
    if masked and "inputs" not in registry.parameters(cls):
        raise UserError(f"--network {config.network} takes no masks; leave --mask out, or take another network")
    if two_times and "conditions" not in registry.parameters(cls):
        raise UserError(f"--network {config.network} takes one time; take another, or --objective flow-matching")
    step = {STEP: Vector(1)} if two_times else {}
    shape = (*spec.shape[:-1], spec.shape[-1] + tokens)
    options = {"shape": shape, "dim": spec.shape[0], "conditions": _sizes(spec, encoders or {}) | step}
    options |= {"grad_checkpointing": grad_checkpointing, "inputs": 3 if masked else 1}
    options |= {"outputs": 2 if config.score_network == "head" else 1}
    with LayerRng(seed).used():
        net = config.build("network", **options)
        if config.score_network == "separate":
            net = VelocityAndScore(net, config.build("network", **options))
    net = net.to(memory_format=torch.channels_last) if cls.channels_last else net  # pyright: ignore[reportCallIssue]
    if two_times:
        for embedding in (module for module in net.modules() if isinstance(module, ConditionEmbedding)):
            zeroed(embedding.maps[-1][-1])  # pyright: ignore[reportIndexIssue, reportArgumentType]
        net = TwoTimes(net)
    net = TokenLogits(net) if tokens else net
    net = WithGiven(net, cls.takes) if masked else net
    if posterior is None or not spec.codes:
        return net
    path = build_path(posterior) if isinstance(posterior, MethodConfig) else posterior
    assert isinstance(path, AffinePath)  # as the loss has refused others
    return WithEvidence(net, spec.codes, path)


def networks_for(modality: str) -> list[str]:
    """Networks that take data of a modality, by its layout."""
    found: dict[str, Any] = {name: registry.get("network", name) for name in registry.choices("network")}
    return [name for name, cls in found.items() if cls.takes == layout_of(modality)]


def layout_of(modality: str) -> str:
    """The axes of a sample that a network sees, by the name that networks give them."""
    return registry.get("modality", modality).layout  # pyright: ignore[reportAttributeAccessIssue]


def _sizes(spec: DataSpec, encoders: Mapping[str, Encoder]) -> dict[str, int | Vector]:
    """Sizes of the embedded conditions; lengths are not embedded."""
    sizes: dict[str, int | Vector] = {
        name: Vector(len(condition.mean), encoders.get(name))
        if isinstance(condition, Quantity)
        else len(condition.names)
        for name, condition in spec.conditions.items()
        if not isinstance(condition, Length)
    }
    return sizes | ({AUGMENTATION: Vector(spec.augmentation)} if spec.augmentation else {})


def build_path(method: MethodConfig, source: Mapping[str, Any] | None = None) -> Path:
    """Path to data from the source of :func:`fit_source`. Raises UserError for a bridge without width."""
    cls: Any = method.part("path")
    given, jitter = {}, method.sigma_min or 0.0
    if cls.width is not None:
        if jitter:
            given, jitter = {cls.width: jitter}, 0.0
        elif registry.parameters(cls)[cls.width].default is registry.REQUIRED:
            raise UserError(f"--path {method.path} needs its width: give --sigma-min, 0.5 say, in model units")
    part = method.build("path", **given)
    if method.discrete:
        return _token_path(method, part, method.source if source is None else source["kind"])
    if not isinstance(part, Path):
        return AffinePath(part, sigma_min=jitter, gaussian_source=_plain_noise(method, source))
    if jitter > 0:
        raise UserError(f"--sigma-min {method.sigma_min} does nothing on --path {method.path}; leave it out")
    return part


def _token_path(method: MethodConfig, part: Any, source: str) -> MixturePath:
    """Path of tokens from a ``source`` of such."""
    if method.sigma_min or method.part("path").width is not None:  # pyright: ignore[reportAttributeAccessIssue]
        what = f"--sigma-min {method.sigma_min}" if method.sigma_min else f"--path {method.path}"
        raise UserError(f"{what} has noise of a width, and tokens have none; take --path cond-ot without --sigma-min")
    if not registry.get("source", source).discrete:  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError(f"--objective {method.objective} starts from tokens; take --source masked or uniform")
    return MixturePath(part, masked=source == "masked")


def _plain_noise(method: MethodConfig, source: Mapping[str, Any] | None) -> bool:
    """Whether x0 is N(0, I), independent of x1."""
    name = method.source if source is None else source["kind"]
    cls: Any = Empirical if name == EMPIRICAL else registry.get("source", name)
    coupling: Any = method.part("coupling")
    return cls.standard_normal and coupling.independent


EMPIRICAL = "empirical"
"""Kind of a source with samples from the data."""


def fit_source(method: MethodConfig, dataset: Dataset) -> dict[str, Any]:
    """Arguments of :func:`build_source_distribution` as plain values: kind and parameters, some fitted to the data.

    Data with start points, such as control cells, are "empirical". Raises UserError if --source is given too.
    """
    if dataset.source_samples() is not None:
        if method.source != MethodConfig.source:
            raise UserError(f"--source {method.source} and data that bring their own starts contradict; leave it out")
        return {"kind": EMPIRICAL}
    cls, found = method.part("source"), method.arguments("source")
    if cls.fits_data:  # pyright: ignore[reportAttributeAccessIssue]
        rows = np.arange(len(dataset.train))
        batches = (dataset.train.fetch(part).x1 for part in np.array_split(rows, -(-len(rows) // 1024)))
        made = cls.from_data(batches, **found)  # pyright: ignore[reportAttributeAccessIssue]
        values = {f.name: getattr(made, f.name) for f in fields(made)}
        found = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in values.items()}
    return {"kind": method.source, **found}


def source_tensors(dataset: Dataset) -> dict[str, Tensor]:
    """Tensors for :func:`build_source_distribution`: start points of the data, if any."""
    starts = dataset.source_samples()
    return {} if starts is None else Empirical(starts[0], cond=starts[1]).tensors()


def build_source_distribution(
    facts: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
) -> SourceDistribution:
    """Source distribution of :func:`fit_source` and :func:`source_tensors`."""
    options = {name: value for name, value in facts.items() if name != "kind"}
    if facts["kind"] == EMPIRICAL:
        return Empirical.from_tensors(tensors or {}, **options)
    return registry.get("source", facts["kind"])(**options)


def build_times(method: MethodConfig) -> TimeDistribution:
    """Distribution of times, stratified over the batch if possible."""
    times = method.build("times")
    return Stratified(times) if times.stratify else times


def build_weight(method: MethodConfig, path: Path, space: str) -> Weight | None:
    """Weight of a loss in ``space``; None for 1. Raises UserError if the path has none."""
    cls = method.part("weight")
    if cls is Uniform:
        return None
    if "schedule" not in registry.parameters(cls):
        return method.build("weight", prediction=space)
    if not isinstance(path, AffinePath):
        raise UserError(
            f"--weight {method.weight} needs the signal-to-noise ratio of an affine path; take another --path"
        )
    return method.build("weight", schedule=path.schedule, prediction=space)


def label_dropout(method: MethodConfig, spec: DataSpec) -> float:
    """Share of samples trained without conditions; lengths are always given.

    Raises UserError if positive for data without conditions.
    """
    droppable = any(not isinstance(condition, Length) for condition in spec.conditions.values())
    if method.label_dropout is None:
        return 0.1 if droppable else 0.0
    if method.label_dropout > 0 and not droppable:
        raise UserError(f"--label-dropout is {method.label_dropout}, but the data have no labels; set it to 0")
    return method.label_dropout


def build_head(method: MethodConfig, spec: DataSpec, path: Path) -> PosteriorHead | None:
    """How the network's output is read; None where it is a prediction as it stands."""
    if not method.learns_posterior:
        return None
    return PosteriorHead(spec.codes, path, method.prediction, method.t_eps)  # pyright: ignore[reportArgumentType]


def build_loss(
    method: MethodConfig, dataset: Dataset, source: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
) -> Loss:
    """Loss of a configuration. Raises UserError for contradictory or unsuitable settings."""
    spec = dataset.spec
    dropout = label_dropout(method, spec)
    if method.part("coupling").needs_conditions and not spec.conditions:  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError(f"--coupling {method.coupling} needs labels, and the data have none; take --coupling ot")
    _check_used(method)
    _check_tokens(method, dataset)
    path = build_path(method, source)
    if method.prediction != "velocity" and not (
        isinstance(path, AffinePath) and (path.gaussian_source or path.sigma_min == 0)
    ):
        raise UserError(
            f"--prediction {method.prediction} gives no velocity to sample with on --path {method.path} --sigma-min "
            f"{method.sigma_min} with this source and coupling; predict the velocity"
        )
    learns_score: bool = method.part("objective").learns_score  # pyright: ignore[reportAttributeAccessIssue]
    if learns_score and isinstance(path, AffinePath) and not path.gaussian_source and path.sigma_min == 0:
        raise UserError(
            f"--objective {method.objective} needs noise on the path, which has none with --source {method.source} "
            f"and --coupling {method.coupling}; give --sigma-min, 0.1 say, in model units"
        )
    space = method.prediction if method.loss_space == "same" else method.loss_space
    return method.build(
        "objective",
        path=path,
        source=build_source_distribution(source, tensors),
        coupling=method.build("coupling"),
        times=build_times(method),
        weight=build_weight(method, path, space),
        prediction=method.prediction,
        loss_space=space,
        loss_type=method.loss_type,
        t_eps=method.t_eps,
        cond_dropout=dropout,
        mask=_build_mask(method, dataset),
        codes=spec.codes,
    )


def _build_mask(method: MethodConfig, dataset: Dataset) -> Mask | None:
    """Law of what is known; None for nothing."""
    if not method.masked:
        return None
    if not method.part("coupling").independent:  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError(
            f"--mask {method.mask} and --coupling {method.coupling} contradict each other: questions start from noise "
            "drawn apart from the data; leave one out"
        )
    return method.build("mask", entries=dataset.modality.entries)


def _check_tokens(method: MethodConfig, dataset: Dataset) -> None:
    """Raise UserError for a loss of tokens and other data, or a source of tokens and another loss."""
    if method.discrete and not dataset.modality.tokens:
        raise UserError(
            f"--objective {method.objective} is for tokens, and these are {dataset.spec.modality} data; leave it out, "
            "or read text, FASTA or whole numbers by --data-format tokens"
        )
    if not method.discrete and method.part("source").discrete:  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError(
            f"--source {method.source} is of tokens, for --objective discrete-flow-matching, and this is "
            f"{method.objective}; take gaussian"
        )


def _check_used(method: MethodConfig) -> None:
    """Raise UserError for a value that the loss does not use."""
    takes = registry.parameters(method.part("objective"))
    for f in fields(method):
        value = getattr(method, f.name)
        if f.name in Loss.part_given and f.name not in takes and f.default is not MISSING and value != f.default:
            raise UserError(
                f"--objective {method.objective} does not take {flag(f.name)} {value}; leave it at {f.default}"
            )
