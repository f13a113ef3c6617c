"""Weight files with the metadata in their header, and loading a flow from one, a checkpoint or a run folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta
from torch import Tensor, nn

from advect.checkpoint.manifest import find_weights, read_newest, verify_checkpoint
from advect.checkpoint.tensor_files import check_same_shapes, load_weights, open_tensors, read_shapes
from advect.config.build import (
    build_head,
    build_network,
    build_path,
    build_source_distribution,
    label_dropout,
    source_tensors,
)
from advect.config.config import Config, MethodConfig, NetworkConfig, OutputConfig
from advect.core import registry
from advect.core.bounds import Count
from advect.core.device import pick_precision
from advect.core.errors import UserError
from advect.core.memory import check_memory
from advect.core.records import OpenRecord, Record, as_record, guarded, parse_record
from advect.core.types import Category, Code, Condition, DataSpec, Length, Quantity
from advect.data import Dataset, Transform, transform_from_config
from advect.distributed.context import pick_device
from advect.model.flow import Flow
from advect.model.sampler_config import SamplerConfig
from advect.training.state import DATA, EMA_FILE, MODEL

FORMAT = 6

_CONDITIONS: dict[str, type[Condition]] = {"category": Category, "quantity": Quantity, "length": Length}


@dataclass(frozen=True)
class ModelMetadata:
    """Preset and configuration of a run; network; shape, conditions, transform and facts of the data.

    ``tensors`` of the transform ("transform.NAME") and noise ("noise.NAME") are stored in a file of their own.
    """

    preset: str
    config: dict[str, dict]
    network: NetworkConfig
    spec: DataSpec
    transform: Transform
    noise: dict[str, Any]
    fingerprint: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def from_run(config: Config, preset: str, source: Dataset, noise: dict[str, Any]) -> ModelMetadata:
        """Metadata of a run on ``source``; ``noise`` are the arguments of ``build_source_distribution``."""
        facts = source.metadata
        return ModelMetadata(
            preset=preset,
            config=config.to_dict(),
            network=config.network,
            spec=source.spec,
            transform=source.transform,
            noise=noise,
            fingerprint=source.fingerprint,
            facts=facts,
            tensors=_prefixed("transform.", source.transform.tensors()) | _prefixed("noise.", source_tensors(source)),
        )

    @property
    def method(self) -> MethodConfig:
        """Method section of the configuration."""
        return MethodConfig.of(self.config["method"])

    @property
    def source_tensors(self) -> dict[str, Tensor]:
        """Tensors for ``build_source_distribution``."""
        return _without("noise.", self.tensors)

    def to_text(self) -> str:
        """The metadata as JSON."""
        values = {
            "format": FORMAT,
            "preset": self.preset,
            "config": self.config,
            "spec": {
                "shape": self.spec.shape,
                "modality": self.spec.modality,
                "conditions": {name: _written(condition) for name, condition in self.spec.conditions.items()},
                "augmentation": self.spec.augmentation,
                "codes": [asdict(code) for code in self.spec.codes],
            },
            "transform": self.transform.to_config(),
            "noise": self.noise,
            "fingerprint": self.fingerprint,
            "facts": self.facts,
            "tensors": sorted(self.tensors),
        }
        return json.dumps(values)

    @staticmethod
    def from_text(text: str | None, where: Path | str, tensors: Mapping[str, Tensor] | None = None) -> ModelMetadata:
        """Read metadata. Raises UserError if missing, of another format, or without its tensors."""
        if text is None:
            raise UserError(f"{where} was not written by advect: its header has no metadata")
        version = parse_record(text, _Format, where).format
        if version != FORMAT:
            raise UserError(
                f"{where} has model format {version}, and this advect reads {FORMAT}; "
                + ("install a newer one" if version > FORMAT else "train it again, or use the advect of then")
            )
        card, tensors = parse_record(text, _Card, where), dict(tensors or {})
        if missing := set(card.tensors) - tensors.keys():
            raise UserError(
                f"{where} cannot be used apart from its checkpoint, which holds {min(missing)!r} for it; give the "
                "checkpoint's folder, such as runs/cells/checkpoints/step-00001000"
            )
        return guarded(lambda: _built(card, tensors, where), where)


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


class _Format(OpenRecord):
    """The entry that says how to read the others."""

    format: int


class _Spec(Record):
    shape: Annotated[tuple[Count, ...], Meta(min_length=1, max_length=8)]
    modality: str
    conditions: dict[str, dict[str, Any]]
    augmentation: Annotated[int, Meta(ge=0, le=1000)] = 0
    codes: tuple[Code, ...] = ()


class _Card(Record):
    """The text of :meth:`ModelMetadata.to_text`."""

    format: int
    preset: str
    config: dict[str, dict[str, Any]]
    spec: _Spec
    transform: dict[str, Any]
    noise: dict[str, Any]
    fingerprint: str
    facts: dict[str, Any] = msgspec.field(default_factory=dict)
    tensors: tuple[str, ...] = ()


def _built(card: _Card, tensors: dict[str, Tensor], where: Path | str) -> ModelMetadata:
    modality = registry.get("modality", card.spec.modality)  # its module registers the transforms of such data
    conditions = {name: _read(facts, f"{where}: condition {name!r}") for name, facts in card.spec.conditions.items()}
    if missing := {"data", "network", "method", "training", "output"} - card.config.keys():
        raise UserError(f"its configuration has no section {min(missing)!r}")
    return ModelMetadata(
        preset=card.preset,
        config=card.config,
        network=NetworkConfig.of(card.config["network"]),
        spec=DataSpec(card.spec.shape, card.spec.modality, conditions, card.spec.augmentation, card.spec.codes),
        transform=transform_from_config(card.transform, _without("transform.", tensors)),
        noise=card.noise,
        fingerprint=card.fingerprint,
        facts=card.facts and as_record(card.facts, modality.record, "the facts of the data"),
        tensors=tensors,
    )


def _written(condition: Condition) -> dict[str, Any]:
    kind = next(name for name, cls in _CONDITIONS.items() if isinstance(condition, cls))
    return {"kind": kind, **asdict(condition)}


def _read(facts: dict[str, Any], where: str) -> Condition:
    kind = str(facts.get("kind", "category"))
    if kind not in _CONDITIONS:
        raise UserError(f"{where} is of a kind {kind[:40]!r}, which this advect does not know")
    return as_record({name: value for name, value in facts.items() if name != "kind"}, _CONDITIONS[kind], where)


METADATA, AVERAGE = "advect", "average"
"""Header entries of a weight file: metadata, and the average made by ``advect ema``."""


def load(path: str | Path, *, ema: bool | float = True, device: str | torch.device = "auto") -> Flow:
    """Load a trained flow.

    Args:
        path: a run folder (newest checkpoint, verified), ``RUN/checkpoints/best``, a checkpoint or a weight file.
        ema: True for averaged weights if any, False for raw ones, a number for the average of that decay.
        device: "cpu", "cuda", "cuda:1" ...; "auto" takes a GPU if available.

    Raises UserError if missing, damaged or of a newer format.
    """
    return read_newest(Path(path), lambda source: _load(source, ema, device), find_weights)


def _load(source: Path, ema: bool | float, device: str | torch.device) -> Flow:
    file = source
    if source.is_file():
        _check_file(source, ema)
    else:
        verify_checkpoint(source)
        file = weight_file(source, ema=ema)
    metadata, place = read_model_metadata(file), pick_device(device)
    check_weights(metadata, file)
    net = build_network(metadata.network, metadata.spec, **metadata.method.form)
    net.load_state_dict(load_weights(file))
    flow = guarded(lambda: build_flow(metadata, net.to(place).eval(), place), file)
    guarded(lambda: _try_transform(flow), file)
    flow.origin = file
    return flow


def _try_transform(flow: Flow) -> None:
    """Bring a sample of zeros to data units, which fails where the card's sizes contradict each other."""
    shape = flow.spec.shape
    check_memory(f"a sample of shape {shape} takes", 4 * math.prod(shape), "take another file")
    flow.transform.inverse(torch.zeros(1, *shape))
    flow.modality.check_facts()


def initial_weights(begin: Path, network: NetworkConfig, method: MethodConfig, spec: DataSpec) -> dict[str, Tensor]:
    """Averaged weights of a run, checkpoint or weight file, to start a training of ``network`` by ``method`` from.

    Those of a flow lack what one of steps of any length has more. Raises UserError for another network.
    """

    def read(place: Path) -> dict[str, Tensor]:
        file = place if place.is_file() else weight_file(place, ema=True)
        theirs = read_model_metadata(file)
        if theirs.network != network:
            raise UserError(
                f"--init-from {begin} has another network than this run; train it with --config of that run"
            )
        if theirs.method.learns_steps and not method.learns_steps:
            raise UserError(
                f"--init-from {begin} has learned steps of any length; train it with --objective "
                f"{theirs.method.objective}"
            )
        with torch.device("meta"):  # which other conditions and masks change
            net = build_network(network, spec, **{**method.form, "two_times": theirs.method.form["two_times"]})
        check_same_shapes(read_shapes(file), net.state_dict(), file)
        added = "net." if method.learns_steps and not theirs.method.learns_steps else ""
        return {f"{added}{name}": value for name, value in load_weights(file).items()}

    return read_newest(begin, read, find_weights)


def check_weights(metadata: ModelMetadata, file: Path) -> None:
    """Raise UserError unless the tensors of a file are those of its network, which is not built for it."""

    def claimed() -> Mapping[str, Tensor]:
        with torch.device("meta"):
            return build_network(metadata.network, metadata.spec, **metadata.method.form).state_dict()

    check_same_shapes(read_shapes(file), guarded(claimed, file), file)


def _check_file(file: Path, ema: bool | float) -> None:
    if not isinstance(ema, bool):
        raise UserError(f"ema is {ema}, and {file} is one file of weights; give the folder that it is in")
    if not ema and (file.name.startswith("ema") or AVERAGE in _header(file)):
        raise UserError(
            f"{file} holds averaged weights, and the others are asked for; give the {MODEL} of a checkpoint"
        )


def weight_file(checkpoint: Path, *, ema: bool | float) -> Path:
    """Weight file of a checkpoint for ``ema``; see :func:`load`."""
    if not (checkpoint / MODEL).is_file() and list(checkpoint.glob("ema-length-*.safetensors")):
        raise UserError(f"{checkpoint} is a snapshot for advect ema; give the file that it writes, or the run folder")
    main = checkpoint / EMA_FILE
    if isinstance(ema, bool):
        return main if ema and main.is_file() else checkpoint / MODEL
    decay = read_model_metadata(checkpoint / MODEL).config["training"]["ema_decay"]
    files = {decay: main} if main.is_file() else {}
    for file in sorted(checkpoint.glob("ema-[0-9]*.safetensors")):
        files[float(file.stem.removeprefix("ema-"))] = file
    if ema not in files:
        raise UserError(
            f"{checkpoint} has no average of decay {ema}"
            + (f"; it has {', '.join(map(str, files))}" if files else ": it was trained with --no-use-ema")
        )
    return files[ema]


def build_flow(metadata: ModelMetadata, net: nn.Module, place: torch.device) -> Flow:
    """Flow of a network on device ``place``, and its metadata."""
    output, training = metadata.config["output"], metadata.config["training"]
    path = build_path(metadata.method, metadata.noise)
    return Flow(
        net,
        metadata.spec,
        metadata.transform,
        path=path,
        source=build_source_distribution(metadata.noise, metadata.source_tensors),
        prediction=metadata.method.prediction,
        head=build_head(metadata.method, metadata.spec, path),
        learned_score=metadata.network.score_network != "none",
        t_eps=metadata.method.t_eps,
        null=label_dropout(metadata.method, metadata.spec) > 0,
        masked=metadata.method.masked,
        learns_steps=metadata.method.learns_steps,
        relative=metadata.method.relative,
        facts=metadata.facts,
        sampler=_sampler(output),
        device=place,
        autocast=pick_precision(training["mixed_precision"], place, training.get("half", "auto")),
    )


def _sampler(output: Mapping[str, Any]) -> SamplerConfig:
    """The sampler of the run's sample grids, of the recorded values of OutputConfig."""
    used = {name: value for name, value in output.items() if name.startswith(("solver", "grid", "sample_steps"))}
    chosen = OutputConfig.of(used)
    return SamplerConfig(chosen.chosen("solver"), chosen.sample_steps, chosen.chosen("grid"))


def read_model_metadata(file: Path) -> ModelMetadata:
    """Metadata of a weight file, with the tensors beside it in its checkpoint."""
    beside = file.parent / DATA
    tensors = load_weights(beside) if beside.is_file() else None
    return ModelMetadata.from_text(_header(file).get(METADATA), file, tensors)


def read_recorded_config(file: Path) -> tuple[str, dict[str, dict]]:
    """Preset and configuration of the run that wrote a weight file. Raises UserError."""
    card = parse_record(_header(file).get(METADATA, ""), _Card, file)
    return card.preset, card.config


def read_average(file: Path) -> dict[str, float] | None:
    """Length, step and error of an average by ``advect ema``; None for other weight files."""
    text = _header(file).get(AVERAGE)
    if text is None:
        return None
    found = parse_record(text, dict[str, float], file)
    if not all(map(math.isfinite, found.values())):
        raise UserError(f"{file} tells of an average whose numbers are not finite; make it anew by advect ema")
    return found


def _header(file: Path) -> dict[str, str]:
    with open_tensors(file) as tensors:
        return tensors.metadata() or {}
