"""The documentation tells the truth: its links, paths, names, commands, tables and examples."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml

import advect
from advect.cli import run
from advect.core import registry
from advect.core.errors import UserError
from advect.data.autodetect import autodetect

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "bench/RESULTS.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
BOGUS = "--no-such-flag"
WORDS = {"PATH": "shapes", "PATH/TO/IMAGES": "shapes", "faces": "shapes", "photos": "shapes", "PRESET": "images"}
WORDS |= {"photos.zip": "shapes.zip", "screen.h5ad": "cells.h5ad", "emoji64": "shapes", "RUN": "runs/digits"}
WORDS |= {
    f"runs/celeba64{end}": f"runs/digits{newest}"
    for end, newest in {
        "": "",
        "/checkpoints/epoch-50": "/checkpoints/latest",
        "/checkpoints/checkpoint_epoch_50": "/checkpoints/latest",
    }.items()
}
WORDS |= {"NAME": "dit", "SEED": "0", "runs/moons": "runs/digits", "runs/faces": "runs/digits"}
"""Files of docs/data.md and values that stand for placeholders."""


def pages() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def expanded(text: str) -> list[str]:
    """``a/{b,c}.py`` as ``a/b.py`` and ``a/c.py``."""
    parts = [part.strip("{}").split(",") for part in re.split(r"(\{.*?\})", text)]
    return ["".join(choice) for choice in itertools.product(*parts)]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)


@pages()
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    places = [ROOT, ROOT / "src/advect", ROOT / "docs", page.parent]
    named = re.findall(r"`([\w{},./-]+/[\w{},.-]*(?:\.py|\.md|/)|(?:src|tests|bench|examples)/[\w{},./-]+)`", text)
    files = [file for name in named for file in expanded(name)]
    assert [file for file in files if not any((place / file).exists() for place in places)] == []


@pages()
def test_names_resolve(page: Path) -> None:
    for block in python_blocks(page):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("advect"):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}")
    rooms = "|".join(path.stem for path in (ROOT / "src/advect").glob("[a-z]*") if path.stem != "sklearn")
    for name in re.findall(rf"`(?:advect\.)?((?:{rooms})(?:\.\w+)+)", page.read_text(encoding="utf-8")):
        if name.rpartition(".")[2] not in ("py", "md", "yaml", "json", "jsonl", "safetensors"):
            assert resolves(f"advect.{name}"), f"advect.{name}"


def resolves(name: str) -> bool:
    parts = name.split(".")
    for i in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for part in parts[i:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


def commands(page: Path) -> Iterator[str]:
    """The words after ``advect`` of every command in a code block or between backticks."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^(?: {4,}|\s.*-m )advect ([a-z].*)$", text, flags=re.M)
    for line in [*lines, *re.findall(r"`advect ([a-z]+ [^`]*)`", text)]:
        words = re.split(r"\s+#|\s{3,}|`|[;|]", line)[0]
        if not re.search(r"\.\.\.|\[|~/|COMMAND|FOLDER|presets|--config$|\$", words):
            yield words


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, digits_run: Path) -> Iterator[Path]:
    """A folder with the files that docs/data.md makes, and runs by the names in the docs."""
    pytest.importorskip("anndata")
    folder, before = tmp_path_factory.mktemp("docs"), Path.cwd()
    os.chdir(folder)
    names: dict[str, object] = {}
    for block in python_blocks(ROOT / "docs/data.md"):
        exec(compile(block, "docs/data.md", "exec"), names)
    (folder / "runs").mkdir()
    (folder / "runs/digits").symlink_to(digits_run)
    yield folder
    os.chdir(before)


@pages()
def test_commands_parse(page: Path, workplace: Path) -> None:
    for command in dict.fromkeys(commands(page)):
        name, *words = (WORDS.get(word, word) for word in shlex.split(command))
        if "--help" in words or name == "data" or EXAMPLES.keys() & set(words):  # parts that are not there yet
            continue
        with pytest.raises(UserError) as mistake:
            run([name, *words, BOGUS])
        assert str(mistake.value).startswith((BOGUS, f"'{BOGUS}'")), f"advect {command}: {mistake.value}"


EXAMPLES = {block.split('@register("')[1].split('"')[0]: block for block in python_blocks(ROOT / "CONTRIBUTING.md")}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_of_contributing_is_a_part(name: str, monkeypatch: pytest.MonkeyPatch, moons_run: Path) -> None:
    block, module = EXAMPLES[name], ModuleType("advect_example")
    assert block.count("\n") < 40
    monkeypatch.setitem(sys.modules, "advect_example", module)
    exec(compile(block, "CONTRIBUTING.md", "exec"), module.__dict__)
    cls = next(v for v in vars(module).values() if isinstance(v, type) and vars(v).get("part_name") == name)
    try:
        assert name in registry.choices(cls.part_kind)
        assert f"| `{name}` | `{cls.__name__}` |" in registry.markdown_table(cls.part_kind)
        use_part(cls.part_kind, name, moons_run)
    finally:
        registry.unregister(cls)


def use_part(kind: str, name: str, moons_run: Path) -> None:
    """Train or measure with the part from the command line."""
    flags = ["--max-steps", "2", "--batch-size", "32", "--sample-every", "0"]
    folder = moons_run.parent / f"example-{name}"
    if kind == "data-format":
        file = folder.with_suffix(".vec")
        np.savetxt(file, np.random.default_rng(0).normal(size=(40, 3)))
        cls, _ = autodetect(file)[0]
        assert registry.name_of(cls) == name and cls.open(file).train.fetch(np.arange(5)).x1.shape == (5, 3)
    elif kind == "metric":
        run(["eval", str(moons_run), "--metrics", name, "--num-samples", "50", "--output", f"{folder}.json"])
        assert name in json.loads(Path(f"{folder}.json").read_text())["points"][0]["metrics"]
    else:
        run(["train", "moons", f"--{kind}", name, *flags, "--run-dir", str(folder)])
        assert f"{kind}: {name}" in (folder / "config.yaml").read_text()


def test_the_tables_are_those_of_the_registry() -> None:
    count = 0
    for page in PAGES:
        for kind, table in re.findall(r"<!-- parts: (\S+) -->\n(.*?)\n<!-- end -->", page.read_text(), flags=re.S):
            assert table.strip() == registry.markdown_table(kind), f"run python docs/tables.py: {page.name}, {kind}"
            count += 1
    assert count


def test_the_repository_holds_text_and_small_pictures_alone() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("no git checkout")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    kinds = {path.suffix for path in files if path.exists()} - {".py", ".md", ".toml", ".yml", ".yaml", ".txt", ".cff"}
    assert kinds <= {"", ".png", ".html", ".css", ".js", ".typed", ".sh"}
    assert max(path.stat().st_size for path in files if path.exists()) < 300_000


def test_the_version_stands_in_one_place_and_the_citation_repeats_it() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == advect.__version__ and cited["cff-version"] == "1.2.0"
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for file in (ROOT / ".github").rglob("*.yml"):
        assert yaml.safe_load(file.read_text(encoding="utf-8"))["name"]
