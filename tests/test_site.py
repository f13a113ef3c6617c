"""The site's pages are reached, and the gallery runs, shows what it printed and fails in one sentence."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parents[1]
GALLERY = ROOT / "docs/site/gallery.py"
SCRIPTS = sorted((ROOT / "docs/gallery").glob("*.py"))

SCRIPT = """\
# %% [markdown]
# # A page
#
# Text with $x$.

# %%
import matplotlib.pyplot as plt

x = 2
print("two is", x)
plt.plot([0, 1]), plt.title("a line")

# %%
print(x + {more})
"""


@pytest.fixture(scope="module")
def gallery() -> ModuleType:
    spec = importlib.util.spec_from_file_location("advect_gallery", GALLERY)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def leaves(nav: object) -> set[str]:
    """The pages of a navigation."""
    if isinstance(nav, dict):
        nav = list(nav.values())
    return set().union(*map(leaves, nav)) if isinstance(nav, list) else {str(nav)}


def test_the_navigation_has_every_page() -> None:
    pages = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    docs = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert docs | {f"gallery/{script.stem}.md" for script in SCRIPTS} <= pages
    made = {page for page in pages - docs if not page.startswith(("reference/", "gallery/"))}
    assert made == {"contributing.md", "changelog.md", "figures.md"}


def test_pictures_are_small() -> None:
    front = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    shown = [ROOT / "docs" / name for name in re.findall(r"\]\((images/[^)]+)\)", front)]
    assert len(shown) >= 6 and max(path.stat().st_size for path in shown) < 100_000
    assert sum(path.stat().st_size for path in (ROOT / "docs/images").iterdir()) < 1_000_000


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_a_short_page(script: Path, gallery: ModuleType) -> None:
    found = gallery.cells(script.read_text(encoding="utf-8"))
    assert found[0].text and found[0].source.startswith("# ") and not found[-1].source.endswith("# %%")
    assert sum(not cell.text for cell in found) and script.read_text(encoding="utf-8").count("\n") < 90
    listed = (ROOT / "docs/gallery/index.md").read_text(encoding="utf-8")
    assert f"]({script.stem}.py)" in listed


def test_cells_keep_their_lines(gallery: ModuleType) -> None:
    text, first, second = gallery.cells(SCRIPT.format(more=1))
    assert text.text and text.source == "# A page\n\nText with $x$."
    lines = SCRIPT.splitlines()
    assert lines[first.line - 1] == first.source.splitlines()[0] == "import matplotlib.pyplot as plt"
    assert (lines[second.line - 1], second.source) == ("print(x + {more})", "print(x + 1)")


def test_a_page_has_output_and_pictures_until_its_script_changes(gallery: ModuleType, tmp_path: Path) -> None:
    script, built = tmp_path / "try.py", tmp_path / "built"
    script.write_text(SCRIPT.format(more=40))
    before, pictures = gallery.page(script, built)
    assert "make gallery ONLY=try" in before and "two is" in before and not pictures
    assert gallery.build(script, built) is None
    after, pictures = gallery.page(script, built)
    assert "````text\ntwo is 2\n````" in after and "````text\n42\n````" in after
    assert "![a line](try-1.png)" in after and [path.name for path in pictures] == ["try-1.png"]
    assert pictures[0].read_bytes().startswith(b"\x89PNG")
    script.write_text(SCRIPT.format(more=41))
    assert gallery.page(script, built)[0] == before.replace("x + 40", "x + 41")


@pytest.mark.parametrize(
    "wrong, reason",
    [("nothing", "NameError: name 'nothing' is not defined"), ("exit(3)", "SystemExit: 3"), ("(", "SyntaxError")],
)
def test_a_page_that_fails_is_told_in_one_sentence(
    gallery: ModuleType, tmp_path: Path, wrong: str, reason: str
) -> None:
    script, built = tmp_path / "try.py", tmp_path / "built"
    script.write_text(SCRIPT.format(more=wrong))
    sentence = gallery.build(script, built)
    assert sentence.startswith(f"gallery page try.py failed in line 14: {reason}") or (
        wrong == "(" and sentence.startswith(f"gallery page try.py failed in the cell at line 14: {reason}")
    )
    assert "\n" not in sentence and not (built / "try.md").exists()


def test_a_name_that_is_no_page_is_refused() -> None:
    done = subprocess.run([sys.executable, str(GALLERY), "moon"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("no gallery page 'moon'; there are ")


@pytest.mark.parametrize("name, fact", [("own-path", "exactly 0.7"), ("moons", "integral over the grid: ")])
def test_a_page_of_the_gallery_runs(gallery: ModuleType, tmp_path: Path, name: str, fact: str) -> None:
    assert gallery.build(ROOT / f"docs/gallery/{name}.py", tmp_path) is None
    text = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
    assert fact in text and (tmp_path / f"{name}-1.png").stat().st_size < 200_000
    if name == "moons":
        assert float(text.split(fact)[-1].split()[0]) == pytest.approx(1, abs=0.02)
    else:
        assert float(text.split("mode: ")[-1].split(",")[0]) == pytest.approx(0.7, abs=0.05)
