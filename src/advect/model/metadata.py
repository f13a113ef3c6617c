"""Metadata in weight files, to rebuild the network and sample."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from advect.config.build import source_tensors
from advect.config.config import Config, MethodConfig, NetworkConfig
from advect.config.yaml_file import to_dict
from advect.core.errors import UserError
from advect.core.types import Category, Condition, DataSpec, Length, Quantity
from advect.data import Dataset, Transform, transform_from_config

FORMAT = 5

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
    facts: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def from_run(config: Config, preset: str, source: Dataset, noise: dict[str, Any]) -> ModelMetadata:
        """Metadata of a run on ``source``; ``noise`` are the arguments of ``build_source_distribution``."""
        facts = source.metadata
        return ModelMetadata(
            preset=preset,
            config=to_dict(config),
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
        values = json.loads(text)
        if values["format"] != FORMAT:
            raise UserError(
                f"{where} has model format {values['format']}, and this advect reads {FORMAT}; "
                + ("install a newer one" if values["format"] > FORMAT else "train it again, or use the advect of then")
            )
        tensors = dict(tensors or {})
        if missing := set(values.get("tensors", ())) - tensors.keys():
            raise UserError(
                f"{where} cannot be used apart from its checkpoint, which holds {min(missing)!r} for it; give the "
                "checkpoint's folder, such as runs/cells/checkpoints/step-00001000"
            )
        conditions = {name: _read(facts) for name, facts in values["spec"]["conditions"].items()}
        return ModelMetadata(
            preset=values["preset"],
            config=values["config"],
            network=NetworkConfig.of(values["config"]["network"]),
            spec=DataSpec(tuple(values["spec"]["shape"]), values["spec"]["modality"], conditions),
            transform=transform_from_config(values["transform"], _without("transform.", tensors)),
            noise=values["noise"],
            fingerprint=values["fingerprint"],
            facts=values.get("facts", {}),
            tensors=tensors,
        )


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _written(condition: Condition) -> dict[str, Any]:
    kind = next(name for name, cls in _CONDITIONS.items() if isinstance(condition, cls))
    return {"kind": kind, **asdict(condition)}


def _read(facts: dict[str, Any]) -> Condition:
    cls = _CONDITIONS[facts.get("kind", "category")]
    return cls(**{name: _tuples(value) for name, value in facts.items() if name != "kind"})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
