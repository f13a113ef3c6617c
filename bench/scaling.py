"""A MODEL, not a measurement: what a step costs on 1 to 1,024 GPUs, by formulas whose sources stand beside them.

Every number that is not a formula is a flag, whose default is an assumption: NVIDIA H100s, eight a host, a network
card of 400 Gbit/s for each. Activations are not in the memory; a global batch this large need not learn as well by the
sample (McCandlish et al. 2018, "An Empirical Model of Large-Batch Training").
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

WORLDS = (1, 2, 8, 16, 64, 256, 1024)
IMAGES = 1e9


@dataclass(frozen=True)
class Size:
    """A network: parameters, arithmetic of a forward and backward pass a sample, samples a GPU, blocks of FSDP."""

    name: str
    params: float
    flops: float
    batch: int
    blocks: int


# celeba64: as PyTorch's counter has it for the preset. Transformers: 6 a parameter and token (Kaplan 2020) of 256.
SIZES = (
    Size("celeba64, U-Net of 62.5 M parameters", 62.5e6, 115.7e9, 128, 31),
    Size("transformer of 500 M parameters", 500e6, 6 * 500e6 * 256, 64, 28),
    Size("transformer of 2 B parameters", 2e9, 6 * 2e9 * 256, 32, 40),
)


@dataclass(frozen=True)
class Machine:
    """What is assumed of it; seconds, bytes and bytes a second."""

    per_host: int
    flops: float
    near: float
    far: float
    near_delay: float
    far_delay: float
    overlap: float
    to_host: float
    writer: float
    storage: float
    digest: float

    def bandwidth(self, world: int) -> float:
        """What a GPU's slowest link on the way round carries."""
        return self.near if world <= self.per_host else self.far

    def ring_delay(self, world: int) -> float:
        """The delays of world - 1 hops, one in ``per_host`` of which leads to another host."""
        far = 0 if world <= self.per_host else world / self.per_host
        return (world - 1 - far) * self.near_delay + far * self.far_delay if world > 1 else 0.0

    def all_reduce(self, size: float, world: int) -> float:
        """The shorter of two, as NCCL chooses: ring and tree.

        Ring: 2 (n-1)/n size / bandwidth + 2 (n-1) delays (Patarasuk & Yuan 2009; delays as Hockney 1994). Double tree:
        2 size / bandwidth + 2 log2(n) delays (Sanders, Speck & Traff 2009).
        """
        if world == 1:
            return 0.0
        delay = self.near_delay if world <= self.per_host else self.far_delay
        ring = 2 * (world - 1) / world * size / self.bandwidth(world) + 2 * self.ring_delay(world)
        return min(ring, 2 * size / self.bandwidth(world) + 2 * math.log2(world) * delay)

    def gather(self, size: float, world: int) -> float:
        """All-gather to, or reduce-scatter of, ``size``: (n-1)/n size / bandwidth + n-1 delays, by ring.

        Thakur, Rabenseifner & Gropp 2005, "Optimization of Collective Communication Operations in MPICH".
        """
        return (world - 1) / world * size / self.bandwidth(world) + self.ring_delay(world)


def ddp_seconds(size: Size, machine: Machine, world: int) -> tuple[float, float]:
    """Communication of a step, and what of it is not hidden.

    Gradients in float32, in buckets of 25 MB, behind a share of the backward pass, two thirds of the step (Li et al.
    2020, "PyTorch Distributed", section 3.2).
    """
    buckets = math.ceil(4 * size.params / 25e6)
    sent = buckets * machine.all_reduce(4 * size.params / buckets, world)
    return sent, max(0.0, sent - machine.overlap * 2 / 3 * compute(size, machine))


def fsdp_seconds(size: Size, machine: Machine, world: int) -> tuple[float, float]:
    """The same, of two all-gathers in bfloat16 and a reduce-scatter in float32 a block, behind the whole step.

    Rajbhandari et al. 2020, "ZeRO", section 7.2.2; Zhao et al. 2023, "PyTorch FSDP".
    """
    block = size.params / size.blocks
    each = 2 * machine.gather(2 * block, world) + machine.gather(4 * block, world)
    return size.blocks * each, max(0.0, size.blocks * each - machine.overlap * compute(size, machine))


def compute(size: Size, machine: Machine) -> float:
    """Seconds of arithmetic a step."""
    return size.batch * size.flops / machine.flops


def memory(size: Size, kind: str, world: int) -> float:
    """Bytes a GPU, activations apart: weights, gradients, two moments and an average in float32, 20 a parameter.

    FSDP keeps a share of these, and two blocks at a time whole: weights in bfloat16, gradients in float32.
    """
    whole = 20 * size.params
    return whole if kind == "ddp" or world == 1 else whole / world + 2 * 6 * size.params / size.blocks


def checkpoint(size: Size, machine: Machine, kind: str, world: int) -> tuple[float, float]:
    """Seconds that training stands still for the copy to the host, and seconds until the checkpoint is whole.

    16 bytes a parameter: weights, average, moments. DDP's first process writes all and reads it again for SHA-256.
    FSDP's write their parts side by side, and the first then writes whole weights and averages, 8 bytes more.
    """
    total = 16 * size.params
    if kind == "ddp" or world == 1:
        return total / machine.to_host, total * (1 / machine.writer + 1 / machine.digest)
    parts = total / min(world * machine.writer, machine.storage) + total / world / machine.digest
    plain = 8 * size.params * (2 / machine.writer + 1 / machine.digest)  # read, written, summed
    return total / world / machine.to_host, parts + plain


def table(size: Size, machine: Machine) -> str:
    """A row for each world size."""
    step = compute(size, machine)
    lines = [
        f"**{size.name}**, {size.batch} samples a GPU, {1e3 * step:,.0f} ms of arithmetic a step\n",
        "| GPUs | global batch | DDP: sent ms | efficiency | GB a GPU | checkpoint: stands still s, whole after s "
        "| FSDP: sent ms | efficiency | GB a GPU | checkpoint | a billion images |",
        "|" + "---|" * 11,
    ]
    for world in WORLDS:
        cells, rates = [], []
        for kind, seconds in (("ddp", ddp_seconds), ("fsdp", fsdp_seconds)):
            if kind == "fsdp" and world == 1:
                cells += ["", "", "", ""]
                continue
            sent, shown = seconds(size, machine, world)
            rates.append(step + shown)
            stands, whole = checkpoint(size, machine, kind, world)
            cells += [f"{1e3 * sent:,.1f}", f"{step / (step + shown):.0%}", f"{memory(size, kind, world) / 1e9:,.2f}"]
            cells.append(f"{stands:.2g}, {whole:.2g}")
        hours = IMAGES / (world * size.batch) * min(rates) / 3600
        cells.append(f"{hours / 24:,.1f} days" if hours > 48 else f"{hours:,.1f} h")
        lines.append(f"| {world:,} | {world * size.batch:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the assumptions and a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--gpus-per-host", type=int, default=8, help="GPUs in a host")
    add("--peak", type=float, default=989, help="TFLOP/s of a GPU in bfloat16, dense (H100 SXM data sheet)")
    add("--use", type=float, default=0.35, help="share of the peak that a step reaches alone")
    add("--near", type=float, default=360, help="GB/s a GPU between GPUs of a host, of NVLink's 450 each way")
    add("--far", type=float, default=40, help="GB/s a GPU between hosts, of 400 Gbit/s")
    add("--near-delay", type=float, default=2, help="microseconds a hop within a host")
    add("--far-delay", type=float, default=8, help="microseconds a hop between hosts")
    add("--overlap", type=float, default=0.8, help="share of the time that can hide communication, which does hide it")
    add("--to-host", type=float, default=20, help="GB/s from a GPU to its host's memory")
    add("--writer", type=float, default=1.5, help="GB/s that one process writes or reads")
    add("--storage", type=float, default=50, help="GB/s that the file system takes from all")
    add("--digest", type=float, default=1.5, help="GB/s of SHA-256 in one process")
    add("--batch", type=int, help="samples a GPU, in place of each network's own")
    args = parser.parse_args()
    machine = Machine(
        per_host=args.gpus_per_host,
        flops=args.peak * args.use * 1e12,
        near=args.near * 1e9,
        far=args.far * 1e9,
        near_delay=args.near_delay * 1e-6,
        far_delay=args.far_delay * 1e-6,
        overlap=args.overlap,
        to_host=args.to_host * 1e9,
        writer=args.writer * 1e9,
        storage=args.storage * 1e9,
        digest=args.digest * 1e9,
    )
    print(
        "A model, not a measurement. Assumed:", ", ".join(f"{k} {v}" for k, v in vars(args).items() if v is not None)
    )
    for size in SIZES:
        size = size if args.batch is None else Size(size.name, size.params, size.flops, args.batch, size.blocks)
        print(f"\n{table(size, machine)}")


if __name__ == "__main__":
    main()
