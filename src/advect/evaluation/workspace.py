"""What an evaluation has done so far, in a folder of its own, so that a call that was ended goes on.

WORK/NAME/part-00000-of-00020/    rows that have been drawn, as runs.parts has them
WORK/NAME.json                    what they came to; the parts are then removed
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from advect.core.errors import UserError
from advect.core.files import atomic_write, atomic_write_text, held, make_folder, sync_file
from advect.distributed.comm import broadcast_object, current, sync_errors, without_timeout
from advect.model.sharded_samples import PLAN, SampleShards, draw_parts

Progress = Callable[[str, int, int], None]
"""``progress(what, done, total)``: what has just been done, and how much of all the work is done."""

Tick = Callable[[str, int], None]
"""``tick(what, amount)``: that much more of the work is done."""


@contextmanager
def ticking(progress: Progress | bool, total: int) -> Iterator[Tick]:
    """Give a Tick that calls ``progress``, moves a bar (True) or does nothing (False)."""
    done = 0

    def tick(what: str, amount: int) -> None:
        nonlocal done
        done += amount
        if callable(progress):
            progress(what, done, total)

    if progress is not True:
        yield tick
        return
    from tqdm import tqdm

    with tqdm(total=total, desc="evaluate", bar_format="{percentage:3.0f}% |{bar}| {desc}") as bar:

        def move(what: str, amount: int) -> None:
            bar.set_description_str(what, refresh=False)
            bar.update(amount)

        yield move


Key = Mapping[str, str | int]


class ReferenceCache:
    """Tensors by what they were computed of, one .safetensors file a key in one folder.

    A key says all that the tensors depend on: the data's fingerprint, the split, how many rows and which, the
    features' identity, and what was computed. A file appears whole or not at all and carries its key; one that is
    damaged or of another key counts as missing and is replaced. So a cache never changes a number, and may be deleted
    any time.

    Args:
        folder: made where it is missing.

    Raises:
        UserError: the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = make_folder(Path(folder), "cache folder")

    def path(self, key: Key) -> Path:
        """The file of a key, which need not be there. Raises UserError for an empty key and an empty value."""
        if not key or not all(str(value) for value in key.values()):
            raise UserError(f"the key of cached tensors must say what they were computed of, got {dict(key)}")
        return self.folder / f"{hashlib.sha256(_text(key).encode()).hexdigest()[:32]}.safetensors"

    def load(self, key: Key) -> dict[str, Tensor] | None:
        """The tensors of a key by name, on the CPU; None where there are none."""
        path = self.path(key)
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("key") != _text(key):
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        except (OSError, SafetensorError):
            return None

    def keep(self, key: Key, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors of a key in one step."""
        whole = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
        atomic_write(self.path(key), lambda partial: save_file(whole, partial, metadata={"key": _text(key)}))

    def get(self, key: Key, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of a key, computed by ``make`` and kept where there are none."""
        found = self.load(key)
        if found is None:
            found = dict(make())
            self.keep(key, found)
        return found


def _text(key: Key) -> str:
    return json.dumps(dict(key), sort_keys=True)


PART = 500
"""So many rows at most are one part, on any number of processes."""

_FILE = "rows.safetensors"

T = TypeVar("T")

Fill = Callable[[range, tqdm], dict[str, Tensor]]
"""From rows of a set, and the bar to move on, to the tensors that are kept of them."""


@contextmanager
def working(folder: Path, *, stamp: str, show: bool, say: Callable[[str], None]) -> Iterator[EvalWorkspace]:
    """Work in a folder, which is made where it is missing and is gone after the block.

    Where the block fails, what a call that goes on needs stays. ``stamp`` is what the numbers depend on beside the
    evaluation; those of another are found anew. ``show`` says whether bars are shown, and ``say`` is told
    of damaged parts, both on the first process. Raises UserError where the folder cannot be written to, or another
    process works there.
    """
    first = current().is_first
    with ExitStack() as stack:
        with sync_errors():
            if first:
                stack.enter_context(held(make_folder(folder, "the folder"), "the folder", say=say))
        work = EvalWorkspace(folder, stamp, show and first, say)
        try:
            yield work
        except BaseException:
            if first and not any(folder.glob("*/part-*")) and not any(folder.glob("*.json")):
                _remove(folder)
            raise
        if first:
            _remove(folder)


def on_rank_zero(job: Callable[[], T]) -> T | None:
    """What ``job`` gives on the first process, however long it takes, and None on the others.

    All of them wait till then, and raise its UserError.
    """
    found, mistake = None, None
    with without_timeout():
        if current().is_first:
            try:
                found = job()
            except UserError as error:
                mistake = error
    with sync_errors():
        if mistake is not None:
            raise mistake
    return found


def _remove(folder: Path) -> None:
    """Remove a folder, and that which it lies in where nothing else does."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()


@dataclass(frozen=True)
class EvalWorkspace:
    """The folder of an evaluation, as :func:`working` gives it. All methods are called by all processes."""

    folder: Path
    stamp: str
    show: bool
    say: Callable[[str], None]

    def once(
        self,
        name: str,
        n: int,
        fill: Fill,
        *,
        load: Callable[[], T | None],
        finish: Callable[[Iterator[dict[str, Tensor]]], T],
        title: str,
    ) -> T | None:
        """On the first process what ``load`` finds, or else what ``finish`` makes of n rows; None on the others.

        ``finish`` gets the parts in their order, one at a time, once all processes have drawn them, and keeps what it
        makes where ``load`` finds it.
        """
        found = load() if current().is_first else None
        if not broadcast_object(found is None):
            return found
        parts = self._parts(name, n)

        def write(rows: range, folder: Path, bar: tqdm) -> list[Path]:
            tensors = {key: value.contiguous() for key, value in fill(rows, bar).items()}
            save_file(tensors, folder / _FILE)
            sync_file(folder / _FILE)
            return [folder / _FILE]

        draw_parts(parts, write, title=title, show=self.show, say=self.say)

        def stream() -> T:
            value = finish(load_file(parts.place(k) / _FILE) for k in range(parts.count))
            shutil.rmtree(parts.folder)
            return value

        return on_rank_zero(stream)

    def number(self, name: str, n: int, fill: Fill, finish: Callable[[Iterator[dict[str, Tensor]]], Any], title: str):
        """As :meth:`once`, for what JSON can hold, which is kept here."""
        file = self.folder / f"{name}.json"

        def load() -> Any:
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return None
            return found["value"] if found["stamp"] == self.stamp else None

        def kept(parts: Iterator[dict[str, Tensor]]) -> Any:
            value = finish(parts)
            atomic_write_text(file, json.dumps({"stamp": self.stamp, "value": value}, allow_nan=False) + "\n")
            return value

        return self.once(name, n, fill, load=load, finish=kept, title=title)

    def _parts(self, name: str, n: int) -> SampleShards:
        """The parts of a set, whose folder the first process makes."""
        parts = SampleShards(folder=self.folder / name, n=n, count=-(-n // PART))
        plan = {"rows": n, "parts": parts.count, "stamp": self.stamp}
        with sync_errors():
            if current().is_first:
                file = parts.folder / PLAN
                try:
                    if not file.is_file() or json.loads(file.read_text(encoding="utf-8")) != plan:
                        shutil.rmtree(parts.folder, ignore_errors=True)
                        parts.folder.mkdir()
                        atomic_write_text(file, json.dumps(plan) + "\n")
                except (OSError, ValueError) as error:
                    raise UserError(f"{parts.folder} cannot be written to ({error}); mend that and repeat") from error
        return parts
