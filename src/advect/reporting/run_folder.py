"""Reading a run folder with missing or damaged parts."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from advect.core.errors import UserError
from advect.core.files import read_file
from advect.core.records import as_record, checked_values, parse_record, parse_yaml
from advect.data.numpy_files import DAMAGED, check_arrays
from advect.evaluation.records import MetricsRow, QualityRecord, ResultRecord

QUALITY_FORMAT = RESULT_FORMAT = 1
_NUMBER = re.compile(r"(\d+)\D*$")


@dataclass
class RunFolder:
    """Content of a run folder; missing parts are empty or None.

    Attributes:
        path: the folder.
        config_text, config, environment: config.yaml as text and as sections, and environment.json.
        steps, held_out, evals: rows of metrics.jsonl with training loss, held-out loss, and distances to held-out
            data, by step.
        best: content of checkpoints/best.
        epochs: number of finished epochs.
        grids: sample pictures with their step, in order.
        quality, results: evaluation/quality.json, and evaluation/eval-*.json, newest last.
        trajectories, neighbours: arrays of these files.
        notes: unreadable parts.
        measured: folder with a measurement of the run, if not its own.
    """

    path: Path
    measured: Path | None = None
    config_text: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    held_out: list[dict[str, Any]] = field(default_factory=list)
    evals: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    epochs: int = 0
    grids: list[tuple[int, Path]] = field(default_factory=list)
    quality: dict[str, Any] | None = None
    results: list[dict[str, Any]] = field(default_factory=list)
    trajectories: dict[str, np.ndarray] | None = None
    neighbours: dict[str, np.ndarray] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def calibration(self) -> dict[str, Any] | None:
        """Calibration by the report, else by the newest result of ``advect eval`` that has it; "by" tells which."""
        found = (self.quality or {}).get("calibration")
        if found:
            return {**found, "by": f"advect report, by {found['by']}" if found.get("by") else "advect report"}
        all_ = (result["flow"].get("calibration") for result in reversed(self.results))
        return next(({**found, "by": "advect eval"} for found in all_ if found), None)


def read_run(path: Path, measured: Path | None = None) -> RunFolder:
    """Read all parts of a run folder; ``measured`` may hold its measurements. Raises UserError if it is none."""
    if not any((path / name).exists() for name in ("config.yaml", "environment.json", "metrics.jsonl")):
        raise UserError(f"{path} is not a run folder: it has no config.yaml; give a folder that advect train wrote")
    run = RunFolder(path, measured)
    run.config_text = _text(run, "config.yaml")
    try:
        values = parse_yaml(run.config_text, "config.yaml") if run.config_text else {}
        run.config = values if isinstance(values, dict) else {}
    except UserError as error:
        run.notes.append(f"{error}; it is shown as it is.")
    run.environment = _json(run, "environment.json") or {}
    _read_metrics(run)
    run.best = _json(run, "checkpoints/best")
    run.grids = sorted((_step(file), file) for file in (path / "samples").glob("*.png") if _step(file) >= 0)
    run.quality = _json(run, "evaluation/quality.json")
    if run.quality is not None and run.quality.get("format") != QUALITY_FORMAT:
        run.notes.append("evaluation/quality.json is of another version of advect; run advect report again.")
        run.quality = None
    run.quality = _checked(run, "evaluation/quality.json", run.quality, QualityRecord)
    files = sorted((path / "evaluation").glob("eval-*.json"), key=lambda file: file.stat().st_mtime)
    found = {name: _json(run, name) for name in (file.relative_to(path).as_posix() for file in files)}
    here = {name: result for name, result in found.items() if result and result.get("format") == RESULT_FORMAT}
    run.results = [result for name in here if (result := _checked(run, name, here[name], ResultRecord)) is not None]
    run.trajectories = _arrays(run, "evaluation/trajectories.npz", {"t", "x"})
    wanted = {"samples", "neighbours", "distances", "sample_distances", "held_out_distances"}
    run.neighbours = _arrays(run, "evaluation/neighbours.npz", wanted)
    return run


def training_seconds(path: Path) -> float:
    """Seconds that the training of a run took, 0 if not known."""
    run = RunFolder(path)
    _read_metrics(run)
    return max((row["seconds"] for row in run.steps if _is_number(row.get("seconds"))), default=0.0)


def _step(file: Path) -> int:
    found = _NUMBER.search(file.stem)
    return int(found.group(1)) if found else -1


_QUALITY = "evaluation/quality.json"
_MEASURED = (_QUALITY, "evaluation/trajectories.npz", "evaluation/neighbours.npz")


def _place(run: RunFolder, name: str) -> Path:
    """A file of a run; those of a measurement, which belong together, from ``measured`` if it has one."""
    if run.measured is not None and name in _MEASURED and (run.measured / _QUALITY).exists():
        return run.measured / name
    return run.path / name


def _text(run: RunFolder, name: str) -> str:
    file = _place(run, name)
    try:
        return read_file(file).decode(errors="replace") if file.exists() else ""
    except OSError as error:
        run.notes.append(f"{name} cannot be read ({error.strerror}).")
        return ""


def _json(run: RunFolder, name: str) -> dict[str, Any] | None:
    text = _text(run, name)
    if not text:
        return None
    try:
        return parse_record(text, dict[str, Any], name)
    except UserError:
        run.notes.append(f"{name} is damaged and left out.")
        return None


def _checked(run: RunFolder, name: str, values: dict[str, Any] | None, kind: type) -> dict[str, Any] | None:
    """The values of a file if they are what advect writes; else None, with a note."""
    try:
        return None if values is None else checked_values(values, kind, name)
    except UserError as error:
        run.notes.append(f"{error}; it is left out.")
        return None


def _arrays(run: RunFolder, name: str, wanted: set[str]) -> dict[str, np.ndarray] | None:
    file = _place(run, name)
    if not file.exists():
        return None
    try:
        check_arrays(file)
        with np.load(file, allow_pickle=False) as saved:
            return {key: saved[key] for key in wanted}
    except (UserError, KeyError, *DAMAGED):
        run.notes.append(f"{name} is damaged and left out; run advect report again.")
        return None


def _read_metrics(run: RunFolder) -> None:
    """Sort the rows of metrics.jsonl by kind; the last line of a killed run may be cut."""
    broken: list[int] = []
    rows: dict[str, dict[int, dict[str, Any]]] = {"loss": {}, "held_out_loss": {}, "eval_frechet": {}}
    lines = _text(run, "metrics.jsonl").splitlines()
    for i, line in enumerate(lines):
        try:
            row = parse_record(line, dict[str, Any], "metrics.jsonl")
            step = as_record(row, MetricsRow, "metrics.jsonl").step
        except UserError:
            broken.append(i)
            continue
        for kind, found in rows.items():
            if _is_number(row.get(kind)):
                found[step] = row  # a resumed run may write a step again; the later row holds
        if "epoch_loss" in row and _is_number(row.get("epoch")):
            run.epochs = max(run.epochs, int(row["epoch"]))
    if broken and broken != [len(lines) - 1]:
        run.notes.append(f"{len(broken)} of {len(lines)} lines of metrics.jsonl could not be read and are left out.")
    run.steps, run.held_out, run.evals = ([found[s] for s in sorted(found)] for found in rows.values())


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
