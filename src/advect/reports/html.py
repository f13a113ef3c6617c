"""``report.html``: a run on one page that needs nothing else."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from advect.core.files import write_text_whole
from advect.reports.run_folder import read_run


def write_report(run_dir: Path | str) -> Path:
    """Write ``run_dir``/report.html from the files of that folder alone, whole or not at all; return its path.

    Parts that are absent are named with the command that makes them, damaged ones are noted. The page holds
    its pictures, charts and style, and asks nothing of the network. Raises UserError when ``run_dir`` is not
    a run folder.
    """
    from jinja2 import Environment, StrictUndefined  # a report is rarely wanted; the command line starts faster

    from advect.reports.sections import describe

    run = read_run(Path(run_dir))
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = page.from_string(files("advect.reports").joinpath("template.html").read_text(encoding="utf-8"))
    path = run.path / "report.html"
    write_text_whole(path, template.render(describe(run)))
    return path
