"""What data cost: images a second that a loader hands out, and reading files of tables and vectors.

Images are packed, tar shards and a folder of PNGs, 64 x 64, in batches of 128. Files (``--files``): a table of six
real and two whole columns, one of words and one of dates; one of 10,000 columns; and an array of ten columns. Each is
read in a process of its own, by advect up to the split and scaled rows, and by pandas or NumPy as they come;
CPU-seconds and the greatest memory over the file's size, less those of the libraries and of a file of 20 rows.
``--before SRC`` reads them with another version of advect, too.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
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


def write_files(folder: Path, rows: int) -> None:
    """table.csv and array.npy of ``rows`` rows, and wide.csv."""
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(0)
    days = pd.Timestamp("2000-01-01") + pd.to_timedelta(rng.integers(0, 9000, rows), "D")
    frame = pd.DataFrame({f"a{i}": rng.normal(size=rows).round(6) for i in range(6)})
    frame["k"], frame["n"] = rng.integers(0, 1000, rows), rng.integers(0, 10**9, rows)
    frame["town"], frame["day"] = rng.choice(["Oslo", "Rome", "Bonn", "Nice"], rows), days.strftime("%Y-%m-%d")
    frame.to_csv(folder / "table.csv", index=False)
    wide = pd.DataFrame(rng.normal(size=(300, 10_000)).round(6)).add_prefix("c")
    wide.to_csv(folder / "wide.csv", index=False)
    np.save(folder / "array.npy", rng.normal(size=(rows, 10)))
    (folder / "small").mkdir()
    for name in ("table.csv", "wide.csv"):
        frame[:20].to_csv(folder / "small" / name, index=False)
    np.save(folder / "small" / "array.npy", rng.normal(size=(20, 10)))


def read(reader: str, file: Path) -> None:
    """Print CPU-seconds and MiB to read a file."""
    import time

    import numpy as np
    import pandas as pd
    import pyarrow  # noqa: F401

    from advect.data import ArrayFile, Table

    def most() -> int:
        """Greatest memory so far, kB; ru_maxrss counts that of the process which began this one, too."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

    table = file.suffix == ".csv"
    own, other = (Table, pd.read_csv) if table else (ArrayFile, np.load)
    open_file = own if reader.startswith("advect") else other
    open_file(file.parent / "small" / file.name)  # what the libraries load and keep at their first use
    before, start = most(), time.process_time()
    kept = open_file(file)
    print(time.process_time() - start, (most() - before) / 1024, type(kept).__name__)


def files(rows: int, before: str | None) -> None:
    """Print the table of files; ``before`` is the folder of another version's source."""
    print(f"{machine()}\n\n| file | MiB | read by | CPU-seconds | memory over its size |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        write_files(Path(name), rows)
        for file in sorted(file for file in Path(name).iterdir() if file.is_file()):
            size = file.stat().st_size / 2**20
            other = "pandas" if file.suffix == ".csv" else "NumPy"
            for reader in ("advect", "advect before", other) if before else ("advect", other):
                command = [sys.executable, __file__, "--read", reader, str(file)]
                there = {"PYTHONPATH": before} if before and reader == "advect before" else {}
                output = subprocess.check_output(command, text=True, env=os.environ | there)
                seconds, grown = map(float, output.split()[:2])
                print(f"| {file.name} | {size:.0f} | {reader} | {seconds:.1f} | {grown / size:.2f} |", flush=True)


def main() -> None:
    """Race the three and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contestant", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--units", type=int, default=4096, help="images a round")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--files", type=int, metavar="ROWS", help="time reading files of that many rows instead")
    parser.add_argument("--before", metavar="SRC", help="source of another version, whose reading is timed, too")
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        read(args.read[0], Path(args.read[1]))
        return
    if args.files:
        files(args.files, args.before)
        return
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
