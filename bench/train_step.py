"""A training step of image networks, advect's and others', of equal arithmetic, in turns.

A step is forward, backward, clipping, AdamW and EMA, at batch 32: U-Nets on 3 x 32 x 32 of about 307 GFLOP a step,
and DiT-S/2 on 4 x 32 x 32. advect's contestants are the engine as `advect train` runs it, with its defaults: bfloat16
autocast, channels_last, tune_process, counter-based noise. Operations are those that torch.utils.flop_counter counts
in a forward and backward pass; a rate in GFLOP/s divides these by the time of the whole step.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from interleave import Contestant, machine, race, serve

if TYPE_CHECKING:  # the race itself needs neither
    import numpy as np
    import torch
    from torch import nn

    from advect.training import Trainer

HERE = Path(__file__).resolve().parent
PEER = HERE / "peers" / "train_step.py"
PEERS = {
    "unet": {
        "torchcfm 1.0.7 UNetModel, fp32": ["torchcfm"],
        "the same, autocast and channels_last added": ["torchcfm", "--autocast"],
        "diffusers 0.42.1 UNet2DModel, fp32": ["diffusers"],
        "denoising-diffusion-pytorch 2.3.4 Unet, fp32": ["ddp"],
    },
    "dit": {
        "diffusers 0.42.1 DiTTransformer2DModel, fp32": ["diffusers-dit"],
        "the same, autocast added": ["diffusers-dit", "--autocast"],
    },
}


def network(name: str, dropout: float):
    """advect's network ``name`` and the shape of its images."""
    from advect.networks import DiT, UNet

    if name == "unet":
        # The peers' four resolutions; one wider block where they have two, so that the operations come out the same.
        return UNet(
            (3, 32, 32),
            model_channels=100,
            channel_mult=(1, 2, 2, 2),
            num_res_blocks=1,
            attention_resolutions=(16,),
            dropout=dropout,
        )
    return DiT((4, 32, 32), size="S", patch_size=2)


def count(args: argparse.Namespace) -> str:
    """Parameters, and operations of a forward and backward pass with attention's products counted too."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    net = network(args.contestant, args.dropout)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        net(torch.randn(args.batch, *net.shape), torch.rand(args.batch)).sum().backward()
    return f"{sum(p.numel() for p in net.parameters())} {counter.get_total_flops()}"


def training(net: nn.Module, batch: int, *, device: torch.device, half: torch.dtype | None, compiled: bool) -> Trainer:
    """advect's engine as `advect train` has it, with ``net`` and 1,024 random images in memory."""
    import torch

    from advect.core.types import Batch
    from advect.losses import FlowMatching
    from advect.training import (
        EMA,
        AdamW,
        CosineDecay,
        LearningRate,
        Loader,
        StopCriteria,
        Trainer,
        TrainState,
        named_params,
    )

    class Noise:
        images = torch.randn(1024, *net.shape)  # pyright: ignore

        def __len__(self) -> int:
            return len(self.images)

        def fetch(self, indices: np.ndarray, rng: object = None) -> Batch:
            return Batch(self.images[torch.from_numpy(indices)])

    params = named_params(net)
    return Trainer(
        TrainState(net, AdamW(params), EMA(params, 0.9999)),
        FlowMatching(),
        Loader(Noise(), batch),
        rate=LearningRate(peak=1e-4, warmup=100, total=100_000, schedule=CosineDecay()),
        limits=StopCriteria(steps=10**9),
        autocast=half,
        compile_model=compiled,
        tf32=True,
        device=device,
    )


def steps(trainer: Trainer, n: int) -> None:
    """Take ``n`` more; the run ends by reading the losses, so a GPU has finished."""
    from advect.training import StopCriteria

    trainer.limits = StopCriteria(steps=10**9, max_steps=trainer.state.progress.step + n)
    trainer.run()


def contestant(args: argparse.Namespace) -> None:
    """Run advect's engine and answer the protocol."""
    import torch

    from advect.core.device import tune_process

    tune_process()
    torch.manual_seed(0)
    device = torch.device(args.device)
    net = network(args.contestant, args.dropout).to(device)
    if not args.fp32:
        net = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    half = None if args.fp32 else torch.bfloat16
    trainer = training(net, args.batch, device=device, half=half, compiled=args.compile)
    serve(lambda n: steps(trainer, n), args.clock)


def race_of(network: str, peers: Path, args: argparse.Namespace) -> str:
    """Race advect's ``network`` against its peers, the first of which is the measure of all; return the table."""
    pace = ["--device", args.device, "--dropout", str(args.dropout), "--clock", args.clock]
    pace += ["--batch", str(args.batch)]
    pace += ["--compile"] if args.compile else []
    rivals: list[tuple[str, Path | str, Path, list[str]]] = [
        (name, peers, PEER, arguments) for name, arguments in PEERS[network].items()
    ]
    rivals.append(("advect, bf16", sys.executable, Path(__file__), ["--contestant", network]))
    if args.fp32:
        rivals.append(("advect, fp32", sys.executable, Path(__file__), ["--contestant", network, "--fp32"]))
    counts = []
    for _, python, script, arguments in rivals:
        out = subprocess.run(
            [python, script, *arguments, "--count", "--batch", str(args.batch)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        counts.append(tuple(int(n) for n in out.stdout.split()))
    runners = [Contestant(name, python, script, *a, *pace, threads=args.threads) for name, python, script, a in rivals]
    race(runners, rounds=args.rounds, units=args.steps, warmup=args.warmup)
    return table(runners, counts, args.steps, args.batch)


def table(runners: list[Contestant], counts: list[tuple[int, ...]], steps: int, batch: int) -> str:
    """Medians of each, and the median over the rounds of how many times as fast as the first it was."""
    lines = [
        "| | M parameters | GFLOP/step | ms/step | samples/s | GFLOP/s | times the first | least to most |",
        "|---|---|---|---|---|---|---|---|",
    ]
    base = runners[0].seconds
    for c, (parameters, flops) in zip(runners, counts, strict=True):
        seconds = statistics.median(c.seconds) / steps
        ratios = [b / s for b, s in zip(base, c.seconds, strict=True)]
        rate = f"{1e3 * seconds:,.0f} | {batch / seconds:,.1f} | {flops / seconds / 1e9:,.0f}"
        spread = f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f}"
        lines.append(f"| {c.name} | {parameters / 1e6:.1f} | {flops / 1e9:.0f} | {rate} | {spread} |")
    return "\n".join(lines)


def main() -> None:
    """Race the U-Nets and the transformers, and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(PEERS), metavar="unet|dit")
    parser.add_argument("--contestant", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--fp32", action="store_true", help="let advect run in float32 too")
    parser.add_argument("--peers", default=".venv-peers/bin/python", help="Python with the peers: make bench-peers")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--warmup", type=int, default=2, help="steps before the first round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a busy machine, one thread")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile all of them")
    parser.add_argument("--dropout", type=float, default=0.1)
    args = parser.parse_args()
    if args.count:
        print(count(args))
    elif args.contestant:
        contestant(args)
    elif not Path(args.peers).exists():
        sys.exit(f"{args.peers} does not exist; run: make bench-peers")
    else:
        print(machine())
        for name in args.networks:
            print(race_of(name, Path(args.peers), args))


if __name__ == "__main__":
    main()
