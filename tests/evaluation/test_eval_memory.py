"""An evaluation of more samples takes more time and not more memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from processes import environment

pytest.importorskip("resource")

PROGRAM = """
import json, resource, sys
from pathlib import Path
from advect.commands.evaluate import evaluate
from advect.evaluation.protocol import EvalConfig

n = int(sys.argv[1])
metrics = ("frechet", "marginals")
request = EvalConfig(num_samples=n, num_steps=(1,), solver=("euler",), metrics=metrics, output=Path(f"{n}.json"))
evaluate(Path("run"), request)
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""


@pytest.mark.slow
def test_five_times_the_samples_take_the_same_memory(advect: Callable[..., None], tmp_path: Path) -> None:
    np.save("x.npy", np.random.default_rng(0).normal(size=(2000, 512)).astype(np.float32))
    advect("train --data x.npy --width 8 --depth 1 --max-steps 2 --batch-size 16 --sample-every 0 --run-dir run")

    def peak(n: int) -> float:
        """In MB, once the features of the data lie in the cache."""
        words = [sys.executable, "-c", PROGRAM, str(n)]
        done = subprocess.run(words, env=environment(), cwd=tmp_path, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1]) * (1 if sys.platform == "darwin" else 1024) / 2**20

    peak(100)
    few, many = peak(10_000), peak(50_000)
    # 40,000 more samples of 512 numbers, and as many features, would be 156 MB.
    assert many - few < 40, (few, many)
