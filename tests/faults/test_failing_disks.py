"""Every command that writes, on a disk that fails at its n-th write: a sentence, nothing that looks whole."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advect.core.errors import UserError
from faults.disk import ERRORS, FaultyDisk

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names open files by /proc")

SAYS = {
    errno.ENOSPC: "disk is full|No space left",
    errno.EFBIG: "become that large|File too large",
    errno.EIO: "EIO|Input/output error",
    errno.EROFS: "[Rr]ead-only",
}


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def check_sentence(error: UserError, number: int) -> None:
    text = str(error)
    assert "\n" not in text and "Traceback" not in text and re.search(SAYS[number], text), text
    assert number in (errno.ENOSPC,) or "free some space" not in text, text


thorough = pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 7])


def break_writes(call: Callable[[], None], folder: Path, out: Path, last: str, every: int) -> None:
    """``call`` with the disk failing from each ``every``-th write on, in turn, and then repeated on a sound one.

    It writes into ``out`` in ``folder``, where the file called ``last`` marks what is whole.
    """
    folder.mkdir()
    whole, same = (out / last).is_file, lambda: files_of(out)
    with FaultyDisk(folder) as disk:
        call()
    wanted, writes = same(), disk.writes
    assert writes >= 3, disk.log
    for nth in range(1, writes + 1, every):
        shutil.rmtree(folder)
        folder.mkdir()
        number = ERRORS[nth // every % len(ERRORS)]
        with FaultyDisk(folder, number, nth) as disk:
            try:
                call()
            except UserError as error:
                check_sentence(error, number)
                assert not whole() or wanted.items() <= same().items(), disk.log  # only a last sync failed
            else:
                assert same() == wanted, disk.log
                continue
        assert not [p for p in folder.rglob(".*") if p.name.endswith((".partial", ".lock"))], disk.log
        call()
        assert same() == wanted, disk.log


@thorough
def test_a_sampling_that_fails_at_any_write_leaves_no_set_and_is_repeated(advect, moons_run, tmp_path, every):
    out = tmp_path / "made" / "out"
    call = lambda: advect(f"sample {moons_run} --num-samples 20 --num-steps 2 --output-dir {out}")
    break_writes(call, out.parent, out, "samples.json", every)


@thorough
def test_parts_that_fail_at_any_write_are_gone_on_with(advect, moons_run, tmp_path, every):
    out = tmp_path / "made" / "out"
    call = lambda: advect(f"sample {moons_run} --num-samples 20 --num-steps 2 --part-size 10 --output-dir {out}")
    break_writes(call, out.parent, out, "samples.json", every)


@thorough
def test_draws_that_fail_at_any_write_are_gone_on_with(advect, masked_run, tmp_path, every):
    out, given = tmp_path / "made" / "out", tmp_path / "given.csv"
    given.write_text("x1,x2\n" + "0.5,\n,0.25\n" * 5)
    call = lambda: advect(f"impute {masked_run} {given} --draws 2 --num-steps 2 --part-size 10 --output-dir {out}")
    break_writes(call, out.parent, out, "samples.json", every)


@thorough
def test_a_pack_that_fails_at_any_write_is_named_so_and_gone_on_with(advect, tmp_path, every):
    images, out = tmp_path / "images", tmp_path / "made" / "pack"
    images.mkdir()
    for i in range(4):
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(images / f"{i}.png")
    call = lambda: advect(f"data pack {images} --image-size 8 --output {out}")
    break_writes(call, out.parent, out, "manifest.json", every)


@pytest.mark.parametrize("nth", [1, 2, 4])
def test_an_evaluation_on_a_failing_disk_is_a_sentence(advect, moons_run, tmp_path, nth):
    out = tmp_path / "made"
    out.mkdir()
    number = ERRORS[nth % len(ERRORS)]
    call = f"eval {moons_run} --num-samples 50 --metrics energy --nfe 2 --output {out / 'new' / 'eval.json'}"
    with FaultyDisk(out, number, nth), pytest.raises(UserError) as caught:
        advect(call)
    check_sentence(caught.value, number)
    assert not (out / "new" / "eval.json").exists()
    advect(call)
    assert (out / "new" / "eval.json").is_file()


@pytest.mark.parametrize("number", ERRORS)
def test_a_report_on_a_failing_disk_is_a_sentence(advect, moons_run, tmp_path, number):
    out = tmp_path / "made"
    call = f"report {moons_run} --no-measure --output-dir {out}"
    with FaultyDisk(tmp_path) as disk:
        advect(call)
    for nth in range(1, disk.writes + 1):
        shutil.rmtree(out, ignore_errors=True)
        with FaultyDisk(tmp_path, number, nth) as disk:
            try:
                advect(call)
            except UserError as error:
                check_sentence(error, number)
            else:
                assert (out / "report.html").is_file(), disk.log
