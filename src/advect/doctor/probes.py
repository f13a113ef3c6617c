"""Trials that may hang or kill their process, and so run in one of their own: ``python -m advect.doctor.probes``."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import timedelta

from advect.doctor.machine import Probe


def run_probe(name: str, argument: str, *, timeout: float) -> Probe:
    """Run a trial, ``compile`` on a device or ``group`` with a backend, for at most ``timeout`` seconds."""
    words = [sys.executable, "-m", "advect.doctor.probes", name, argument]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return Probe(None, f"it took more than {timeout:g} seconds")
    except OSError as error:
        return Probe(None, str(error))
    return read_answer(done.returncode, done.stdout, done.stderr)


def read_answer(code: int, out: str, err: str) -> Probe:
    """The trial's answer, the last line of what it printed; without one, the last line of its errors."""
    try:
        return Probe(float(json.loads(out.strip().splitlines()[-1])["seconds"]))
    except (ValueError, KeyError, IndexError, TypeError):
        lines = [line.strip() for line in err.splitlines() if line.strip()]
        telling = [line for line in lines if "Error" in line.split(":")[0]] or lines
        return Probe(None, (telling[-1] if telling else f"it ended with code {code}")[:200])


def _compile(device: str) -> None:
    import torch
    from torch import nn

    from advect.core.platform import check_compiler

    place = torch.device(device)
    check_compiler(place)
    net = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 1)).to(place)
    x = torch.randn(4, 8, device=place)
    compiled = torch.compile(net)
    compiled(x).sum().backward()
    torch.testing.assert_close(compiled(x), net(x), rtol=1e-3, atol=1e-4)


def _group(backend: str) -> None:
    import torch
    import torch.distributed as dist

    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=30))
    x = torch.ones(2, device="cuda" if backend == "nccl" else "cpu")
    dist.all_reduce(x)
    assert x.tolist() == [1.0, 1.0]
    dist.destroy_process_group()


def main() -> None:
    """Run the trial that the command line names, and print its seconds as JSON."""
    trial = {"compile": _compile, "group": _group}[sys.argv[1]]
    began = time.monotonic()
    trial(sys.argv[2])
    print(json.dumps({"seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main()
