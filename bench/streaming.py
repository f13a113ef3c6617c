"""Resident memory during one pass over small images in shards: tar and Parquet, 32 x 32 JPEGs, all different.

A process for each store opens it and draws one epoch in batches of 128 with two workers; it prints what it holds
(VmRSS of Linux, MB) before it opens the store, once it is open, and at every tenth of the pass.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from interleave import machine

BATCH = 128
IN_A_SHARD = 1000


def jpegs(n: int) -> Iterator[bytes]:
    """n different pictures, smooth with some noise."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for _ in range(n):
        smooth = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((32, 32), 3)
        pixels = np.asarray(smooth, np.int16) + rng.integers(-4, 5, (32, 32, 3))
        content = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(content, "JPEG", quality=90)
        yield content.getvalue()


def make(folder: Path, n: int) -> None:
    """The same n pictures with a class each in tar shards and in Parquet files, 1,000 in a shard or row group."""
    import pyarrow
    from pyarrow import parquet

    for kind in ("tar", "parquet"):
        (folder / kind).mkdir()
    pictures = jpegs(n)
    for shard in range(-(-n // IN_A_SHARD)):
        content = [next(pictures) for _ in range(min(IN_A_SHARD, n - shard * IN_A_SHARD))]
        labels = [i % 10 for i in range(len(content))]
        with tarfile.open(folder / "tar" / f"{shard:05}.tar", "w") as archive:
            for i, (picture, label) in enumerate(zip(content, labels, strict=True)):
                for suffix, data in (("jpg", picture), ("cls", b"%d" % label)):
                    member = tarfile.TarInfo(f"{shard * IN_A_SHARD + i:08}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        columns = {"image": [{"bytes": picture, "path": None} for picture in content], "label": labels}
        parquet.write_table(pyarrow.table(columns), folder / "parquet" / f"{shard:05}.parquet")


def resident() -> float:
    """What this process holds in memory, MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024 / 1e6


def stream(kind: str, folder: Path) -> None:
    """One pass, and the row of the table that tells of it."""
    import torch

    from advect.data import ParquetImages, Shards
    from advect.training import Loader

    torch.set_num_threads(1)
    place = folder / kind
    size = sum(file.stat().st_size for file in place.iterdir() if file.suffix == f".{kind}") / 1e6
    start = resident()
    if kind == "tar":
        source = Shards(place, image_size=32, held_out=0)
    else:
        source = ParquetImages(place, label_column="label", image_size=32, held_out=0)
    opened = resident()
    loader = Loader(source.train, BATCH, workers=2)
    steps = len(loader) // BATCH
    held, tenth = [], 0
    for step in range(steps):
        loader.batch(step)
        if step * 10 >= tenth * (steps - 1):
            held.append(resident())
            tenth += 1
    loader.close()
    each = 1e6 * (opened - start) / len(loader)
    through = " ".join(f"{value:.0f}" for value in held)
    growth = f"{held[-1] - held[1]:+.1f}"
    print(f"| {kind} | {size:.0f} | {start:.0f} | {opened:.0f} | {each:.0f} | {through} | {growth} |")


def main() -> None:
    """Make the images, stream each store in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stream", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--images", type=int, default=100_000)
    args = parser.parse_args()
    if args.stream:
        stream(args.stream[0], Path(args.stream[1]))
        return
    print(machine())
    print("\n| store | its size | before | opened | bytes an image | at 0%, 10%, ... 100% of the pass | 10% to 100% |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), args.images)
        for kind in ("tar", "parquet"):
            subprocess.run([sys.executable, __file__, "--stream", kind, name], check=True)


if __name__ == "__main__":
    main()
