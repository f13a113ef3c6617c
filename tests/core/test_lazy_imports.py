"""Packages that import their names when first used."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

PACKAGES = ("advect", "advect.data", "advect.losses", "advect.networks", "advect.paths", "advect.reporting")


@pytest.mark.parametrize("name", PACKAGES)
def test_every_name_is_there(name: str) -> None:
    package = importlib.import_module(name)
    for each in dir(package):
        assert getattr(package, each) is not None or each.startswith("__")
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing'"):
        _ = package.nothing


def test_only_what_is_used_is_imported() -> None:
    code = "import advect, sys; advect.networks.MLP; print('advect.networks.unet' in sys.modules, advect.load)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("False <function load at")


@pytest.mark.parametrize("word", ["--help", "presets"])
def test_lists_are_printed_without_pytorch(word: str) -> None:
    line = [sys.executable, "-X", "importtime", "-m", "advect", word]
    ended = subprocess.run(line, capture_output=True, text=True, check=True)
    imported = {each.rpartition("|")[2].strip() for each in ended.stderr.splitlines()}
    assert "advect.cli" in imported and "torch" not in imported and "digits" in ended.stdout


def test_a_lazy_method_is_the_function_with_its_signature() -> None:
    code = """
import sys
from advect.model.flow import Flow
assert "advect.model.posterior" not in sys.modules
from advect.model.posterior import sample_posterior
assert Flow.sample_posterior is sample_posterior
assert Flow.__new__(Flow).sample_posterior.__func__ is sample_posterior
"""
    subprocess.run([sys.executable, "-c", code], check=True)
