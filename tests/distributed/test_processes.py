from __future__ import annotations

from datetime import timedelta

import pytest
import torch

from advect.core.errors import UserError
from advect.distributed.env import DistEnv, hosts, timeout_of

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}
# Two nodes with three tasks and one with two, as srun sets them for the second task of the third node.
SLURM = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "3(x2),2",
    "SLURM_STEP_NODELIST": "gpu[09-10],big3",
    "SLURM_JOB_NODELIST": "gpu[01-10],big3",
}


def test_without_variables_a_process_is_on_its_own():
    assert DistEnv.from_environment({"PATH": "/bin"}) == DistEnv()
    assert DistEnv().is_first


def test_the_variables_of_torchrun():
    me = DistEnv.from_environment(TORCHRUN)
    assert me == DistEnv(rank=5, world=8, local_rank=1, local_world=4, address="node1", port=29500)
    assert not me.is_first


def test_one_process_of_a_launcher_needs_no_address():
    assert DistEnv.from_environment({"RANK": "0", "WORLD_SIZE": "1"}) == DistEnv()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"RANK": None}, "RANK is not set"),
        ({"WORLD_SIZE": None}, "WORLD_SIZE is not set"),
        ({"RANK": "8"}, "RANK must be at least 0 and below WORLD_SIZE, 8, got 8"),
        ({"RANK": "-1"}, "RANK must be a whole number, got '-1'"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE must be a whole number, got 'many'"),
        ({"LOCAL_RANK": "4"}, "LOCAL_RANK must be at least 0 and below LOCAL_WORLD_SIZE, 4, got 4"),
        ({"LOCAL_WORLD_SIZE": "9"}, "LOCAL_WORLD_SIZE must be"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": ""}, "MASTER_PORT is not set"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT must be from 1 to 65535, got 70000"),
    ],
)
def test_contradictory_variables_are_told(change, words):
    env = {name: value for name, value in {**TORCHRUN, **change}.items() if value is not None}
    with pytest.raises(UserError, match=words):
        DistEnv.from_environment(env)


def test_the_variables_of_a_slurm_step():
    me = DistEnv.from_environment(SLURM)
    assert (me.rank, me.world, me.local_rank, me.local_world) == (7, 8, 1, 2)
    assert me.address == "gpu09"
    assert 10_000 <= me.port < 30_000
    others = [DistEnv.from_environment({**SLURM, name: "1"}).port for name in ("SLURM_STEP_ID", "SLURM_JOB_ID")]
    assert me.port not in others
    told = DistEnv.from_environment({**SLURM, "MASTER_ADDR": "head", "MASTER_PORT": "4000"})
    assert (told.address, told.port) == ("head", 4000)


def test_torchrun_within_a_slurm_step_wins():
    assert DistEnv.from_environment({**SLURM, **TORCHRUN}).rank == 5


def test_a_batch_script_and_a_step_of_one_task_are_single():
    script = {name: value for name, value in SLURM.items() if "STEP" not in name}
    assert DistEnv.from_environment(script) == DistEnv()
    assert DistEnv.from_environment({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}) == DistEnv()


def test_a_slurm_step_without_its_place_is_told():
    env = {name: value for name, value in SLURM.items() if name != "SLURM_PROCID"}
    with pytest.raises(UserError, match="SLURM_PROCID is not set in a SLURM step of 8 tasks"):
        DistEnv.from_environment(env)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("login", ["login"]),
        ("node[01-04,7],other3", ["node01", "node02", "node03", "node04", "node7", "other3"]),
        ("a[8-11]", ["a8", "a9", "a10", "a11"]),
        ("rack[1-2]n[01,03]-ib", ["rack1n01-ib", "rack1n03-ib", "rack2n01-ib", "rack2n03-ib"]),
        ("x1,y-2,z[3]", ["x1", "y-2", "z3"]),
    ],
)
def test_lists_of_nodes(words, names):
    assert hosts(words) == names


@pytest.mark.parametrize("words", ["", "a[1-2", "a]1[", "a[b-c]", "a[1-]b[-2]", "a,,b"])
def test_a_list_of_nodes_that_is_none_is_told(words):
    with pytest.raises(UserError, match="MASTER_ADDR"):
        hosts(words)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_shares_are_neighbours_that_cover_all_and_differ_by_one_at_most(n, world):
    shares = [DistEnv(rank=rank, world=world, port=1).share(n) for rank in range(world)]
    assert [i for share in shares for i in share] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_each_process_has_the_gpu_of_its_local_number(monkeypatch):
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    second = DistEnv(rank=3, world=4, local_rank=1, local_world=2, port=1)
    assert second.device(torch.device("cuda")) == torch.device("cuda:1")
    assert second.device(torch.device("cpu")) == torch.device("cpu")
    assert DistEnv().device(torch.device("cuda:1")) == torch.device("cuda:1")
    with pytest.raises(UserError, match="--device cuda:0 names one GPU for 4 processes"):
        second.device(torch.device("cuda:0"))
    with pytest.raises(UserError, match="4 processes share 2 GPUs"):
        DistEnv(rank=2, world=4, local_rank=2, local_world=4, port=1).device(torch.device("cuda"))


def test_a_slurm_task_that_sees_one_gpu_takes_it(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    last = DistEnv(rank=3, world=4, local_rank=3, local_world=4, port=1)
    assert last.device(torch.device("cuda")) == torch.device("cuda:0")


@pytest.mark.parametrize("word", ["", "0", "-3", "2.5", "soon", "99999999"])
def test_how_long_to_wait_for_the_others_is_checked(word):
    assert timeout_of({}) == timedelta(minutes=10)
    assert timeout_of({"ADVECT_TIMEOUT": "90"}) == timedelta(seconds=90)
    with pytest.raises(
        UserError, match=f"ADVECT_TIMEOUT must be a whole number of seconds up to a month, got '{word}'"
    ):
        timeout_of({"ADVECT_TIMEOUT": word})
