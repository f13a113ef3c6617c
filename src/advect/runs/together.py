"""One command of the command line, run by one of several processes."""

from __future__ import annotations

import sys
from collections.abc import Callable

from advect.core.errors import UserError
from advect.core.group import is_lost_peer, joined
from advect.core.processes import Processes
from advect.runs.launch import LOST_PEER, hold_lifeline


def run_together(command: Callable[[], None]) -> None:
    """Run ``command`` with the other processes of the run, and leave when all are through.

    A mistake that all of them raise is told by the first one alone. Exits with LOST_PEER, and with one line, where
    another process has failed; under ``--nproc`` the launcher tells what the other one said.
    """
    launched, code = hold_lifeline(), 0
    try:
        with joined() as me:
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
            name, why = Processes.of_environment().name, str(error).splitlines()[0]
            print(f"advect: {name} lost the others, as one has failed or is out of reach: {why}", file=sys.stderr)
        code = LOST_PEER
    if code:
        sys.exit(code)
