"""The breaker's quick part: some cases of every command and of every format, the same ones each time.

``make break MINUTES=60`` goes on for as long as it is told; see ``breaker``.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from advect.core.errors import UserError
from faults import file_cases, oracle
from faults.damage import CHANGES, damage
from faults.disk_cases import READS_ONLY, WRITERS
from faults.flag_cases import calls, command_words
from faults.oracle import BROKE, HELD, REFUSED, Case, perform
from faults.process_cases import cases

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="makes pipes and odd names")

some = lambda n: settings(
    max_examples=n,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Sound files of everything that is read."""
    folder, here = tmp_path_factory.mktemp("breaker") / "home", Path.cwd()
    folder.mkdir()
    os.chdir(folder)
    try:
        file_cases.build(folder)
        calls(folder)
    finally:
        os.chdir(here)
    return folder


def hold(case: Case, home: Path, work: Path) -> None:
    outcome = perform(case, home, work)
    assert outcome.what != BROKE, f"{outcome.why}\n{case.to_text()}\n{outcome.said}"


def test_every_command_takes_any_words(home, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))

    @some(25)
    @given(command_words(home))
    def hold_for(words):
        hold(Case(words[0], tuple(words)), home, tmp_path / "work")

    hold_for()


def test_every_file_may_be_damaged(home, tmp_path):
    @some(40)
    @given(file_cases.damaged_files(home))
    def hold_for(drawn):
        place, words, file, kind, seed = drawn
        hold(Case(place, tuple(words), file, kind, seed), home, tmp_path / "work")

    hold_for()


def test_cases_are_written_and_read(home, tmp_path):
    case = Case("one.json", ("eval", "--compare", "one.json", "two.json"), "one.json", "truncate", 3, repeat=True)
    assert Case.of(case.to_text()) == case
    assert perform(case, home, tmp_path / "work").what == REFUSED
    assert perform(Case("one.json", case.words), home, tmp_path / "work").what == HELD


def test_every_command_and_format_has_cases(home):
    from advect.cli import find_commands
    from advect.core import registry

    assert {call.split()[0] for call in calls(home)} == set(find_commands())
    assert len({flag.name for flags in calls(home).values() for flag in flags}) > 150
    assert {f"data/{name}" for name in ("table", "cells", "shards", "mnist", "packed")} <= {
        "/".join(place.split("/")[:2]) for place in file_cases.readers(home)
    }
    assert (
        len([p for p in file_cases.readers(home) if p.startswith("data/")]) > len(registry.choices("data-format")) - 4
    )


def test_every_command_that_writes_is_killed_and_called_twice():
    from advect.cli import find_commands

    assert {name.split()[0] for name in WRITERS} | READS_ONLY == set(find_commands())


@pytest.mark.slow
def test_commands_are_killed_and_called_two_at_once(home, tmp_path):
    for case, outcome in itertools.islice(cases(tmp_path / "work", home, 0, ""), 2 * len(WRITERS)):
        assert outcome.what != BROKE, f"{case}: {outcome.why}\n{outcome.said}"


BREAKS = {
    "a traceback": (lambda: [][1], "IndexError at"),
    "a partial file": (lambda: Path("out/.a.json.7.partial").write_text("{"), "left out/.a.json.7.partial"),
    "half a file": (lambda: Path("out/a.json").write_text('{"a": '), "exit 0, and out/a.json cannot be read"),
    "no number": (lambda: np.save("out/a.npy", np.array([np.inf])), "exit 0, and out/a.npy is not finite"),
    "two sentences": (lambda: print("advect: a", file=sys.stderr) or _refuse(), "exit 2 without one sentence"),
    "a changed file": (lambda: (Path("two.json").write_text("") and None) or _refuse(), "two.json is changed"),
    "a whole name": (lambda: Path("out/samples.json").write_text("{}") and _refuse(), "it left out/samples.json"),
    "another code": (lambda: sys.exit(3), "exit code 3"),
    "other bytes": (lambda: Path("out/a.png").write_bytes(b"") or _noise(), "makes another out/a.npy"),
}


def _refuse() -> None:
    raise UserError("no")


def _noise() -> None:
    Path("out/a.png").unlink()
    np.save("out/a.npy", np.frombuffer(os.urandom(8), np.uint8))


@pytest.mark.parametrize("name", BREAKS)
def test_the_oracle_sees_a_break(home, tmp_path, monkeypatch, name):
    act, why = BREAKS[name]

    def run(words: list[str]) -> None:
        Path("out").mkdir()
        act()

    monkeypatch.setattr(oracle, "run", run)
    outcome = perform(Case("sample", ("sample", "run"), repeat=name == "other bytes"), home, tmp_path / "work")
    assert outcome.what == BROKE and why in outcome.why


@pytest.mark.parametrize("kind", CHANGES)
def test_a_damage_is_the_same_each_time(home, tmp_path, kind):
    changed = 0
    for seed in range(6):
        for name in ("run/config.yaml", "weights.safetensors", "images.zip", "table.csv.gz", "one.json"):
            made = []
            for i in range(2):
                file = tmp_path / str(i)
                file.write_bytes((home / name).read_bytes())
                damage(file, kind, seed)
                made.append(file.read_bytes())
            assert made[0] == made[1]
            changed += made[0] != (home / name).read_bytes()
    assert changed > 20
