"""Where a run begins: from nothing or from a checkpoint, in a folder that it locks and whose environment it notes."""

from __future__ import annotations

import json
import logging
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from advect.checkpoint.manifest import newest_whole
from advect.core import registry
from advect.core.errors import UserError
from advect.core.files import LOCK, atomic_write_text, is_partial, lock_folder
from advect.core.records import find_object
from advect.distributed.comm import current
from advect.distributed.context import RunContext
from advect.model.load import ModelMetadata
from advect.training import find_checkpoint, verify_checkpoint
from advect.training.state import read_progress

logger = logging.getLogger(__name__)


def resolve_checkpoint(run_dir: Path, resume_from: Path | None, resume: str) -> Path | None:
    """Undamaged checkpoint to continue from, or None."""
    if resume == "auto":
        return newest_whole(run_dir)
    checkpoint = find_checkpoint(resume_from) if resume_from else None
    if checkpoint:
        verify_checkpoint(checkpoint)
    return checkpoint


def check_folder(run_dir: Path, checkpoint: Path | None, again: bool) -> None:
    """Raise UserError unless the run may be written there; ``again`` also allows a run killed early."""
    if run_dir.is_file():
        raise UserError(f"--run-dir {run_dir} is a file; name a folder")
    resumed = checkpoint is not None and checkpoint.parent.parent.resolve() == run_dir.resolve()
    resumed = resumed or (again and (run_dir / "config.yaml").is_file())
    if not resumed and run_dir.is_dir() and any(not _is_nothing(path) for path in run_dir.iterdir()):
        resume = f", or continue it with --resume-from {run_dir}" if (run_dir / "checkpoints").is_dir() else ""
        raise UserError(f"--run-dir {run_dir} is not empty; name a new folder with --run-dir{resume}")


def _is_nothing(path: Path) -> bool:
    """Whether a path is a lock, or what a start left that was killed before it wrote a file."""
    return path.name == LOCK or is_partial(path)


@contextmanager
def lock_run_dir(run_dir: Path, checkpoint: Path | None, again: bool) -> Iterator[None]:
    """Lock the folder against other runs on the first process, and check it again."""
    if not current().is_first:
        yield
        return
    with lock_folder(run_dir, "--run-dir"):
        check_folder(run_dir, checkpoint, again)
        yield


def check_same_run(there: ModelMetadata, here: ModelMetadata, checkpoint: Path) -> None:
    """Raise UserError for another network or data shape; log other differences."""
    if there.spec.shape != here.spec.shape or there.spec.conditions.keys() != here.spec.conditions.keys():
        raise UserError(
            f"checkpoint {checkpoint} was trained on data of shape {there.spec.shape} with conditions "
            f"{sorted(there.spec.conditions)}, and these have shape {here.spec.shape} with conditions "
            f"{sorted(here.spec.conditions)}; resume with the data it was trained on"
        )
    if there.spec.augmentation != here.spec.augmentation:
        before = there.config["data"].get("augment", "none")
        raise UserError(
            f"checkpoint {checkpoint} was trained with --augment {before}, and this run has --augment "
            f"{here.config['data']['augment']}, of which the network is told; give --augment {before}"
        )
    differs = _differences(there.config, here.config)
    of_network = [text for section, text in differs if section == "network"]
    if there.network.network != here.network.network:
        of_network = [f"it has --network {there.network.network}, this one {here.network.network}"]
    if of_network:
        raise UserError(
            f"checkpoint {checkpoint} has another network: {'; '.join(of_network)}; "
            f"leave out those flags, or train anew with --run-dir"
        )
    free = {"max_steps", "max_minutes", "num_workers", "pair_ahead", "grad_checkpointing", "device"}
    free |= {"early_stopping", "parallel", "max_bad_steps", "posthoc_every", "init_from", "threads"}
    world = read_progress(checkpoint)[1].world
    if world * there.config["training"]["batch_size"] == current().world * here.config["training"]["batch_size"]:
        free.add("batch_size")
    free |= {"data_dir", "cache_dir", "backed", "skip_unreadable"}  # the fingerprint tells whether data differ
    if not registry.get("lr-schedule", here.config["training"]["lr_schedule"]).by_length:
        free.add("num_epochs")
    for section, text in differs:
        if section in ("data", "method", "training") and text.split()[0] not in free:
            logger.info(f"note: {text}; the run will not equal one with the old value")
    if there.fingerprint != here.fingerprint:
        logger.info("note: the data have changed since the checkpoint; the run will not equal one on the old data")


def _differences(there: dict, here: dict) -> list[tuple[str, str]]:
    return [
        (section, f"{name} was {there[section].get(name)} there and is {value} here")
        for section, values in here.items()
        for name, value in values.items()
        if name in there.get(section, {})
        and there[section][name] != value  # a flag newer than the run changes nothing
    ]


_LIBRARIES = ("advect", "torch", "numpy", "safetensors", "scikit-learn", "pillow", "tyro")


def write_environment(context: RunContext, *, fingerprint: str, step: int, steps: int) -> None:
    """Write the file, or append a resumption, at ``step`` of the ``steps`` planned; a damaged one begins anew."""
    path = context.run_dir / "environment.json"
    start = {
        "command": command_line(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "planned_steps": steps,
        "device": device_name(context.device),
        "processes": context.env.world,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "git_commit": _git_commit(),
        "data_fingerprint": fingerprint,
    }
    values = start
    if path.exists() and step > 0:
        there = _environment(path)
        before = there.get("resumed", [])
        values = {**there, "resumed": [*(before if isinstance(before, list) else []), start]} if there else start
    atomic_write_text(path, json.dumps(values, indent=1) + "\n")


def _environment(path: Path) -> dict[str, Any]:
    """Content of the file; empty where damaged, which is told."""
    values = find_object(path)
    if values is None:
        logger.warning(f"{path} is damaged, and begins anew with this start")
    return values or {}


def command_line() -> str:
    """Command that started this process."""
    program = Path(sys.argv[0]).name
    words = ["advect", *sys.argv[1:]] if program in ("advect", "__main__.py") else [program, *sys.argv[1:]]
    return shlex.join(words)


def versions() -> dict[str, str]:
    """Versions of Python, the platform and the main libraries."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def device_name(device: torch.device) -> str:
    """Product name of the GPU, or architecture of the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


def _git_commit() -> str | None:
    """The commit of the working directory, if any."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
