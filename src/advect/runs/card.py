"""The card in the header of a weight file: all that is needed to rebuild the network and to sample."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from advect.core.errors import UserError
from advect.core.types import Category, Condition, DataSpec, Length, Quantity
from advect.data import Source, Transform, transform_from_config
from advect.runs.build import NETWORKS
from advect.runs.config import Config, MethodConfig, NetworkConfig
from advect.runs.configfile import to_dict

FORMAT = 2
"""2 names the kind of each condition; in files of format 1 all are categories."""

_CONDITIONS: dict[str, type[Condition]] = {"category": Category, "quantity": Quantity, "length": Length}


@dataclass(frozen=True)
class Card:
    """Preset and configuration of a run, its network, the data's shape, conditions and transform."""

    preset: str
    config: dict[str, dict]
    network: NetworkConfig
    spec: DataSpec
    transform: Transform
    noise: dict[str, Any]
    fingerprint: str

    @staticmethod
    def of(config: Config, preset: str, source: Source, noise: dict[str, Any]) -> Card:
        """The card of a run on ``source`` from ``noise``, the facts that ``build_noise`` takes."""
        spec, transform = source.spec, source.transform
        return Card(preset, to_dict(config), config.network, spec, transform, noise, source.fingerprint)

    @property
    def method(self) -> MethodConfig:
        """The method's section of the configuration."""
        return MethodConfig(**self.config["method"])

    def to_text(self) -> str:
        """The card as JSON."""
        kind = next(name for name, cls in NETWORKS.items() if isinstance(self.network, cls))
        values = {
            "format": FORMAT,
            "preset": self.preset,
            "config": self.config,
            "network": {"kind": kind, **self.config["network"]},
            "spec": {
                "shape": self.spec.shape,
                "kind": self.spec.kind,
                "conditions": {name: _written(condition) for name, condition in self.spec.conditions.items()},
            },
            "transform": self.transform.to_config(),
            "noise": self.noise,
            "fingerprint": self.fingerprint,
        }
        return json.dumps(values)

    @staticmethod
    def from_text(text: str | None, where: object) -> Card:
        """Read a card; UserError when the file has none or one of a newer format."""
        if text is None:
            raise UserError(f"{where} was not written by advect: its header has no card")
        values = json.loads(text)
        if values["format"] > FORMAT:
            raise UserError(
                f"{where} has card format {values['format']}, this advect reads up to {FORMAT}; install a newer one"
            )
        network: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["network"].items()}
        conditions = {name: _read(facts) for name, facts in values["spec"]["conditions"].items()}
        return Card(
            preset=values["preset"],
            config=values["config"],
            network=NETWORKS[network.pop("kind")](**network),
            spec=DataSpec(tuple(values["spec"]["shape"]), values["spec"]["kind"], conditions),
            transform=transform_from_config(values["transform"]),
            noise=values["noise"],
            fingerprint=values["fingerprint"],
        )


def _written(condition: Condition) -> dict[str, Any]:
    kind = next(name for name, cls in _CONDITIONS.items() if isinstance(condition, cls))
    return {"kind": kind, **asdict(condition)}


def _read(facts: dict[str, Any]) -> Condition:
    cls = _CONDITIONS[facts.get("kind", "category")]
    return cls(**{name: _tuples(value) for name, value in facts.items() if name != "kind"})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
