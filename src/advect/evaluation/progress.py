"""Telling how far an evaluation has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
