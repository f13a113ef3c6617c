"""The registered parts of a kind, made for a contract: a new one is checked without being listed."""

from __future__ import annotations

from typing import Any

from advect.core import registry


def examples(kind: str, base: type = object, **given: Any) -> dict[str, Any]:
    """Every part of a kind below ``base`` by name, made of its ``part_examples`` and what it takes of ``given``."""
    made: dict[str, Any] = {}
    for name in registry.choices(kind):
        cls = registry.get(kind, name)
        takes = registry.parameters(cls)
        if issubclass(cls, base):
            for i, options in enumerate(getattr(cls, "part_examples", ({},))):
                made[f"{name} {i}" if i else name] = cls(**{k: v for k, v in given.items() if k in takes}, **options)
    return made
