"""Finds every implementation of a base class, so that a new one cannot stay outside its contract."""

from __future__ import annotations

import importlib
import inspect
import pkgutil


def implementations(base: type, *rooms: str) -> set[type]:
    """The concrete classes below ``base`` that these modules of advect, and the modules in them, define."""
    for room in rooms:
        module = importlib.import_module(room)
        for inner in pkgutil.walk_packages(getattr(module, "__path__", []), f"{room}."):
            importlib.import_module(inner.name)
    found, rest = set(), [base]
    while rest:
        below = rest.pop().__subclasses__()
        rest += below
        found |= {cls for cls in below if cls.__module__.startswith(rooms) and not inspect.isabstract(cls)}
    return found
