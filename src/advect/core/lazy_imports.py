"""Lazy imports of a package's names, and of methods."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

_IMPORT = re.compile(r"^    from (\S+) import (\w+) as (\w+)$", re.MULTILINE)


def lazy_imports(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package that lists its imports under ``TYPE_CHECKING``.

    Each is a line ``from MODULE import NAME as NAME``. NAME must not be another submodule's name.
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


class LazyMethod:
    """A method that is the function of its name in ``module``, imported when it is first asked for."""

    def __init__(self, module: str) -> None:
        self.module = module

    def __set_name__(self, owner: type, name: str) -> None:
        self.owner, self.name = owner, name

    def __get__(self, instance: object, owner: type | None = None) -> object:
        function = getattr(importlib.import_module(self.module), self.name)
        setattr(self.owner, self.name, function)
        return function.__get__(instance, owner)
