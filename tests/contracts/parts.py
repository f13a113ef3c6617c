"""The registered parts of a kind, made for a contract: a new one is checked without being listed."""

from __future__ import annotations

from typing import Any

from advect.core import registry


def examples(kind: str, base: type = object, **given: Any) -> dict[str, Any]:
    """Every part of a kind below ``base`` by name, made with its ``part_examples`` or its defaults, and ``given``."""
    made: dict[str, Any] = {}
    for name in registry.choices(kind):
        cls = registry.get(kind, name)
        if issubclass(cls, base):
            for i, options in enumerate(getattr(cls, "part_examples", ({},))):
                made[f"{name} {i}" if i else name] = cls(**given, **options)
    return made
