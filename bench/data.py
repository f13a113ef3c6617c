"""Images a second that a loader hands out: packed, tar shards and a folder of PNGs, 64 x 64, batches of 128."""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
import tempfile
from pathlib import Path

from interleave import Contestant, machine, race, serve, table

BATCH = 128


def make(folder: Path, n: int) -> None:
    """The same n pictures, smooth with some noise, in the three forms."""
    import numpy as np
    from PIL import Image

    from advect.data import pack

    rng = np.random.default_rng(0)
    for kind in ("folder", "shards"):
        (folder / kind).mkdir()
    archive = None
    for i in range(n):
        smooth = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((64, 64), 3)
        pixels = np.asarray(smooth, np.int16) + rng.integers(-4, 5, (64, 64, 3))
        content = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(content, "PNG")
        (folder / "folder" / f"{i:06}.png").write_bytes(content.getvalue())
        if i % 1024 == 0:
            if archive is not None:
                archive.close()
            archive = tarfile.open(folder / "shards" / f"{i // 1024:03}.tar", "w")  # noqa: SIM115
        assert archive is not None
        member = tarfile.TarInfo(f"{i:06}.png")
        member.size = content.tell()
        archive.addfile(member, io.BytesIO(content.getvalue()))
    if archive is not None:
        archive.close()
    pack(folder / "folder", folder / "packed", progress=False)


def contestant(kind: str, folder: Path, workers: int) -> None:
    """Draw batches and answer the protocol."""
    import torch

    from advect.data import ImageFolder, Packed, Shards
    from advect.training import Loader

    torch.set_num_threads(1)
    source = {"folder": ImageFolder, "shards": Shards, "packed": Packed}[kind](folder / kind)
    loader = Loader(source.train, BATCH, workers=workers)
    step = 0

    def work(n: int) -> None:
        nonlocal step
        for _ in range(n // BATCH):
            loader.batch(step)
            step += 1

    serve(work)


def main() -> None:
    """Race the three and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contestant", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--units", type=int, default=4096, help="images a round")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.contestant:
        contestant(args.contestant[0], Path(args.contestant[1]), args.workers)
        return
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), args.images)
        runners = [
            Contestant(
                label,
                sys.executable,
                Path(__file__),
                "--contestant",
                kind,
                name,
                "--workers",
                str(args.workers),
                threads=1,
            )
            for label, kind in (("packed", "packed"), ("tar shards of PNGs", "shards"), ("folder of PNGs", "folder"))
        ]
        race(runners, rounds=args.rounds, units=args.units, warmup=args.units)
    print(machine())
    print(table(runners, units=args.units, unit="images"))


if __name__ == "__main__":
    main()
