"""Kept tensors: by key, whole, and never wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from advect.core.errors import UserError
from advect.evaluation import ReferenceCache

KEY = {"data": "f00d", "split": "test", "rows": 100, "features": "beef", "what": "moments"}


def test_tensors_are_made_once_and_come_back_to_the_bit(tmp_path: Path) -> None:
    calls = []

    def make() -> dict[str, torch.Tensor]:
        calls.append(1)
        return {"mean": torch.randn(4, dtype=torch.float64), "count": torch.tensor(7), "t": torch.randn(3, 2).T}

    first = ReferenceCache(tmp_path / "new" / "cache").get(KEY, make)
    again = ReferenceCache(tmp_path / "new" / "cache").get(dict(reversed(KEY.items())), make)
    assert len(calls) == 1 and set(first) == set(again)
    assert all(torch.equal(first[name], again[name]) and first[name].dtype == again[name].dtype for name in first)
    assert [p.suffix for p in (tmp_path / "new" / "cache").iterdir()] == [".safetensors"]


def test_another_key_is_another_file(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path)
    cache.save(KEY, {"x": torch.zeros(1)})
    for name in KEY:
        assert cache.load(KEY | {name: "other"}) is None
    assert cache.load({k: v for k, v in KEY.items() if k != "rows"}) is None


def test_damaged_and_foreign_files_count_as_missing_and_are_replaced(tmp_path: Path) -> None:
    cache, other = ReferenceCache(tmp_path), KEY | {"rows": 5}
    cache.save(other, {"x": torch.ones(1)})
    for content in (b"", b"\x00" * 50, cache.path(other).read_bytes(), cache.path(other).read_bytes()[:-2]):
        cache.path(KEY).write_bytes(content)
        assert cache.load(KEY) is None
    assert cache.get(KEY, lambda: {"x": torch.full((1,), 2.0)})["x"] == 2
    assert cache.load(KEY) == {"x": torch.full((1,), 2.0)}


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> dict[str, torch.Tensor]:
        raise RuntimeError("network")

    cache = ReferenceCache(tmp_path)
    with pytest.raises(RuntimeError):
        cache.get(KEY, fail)
    assert list(tmp_path.iterdir()) == [] and cache.load(KEY) is None


def test_mistakes_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cache folder .*file cannot be written to"):
        ReferenceCache(tmp_path / "file")
    for key in ({}, KEY | {"data": ""}):
        with pytest.raises(UserError, match="must say what they were computed of"):
            ReferenceCache(tmp_path).load(key)
