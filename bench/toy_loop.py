"""Steps a second of the toy loop: moons, a 4 x 256 MLP, batch 256, float32, one thread.

advect's contestant is the whole engine as `advect train moons` runs it: warm-up and cosine, gradient clipping,
AdamW, EMA, counter-based noise, losses read every 100 steps. The peer is torchcfm's matcher and MLP, once in
the loop of its two-dimensional examples, Adam and nothing else, and once with the same steps as advect, on
PyTorch's own tools. All networks have four linear layers of width 256.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from interleave import Contestant, machine, race, serve, table

HERE = Path(__file__).resolve().parent


def contestant() -> None:
    """Run advect's engine and answer the protocol."""
    import torch

    from advect.core.device import tune_process
    from advect.data import Moons
    from advect.losses import FlowMatching
    from advect.networks import MLP
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

    torch.set_num_threads(1)
    tune_process()
    torch.manual_seed(0)
    source = Moons()
    net = MLP(2, width=256, depth=4)
    print(sum(p.numel() for p in net.parameters()), "parameters", file=sys.stderr)
    params = named_params(net)
    state = TrainState(net, AdamW(params), EMA(params, 0.999))
    rate = LearningRate(peak=1e-3, warmup=100, total=100_000, schedule=CosineDecay())
    loader = Loader(source.train, 256)

    def work(n: int) -> None:
        limits = StopCriteria(steps=10**9, max_steps=state.progress.step + n)
        Trainer(state, FlowMatching(), loader, rate=rate, limits=limits, log_every=100).run()

    serve(work)


def main() -> None:
    """Race the two and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contestant", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--peers", default=".venv-peers/bin/python", help="Python with torchcfm: make bench-peers")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    if args.contestant:
        contestant()
        return
    peers = Path(args.peers)
    if not peers.exists():
        sys.exit(f"{peers} does not exist; run: make bench-peers")
    runners = [
        Contestant("advect, whole engine", sys.executable, Path(__file__), "--contestant", threads=1),
        Contestant("torchcfm 1.0.7, Adam alone", peers, HERE / "peers" / "torchcfm_toy.py", "plain", threads=1),
        Contestant("torchcfm 1.0.7, the same steps", peers, HERE / "peers" / "torchcfm_toy.py", "same", threads=1),
    ]
    race(runners, rounds=args.rounds, units=args.steps, warmup=args.steps)
    print(machine())
    print(table(runners, units=args.steps, unit="steps"))


if __name__ == "__main__":
    main()
