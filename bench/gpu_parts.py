"""The parts of bench/gpu.py: each runs in a process of its own, and writes a row as soon as it has measured it.

python bench/gpu_parts.py PART --folder FOLDER [--tiny] [--peers PYTHON] [--peak TFLOPS]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

from interleave import Contestant, race

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PEER = HERE / "peers" / "train_step.py"
UNAVAILABLE = 77
"""Exit code of a part that had nothing to compare with, which is no failure."""


@dataclass(frozen=True)
class Row:
    """A row of the table; ``aim`` is the least ``value`` that is well."""

    what: str
    value: float | None
    unit: str
    how: str = ""
    aim: float | None = None

    def line(self, tiny: bool) -> str:
        if self.value is None:
            return f"| {self.what} | {self.unit} | | {self.how} |"
        digits = 0 if self.value >= 100 or self.value == int(self.value) else 1
        aim = ""
        if self.aim is not None:
            met = "" if tiny else ": met" if self.value >= self.aim else ": missed"
            aim = f"{self.aim:,g}{met}"
        return f"| {self.what} | {self.value:,.{digits}f}{self.unit} | {aim} | {self.how} |"


@dataclass(frozen=True)
class Work:
    """What a part is told: device "cuda" or "cpu", a folder for all parts, the peers' Python, and where rows go."""

    tiny: bool
    folder: Path
    peers: str | None
    peak: float | None
    rows: Path

    @property
    def device(self) -> str:
        import torch

        return "cuda" if torch.cuda.is_available() and not self.tiny else "cpu"

    def add(self, what: str, value: float | None, unit: str, how: str = "", aim: float | None = None) -> None:
        """Write a row at once, as the part may be ended by its limit."""
        with self.rows.open("a") as file:
            file.write(json.dumps(asdict(Row(what, value, unit, how, aim))) + "\n")

    def flops(self) -> tuple[float, str]:
        """The peak that shares are of, in FLOP/s, and its name."""
        import torch

        from advect.core.device import device_peak

        if self.peak:
            return self.peak * 1e12, f"--peak {self.peak:g} TFLOP/s"
        data_sheet = None if self.device == "cpu" else device_peak(torch.device("cuda"), torch.bfloat16)
        if data_sheet:
            return data_sheet, f"the data sheet's {data_sheet / 1e12:,.0f} TFLOP/s"
        rate = product_rate(self)
        return rate, f"a measured product's {rate / 1e12:,.2g} TFLOP/s, as the peak is not known; --peak gives it"


def product_rate(work: Work) -> float:
    """FLOP/s of square bfloat16 products, the best of ten."""
    import torch

    n = 256 if work.tiny else 8192
    a, b = (torch.randn(n, n, device=work.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(10):
        began = finished(work)
        torch.matmul(a, b)
        seconds.append(finished(work) - began)
    return 2 * n**3 / min(seconds)


def finished(work: Work) -> float:
    """The time, when the device has done all."""
    import torch

    if work.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def memory(work: Work) -> str:
    """The most memory that tensors took, or the process on a CPU."""
    import torch

    if work.device == "cuda":
        return f"{torch.cuda.max_memory_allocated() / 2**30:,.1f} GiB"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:,.1f} GiB"


def checks(work: Work) -> None:
    """Tests marked `gpu`: DDP over NCCL, FSDP2, bf16 and fp16, compile, bit for bit resumption, on one device."""
    if importlib.util.find_spec("pytest") is None:
        raise SystemExit("pytest is not installed; python -m pip install pytest")
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    report = work.folder / "checks.xml"
    words = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}", *files]
    env = {**os.environ, **({"ADVECT_GPU_TESTS_ON": "cpu"} if work.device == "cpu" else {})}
    subprocess.run([sys.executable, *words], cwd=ROOT, env=env, check=False)
    if not report.exists():
        raise SystemExit("pytest wrote no report")
    cases = list(ElementTree.parse(report).iter("testcase"))
    ends = {kind: [case for case in cases if case.find(kind) is not None] for kind in ("failure", "error", "skipped")}
    wrong = [case.get("name", "?") for case in ends["failure"] + ends["error"]]
    skipped = f", {len(ends['skipped'])} skipped" if ends["skipped"] else ""
    passed = len(cases) - len(wrong) - len(ends["skipped"])
    work.add("checks passed", passed, f" of {len(cases)}{skipped}", ", ".join(wrong), aim=len(cases))
    if wrong or not passed:
        raise SystemExit(f"{len(wrong)} of {len(cases)} checks failed")


def dit(work: Work) -> None:
    """DiT-XL/2 on 4 x 32 x 32 with bfloat16 autocast: a training step, plain and compiled; then samples."""
    import torch

    from advect.core.errors import UserError
    from advect.networks import DiT

    peak, of = work.flops()
    work.add("bfloat16 product, TFLOP/s", product_rate(work) / 1e12, "", "256 x 256" if work.tiny else "8,192 x 8,192")
    batch = 4 if work.tiny else 256
    for compiled in (False,) if work.device == "cpu" else (False, True):
        how = "compiled" if compiled else "not compiled"
        while True:
            torch.manual_seed(0)
            with torch.device(work.device):
                small = {"size": None, "depth": 2, "width": 32, "heads": 2}
                net = DiT((4, 32, 32), **small) if work.tiny else DiT((4, 32, 32), size="XL")  # pyright: ignore
            try:
                rate, share = step_rate(work, net, batch, compiled, peak)
                break
            except UserError as error:  # out of memory
                if batch == 1 or "memory" not in str(error):
                    raise
                batch //= 2
            del net
            torch.cuda.empty_cache()
        figures = f"{how}, batch {batch}, bf16 autocast"
        work.add("DiT-XL/2, MFU", 100 * share, "%", f"{figures}, of {of}", aim=50)
        work.add("DiT-XL/2, images/s", rate, "", f"{figures}, {memory(work)}")
    x, t = torch.randn(batch, 4, 32, 32, device=work.device), torch.rand(batch, device=work.device)
    with torch.no_grad(), torch.autocast(work.device, torch.bfloat16):
        seconds = timed(work, lambda: net(x, t), 3 if work.tiny else 10)
    work.add("DiT-XL/2, evaluations/s", batch / seconds, "", f"forward pass, not compiled, batch {batch}, bf16")


def step_rate(work: Work, net, batch: int, compiled: bool, peak: float) -> tuple[float, float]:
    """Images a second in training, and the share of ``peak``; medians of five rounds."""
    import torch
    from train_step import steps, training

    if work.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer = training(net, batch, device=torch.device(work.device), half=torch.bfloat16, compiled=compiled)
    steps(trainer, 1 if work.tiny else 4)
    n = 1 if work.tiny else max(1, min(6, int(3 / timed(work, lambda: steps(trainer, 1), 1))))  # about 15 s in all
    seconds = timed(work, lambda: steps(trainer, n), 2 if work.tiny else 5) / n
    return batch / seconds, (trainer.step.flops or 0) / seconds / peak


def timed(work: Work, call: Callable[[], object], times: int) -> float:
    """Median seconds of a call, after one that does not count."""
    call()
    seconds = []
    for _ in range(times):
        began = finished(work)
        call()
        seconds.append(finished(work) - began)
    return statistics.median(seconds)


def celeba64(work: Work) -> None:
    """`advect train celeba64` on packed 64 x 64 images, with --mixed-precision, plain and compiled."""
    import torch

    from advect.cli import run

    folder = work.folder / "faces"
    write_images(folder, 40 if work.tiny else 4096)
    run(["data", "pack", str(folder)])
    batch, every, last = (4, 1, 3) if work.tiny else (128, 20, 160)
    sizes = "--model-channels 16 --channel-mult 1 1 --attention-resolutions --num-res-blocks 1" if work.tiny else ""
    for compiled in (False,) if work.device == "cpu" else (False, True):
        if work.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        out = work.folder / ("celeba64-compiled" if compiled else "celeba64")
        words = f"train celeba64 --data-dir {folder} --run-dir {out} --device {work.device} --mixed-precision {sizes}"
        words += f" --batch-size {batch} --max-steps {last} --log-every {every} --sample-every 0 --save-epochs 0"
        run([*words.split(), "--compile-model" if compiled else "--no-compile-model"])
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        rows = [row for row in rows if "samples_per_s" in row]
        rows = rows[len(rows) // 2 :]
        speed, waiting, share = (
            statistics.median(row.get(key, 0) for row in rows) for key in ("samples_per_s", "data_wait", "mfu")
        )
        how = f"{'compiled' if compiled else 'not compiled'}, batch {batch}, --mixed-precision, {memory(work)}"
        how += f"; {100 * waiting:.0f}% waiting for data" + (f"; {100 * share:.0f}% of the peak" if share else "")
        work.add("preset celeba64, images/s", speed, "", how, aim=2000)


def write_images(folder: Path, count: int) -> None:
    """JPEGs of 64 x 64 pixels of noise, each another."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    draw = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(draw.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"{i:05}.jpg", quality=90)


def sampling(work: Work) -> None:
    """Flow.sample of the flow that the part celeba64 has trained."""
    import advect

    run = work.folder / "celeba64"
    if not (run / "checkpoints").exists():
        raise SystemExit("the part celeba64 left no flow to sample from")
    flow = advect.load(run, device=work.device)
    n, steps = (2, 2) if work.tiny else (1024, 20)
    draw = lambda: flow.sample(n, steps=steps, solver="dpmpp2m", batch_size=min(n, 512))
    seconds = timed(work, draw, 1 if work.tiny else 3)
    how = f"{n:,} images by {draw().nfe} evaluations of dpmpp2m, {memory(work)}"
    work.add("sampling celeba64, images/s", n / seconds, "", how)


def peers(work: Work) -> None:
    """diffusers' UNet2DModel beside a U-Net of advect of equal arithmetic, 3 x 32 x 32, in turns."""
    python, packages = peer_python(work)
    batch, rounds, units = ("2", 1, 1) if work.tiny else ("128", 5, 5)
    pace = ["--device", work.device, "--batch", batch]
    ours = HERE / "train_step.py"
    theirs = lambda name, *words: Contestant(name, python, PEER, *words, *pace, threads=2, packages=packages)
    runners = [
        theirs("diffusers, fp32", "diffusers"),
        theirs("diffusers, bf16 and channels_last added", "diffusers", "--autocast"),
        Contestant("advect, bf16", sys.executable, ours, "--contestant", "unet", *pace, threads=2),
    ]
    race(runners, rounds=rounds, units=units, warmup=1 if work.tiny else 5)
    mine = runners[-1].seconds
    for runner in runners:
        times = statistics.median(a / b for a, b in zip(runner.seconds, mine, strict=True))
        how = f"batch {batch}, not compiled; advect is {times:.2f} times as fast"
        rate = int(batch) * units / statistics.median(runner.seconds)
        work.add(f"U-Net step on 32 x 32, {runner.name}, images/s", rate, "", how)


def peer_python(work: Work) -> tuple[str, Path | None]:
    """A Python that has diffusers, and the folder that it is installed into if need be."""
    if work.peers:
        return work.peers, None
    if importlib.util.find_spec("diffusers"):
        return sys.executable, None
    if work.tiny:
        raise Unavailable("diffusers is not installed; make bench-peers")
    target = work.folder / "peers"
    wanted = ["--no-deps", "--quiet", "--target", str(target), "-r", str(HERE / "peers" / "requirements.txt")]
    try:
        subprocess.run([sys.executable, "-m", "pip", "install", *wanted], check=True, timeout=60)
    except (subprocess.SubprocessError, OSError) as error:
        raise Unavailable(f"pip did not install diffusers ({type(error).__name__}); make bench-peers") from error
    return sys.executable, target


class Unavailable(Exception):
    """What a part compares with is not there."""


@dataclass(frozen=True)
class Part:
    """A part, and the seconds of twelve minutes that it may take."""

    work: Callable[[Work], None]
    limit: float


PARTS = {
    "checks": Part(checks, 170),
    "dit": Part(dit, 190),
    "celeba64": Part(celeba64, 170),
    "sampling": Part(sampling, 45),
    "peers": Part(peers, 110),
}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--peers")
    parser.add_argument("--peak", type=float)
    args = parser.parse_args()
    work = Work(args.tiny, args.folder, args.peers, args.peak, args.folder / f"{args.part}.jsonl")
    try:
        PARTS[args.part].work(work)
    except Unavailable as error:
        print(error)
        sys.exit(UNAVAILABLE)


if __name__ == "__main__":
    main()
