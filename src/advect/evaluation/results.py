"""Result files of ``advect eval``: reading, tables, comparison."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from advect.core.errors import UserError
from advect.core.records import checked_values, read_record
from advect.evaluation.records import ResultRecord

FORMAT = 1

_PARTS = ("protocol", "subject", "made_with", "floor", "flow", "points")
_NOT_BINDING = ("seeds",)
"""Entries in which comparable protocols may differ."""

_DEVICE = ("device", "processes")

Result = Mapping[str, Any]


def read_result(path: Path) -> dict[str, Any]:
    """Content of a result file. Raises UserError for another file or a newer format."""
    result = read_record(path, dict[str, Any], "give a file that advect eval wrote")
    if any(part not in result for part in _PARTS):
        raise UserError(f"{path} is no result of advect eval; give a file such as runs/digits/evaluation/eval-*.json")
    if result.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {result.get('format')}, and this advect reads {FORMAT}; install the one that wrote it"
        )
    return checked_values(result, ResultRecord, path)


def differences(there: Result, here: Result) -> list[str]:
    """Differences between the protocols of two results, as text; empty if comparable."""
    a, b = _flat(there["protocol"]), _flat(here["protocol"])
    names = [name for name in dict.fromkeys((*a, *b)) if name not in _NOT_BINDING and a.get(name) != b.get(name)]
    return [f"{name} was {_word(a.get(name))} there and is {_word(b.get(name))} here" for name in names]


def _flat(protocol: Result) -> dict[str, Any]:
    """Protocol with nested entries named such as ``features.identity``."""
    flat: dict[str, Any] = {}
    for name, value in protocol.items():
        if isinstance(value, dict) and value:
            flat |= {f"{name}.{inner}": v for inner, v in value.items()}
        else:
            flat[name] = value
    return flat


def _word(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."


def compare(files: Sequence[Path], *, force: bool) -> list[str]:
    """Table of several results, as lines.

    Raises UserError for different protocols unless ``force``, which lists the differences first.
    """
    if len(files) < 2:
        raise UserError(f"--compare needs two files or more, got {len(files)}")
    results = [read_result(file) for file in files]
    lines: list[str] = []
    for file, result in zip(files[1:], results[1:], strict=True):
        differing = differences(results[0], result)
        if differing and not force:
            raise UserError(
                f"{files[0]} and {file} have different protocols: {differing[0]}; measure both alike, or give --force"
            )
        lines += [f"differs: {files[0]} and {file}: {text}" for text in differing]
        lines += _notes(files[0], results[0], file, result)
    names = [_name(result) for result in results]
    if len(set(names)) < len(names):
        names = (
            [file.name for file in files]
            if len({file.name for file in files}) == len(files)
            else list(map(str, files))
        )
    named = list(zip(names, results, strict=True))
    rows = [row for name, result in named for row in _points(name, result)]
    floors = [row for _, result in named for row in _floor(result)]
    return lines + _laid_out([*rows, *(row for i, row in enumerate(floors) if row not in floors[:i])])


def _notes(first: Path, there: Result, file: Path, here: Result) -> list[str]:
    """Notes on differing library versions."""
    a, b = there["made_with"], here["made_with"]
    names = [name for name in dict.fromkeys((*a, *b)) if name not in _DEVICE and a.get(name) != b.get(name)]
    versions = ", ".join(f"{name} {a.get(name)} and {b.get(name)}" for name in names)
    return [f"note: {first} and {file} were made with {versions}"] if names else []


def _name(result: Result) -> str:
    return f"{Path(result['subject']['run']).name} {result['subject']['checkpoint']}"


def table(result: Result) -> list[str]:
    """Table of one result, as lines."""
    return _laid_out([*_points("", result), *_floor(result)]) + notes(result)


def notes(result: Result) -> list[str]:
    """What the intervals of a table are, and what is left out, as lines."""
    lines = []
    if any(metric.get("interval") for point in result["points"] for metric in point["metrics"].values()):
        lines.append("[ ]: 95% interval over the rows of both sets")
    rows = result["protocol"].get("reference", FEW)
    if rows < FEW:
        lines.append(f"note: {rows:,} reference rows are few: differences within the intervals say nothing")
    return lines + [f"left out: {name}: {why}" for name, why in result.get("left_out", {}).items()]


Row = dict[str, str]
"""Cells of a table row, by column."""


def _points(name: str, result: Result) -> list[Row]:
    """One row a point."""
    return [
        ({"run": name} if name else {})
        | {"way": way_name(point), "NFE": f"{point['nfe']:.6g}", "seconds": f"{point['seconds']:.3g}"}
        | {metric: spread(value) for metric, value in point["metrics"].items()}
        for point in result["points"]
    ]


def _floor(result: Result) -> list[Row]:
    """Row of the floor, if any."""
    floor = result["floor"]
    ends = floor.get("intervals", {})
    numbers = {metric: figure(value, ends.get(metric)) for metric, value in floor["metrics"].items()}
    return [{"way": f"floor, {floor['samples']:,} rows", **numbers}] if numbers else []


def way_name(point: Mapping[str, Any]) -> str:
    """Short name of a point's solver, steps, grid and diffusion."""
    words = [point["solver"]]
    if point["steps"] is not None:
        words.append(f"{point['steps']} {point['grid']}")
    return " ".join(words) + ("" if point["diffusion"] is None else f" g={point['diffusion']}")


def spread(metric: Mapping[str, Any]) -> str:
    """Mean, standard deviation over the seeds, and 95% interval over the rows."""
    return figure(metric["mean"], metric.get("interval"), metric["std"])


def figure(value: float, interval: Sequence[float] | None = None, std: float | None = None) -> str:
    """A number to the digits that its interval or deviation supports: "12.3 [11.5, 13.1]", "0.412 ± 0.013"."""
    if interval is None and std is None:
        return f"{value:.4g}"
    reach = (interval[1] - interval[0]) / 2 if interval else 0.0
    scale = min((size for size in (reach, std or 0.0) if size > 0), default=abs(value) / 100)
    digits = max(0, 1 - math.floor(math.log10(scale))) if scale > 0 else 0
    plain = digits <= 6 and abs(value) < 1e7
    word = lambda v: f"{v:,.{digits}f}" if plain else f"{v:.4g}"
    return (
        word(value)
        + ("" if std is None else f" ± {word(std)}")
        + (f" [{word(interval[0])}, {word(interval[1])}]" if interval else "")
    )


FEW = 500
"""Reference rows below which a table says so."""

WIDE = 110
"""Width from which tables are transposed."""


def _laid_out(rows: Sequence[Row]) -> list[str]:
    """Aligned table; transposed if it is too wide and becomes narrower."""
    if not rows:
        return []
    names = list(dict.fromkeys(name for row in rows for name in row))
    grid = [names, *([row.get(name, "") for name in names] for row in rows)]
    upright, turned = _aligned(grid), _aligned([list(column) for column in zip(*grid, strict=True)])
    return turned if len(upright[0]) > WIDE and len(turned[0]) < len(upright[0]) else upright


def _aligned(grid: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    return [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
        for line in grid
    ]


def flow_lines(result: Result) -> list[str]:
    """Metrics of the flow itself, as lines."""
    lines, flow = [], result["flow"]
    if found := flow.get("straightness"):
        lines.append(f"straightness: {found['value']:.4g}, {found['relative']:.2%} of the mean square velocity")
    if found := flow.get("bits_per_dim"):
        lines.append(
            f"bits per dimension of {found['samples']:,} held-out rows: {found['mean']:.4f} ±"
            f" {found['standard_error']:.2g} (standard error)"
        )
    if found := flow.get("bits_per_token"):
        lines.append(
            f"bits per token of {found['samples']:,} held-out rows, at most: {found['mean']:.4f} ±"
            f" {found['standard_error']:.2g} (standard error)"
        )
    return lines + calibration_lines(flow.get("calibration"))


def calibration_lines(found: Mapping[str, Any] | None) -> list[str]:
    """Calibration as lines: the verdict, the columns, and what to try."""
    if not found:
        return []
    lines = [f"calibration, {found['draws']} draws a row: {found['sentence']}"]
    if found["left_out"]:
        lines.append(f"  without {', '.join(found['left_out'])}, which have missing or infinite values")
    for i, name in enumerate(found["columns"]):
        lines.append(
            f"  {name}: CRPS {found['crps'][i]:.4g} ± {found['crps_error'][i]:.2g}, {found['level']:.0%} intervals"
            f" {found['sharpness'][i]:.4g} wide on average cover {found['coverage'][i]:.1%} ±"
            f" {found['coverage_error']:.1%}"
        )
    return lines + ([f"  try: {found['advice']}"] if found["advice"] else [])
