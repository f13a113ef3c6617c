"""Which weights Muon should move: held-out loss of a small network on digits, by what is left to AdamW.

- all: every hidden matrix, queries, keys and values as one;
- embeddings: time embeddings and adaLN modulations to AdamW;
- split: queries, keys and values as three matrices;
- both: the last two together;
- adamw: AdamW alone.

The loss is that of flow matching by the averaged weights on the held-out half, with the same noise and times for all.
Contestants of one seed start from the same weights and see the same batches.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys

import numpy as np
import torch
from interleave import machine

from advect.core.random import CounterRng
from advect.data import Digits
from advect.losses import FlowMatching
from advect.networks import DiT, UNet
from advect.training import (
    EMA,
    AdamW,
    LearningRate,
    Loader,
    Muon,
    StopCriteria,
    Trainer,
    TrainState,
    hidden_matrices,
    named_params,
)
from advect.training.learning_rate import CosineDecay

CONTESTANTS = ("all", "embeddings", "split", "both", "adamw")
REPEATS = 8


def optimizer(name: str, net: torch.nn.Module) -> AdamW | Muon:
    """The optimiser of a contestant."""
    params = named_params(net)
    if name == "adamw":
        return AdamW(params)
    matrices = hidden_matrices(net)
    if name in ("all", "split"):
        matrices |= {weight: 1 for weight, p in params.items() if p.ndim == 2 and is_embedding(weight)}
    if name in ("split", "both"):
        matrices |= {weight: 3 for weight in matrices if weight.endswith("qkv.weight")}
    return Muon(params, matrices)


def is_embedding(weight: str) -> bool:
    """Whether a weight embeds the time or modulates a block by it."""
    return weight.startswith("time.") or (weight.endswith("modulation.weight") and not weight.startswith("head."))


def new_network(name: str) -> torch.nn.Module:
    """A DiT of 64 channels, or a U-Net of 16."""
    if name == "dit":
        return DiT((1, 8, 8), size=None, width=64, depth=3, heads=4, conditions={"label": 10})
    shape = {"model_channels": 16, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,)}
    return UNet((1, 8, 8), **shape, dropout=0.0, conditions={"label": 10})


@torch.no_grad()
def held_out_loss(net: torch.nn.Module, data: Digits) -> float:
    """The mean loss on the held-out half, each row under REPEATS draws of noise and time."""
    net.eval()
    batch, loss, total = data.held_out.fetch(np.arange(len(data.held_out))), FlowMatching(), 0.0
    for i in range(REPEATS):
        total += loss(net, batch, CounterRng(999, i, len(batch))).mean().item()
    return total / REPEATS


def main() -> None:
    """Print the losses of every seed, and their means, by contestant and rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=("dit", "unet"), default="dit")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=(2e-3,))
    parser.add_argument("--contestants", nargs="+", default=CONTESTANTS)
    a = parser.parse_args()
    data = Digits()
    print(f"<!-- {machine()}; {a.network}, {a.steps} steps of 64 -->\n")
    print("| contestant | rate | losses | mean |\n|---|---|---|---|")
    for rate in a.rates:
        found: dict[str, list[float]] = {name: [] for name in a.contestants}
        for seed in range(a.seeds):
            torch.manual_seed(seed)
            start = new_network(a.network)
            for name in a.contestants:
                net = copy.deepcopy(start)
                state = TrainState(net, optimizer(name, net), EMA(named_params(net), 0.99))
                schedule = LearningRate(peak=rate, warmup=a.steps // 20, total=a.steps, schedule=CosineDecay())
                limits, loader = StopCriteria(steps=a.steps), Loader(data.train, 64, seed=seed)
                Trainer(state, FlowMatching(), loader, rate=schedule, limits=limits, seed=seed, log_every=10**6).run()
                assert state.ema is not None
                with state.ema.applied():
                    found[name].append(held_out_loss(net, data))
                print(f"seed {seed}: {name} {found[name][-1]:.4f}", file=sys.stderr, flush=True)
        for name, losses in found.items():
            row = ", ".join(f"{loss:.4f}" for loss in losses)
            print(f"| {name} | {rate:g} | {row} | {statistics.fmean(losses):.4f} |", flush=True)


if __name__ == "__main__":
    main()
