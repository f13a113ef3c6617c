"""What a call of the command line may do, whatever it is given: be right, or refuse in one sentence.

Exit 0 leaves whole files of finite numbers, the same ones when it is repeated; exit 2 one sentence on stderr, no file
that looks whole, and what was there as it was. ``advect doctor`` may exit with 1, as it finds problems. All else is a
break: a traceback, other codes, a partial file left, a warning of a library on the way out. What is made from a
damaged checkpoint is what the sound one makes, or the one before it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from advect.cli import run
from advect.core.errors import UserError, printable, shortened
from faults.damage import damage

HELD, REFUSED, BROKE = "held", "refused", "broke"

CHECKPOINTS = ("run/checkpoints/", "run/ema/")
"""Where a damage may not change what is made."""

MARKS = (
    "samples.json",
    "report.html",
    "eval.json",
    "manifest.json",
    "average.safetensors",
    "README.md",
    "export.json",
)
"""Files of an output folder that a refused call must not leave new."""

BITS = {".safetensors", ".npy", ".npz", ".csv", ".tsv", ".parquet", ".png", ".bin"}
"""Files that hold the same bytes when a call is repeated; others hold times."""


@dataclass(frozen=True)
class Case:
    """A call, and the file that is damaged before it, if any; plain values, so that it can be written and replayed."""

    name: str
    words: tuple[str, ...]
    file: str = ""
    kind: str = ""
    seed: int = 0
    repeat: bool = False

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def of(text: str) -> Case:
        values = json.loads(text)
        return Case(**values | {"words": tuple(values["words"])})


@dataclass(frozen=True)
class Outcome:
    """What became of a case, and why it broke."""

    what: str
    why: str = ""
    said: str = ""


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str
    trace: str = ""


def call(words: tuple[str, ...]) -> Ended:
    """``advect WORDS`` in this process, with its code and words."""
    out, err, code, trace = io.StringIO(), io.StringIO(), 0, ""
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            load(*words[1:]) if words[:1] == ("load",) else run(list(words))
        except UserError as error:
            print(f"advect: {shortened(printable(str(error)))}", file=sys.stderr)
            code = 2
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException as error:
            code, trace = 1, f"{_place(error)}\n{traceback.format_exc()}"
    return Ended(code, out.getvalue(), err.getvalue(), trace)


def _place(error: BaseException) -> str:
    """An error's kind, and the last line of advect that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/advect/" in frame.filename] or frames
    where = f"{ours[-1].filename.split('/advect/')[-1]}:{ours[-1].lineno} {ours[-1].name}" if ours else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__} at {where}: {printable(text)[:160]}"


def load(path: str, ema: str = "yes") -> None:
    """Weights as Python code loads them, written where they can be compared; called as ``load PATH [no]``."""
    import advect

    flow = advect.load(path, ema=ema == "yes", device="cpu")
    Path("out").mkdir()
    np.savez("out/loaded.npz", **{name: x.numpy() for name, x in flow.net.state_dict().items()})


Around = Callable[[Case, Path], contextlib.AbstractContextManager[None]]


def perform(case: Case, home: Path, work: Path, around: Around | None = None) -> Outcome:
    """Do a case on a copy of ``home`` in ``work``, which is emptied; judge it. The call alone is within ``around``."""
    here, folder = Path.cwd(), work / "a" / "b" / "c"  # so that ../beside stays within
    shutil.rmtree(work, ignore_errors=True)
    copy(home, folder, case)
    before = contents(folder)
    os.chdir(folder)
    try:
        with around(case, folder) if around else contextlib.nullcontext():
            ended = call(case.words)
        why = judge(case, ended, before, folder)
        if not why and ended.code == 0 and case.file.startswith(CHECKPOINTS):
            why = other_bits(case, made(before, folder), home, work.with_name(f"{work.name}-sound"))
        if not why and ended.code == 0 and case.repeat:
            why = repeated(case, home, folder, work / "again" / "b" / "c")
    finally:
        os.chdir(here)
    what = BROKE if why else REFUSED if ended.code == 2 else HELD
    return Outcome(what, why, (ended.trace or ended.err).strip()[-4000:])


def copy(home: Path, folder: Path, case: Case) -> None:
    """The sound files that a case needs, damaged as it says."""
    data = sorted({word.split("/")[1] for word in (*case.words, case.file) if word.startswith("data/")})
    folder.mkdir(parents=True)
    for place in home.iterdir():
        if place.is_file():
            shutil.copy(place, folder)
        elif place.name != "data":
            shutil.copytree(place, folder / place.name, symlinks=True)
    for name in data:
        if (home / "data" / name).is_dir():
            shutil.copytree(home / "data" / name, folder / "data" / name)
    if case.file:
        damage(folder / case.file, case.kind, case.seed)


def contents(folder: Path) -> dict[str, bytes]:
    """Regular files below a folder."""
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            if path.is_file() and not path.is_symlink():
                found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def judge(case: Case, ended: Ended, before: dict[str, bytes], folder: Path) -> str:
    """Why a call broke; empty if it did not."""
    if ended.trace:
        return ended.trace.splitlines()[0]
    after = contents(folder)
    left = [name for name in after.keys() - before.keys() if re.search(r"\.partial$|/\.writable|^\.writable", name)]
    if left:
        return f"left {sorted(left)[0]}"
    if ended.code == 0 or (ended.code == 1 and case.words[0] == "doctor" and ended.out.strip()):
        return unsound({name: x for name, x in after.items() if before.get(name) != x}, folder)
    if ended.code != 2:
        return f"exit code {ended.code}: {' '.join(ended.err.split())[-200:]}"
    return one_sentence(ended.err) or _untouched(case, before, after)


def one_sentence(err: str) -> str:
    lines = [line for line in err.splitlines() if line.startswith("advect: ")]
    if len(lines) != 1 or not err.rstrip("\n").endswith(lines[0]):
        return f"exit 2 without one sentence at the end: {err[-200:]!r}"
    text = lines[0].removeprefix("advect: ")
    if not text.strip() or "Traceback" in err or len(text) > 4000:
        return f"exit 2 with no sentence: {text[:200]!r}"
    return ""


def _untouched(case: Case, before: dict[str, bytes], after: dict[str, bytes]) -> str:
    """Whether a refused call changed what was there, or left what looks whole."""
    resumes = any(word.startswith("--resume") for word in case.words) or case.words[0] in (
        "distill",
        "reflow",
        "train",
    )
    gone = [name for name, x in before.items() if after.get(name) != x]
    grows = lambda name: "checkpoints/" not in name or name.endswith("/latest")  # a run that goes on, and saves
    gone = [name for name in gone if not name.endswith(".lock") and not (resumes and grows(name))]
    if gone:
        return f"exit 2, and {sorted(gone)[0]} is {'changed' if sorted(gone)[0] in after else 'gone'}"
    marks = [name for name in after.keys() - before.keys() if name in {f"out/{mark}" for mark in MARKS}]
    return f"exit 2, and it left {marks[0]}" if marks else ""


def unsound(made: dict[str, bytes], folder: Path) -> str:
    """Why a written file is not whole, or not finite."""
    for name, content in made.items():
        try:
            wrong = _wrong(folder / name, content)
        except Exception as error:
            wrong = f"cannot be read ({type(error).__name__}: {error})"
        if wrong:
            return f"exit 0, and {name} {wrong[:200]}"
    return ""


def _wrong(file: Path, content: bytes) -> str:
    suffix = file.suffix
    if suffix in (".json", ".jsonl"):
        rows = content.splitlines() if suffix == ".jsonl" else [content]
        for row in rows:
            json.loads(row, parse_constant=lambda name: _fail(f"holds {name}"))
    elif suffix == ".npy" or suffix == ".npz":
        with contextlib.closing(io.BytesIO(content)) as buffer:
            loaded = np.load(buffer, allow_pickle=False)
            arrays = [loaded] if suffix == ".npy" else list(loaded.values())
        if any(x.dtype.kind == "f" and not np.isfinite(x).all() for x in arrays):
            return "is not finite"
    elif suffix == ".safetensors":
        import torch
        from safetensors.torch import load

        tensors = load(content)
        if any(x.is_floating_point() and not torch.isfinite(x).all() for x in tensors.values()):
            return "is not finite"
    elif suffix == ".png":
        from PIL import Image

        Image.open(io.BytesIO(content)).load()
    elif suffix == ".html":
        return "" if content.rstrip().endswith(b"</html>") else "does not end"
    elif file.name == "samples.csv":
        return "is not finite" if re.search(rb"(^|,)-?(inf|nan)(,|$)", content, re.MULTILINE | re.I) else ""
    return ""


def _fail(why: str) -> None:
    raise ValueError(why)


def made(before: dict[str, bytes], folder: Path) -> dict[str, bytes]:
    """New and changed files that are the same each time."""
    found = contents(folder).items()
    return {n: x for n, x in found if Path(n).suffix in BITS and "evaluation/" not in n and before.get(n) != x}


_sound: dict[tuple[str, ...], list[dict[str, bytes]]] = {}


def other_bits(case: Case, found: dict[str, bytes], home: Path, work: Path) -> str:
    """Why what was made of a damaged checkpoint is neither what the sound one makes, nor the one before it."""
    if case.words not in _sound:
        _sound[case.words] = [_made_of(case.words, home, work, older) for older in (False, True)]
    if any(found == wanted for wanted in _sound[case.words]):
        return ""
    wanted = _sound[case.words][0]
    names = sorted(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))
    return f"exit 0 on a damaged checkpoint, and another {names[0] if names else 'set of files'}"


def _made_of(words: tuple[str, ...], home: Path, work: Path, older: bool) -> dict[str, bytes]:
    here = Path.cwd()
    shutil.rmtree(work, ignore_errors=True)
    copy(home, work, Case("sound", words))
    if older:
        newest = max((work / "run/checkpoints").glob("step-*"))
        shutil.rmtree(newest)
    before = contents(work)
    os.chdir(work)
    try:
        ended = call(words)
    finally:
        os.chdir(here)
    return made(before, work) if ended.code == 0 else {"refused": b""}


def repeated(case: Case, home: Path, first: Path, again: Path) -> str:
    """Why the same call on the same files made other bytes."""
    copy(home, again, case)
    os.chdir(again)
    ended = call(case.words)
    if ended.code != 0:
        return f"the same call again exits with {ended.code}: {(ended.trace or ended.err)[:200]}"
    one, other = contents(first), contents(again)
    if one.keys() != other.keys() and not (one.keys() ^ other.keys()) & {n for n in one if Path(n).suffix in BITS}:
        return ""
    for name in sorted(one.keys() | other.keys()):
        if Path(name).suffix in BITS and "evaluation/" not in name and one.get(name) != other.get(name):
            return f"the same call again makes another {name}"
    return ""
