"""Seconds until `import advect`, `advect --help` and `advect train --help` are done, disk cache warm; medians of 7."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from interleave import machine

COMMANDS = {
    "import advect": ["-c", "import advect"],
    "advect --help": ["-m", "advect", "--help"],
    "advect presets": ["-m", "advect", "presets"],
    "advect train --help": ["-m", "advect", "train", "--help"],
    "import advect; advect.load": ["-c", "import advect; advect.load"],
    "import torch": ["-c", "import torch"],
}


def seconds(words: list[str]) -> float:
    """Wall time of one Python process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Print the table."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for round_ in range(8):
        for name, words in COMMANDS.items():
            elapsed = seconds(words)
            if round_:
                times[name].append(elapsed)
    print(machine())
    print("| | seconds |\n|---|---|")
    for name, values in times.items():
        print(f"| {name} | {statistics.median(values):.2f} |")


if __name__ == "__main__":
    main()
