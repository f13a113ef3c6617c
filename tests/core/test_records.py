"""Files of others as typed records: limits on size and depth, and one sentence for each mistake."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from msgspec import Meta

from advect.config.arguments import read_flags
from advect.core import records
from advect.core.errors import UserError
from advect.core.records import (
    OpenRecord,
    Record,
    as_record,
    checked_values,
    find_object,
    parse_record,
    read_bytes,
    read_record,
    read_yaml,
)


class Point(Record):
    name: str
    size: Annotated[int, Meta(ge=1, le=10)] = 1
    parts: tuple[float, ...] = ()


class Drawing(OpenRecord):
    points: dict[str, list[Point]]
    title: Point | None = None


@dataclass(frozen=True)
class Pair:
    left: int
    right: int = 0


def test_values_are_typed_and_infinities_are_numbers() -> None:
    found = parse_record('{"name": "a", "parts": [1, Infinity]}', Point, "a file")
    assert found == Point(name="a", size=1, parts=(1.0, float("inf")))
    assert as_record({"left": 3}, Pair, "a file") == Pair(3)


def test_what_a_record_has_by_default_is_among_the_values_at_any_depth_and_others_stay() -> None:
    values = {"points": {"a": [{"name": "b", "parts": [1]}, {"name": "c", "size": 2}]}, "colour": "red"}
    assert checked_values(values, Drawing, "a file") == {
        "points": {"a": [{"name": "b", "parts": [1], "size": 1}, {"name": "c", "size": 2, "parts": ()}]},
        "colour": "red",
        "title": None,
    }
    with pytest.raises(UserError, match=r"a file is not what advect writes: points\[...\]\[0\].size"):
        checked_values({"points": {"a": [{"name": "b", "size": 0}]}}, Drawing, "a file")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "f is not whole JSON (Expecting property name"),
        ("[" * 10**5, "f is JSON of more than 64 levels"),
        (json.dumps({"name": "a", "parts": json.loads("[" * 70 + "]" * 70)}), "more than 64 levels"),
        ("[1]", "f is not what advect writes: the whole: expected object, got array"),
        ("{}", "object missing required field name"),
        ('{"name": 3}', "f is not what advect writes: name: expected str, got int"),
        ('{"name": "a", "size": 11}', "size: expected int <= 10"),
        ('{"name": "a", "size": 1e400}', "size: expected int, got float"),
        ('{"name": "a", "size": ' + "9" * 5000 + "}", "f is not whole JSON (Exceeds the limit"),
        ('{"name": "a", "parts": [1, "x"]}', "parts[1]: expected float, got str"),
        (
            '{"name": "a", "colour": 1}',
            "f has an entry 'colour', which this advect does not know; install the newer one",
        ),
    ],
)
def test_mistakes_are_one_sentence_that_names_the_entry(text: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        parse_record(text, Point, "f")
    assert words in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 300
    with pytest.raises(UserError, match="has an entry 'up', which this advect does not know"):
        as_record({"left": 1, "up": 2}, Pair, "f")


def test_files_too_large_missing_or_no_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LARGEST", 100)
    place = tmp_path / "x.json"
    with pytest.raises(UserError, match=r"x\.json cannot be read \(No such file or directory\); take another"):
        read_record(place, Point, "take another")
    place.write_text(" " * 101)
    with pytest.raises(UserError, match="more than 100 bytes"):
        read_record(place, Point)
    assert find_object(place) is None and find_object(tmp_path) is None
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UserError, match="it is a pipe, socket or device, not a file"):
        read_record(tmp_path / "pipe.json", Point)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, r"it has an alias \(\*name\)"),
        ("a: &a [*a]", r"it has an alias \(\*name\)"),
        ("a: " + "[" * 5000, "more than 64 levels"),
        ("\n".join("  " * i + "a:" for i in range(500)), "more than 64 levels"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: \x00", "is not YAML"),
        ("preset: moons\ntraining: {seed: {a: 1}}", "seed should be a value or a list of values"),
        ("preset: moons\ntraining: {seed: [[1]]}", "seed should be a value or a list of values"),
        ("preset: moons\ntraining: 3", "training should be a section"),
        ("preset: [moons]", "does not name its preset"),
    ],
)
def test_yaml_that_multiplies_recurses_or_runs_code_is_refused_at_once(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=words) as error:
        read_flags(file)
    assert str(error.value).startswith("--config ") and "\n" not in str(error.value)


def test_plain_yaml_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("preset: moons\ntraining:\n  seed: 3\n  ema_also: [0.9, 0.99]\n")
    assert read_yaml(tmp_path / "c.yaml", "c") == {"preset": "moons", "training": {"seed": 3, "ema_also": [0.9, 0.99]}}
    assert read_flags(tmp_path / "c.yaml") == ("moons", ["--seed", "3", "--ema-also", "0.9", "0.99"])


def test_a_small_file_takes_no_memory_of_the_largest(tmp_path: Path) -> None:
    import tracemalloc

    (tmp_path / "small.json").write_text('{"a": 1}')
    tracemalloc.start()
    try:
        assert read_bytes(tmp_path / "small.json", 2**28) == b'{"a": 1}'
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
