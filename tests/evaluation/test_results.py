"""Result files side by side: what may be compared, and what is told."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from advect.core.errors import UserError
from advect.evaluation.results import compare, differences, figure, flow_lines, read_result, table

RESULT: dict[str, Any] = {
    "format": 1,
    "protocol": {
        "fingerprint": "f00",
        "features": {"name": "pixels", "identity": "values"},
        "samples": 100,
        "reference": 1000,
        "split": "held-out",
        "guidance": 1.0,
        "seeds": [0, 1],
        "conditions": {},
    },
    "subject": {"run": "runs/one", "checkpoint": "step-00000010"},
    "made_with": {"torch": "2.11", "device": "cpu", "processes": 1},
    "floor": {"samples": 90, "metrics": {"frechet": 0.5}},
    "flow": {},
    "points": [
        {
            "solver": "euler",
            "grid": "uniform",
            "steps": 4,
            "diffusion": None,
            "nfe": 4,
            "seconds": 1.5,
            "samples_per_s": 66.7,
            "metrics": {"frechet": {"mean": 2.0, "std": 0.25, "values": [1.75, 2.25]}},
        }
    ],
}


def other(**changes: Any) -> dict[str, Any]:
    """A result of another run; ``part_name=value`` changes an entry."""
    result = copy.deepcopy(RESULT)
    result["subject"]["run"] = "runs/two"
    for key, value in changes.items():
        part, _, name = key.partition("_")
        result[part][name] = value
    return result


def write(folder: Path, *results: Any) -> list[Path]:
    files = [folder / f"{i}.json" for i in range(len(results))]
    for file, result in zip(files, results, strict=True):
        file.write_text(json.dumps(result))
    return files


def test_results_of_one_protocol_stand_side_by_side(tmp_path: Path) -> None:
    files = write(tmp_path, RESULT, other(protocol_seeds=[5]))
    head, first, second, floor = compare(files, force=False)
    assert head.split() == ["run", "way", "NFE", "seconds", "frechet"]
    assert first.split() == ["one", "step-00000010", "euler", "4", "uniform", "4", "1.5", "2.00", "±", "0.25"]
    assert "floor, 90 rows" in floor and floor.endswith("0.5") and second.startswith("two step-00000010")


def test_entries_that_a_result_may_lack_or_have_as_null_are_left_out_of_the_table(tmp_path: Path) -> None:
    lacking = other(flow_straightness=None)
    del lacking["points"][0]["metrics"]["frechet"]["std"]
    _, _, second, _ = compare(write(tmp_path, RESULT, lacking), force=False)
    assert second.split()[-2:] == ["1.5", "2"]
    assert flow_lines(read_result(tmp_path / "1.json")) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol_samples": 99}, "samples was 100 there and is 99 here"),
        (
            {"protocol_features": {"name": "pixels", "identity": "x"}},
            'features.identity was "values" there',
        ),
        ({"protocol_conditions": {"label": "7"}}, "conditions was {} there and is null here"),
        ({"protocol_new": 1}, "new was null there and is 1 here"),
    ],
)
def test_another_protocol_is_refused_by_the_first_difference_and_told_when_forced(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    files = write(tmp_path, RESULT, other(**changes))
    with pytest.raises(UserError) as told:
        compare(files, force=False)
    assert words in str(told.value) and str(told.value).endswith("give --force") and "\n" not in str(told.value)
    lines = compare(files, force=True)
    assert lines[0].startswith(f"differs: {files[0]} and {files[1]}: ") and words in lines[0]
    assert len(lines) - len(differences(RESULT, other(**changes))) == 4


def test_other_libraries_are_noted_and_another_device_is_not(tmp_path: Path) -> None:
    changed = other()
    changed["made_with"] |= {"torch": "2.13", "device": "a GPU", "processes": 8}
    files = write(tmp_path, RESULT, changed)
    assert compare(files, force=False)[0] == f"note: {files[0]} and {files[1]} were made with torch 2.11 and 2.13"


def test_one_run_twice_is_told_apart_by_the_files(tmp_path: Path) -> None:
    files = write(tmp_path, RESULT, RESULT)
    assert compare(files, force=False)[1].startswith("0.json ")
    (tmp_path / "there").mkdir()
    files[1] = files[1].rename(tmp_path / "there/0.json")
    assert compare(files, force=False)[1].startswith(str(files[0]))


def test_a_wide_table_stands_on_its_side() -> None:
    wide = copy.deepcopy(RESULT)
    metrics = {f"a_long_name_{i}": {"mean": float(i), "std": None, "values": [i]} for i in range(12)}
    wide["points"][0]["metrics"] = metrics
    lines = table(wide)
    assert [line.split()[0] for line in lines[:4]] == ["way", "NFE", "seconds", "a_long_name_0"] and len(lines) == 16


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not whole JSON"),
        ("[]", "is not what advect writes"),
        ('{"format": 1}', "is no result of advect eval"),
        (json.dumps({**RESULT, "format": 9}), "has format 9, and this advect reads 1"),
    ],
)
def test_other_files_are_told(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=words):
        read_result(tmp_path / "a.json")


def test_a_file_alone_and_a_file_that_is_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--compare needs two files or more, got 1"):
        compare([tmp_path], force=False)
    with pytest.raises(UserError, match=r"gone\.json cannot be read"):
        compare([tmp_path / "gone.json"] * 2, force=False)


def test_floors_that_differ_are_both_told(tmp_path: Path) -> None:
    changed = other(protocol_fingerprint="f11")
    changed["floor"] = {"samples": 80, "metrics": {"frechet": 0.7}}
    *_, one, two = compare(write(tmp_path, RESULT, changed), force=True)
    assert one.split() == ["floor,", "90", "rows", "0.5"] and two.split() == ["floor,", "80", "rows", "0.7"]


@pytest.mark.parametrize(
    ("value", "interval", "std", "words"),
    [
        (12.345, (11.5, 13.1), None, "12.35 [11.50, 13.10]"),
        (3e-9, (2e-9, 4e-9), None, "3e-09 [2e-09, 4e-09]"),
        (1e300, None, 1e299, "1e+300 ± 1e+299"),
        (0.0, (0.0, 0.0), 0.0, "0 ± 0 [0, 0]"),
    ],
)
def test_a_figure_has_the_digits_that_its_spread_supports(value, interval, std, words) -> None:
    assert figure(value, interval, std) == words
