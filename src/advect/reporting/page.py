"""Content of a report, from a run folder."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from markupsafe import Markup

from advect.core.errors import printable
from advect.core.files import atomic_write_text
from advect.evaluation.budget import describe_limits
from advect.reporting import plots
from advect.reporting.calibration import calibrated
from advect.reporting.evaluations import evaluated, measured
from advect.reporting.plots import evenly, file_uri, strip_uri, tile_uri
from advect.reporting.run_folder import RunFolder, read_run
from advect.reporting.style import duration, number, percent, plural

logger = logging.getLogger(__name__)


def write_report(run_dir: Path | str, output_dir: Path | None = None, *, notes: Sequence[str] = ()) -> Path:
    """Write report.html in ``output_dir``, default ``run_dir``, self-contained, with ``notes``, atomically; return its
    path.

    Measurements are those in ``output_dir``, else the run's.

    Missing parts are named with the command that makes them, damaged ones noted. Raises UserError if ``run_dir`` is no
    run folder.
    """
    run = read_run(Path(run_dir), output_dir)
    run.notes += [*describe_limits(run.quality or {}, run.path), *notes]
    return write_page((output_dir or run.path) / "report.html", "template.html", describe(run))


def write_page(path: Path, template: str, values: dict[str, Any]) -> Path:
    """Write a page from a template atomically; return its path."""
    from jinja2 import Environment, StrictUndefined  # a report is rarely wanted; the command line starts faster
    from markupsafe import Markup

    here = files("advect.reporting") / "templates"
    options: dict[str, Any] = {"autoescape": True, "undefined": StrictUndefined, "finalize": _printed}
    page = Environment(trim_blocks=True, lstrip_blocks=True, **options)
    text = page.from_string(here.joinpath(template).read_text(encoding="utf-8"))
    atomic_write_text(path, text.render(values, style=Markup(here.joinpath("page.css").read_text(encoding="utf-8"))))
    return path


def _printed(value: Any) -> Any:
    """A value of the template, text without control characters."""
    return printable(value, lines=True) if type(value) is str else value


T = TypeVar("T")

GRIDS, GRID_BYTES = 12, 100_000


def describe(run: RunFolder) -> dict[str, Any]:
    """Values for the template; None for sections without data."""
    return {
        "title": run.path.resolve().name,
        "subtitle": _subtitle(run),
        "notes": run.notes,  # to which the sections add
        "cards": _shown(run, "metrics.jsonl", lambda run: list(_cards(run))) or [],
        "grids": _grids(run),
        "texts": (run.quality or {}).get("texts"),
        "trajectories": _shown(run, "evaluation/trajectories.npz", _trajectories),
        "quality": _shown(run, "evaluation/quality.json", _quality),
        "evaluations": _shown(run, "evaluation/eval-*.json", evaluated) or [],
        "calibration": _shown(run, "the calibration of evaluation/*.json", calibrated),
        "fidelity": _shown(run, "evaluation/quality.json", _fidelity) or [],
        "memorisation": _shown(run, "evaluation/neighbours.npz", _memorisation),
        "training": _shown(run, "metrics.jsonl", _training),
        "config": _config(run),
        "config_text": run.config_text,
        "environment": list(_flatten(run.environment)),
        "commands": _commands(run),
    }


def _shown(run: RunFolder, name: str, section: Callable[[RunFolder], T]) -> T | None:
    """A section; None, with a note, where a file's numbers are of a form that it cannot show."""
    try:
        return section(run)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
        logger.debug(f"{name} of {run.path}", exc_info=True)
        run.notes.append(f"{name} cannot be shown and is left out ({type(error).__name__}: {error}).")
        return None


def _subtitle(run: RunFolder) -> str:
    data = (run.quality or {}).get("data", {})
    parts = [
        f"preset {run.config['preset']}" if run.config.get("preset") else "",
        f"{data['words']}, {plural(data['train'], 'training example')}" if data else "",
        str(run.environment.get("device", "")),
        str(run.environment.get("time", ""))[:10],
    ]
    return " · ".join(p for p in parts if p)


def _cards(run: RunFolder) -> Iterator[dict[str, str]]:
    """Headline figures: label, value, comparison."""
    if run.quality:
        frechet = run.quality["frechet"]
        best = frechet["best"]
        yield _card("Frechet distance", number(best["distance"]), f"floor of real data: {number(frechet['floor'])}")
        for name, found in run.quality["fidelity"].items():
            note = f"classifier on real data: {percent(found['classifier_accuracy'])}"
            yield _card(f"{name} as asked for", percent(found["share"]), note)
        close = run.quality["memorisation"]
        yield _card(
            "very close to training data",
            percent(close["share_closer"]),
            f"new real data: {percent(close['percentile'])}",
        )
    if run.steps:
        losses = [row["loss"] for row in run.steps]
        tail = losses[-max(1, len(losses) // 20) :]
        held_out = (
            f"held-out: {number(run.held_out[-1]['held_out_loss'])}" if run.held_out else "at the end of training"
        )
        yield _card("training loss", number(sum(tail) / len(tail)), held_out)
        last = run.steps[-1]
        done = max(last["step"], *(row["step"] for row in run.held_out), 0)  # the last steps need not be logged
        epochs = max(int(last.get("epoch", 0)), run.epochs)
        yield _card("steps", f"{done:,}", plural(epochs, "epoch"))
        rates = [row["samples_per_s"] for row in run.steps if row.get("samples_per_s")]
        speed = f"{number(float(np.median(rates)))} a second" if rates else ""
        yield _card("samples seen", f"{round(last.get('seen', 0) * done / max(1, last['step'])):,}", speed)
        yield from _work_card(run)
        yield _card("training time", duration(last.get("seconds", 0.0)), str(run.environment.get("device", "")))


def _work_card(run: RunFolder) -> Iterator[dict[str, str]]:
    """Arithmetic per second, with the share of the device's peak if known."""
    rates = [row["flops_per_s"] for row in run.steps if row.get("flops_per_s")]
    shares = [row["mfu"] for row in run.steps if row.get("mfu")]
    if rates:
        share = f"{percent(float(np.median(shares)))} of the device's peak" if shares else "in the network"
        yield _card("GFLOP a second", number(float(np.median(rates)) / 1e9), share)


def _card(label: str, value: str, note: str) -> dict[str, str]:
    return {"label": label, "value": value, "note": note}


def _grids(run: RunFolder) -> list[dict[str, Any]]:
    grids = []
    for step, file in evenly(run.grids, GRIDS):
        uri = file_uri(file, GRID_BYTES)
        if uri is None:
            run.notes.append(f"samples/{file.name} is not a whole picture and is left out.")
        else:
            grids.append({"step": f"{step:,}", "uri": uri})
    return grids


def _range(run: RunFolder, x: np.ndarray) -> tuple[float, float]:
    """Values of black and white: those of the training data, else of x."""
    data = (run.quality or {}).get("data", {})
    low, high = data.get("low", float(x.min())), data.get("high", float(x.max()))
    return (low, high) if low < high else (low, low + 1)


def _trajectories(run: RunFolder) -> dict[str, Any] | None:
    if run.trajectories is None:
        return None
    t, x = run.trajectories["t"], run.trajectories["x"]
    words = (run.quality or {}).get("captions", [])
    if x.ndim == 5:
        return {"uri": strip_uri(x, *_range(run, x[-1]), words), "times": [f"{v:.2f}" for v in t]}
    if x.ndim == 4:
        return {"svg": Markup(plots.series_chart(t, x, words)), "rows": True}
    wide = (run.quality or {}).get("data", {}).get("shape", [0])[0] > 2
    return {"svg": Markup(plots.trajectory_chart(x, components=wide and x.shape[2] == 2))}


def _of_step(quality: dict[str, Any]) -> str:
    step = quality.get("step")
    return "" if step is None else f"; the checkpoint of step {step:,}"


def _quality(run: RunFolder) -> dict[str, Any] | None:
    if not run.quality:
        return None
    frechet = run.quality["frechet"]
    best, floor = frechet["best"], frechet["floor"]
    ratio = f", {number(best['distance'] / floor)} times the floor" if floor > 0 else ""
    space = frechet["features"]
    if frechet["variance_kept"] < 1:
        space += f" ({percent(frechet['variance_kept'])} of their variance)"
    return {
        "svg": Markup(plots.quality_chart(frechet["curves"], floor)),
        "best": f"{best['solver']} at {plural(best['nfe'], 'evaluation')} reaches {number(best['distance'])}{ratio}",
        "protocol": f"{frechet['samples']:,} samples a point against {frechet['held_out']:,} held-out rows, "
        f"in {space}; the same noise for all points; seed {run.quality['seed']}{_of_step(run.quality)}.",
        "samples": f"{frechet['samples']:,}",
        "two_moments": run.quality["data"]["marginals"],
        "marginals": list(_marginals(run.quality.get("marginals", {}))),
    }


_MEASURES = {
    "kolmogorov_smirnov": ("largest gap between distribution functions, mean over features", "0"),
    "correlation_error": ("error of a correlation, mean over pairs of features", "0"),
    "mean_r2": ("R² of the features' means", "1"),
    "variance_r2": ("R² of the features' variances", "1"),
    "zero_error": ("error of the share of zeros, mean over features", "0"),
}


def _marginals(found: dict[str, dict[str, float]]) -> Iterator[dict[str, str]]:
    """Table rows: measure, samples, training data, best value."""
    for name, (label, best) in _MEASURES.items():
        if name in found:
            numbers = {"own": number(found[name]["samples"]), "real": number(found[name]["floor"])}
            yield {"label": label, **numbers, "best": best}


def _fidelity(run: RunFolder) -> list[dict[str, Any]]:
    found = (run.quality or {}).get("fidelity", {})
    return [
        {
            "name": name,
            "share": percent(f["share"]),
            "accuracy": percent(f["classifier_accuracy"]),
            "fitted_on": f"{f['fitted_on']:,}",
            "samples": f"{f['samples']:,}",
            "name_width": min(14, max(len(c["name"]) for c in f["by_class"])),
            "classes": [
                c | {"percent": percent(c["share"]), "width": f"{100 * c['share']:.1f}"} for c in f["by_class"]
            ],
        }
        for name, f in found.items()
    ]


def _memorisation(run: RunFolder) -> dict[str, Any] | None:
    if not run.quality or run.neighbours is None:
        return None
    numbers, arrays = run.quality["memorisation"], run.neighbours
    expected, share, n = numbers["percentile"], numbers["share_closer"], len(arrays["sample_distances"])
    suspicious = share > 2 * expected and share > expected + 3 * (expected * (1 - expected) / n) ** 0.5
    own, real = numbers["median_sample"], numbers["median_held_out"]
    searched, rows = numbers.get("train"), run.quality["data"]["train"]
    pairs, x = [], arrays["samples"]
    if x.ndim == 4:
        low, high = _range(run, arrays["neighbours"])
        for sample, near, gaps in zip(x, arrays["neighbours"], arrays["distances"], strict=True):
            tiles = [tile_uri(image, low, high) for image in near]
            pairs.append({"sample": tile_uri(sample, low, high), "near": tiles, "distance": number(float(gaps[0]))})
    chart = plots.neighbour_chart(arrays["sample_distances"], arrays["held_out_distances"], numbers["threshold"])
    return {
        "svg": Markup(chart),
        "share": percent(share),
        "expected": percent(expected),
        "searched": f"{searched:,} of {rows:,}" if searched and searched < rows else None,
        "samples": f"{n:,}",
        "verdict": "copies" if suspicious else "near" if own < 0.7 * real else "new",
        "medians": (number(own), number(real)),
        "pairs": pairs,
        "privacy": _privacy(run.quality.get("privacy")),
    }


def _privacy(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Copies, nearest records and the attack in words."""
    if not found:
        return None
    area, error = found["membership_auc"], found["membership_error"]
    return {
        "copies": percent(found["copies"]),
        "real": percent(found["held_out_copies"]),
        "nearer": percent(found["closest_record"]),
        "area": f"{area:.3f} ± {2 * error:.3f}",
        "told": area > 0.5 + 3 * error,
        "rows": f"{found['rows']:,}",
    }


def _training(run: RunFolder) -> dict[str, Any] | None:
    if not run.steps:
        return None
    held_out = ([r["step"] for r in run.held_out], [r["held_out_loss"] for r in run.held_out])
    small = []
    for key, label, mean in (
        ("grad_norm", "gradient norm", True),
        ("lr", "learning rate", False),
        ("samples_per_s", "samples a second", True),
    ):
        rows = [r for r in run.steps if isinstance(r.get(key), (int, float))]
        if rows:
            series = ([r["step"] for r in rows], [r[key] for r in rows])
            small.append(Markup(plots.step_chart(series, key, label, mean=mean)))
    train = ([r["step"] for r in run.steps], [r["loss"] for r in run.steps])
    return {"loss": Markup(plots.loss_chart(train, held_out)), "small": small, "evals": measured(run)}


def _config(run: RunFolder) -> list[tuple[str, list[tuple[str, str]]]]:
    sections = [(str(k), list(_flatten(v))) for k, v in run.config.items() if isinstance(v, dict) and v]
    plain = [(str(k), _plain(v)) for k, v in run.config.items() if not isinstance(v, dict)]
    return ([("run", plain)] if plain else []) + sections


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of a nested dict, as rows."""
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            yield from _flatten(value, f"{name}: ")
        elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
            yield from _flatten({str(i + 1): v for i, v in enumerate(value)}, f"{name} ")
        else:
            yield name, _plain(value)


def _plain(value: object) -> str:
    """Value as text."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def _commands(run: RunFolder) -> dict[str, str]:
    """Commands to repeat, measure and sample the run, and the original one."""
    folder = shlex.quote(str(run.path))
    again = shlex.join(["--config", str(run.path / "config.yaml"), "--run-dir", f"{run.path}-again"])
    return {
        "original": str(run.environment.get("command", "")),
        "repeat": f"advect train {again}" if run.config_text else "",
        "report": f"advect report {folder}",
        "sample": f"advect sample {folder}",
    }
