"""Check and measure advect on a GPU in at most 12 minutes; run by bench/gpu.sh.

Each part is a process with a time limit of its own, and the table has what it had found when it ended: the first rows
matter most. Without CUDA, or with --tiny, sizes are tiny and figures mean nothing; that tries the script.
MFU: arithmetic of a forward and backward pass, as torch.utils.flop_counter counts it, over the time of the whole step
(data, loss, clipping, AdamW and EMA included) and the card's dense 16-bit peak.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpu_parts import HERE, PARTS, ROOT, UNAVAILABLE, Row
from interleave import machine


def run_part(name: str, args: argparse.Namespace, folder: Path, seconds: float) -> tuple[list[Row], str]:
    """Rows of a part in a process of its own, and why it failed, empty if it did not."""
    out, log = folder / f"{name}.jsonl", folder / f"{name}.log"
    words = [sys.executable, str(HERE / "gpu_parts.py"), name, "--folder", str(folder)]
    words += ["--tiny"] if args.tiny else []
    words += ["--peers", args.peers] if args.peers else []
    words += ["--peak", str(args.peak)] if args.peak else []
    with log.open("wb") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True)
        try:
            code = process.wait(seconds)
            why = "" if code in (0, UNAVAILABLE) else f"exit code {code}: {last_line(log)}"
        except subprocess.TimeoutExpired:
            why = f"not done after {seconds:.0f} s: {last_line(log)}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the processes it started end with it
            process.wait()
    lines = out.read_text().splitlines() if out.exists() else []
    rows = [Row(**json.loads(line)) for line in lines]
    rows += [Row(name, None, "not measured", last_line(log))] if process.returncode == UNAVAILABLE else []
    return rows + ([Row(name, None, "failed", why)] if why else []), why


def last_line(log: Path) -> str:
    """The last words of a log, made fit for a cell."""
    lines = [line.strip() for line in log.read_text(errors="replace").split("\n") if line.strip()]
    return lines[-1].replace("|", "/")[-300:] if lines else "nothing was said"


def measure(args: argparse.Namespace) -> tuple[str, dict[str, str]]:
    """Run the parts; return the table, rows with an aim or a failure first, and what failed parts said last."""
    began, rows, failed = time.monotonic(), [], {}
    with tempfile.TemporaryDirectory(prefix="advect-gpu-") as place:
        folder = Path(place)
        for name in [name for name in PARTS if name in args.parts]:
            left = 60 * args.minutes - (time.monotonic() - began) - 5
            seconds = min(PARTS[name].limit * args.minutes / 12, left)
            print(f"{name}: at most {seconds:.0f} s", file=sys.stderr)
            found, why = run_part(name, args, folder, max(seconds, 0))
            rows += found
            if why:
                log = folder / f"{name}.log"
                failed[name] = log.read_text(errors="replace")[-3000:] if log.exists() else why
    rows.sort(key=lambda row: row.aim is None and row.unit != "failed")
    head = f"{device_name(args)}; {machine()}\n\n| | seen | aim | how |\n|---|---|---|---|"
    lines = [head, *(row.line(args.tiny) for row in rows), f"\n{time.monotonic() - began:,.0f} seconds in all."]
    return "\n".join(lines), failed


def device_name(args: argparse.Namespace) -> str:
    """The card, or that there is none."""
    import torch

    torch_version = f"PyTorch {torch.__version__}"
    if args.tiny:
        return f"{torch_version}; tiny sizes, whose figures mean nothing"
    card = torch.cuda.get_device_properties(0)
    return f"{card.name}, {card.total_memory / 2**30:,.0f} GiB; {torch_version}, CUDA {torch.version.cuda}"


def has_cuda() -> bool:
    """Whether PyTorch sees a GPU; asked in another process, so that this one holds none of its memory meanwhile."""
    ask = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", ask]).returncode == 0


def main() -> None:
    """Run the parts, and exit with 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    about = "; ".join(f"{name}: {part.work.__doc__}" for name, part in PARTS.items())
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART", help=about)
    parser.add_argument("--tiny", action="store_true", help="toy sizes on the CPU")
    parser.add_argument("--minutes", type=float, default=12, help="in all")
    parser.add_argument("--output", type=Path, help="write the table to this file too")
    parser.add_argument("--peers", help="Python with the peers: make bench-peers")
    parser.add_argument("--peak", type=float, help="dense 16-bit TFLOP/s of the card, if it is not known")
    args = parser.parse_args()
    if unknown := [name for name in args.parts if name not in PARTS]:
        parser.error(f"{unknown[0]} is no part; take {', '.join(PARTS)}")
    args.tiny = args.tiny or not has_cuda()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part's processes end too
    table, failed = measure(args)
    print(table)
    if args.output:
        args.output.write_text(table + "\n")
    for name, said in failed.items():
        print(f"\nThe end of what {name} said:\n\n{said}", file=sys.stderr)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
