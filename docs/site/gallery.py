"""The gallery: runs the scripts of docs/gallery and makes pages of them, with what they printed and drew.

    python docs/site/gallery.py [NAME ...] [--output build/gallery]

A script is in percent format, as Jupyter, VS Code and Jupytext read it: cells begin with ``# %%``, text cells with
``# %% [markdown]``. Each runs in a process and an empty folder of its own. The output of a cell is what it prints and
the figures that are open at its end. Without a page of the script as it is, the site shows the code alone.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "docs/gallery"
BUILT = ROOT / "build/gallery"
DOTS = 96
"""Dots per inch of a figure."""


class Cell(NamedTuple):
    """A part of a script: text or code, and the line of the script where it begins."""

    text: bool
    source: str
    line: int


def scripts() -> list[Path]:
    return sorted(SCRIPTS.glob("*.py"))


def cells(source: str) -> list[Cell]:
    """The cells of a script in percent format; text cells without their leading ``# ``."""
    found: list[Cell] = []
    for match in re.finditer(r"^# %%(.*)\n((?:(?!# %%).*(?:\n|\Z))*?)(?=^# %%|\Z)", source, flags=re.M):
        body, line = match[2], source[: match.start(2)].count("\n") + 1
        if "[markdown]" in match[1]:
            body = re.sub(r"^# ?", "", body, flags=re.M)
        if body.strip():
            found.append(Cell("[markdown]" in match[1], body.strip("\n"), line))
    return found


def digest(script: Path) -> str:
    return hashlib.sha256(script.read_bytes()).hexdigest()[:16]


def page(script: Path, built: Path = BUILT) -> tuple[str, list[Path]]:
    """A page's Markdown and pictures: as run, if the page in ``built`` is of this script, else its code."""
    file = built / f"{script.stem}.md"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if text.startswith(f"<!-- {digest(script)} -->"):
        return text, sorted(built.glob(f"{script.stem}-*.png"))
    note = f"Not run here: `make gallery ONLY={script.stem}` runs it and shows what it prints and draws."
    parts = [cell.source if cell.text else fenced(cell.source, "python") for cell in cells(script.read_text())]
    return "\n\n".join([parts[0], note, *parts[1:]]) + "\n", []


def fenced(text: str, language: str = "text") -> str:
    return f"````{language}\n{text}\n````"


class CellError(Exception):
    """A cell that failed, in one sentence."""


def execute(script: Path, output: Path) -> str:
    """Run a script's cells in the present folder; return its page and write its pictures to ``output``."""
    import matplotlib

    matplotlib.use("Agg")
    names: dict[str, Any] = {"__name__": "__main__", "__file__": str(script)}
    parts, began = [f"<!-- {digest(script)} -->"], time.process_time()
    for cell in cells(script.read_text(encoding="utf-8")):
        if cell.text:
            parts.append(cell.source)
            continue
        parts.append(fenced(cell.source, "python"))
        printed = run_cell(script, cell, names)
        if printed.strip():
            parts.append(fenced(printed.rstrip()))
        parts += pictures(script.stem, output, sum("![" in part for part in parts))
    children = os.times()
    seconds = time.process_time() - began + children.children_user + children.children_system
    name = script.relative_to(ROOT) if script.is_relative_to(ROOT) else script.name
    parts.append(f"Made by `{name}` in {seconds:.0f} CPU seconds.")
    return "\n\n".join(parts) + "\n"


def run_cell(script: Path, cell: Cell, names: dict[str, Any]) -> str:
    """Run a cell; return what it printed. Raises CellError if it fails."""
    stream = io.StringIO()
    try:
        code = compile("\n" * (cell.line - 1) + cell.source, str(script), "exec")
        with contextlib.redirect_stdout(stream):
            exec(code, names)
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(script)]
        where = f"line {lines[-1]}" if lines else f"the cell at line {cell.line}"
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CellError(f"gallery page {script.name} failed in {where}: {reason[:300]}") from error
    return stream.getvalue()


def pictures(stem: str, output: Path, before: int) -> list[str]:
    """Write the open figures as PNG files, close them, and return their Markdown."""
    import matplotlib.pyplot as plt

    found = []
    for number in plt.get_fignums():
        figure = plt.figure(number)
        title = next((axes.get_title() for axes in figure.axes if axes.get_title()), stem)
        name = f"{stem}-{before + len(found) + 1}.png"
        figure.savefig(output / name, dpi=DOTS, bbox_inches="tight")
        found.append(f"![{title}]({name})")
    plt.close("all")
    return found


def build(script: Path, output: Path) -> str | None:
    """Run a script in a process and an empty folder of its own; write its page, or return a sentence if it fails."""
    output.mkdir(parents=True, exist_ok=True)
    for old in [output / f"{script.stem}.md", *output.glob(f"{script.stem}-*.png")]:
        old.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--alone", str(script.resolve()), "--output", str(output.resolve())]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]
        return last if last.startswith("gallery page") else f"gallery page {script.name} failed: {last}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the gallery's scripts and make pages of them.")
    parser.add_argument("names", nargs="*", help="pages, such as moons; all if none")
    parser.add_argument("--output", type=Path, default=BUILT)
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        try:
            text = execute(arguments.alone, arguments.output)
        except CellError as error:
            print(error, file=sys.stderr)
            return 1
        (arguments.output / f"{arguments.alone.stem}.md").write_text(text, encoding="utf-8")
        return 0
    known = {script.stem: script for script in scripts()}
    for name in arguments.names or known:
        if name not in known:
            print(f"no gallery page {name!r}; there are {', '.join(known)}", file=sys.stderr)
            return 2
        if mistake := build(known[name], arguments.output):
            print(mistake, file=sys.stderr)
            return 1
        print(f"{name}: {(arguments.output / name).with_suffix('.md')}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
