"""Packages that import a name when it is first used, so that no run loads parts that it does not need."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

_IMPORT = re.compile(r"^    from (\S+) import (\w+) as (\w+)$", re.MULTILINE)


def lazy_imports(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose ``__init__.py`` lists its imports under ``TYPE_CHECKING``.

    Each is a line ``from MODULE import NAME as NAME``. A name must not be that of a submodule, which would take its
    place, unless it means the submodule.
    """
    module = sys.modules[package]
    text = Path(str(module.__file__)).read_text(encoding="utf-8")
    places = {name: (home, attribute) for home, attribute, name in _IMPORT.findall(text)}

    def load(name: str) -> object:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home, attribute = places[name]
        if home == package:
            return importlib.import_module(f"{package}.{attribute}")
        value = getattr(importlib.import_module(home), attribute)
        setattr(module, name, value)
        return value

    return load, lambda: sorted({*vars(module), *places})
