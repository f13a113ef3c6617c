"""``--nproc N``: N local processes, as with ``torchrun``, that end together."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

from advect.core.bounds import Processes, bounds_of, check_bounds
from advect.core.errors import UserError
from advect.core.threads import count_cores
from advect.distributed.comm import is_lost_peer, process_group
from advect.distributed.env import DistEnv, Terminal, handled_signals

LOST_PEER = 75
"""Exit code of a process that failed because another one did."""
GRACE = 3.0
"""Seconds to end after a failure, and again after SIGTERM, before SIGKILL."""
_LIFELINE = "ADVECT_LIFELINE"
_WARNING = "warning: "


def check_nproc(nproc: int, device: str) -> None:
    """Raise UserError if ``nproc`` processes cannot be started, or a launcher started this one."""
    world = DistEnv.from_environment().world
    check_bounds("--nproc", nproc, bounds_of(Processes))
    if nproc == 1:
        return
    if world > 1:
        raise UserError(f"--nproc {nproc} is given to one of {world} processes of a launcher; leave one of them out")
    if os.name != "posix":
        raise UserError(f"--nproc {nproc} needs Linux or macOS; use torchrun")
    import torch

    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        most = max(8, 4 * count_cores())
        if nproc > most:
            raise UserError(f"--nproc {nproc} is too many for {count_cores()} processor cores; use at most {most}")
        return
    gpus = torch.cuda.device_count()
    if nproc > gpus:
        raise UserError(f"--nproc {nproc} is more than the GPUs here, {gpus}; use --nproc {gpus}, or --device cpu")


def launch(command: Sequence[str], nproc: int) -> int:
    """Run a command in ``nproc`` processes; return the exit code of the first failure, 128 + its signal, else 0.

    The terminal belongs to the first process; of the others warnings are shown, and the first failure's error. Signals
    are forwarded. If the launcher is killed, the processes end as by SIGTERM.
    """
    with _spawned(command, nproc) as children, _forwarding_signals(children) as passed:
        failed = _wait(children, passed)
        if not failed:
            return 0
        first = failed[0]
        code = first.process.returncode
        if -code not in passed:
            _report(first, heard=children[0] in failed)
        return 128 - code if code < 0 else 1 if code == LOST_PEER else code


@dataclass
class _Child:
    rank: int
    process: subprocess.Popen
    said: IO[bytes] | None
    """Standard error; None for the first process, which uses the terminal."""
    heard: int = 0
    """Bytes of it searched for warnings."""

    def print_warnings(self) -> None:
        """Print new lines that begin with "warning: "."""
        if self.said is None:
            return
        text = os.pread(self.said.fileno(), 1 << 16, self.heard)  # seek would move its writing position
        lines = text[: text.rfind(b"\n") + 1]
        self.heard += len(lines)
        for line in lines.decode(errors="replace").splitlines():
            if line.startswith(_WARNING):
                print(line, file=sys.stderr, flush=True)

    def send(self, number: int) -> None:
        """Signal the process if alive; SIGKILL reaches its process group."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                (os.killpg if number == signal.SIGKILL else os.kill)(self.process.pid, number)


@contextmanager
def _spawned(command: Sequence[str], nproc: int) -> Iterator[list[_Child]]:
    """The processes, each in its own group: Ctrl+C reaches them through the launcher only."""
    lifeline, held = os.pipe()  # closed for them by whatever ends this process
    threads = max(1, count_cores() // nproc)
    env = {"OMP_NUM_THREADS": str(threads), **os.environ, _LIFELINE: str(lifeline)}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    env |= {"WORLD_SIZE": str(nproc), "LOCAL_WORLD_SIZE": str(nproc)}
    children: list[_Child] = []
    try:
        for rank in range(nproc):
            said = tempfile.TemporaryFile() if rank else None  # noqa: SIM115
            process = subprocess.Popen(
                command,
                env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if rank else None,
                stderr=said,
                process_group=0,
                pass_fds=(lifeline,),
            )
            children.append(_Child(rank, process, said))
        yield children
    finally:
        for child in children:
            child.send(signal.SIGKILL)
            child.process.wait()
            if child.said is not None:
                child.said.close()
        os.close(lifeline)
        os.close(held)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def _forwarding_signals(children: Sequence[_Child]) -> Iterator[list[int]]:
    """Forward signals to all children; yields the list of those received."""
    passed: list[int] = []
    terminal = Terminal()

    def pass_on(number: int, frame: object) -> None:
        terminal.leave()
        if signal.Signals(number).name == "SIGHUP" and number in passed:
            return  # a closed terminal and its shell both send it
        passed.append(number)
        for child in children:
            child.send(number)

    before = {number: signal.signal(number, pass_on) for number in handled_signals()}
    try:
        yield passed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(children: Sequence[_Child], passed: Sequence[int]) -> list[_Child]:
    """Wait until all have ended, ending them after a failure; return the first failures, in order.

    Exits with LOST_PEER count only if no other process failed.
    """
    ended: queue.Queue[_Child] = queue.Queue()
    for child in children:
        threading.Thread(target=lambda c=child: (c.process.wait(), ended.put(c)), daemon=True).start()
    failed: list[_Child] = []
    steps, until = [signal.SIGTERM, signal.SIGKILL], None
    for _ in children:
        while True:
            if until is None and (failed or len(passed) > 1):
                # After a signal each ends by itself, with a code that is not 0, and the first may have most to do.
                until = time.monotonic() + GRACE * (6 if len(passed) == 1 else 1)
            if until is not None and steps and time.monotonic() > until:
                until, number = time.monotonic() + GRACE, steps.pop(0)
                for other in children:
                    other.send(number)
            for other in children:
                other.print_warnings()
            with suppress(queue.Empty):
                child = ended.get(timeout=0.1)
                break
        if child.process.returncode and len(steps) == 2:
            failed.append(child)
    own = [child for child in failed if child.process.returncode != LOST_PEER]
    return own or failed[:1] or [child for child in children if child.process.returncode][:1]


def _report(first: _Child, *, heard: bool) -> None:
    """Print how the first process failed, and its standard error unless ``heard``."""
    code = first.process.returncode
    if code < 0:
        hint = "; this is often a lack of memory" if -code == signal.SIGKILL else ""
        print(f"advect: rank {first.rank} was ended by {signal.Signals(-code).name}{hint}", file=sys.stderr)
    if first.said is not None and not heard:
        first.print_warnings()
        first.said.seek(0)
        lines = first.said.read().decode(errors="replace").splitlines(keepends=True)
        sys.stderr.writelines(line for line in lines if not line.startswith(_WARNING))
        sys.stderr.flush()


def hold_lifeline() -> bool:
    """In a process of :func:`launch`: end by SIGTERM, then SIGKILL, once the launcher is gone. False elsewhere."""
    word = os.environ.pop(_LIFELINE, None)
    if word is None:
        return False

    def watch() -> None:
        os.read(int(word), 1)  # returns when the other end is closed
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="lifeline").start()
    return True


def run_shared(command: Callable[[], None]) -> None:
    """Run ``command`` in all processes of the run.

    A UserError common to all is printed once. Exits with LOST_PEER if another process failed.
    """
    launched, code = hold_lifeline(), 0
    try:
        with process_group() as me:
            try:
                command()
            except SystemExit as stop:
                code = stop.code
            except UserError as error:
                if not error.agreed:
                    raise
                if me.is_first:
                    print(f"advect: {error}", file=sys.stderr)
                code = 2
    except Exception as error:
        if not is_lost_peer(error):
            raise
        if not launched:
            name, why = DistEnv.from_environment().name, str(error).splitlines()[0]
            print(f"advect: {name} lost the others, as one has failed or is out of reach: {why}", file=sys.stderr)
        code = LOST_PEER
    if code:
        sys.exit(code)
