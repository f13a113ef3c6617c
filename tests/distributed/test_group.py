"""What processes tell each other, among real ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import timedelta

import pytest
import torch

from advect.core.errors import UserError
from advect.distributed.comm import (
    PeerFailed,
    all_max,
    all_objects,
    all_sum,
    background_group,
    barrier,
    broadcast_object,
    control_group,
    current,
    gather_objects,
    is_lost_peer,
    process_group,
    sync_errors,
    without_timeout,
)
from advect.distributed.env import DistEnv
from forked import ranks, run_ranks
from processes import environment, free_port


def exchanges() -> dict:
    me = current()
    with process_group() as again:  # a second time changes nothing
        assert again is me
    barrier()
    return {
        "rank": me.rank,
        "first": me.is_first,
        "sum": all_sum(torch.tensor([me.rank, 10.0])).tolist(),
        "max": all_max([me.rank, -me.rank, 2**53 - me.rank, 0.5 * me.rank]),
        "all": all_objects([me.rank] * me.rank),
        "gathered": gather_objects(f"from {me.rank}"),
        "broadcast": broadcast_object({"from": me.rank}),
        "share": list(me.share(7)),
        "groups": control_group() is not background_group() and control_group() is not None,
    }


def test_what_all_have_in_common():
    n = 2
    told = run_ranks(n, exchanges)
    assert [t["rank"] for t in told] == list(range(n))
    assert [t["first"] for t in told] == [True] + [False] * (n - 1)
    assert [i for t in told for i in t["share"]] == list(range(7))
    assert told[0]["gathered"] == [f"from {rank}" for rank in range(n)]
    for t in told:
        assert t["sum"] == [n * (n - 1) / 2, 10 * n]
        assert t["max"] == [n - 1, 0, 2**53, 0.5 * (n - 1)]
        assert [type(value) for value in t["max"]] == [int, int, int, float]
        assert t["all"] == [[rank] * rank for rank in range(n)]
        assert t["broadcast"] == {"from": 0}
        assert t["groups"]
    assert all(t["gathered"] is None for t in told[1:])


def test_a_process_on_its_own_needs_no_group():
    with process_group(processes=DistEnv()) as me, sync_errors():
        assert me == current() == DistEnv()
        assert (all_max([1, 2.5]), all_objects("x"), gather_objects("x")) == ([1, 2.5], ["x"], ["x"])
        assert broadcast_object("x") == "x" and control_group() is None and background_group() is None
        barrier()
        tensor = torch.ones(2)
        assert all_sum(tensor) is tensor and tensor.tolist() == [1, 1]
    assert not torch.distributed.is_initialized()


def mistakes() -> list:
    """What agree() raises for each of CASES."""
    return [mistake(wrong, kind) for wrong, kind in CASES]


CASES: list[tuple[list[int], type[Exception]]] = [
    ([0], UserError),
    ([1, 2], UserError),
    ([1], TypeError),
    ([], UserError),
]
"""Which ranks fail, and how."""


def mistake(wrong: list[int], kind: type[Exception]) -> list:
    me, raised = current().rank, None
    try:
        with sync_errors():
            if me in wrong:
                raise kind(f"--seed {me} is bad")
    except Exception as error:
        raised = [type(error).__name__, str(error), getattr(error, "agreed", None)]
    return [raised, int(all_sum(torch.ones(1)).item())]  # and the group works after it


def test_a_mistake_of_one_process_is_everyones_and_a_bug_its_own():
    of_first, of_others, bug, none = zip(*run_ranks(3, mistakes), strict=True)
    assert of_first == ([["UserError", "--seed 0 is bad", True], 3],) * 3
    (name, text, agreed), total = of_others[0]
    assert of_others[0] == of_others[1] == of_others[2]
    assert (name, agreed, total) == ("UserError", True, 3)
    assert text.startswith("rank 1 (") and text.endswith("): --seed 1 is bad")
    assert bug[1] == [["TypeError", "--seed 1 is bad", None], 3]
    assert all(bug[i][0][0] == PeerFailed.__name__ and "TypeError: --seed 1 is bad" in bug[i][0][1] for i in (0, 2))
    assert none == ([None, 3],) * 3


def lost() -> None:
    with process_group() as me:
        all_max([1])
        if me.rank == 1:
            os._exit(3)
        try:
            all_max([1])
        except RuntimeError as error:
            sys.exit(5 if is_lost_peer(error) and not is_lost_peer(RuntimeError("no")) else 6)


def test_a_process_that_dies_is_noticed_by_the_others():
    with ranks(2, lost) as run:
        assert [rank.code for rank in run.wait()] == [5, 3]


def separated() -> None:
    from torch.distributed.distributed_c10d import _set_pg_timeout

    with process_group() as me:
        _set_pg_timeout(timedelta(milliseconds=200), control_group())
        with without_timeout():
            time.sleep(me.rank)
        try:
            with without_timeout():
                if me.rank == 1:
                    raise KeyError("mine")
        except KeyError:
            sys.exit(3)
        except RuntimeError as error:
            sys.exit(5 if is_lost_peer(error) else 6)


def test_processes_apart_outwait_the_time_of_an_exchange_but_no_failure():
    with ranks(2, separated) as run:
        assert [rank.code for rank in run.wait()] == [5, 3]


def test_others_that_do_not_come_are_told():
    me = DistEnv(rank=0, world=2, local_world=2, address="127.0.0.1", port=free_port())
    with (
        pytest.raises(UserError, match=r"rank 0 .* could not join the 2 processes at MASTER_ADDR 127.0.0.1"),
        process_group(processes=me, timeout=timedelta(seconds=1)),
    ):
        pass
    assert current() == DistEnv()


def test_importing_the_package_leaves_torch_distributed_alone():
    code = "import sys, advect.distributed.comm, advect.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
