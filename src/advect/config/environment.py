"""``environment.json``: versions, device, commit and data of a run."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from advect.core.files import atomic_write_text
from advect.distributed.context import RunContext

_LIBRARIES = ("advect", "torch", "numpy", "safetensors", "scikit-learn", "pillow", "tyro")


def write_environment(context: RunContext, *, fingerprint: str, step: int) -> None:
    """Write the file, or append a resumption."""
    path = context.run_dir / "environment.json"
    start = {
        "command": command_line(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "device": device_name(context.device),
        "processes": context.env.world,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "git_commit": _git_commit(),
        "data_fingerprint": fingerprint,
    }
    values = start
    if path.exists() and step > 0:
        values = json.loads(path.read_text(encoding="utf-8"))
        values.setdefault("resumed", []).append(start)
    atomic_write_text(path, json.dumps(values, indent=1) + "\n")


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
