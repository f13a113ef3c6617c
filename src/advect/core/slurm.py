"""What SLURM tells the tasks of a job step, in the words of ``torchrun``.

SLURM's variables are described in the manual page of srun, section OUTPUT ENVIRONMENT VARIABLES.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from advect.core.errors import UserError


def slurm_variables(env: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE and so on for a task of a step with several tasks; empty for any other process.

    A batch script and a shell of ``salloc`` stand in no such step and are single, whatever the job has asked for.
    MASTER_ADDR and MASTER_PORT are the step's first host, and a number between 10,000 and 29,999 that the job's
    and step's numbers give, unless they are set. Raises UserError where SLURM's variables make no sense.
    """
    tasks = env.get("SLURM_STEP_NUM_TASKS", "")
    if not tasks.isdecimal() or int(tasks) < 2:
        return {}
    missing = [name for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID") if name not in env]
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST")
    if missing or nodes is None:
        raise UserError(
            f"{', '.join(missing) or 'SLURM_STEP_NODELIST'} is not set in a SLURM step of {tasks} tasks; start with"
            " srun, or give RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
        )
    here = _tasks_here(env)
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "MASTER_ADDR": env.get("MASTER_ADDR") or hosts(nodes)[0],
        "MASTER_PORT": env.get("MASTER_PORT") or str(_port(env)),
        **({} if here is None else {"LOCAL_WORLD_SIZE": str(here)}),
    }


def hosts(nodelist: str) -> list[str]:
    """The names in a list such as ``node[01-03,7],login``. Raises UserError where it is not one."""
    if not re.fullmatch(r"(?:[^\[\],]|\[[\d,-]+\])+(?:,(?:[^\[\],]|\[[\d,-]+\])+)*", nodelist):
        raise UserError(f"SLURM's list of nodes {nodelist!r} cannot be read; give MASTER_ADDR and MASTER_PORT")
    return [name for entry in re.split(r",(?![^\[]*\])", nodelist) for name in _expanded(entry)]


def _expanded(entry: str) -> Iterator[str]:
    """``rack[1-2]n[01,03]`` as its four names, the last bracket varying fastest."""
    before, bracket, rest = entry.partition("[")
    if not bracket:
        yield entry
        return
    inside, _, after = rest.partition("]")
    for part in inside.split(","):
        first, _, last = part.partition("-")
        if not re.fullmatch(r"\d+(-\d+)?", part):
            raise UserError(f"SLURM's list of nodes has {part!r} in {entry!r}; give MASTER_ADDR and MASTER_PORT")
        numbers = range(int(first), int(last or first) + 1)
        for number in numbers:
            for tail in _expanded(after):
                yield f"{before}{number:0{len(first)}d}{tail}"


def _tasks_here(env: Mapping[str, str]) -> int | None:
    """How many of the step's tasks run on this node, from a list such as ``4(x2),3``; None where not told."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", env.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(count)] * int(times or 1)
    node = env.get("SLURM_NODEID", "")
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else None


def _port(env: Mapping[str, str]) -> int:
    """The same for all tasks of a step, and seldom that of another step on the same node."""
    numbers = [int(value) if value.isdecimal() else 0 for value in (env["SLURM_JOB_ID"], env.get("SLURM_STEP_ID", ""))]
    return 10_000 + (7 * numbers[0] + numbers[1]) % 20_000
