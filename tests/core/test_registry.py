"""Parts by name: found without imports, registered at run time, offered by other packages."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from advect.core import registry
from advect.core.errors import UserError
from advect.core.registry import Argument, arguments, choices, get, markdown_table, register, summary


class Dish:
    """Something to eat."""

    part_kind = "dish"
    part_given = ("guests",)


@register("soup")
@dataclass(frozen=True)
class Soup(Dish):
    """A soup. It is hot.

    Args:
        litres: how much
            of it.
        salt: pinches.
        guests: who eats.
    """

    litres: float = 1.5
    salt: int | None = None
    guests: int = 2
    stove: object = None


@register("salad")
class Salad(Dish):
    """Leaves, ``raw``.

    Args:
        leaves, roots: parts of plants.
    """

    def __init__(self, bowl: str, *, leaves: Sequence[str] = ("a",), roots: Literal["no", "yes"] = "no") -> None:
        self.bowl = bowl


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `pantry` that is the home of the kind "fruit", and of "nut" in its module nuts."""
    package = tmp_path / "pantry"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "base.py").write_text("class Fruit:\n    part_kind = 'fruit'\nclass Nut:\n    part_kind = 'nut'\n")
    part = (
        "from pantry.base import {1}\nfrom advect.core.registry import register\n\n"
        "@register(\"{0}\")\nclass A({1}):\n    'One.'\n"
    )
    (package / "apple.py").write_text(part.format("apple", "Fruit"))
    (package / "deep" / "pear.py").write_text(part.format("pear", "Fruit"))
    (package / "nuts.py").write_text(part.format("almond", "Nut"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.HOMES, "fruit", "pantry")
    monkeypatch.setitem(registry.HOMES, "nut", "pantry.nuts")
    yield package
    for kind in ("fruit", "nut"):
        registry._scans.pop(kind, None)
        registry._parts.pop(kind, None)
    for name in [name for name in sys.modules if name.split(".")[0] == "pantry"]:
        del sys.modules[name]


def test_a_home_is_read_and_only_what_is_asked_for_is_imported(home: Path) -> None:
    assert choices("fruit") == ("apple", "pear") and choices("nut") == ("almond",)
    assert "pantry.apple" not in sys.modules
    assert get("fruit", "pear").__name__ == "A"
    assert "pantry.deep.pear" in sys.modules and "pantry.apple" not in sys.modules


def test_a_part_made_at_run_time_is_there_at_once_and_a_name_has_one_owner(home: Path) -> None:
    base = type("Fruit", (), {"part_kind": "fruit"})
    plum = register("plum")(type("Plum", (base,), {}))
    assert choices("fruit")[-1] == "plum" and get("fruit", "plum") is plum and registry.name_of(plum()) == "plum"
    for name, other in (("plum", r"test_registry\.Plum"), ("apple", r"pantry\.apple")):
        with pytest.raises(UserError, match=rf"fruit '{name}' is registered by {other} and by .*\.Other; rename"):
            register(name)(type("Other", (base,), {}))
    registry.unregister(plum)
    assert "plum" not in choices("fruit")


def test_a_name_twice_in_a_home_is_refused(home: Path) -> None:
    (home / "zebra.py").write_text((home / "apple.py").read_text())
    with pytest.raises(UserError, match=r"fruit 'apple' is registered by pantry\.apple and pantry\.zebra"):
        choices("fruit")


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(UserError, match="dish 'sop' is not known; did you mean 'soup'"):
        get("dish", "sop")


def test_a_class_without_a_kind_or_a_name_is_refused() -> None:
    with pytest.raises(TypeError, match="no base class sets part_kind"):
        register("x")(type("Plain", (), {}))
    with pytest.raises(TypeError, match="Bisque is not registered"):
        registry.name_of(type("Bisque", (Soup,), {}))


def test_the_constructor_is_the_configuration() -> None:
    assert arguments(Soup) == (
        Argument("litres", float, 1.5, "how much of it."),
        Argument("salt", int | None, None, "pinches."),
    )
    assert arguments(Salad) == (
        Argument("leaves", tuple[str, ...], ("a",), "parts of plants."),
        Argument("roots", Literal["no", "yes"], "no", "parts of plants."),
    )


def test_the_table_is_that_of_the_docs() -> None:
    assert summary(Soup) == "A soup" and summary(Salad) == "Leaves, `raw`"
    assert markdown_table("dish").splitlines()[2:] == [
        "| `soup` | `Soup` | A soup | `litres=1.5`, `salt=None` |",
        "| `salad` | `Salad` | Leaves, `raw` | `leaves=('a',)`, `roots=no` |",
    ]


SETUP = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "kitchen"
version = "1"
[project.entry-points."advect.parts"]
stew = "kitchen"
burnt = "kitchen_without_stove"
[tool.setuptools]
py-modules = ["kitchen"]
"""
STEW = """
from advect.core.registry import register

class Dish:
    part_kind = "dish"

@register("stew")
class Stew(Dish):
    "A stew."
"""


def test_an_installed_package_offers_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/pyproject.toml").write_text(SETUP)
    (tmp_path / "src/kitchen.py").write_text(STEW)
    words = ["install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", tmp_path / "site"]
    subprocess.run([sys.executable, "-m", "pip", *words, tmp_path / "src"], check=True)
    monkeypatch.syspath_prepend(tmp_path / "site")
    with caplog.at_level(logging.WARNING, "advect"):
        assert "stew" in choices("dish")
    assert "kitchen offers 'burnt' (kitchen_without_stove) to advect, but it cannot be imported" in caplog.text
    stew = get("dish", "stew")
    assert stew.__module__ == "kitchen" and summary(stew) == "A stew"
    registry.unregister(stew)
