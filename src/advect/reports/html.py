"""Pages that need nothing else: ``report.html`` of a run, and of a reflow."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from advect.core.files import write_text_whole
from advect.reports.run_folder import read_run


def write_report(run_dir: Path | str) -> Path:
    """Write ``run_dir``/report.html from the files of that folder alone, whole or not at all; return its path.

    Parts that are absent are named with the command that makes them, damaged ones are noted. The page holds
    its pictures, charts and style, and asks nothing of the network. Raises UserError when ``run_dir`` is not
    a run folder.
    """
    from advect.reports.sections import describe

    run = read_run(Path(run_dir))
    return write_page(run.path / "report.html", "template.html", describe(run))


def write_page(path: Path, template: str, values: dict[str, Any]) -> Path:
    """Write a page of one of the templates here, whole or not at all, and return its path."""
    from jinja2 import Environment, StrictUndefined  # a report is rarely wanted; the command line starts faster
    from markupsafe import Markup

    here = files("advect.reports")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = page.from_string(here.joinpath(template).read_text(encoding="utf-8"))
    write_text_whole(path, text.render(values, style=Markup(here.joinpath("page.css").read_text(encoding="utf-8"))))
    return path
