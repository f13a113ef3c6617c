"""What several rooms' tests share: small runs, and the command line called in this process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from advect.cli import run

MOONS = ["--width", "16", "--batch-size", "64", "--log-every", "5", "--sample-every", "20", "--num-samples", "50"]
DIGITS = ["--model-channels", "8", "--batch-size", "32", "--log-every", "5", "--sample-every", "0"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tests run in parallel processes on few cores, and none inherits what a job set for its process."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads what another call has left in the user's own cache."""
    os.environ["ADVECT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def advect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``advect("train moons --seed", 3)`` runs the command in an empty folder; mistakes raise UserError."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> None:
        run([part for word in words for part in str(word).split()])

    return call


@pytest.fixture(scope="session")
def moons_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on moons."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "moons"
    run(["train", "moons", "--max-steps", "40", "--run-dir", str(folder), "--save-every", "20", *MOONS])
    return folder


@pytest.fixture(scope="session")
def masked_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on moons that was given entries."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "masked"
    run(["train", "moons", "--mask", "random", "--max-steps", "20", "--run-dir", str(folder), *MOONS])
    return folder


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on digits, by class."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "digits"
    run(["train", "digits", "--max-steps", "12", "--run-dir", str(folder), "--save-every", "6", *DIGITS])
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """``disk("size=2m")`` mounts a file system with such options at ``disk``, or mounts it again with others."""
    folder, mounted = tmp_path / "disk", []
    folder.mkdir()

    def mount(options: str) -> Path:
        again = ["-o", f"remount,{options}"] if mounted else ["-t", "tmpfs", "-o", options, "tmpfs"]
        done = subprocess.run(["mount", *again, str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot mount here: {done.stderr.strip()}")
        mounted.append(options)
        return folder

    yield mount
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)
