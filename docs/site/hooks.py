"""What MkDocs does not know: pages made from the source, links out of docs/, formulas as MathML, no foreign hosts."""

from __future__ import annotations

import ast
import html
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
import gallery  # of this folder

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src/advect"
log = logging.getLogger("mkdocs.hooks.advect")  # a warning here fails a strict build

COPIES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md", "figures.md": "bench/RESULTS.md"}
"""Pages that lie elsewhere in the repository."""

REFERENCE = {
    "sklearn": "Estimators",
    "model": "Flows",
    "paths": "Paths",
    "sources": "Sources",
    "couplings": "Couplings",
    "times": "Times",
    "weights": "Weights of times",
    "masks": "Masks",
    "losses": "Losses",
    "networks": "Networks",
    "solvers": "Solvers",
    "posterior": "Measurements",
    "data": "Data",
    "metrics": "Metrics",
    "training": "Training",
    "evaluation": "Evaluation",
    "core": "Shared types",
}
"""Pages of the reference: a package's or a module's public names."""

MODULES = {"posterior": "solvers/posterior/__init__.py"}
NAMES = {
    "model": ["advect.model.load.load", "advect.model.flow.Flow"],
    "posterior": [
        *(f"advect.solvers.posterior.methods.{name}" for name in ("DPS", "PiGDM", "MMPS", "RewardGuidance")),
        "advect.solvers.posterior.repaint.RePaint",
        *(
            f"advect.solvers.posterior.measurements.{name}"
            for name in ("Masked", "Blur", "Downsample", "ColumnSums", "Linear", "Differentiable")
        ),
        "advect.solvers.posterior.base.posterior_sample",
    ],
    "core": [
        *(f"advect.core.types.{name}" for name in ("Batch", "PathSample", "Category", "Quantity", "Length")),
        "advect.core.errors.UserError",
        "advect.core.random.CounterRng",
        "advect.core.registry.register",
    ],
}
"""Those chosen by hand."""

LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
MATHS = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)
VARIANT = re.compile(r'<mi mathvariant="(double-struck|script)">(\w)</mi>')
LETTERS = {("double-struck", "E"): "\U0001d53c", ("double-struck", "R"): "\u211d", ("script", "N"): "\U0001d4a9"}
"""Letters of their own: browsers know no other variants. A formula with another one fails the build."""

FOREIGN = re.compile(
    r'<(?:script|img|iframe|source)[^>]*\ssrc="(?:https?:)?//|<link[^>]*rel="(?:stylesheet|preconnect|icon)"[^>]*href="(?:https?:)?//'
)


def on_files(files: Files, *, config: Any) -> Files:
    """Add the reference, pages from other folders, the gallery, and each source file that a page links to."""
    for page, origin in COPIES.items():
        files.append(File.generated(config, page, content=(ROOT / origin).read_text(encoding="utf-8")))
    files.append(File.generated(config, "reference/index.md", content=overview()))
    for name, title in REFERENCE.items():
        files.append(File.generated(config, f"reference/{name}.md", content=reference(name, title)))
    for script in gallery.scripts():
        text, pictures = gallery.page(script)
        files.append(File.generated(config, f"gallery/{script.stem}.md", content=text))
        for picture in pictures:
            files.append(File.generated(config, f"gallery/{picture.name}", abs_src_path=str(picture)))
    links = [page_of(link[1], file.src_uri) for file in files.documentation_pages() for link in links_of(file)]
    for page in sorted({link for link in links if (link or "").startswith("source/")}):
        files.append(File.generated(config, page, content=source_page(page)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turn links to files outside docs/ into links to their pages."""
    here = page.file.src_uri

    def relative(match: re.Match[str]) -> str:
        target = page_of(match[1], here)
        if target is None:
            return match[0]
        return os.path.relpath(target, os.path.dirname(here) or ".") + (match[2] or "")

    return LINK.sub(relative, markdown)


def on_page_content(html_text: str, **_: Any) -> str:
    """Write formulas as MathML, which browsers show without a script."""
    return MATHS.sub(lambda m: mathml(html.unescape(m[2]), display=m[1] == "div"), html_text)


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """Warn of a page that would load something from another host."""
    if found := FOREIGN.search(output):
        log.warning("%s would load from another host: %s", page.file.src_uri, found[0])
    return output


def mathml(formula: str, *, display: bool) -> str:
    text = convert(formula.strip(), display="block" if display else "inline")
    return VARIANT.sub(lambda m: f"<mi>{LETTERS[m[1], m[2]]}</mi>", text)


def origin(page: str) -> Path:
    """Where the Markdown of a page lies."""
    return ROOT / COPIES[page] if page in COPIES else ROOT / "docs" / page


def page_of(link: str, page: str) -> str | None:
    """The page of the site for a link as written in ``page``, or None where it needs no change."""
    if "://" in link or link.startswith("mailto:") or page.startswith(("reference/", "source/")):
        return None
    target = Path(os.path.normpath(origin(page).parent / link))
    if not target.is_relative_to(ROOT) or not target.exists():
        return None
    name = target.relative_to(ROOT).as_posix()
    here = origin(page) if page in COPIES else None
    for copy, place in COPIES.items():
        if name == place:
            return copy
    if name == "README.md":
        return "index.md"
    if name == "src/advect/__init__.py":
        return "reference/index.md"
    if target.parent == gallery.SCRIPTS and target.suffix == ".py":
        return f"gallery/{target.stem}.md"
    if name.startswith("docs/"):
        return name.removeprefix("docs/") if here else None
    if target.is_dir():
        return f"reference/{target.name}.md" if target.name in REFERENCE else "reference/index.md"
    return f"source/{name.lstrip('.')}.md"


def links_of(file: File) -> list[re.Match[str]]:
    return list(LINK.finditer(file.content_string))


def source_page(page: str) -> str:
    """A file of the source as a page that search leaves out."""
    name = page.removeprefix("source/").removesuffix(".md")
    name = name if (ROOT / name).exists() else f".{name}"  # MkDocs takes no page whose name begins with a dot
    language = "python" if name.endswith(".py") else "bash"
    code = (ROOT / name).read_text(encoding="utf-8")
    return f"---\nsearch:\n  exclude: true\n---\n\n# {name}\n\n``````{language}\n{code}\n``````\n"


def module_of(name: str) -> tuple[Path, str]:
    """File and dotted name of a page's package or module."""
    file = SOURCE / MODULES.get(name, f"{name}/__init__.py")
    file = file if file.exists() else SOURCE / f"{name}.py"
    dotted = ".".join(file.relative_to(SOURCE.parent).with_suffix("").parts)
    return file, dotted.removesuffix(".__init__")


def public_names(name: str) -> list[str]:
    """Dotted names of what a package re-exports (``import X as X``), or a module defines."""
    if name in NAMES:
        return NAMES[name]
    file, dotted = module_of(name)
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and file.name == "__init__.py":
            found += [f"{node.module}.{alias.name}" for alias in node.names if alias.asname == alias.name]
    if file.name != "__init__.py":
        nodes = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
        found = [f"{dotted}.{node.name}" for node in nodes if not node.name.startswith("_")]
    return found


def reference(name: str, title: str) -> str:
    """A page with each public name of a package under its docstring."""
    file, dotted = module_of(name)
    about = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) if file.exists() else ""
    entries = "\n\n".join(f"::: {entry}" for entry in public_names(name))
    return f"# {title}: `{dotted}`\n\n{(about or '').partition(chr(10) + chr(10))[0]}\n\n{entries}\n"


def overview() -> str:
    """The front page of the reference: all public names, a package a line."""
    rows = []
    for name, title in REFERENCE.items():
        names = ", ".join(f"`{entry.rpartition('.')[2]}`" for entry in public_names(name))
        rows.append(f"## [{title}]({name}.md)\n\n`{module_of(name)[1]}`: {names}")
    head = (
        "# Reference\n\nPublic names, from their docstrings. Time runs from noise at t = 0 to data at t = 1; `B` is\n"
        "the batch, `*S` the shape of a sample.\n"
    )
    return head + "\n" + "\n\n".join(rows) + "\n"
