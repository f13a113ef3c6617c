"""Two hosts: network namespaces of this machine, joined by a cable that a test can cut."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from advect.checkpoint.manifest import list_checkpoints
from advect.training import verify_checkpoint
from forked import advect_ranks
from processes import environment

pytestmark = pytest.mark.slow
MOONS = "train moons --width 16 --batch-size 32 --log-every 10 --sample-every 0 --device cpu"
FIRST = "10.97.0.1"
LAUNCHERS = {
    "static": (f"--master-addr {FIRST} --node-rank 0", f"--master-addr {FIRST} --node-rank 1"),
    # Neither host's own name leads to the address of the cable, so they are told what c10d would find out by it.
    "c10d": tuple(
        f"--rdzv-backend c10d --rdzv-endpoint {FIRST}:29400 --rdzv-conf is_host={flag} --local-addr 10.97.0.{i}"
        for i, flag in ((1, "true"), (2, "false"))
    ),
}


def ip(words: str) -> None:
    """Run iproute2's command."""
    done = subprocess.run(["ip", *words.split()], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {words}: {done.stderr.strip()}")


@dataclass(frozen=True)
class Host:
    """A namespace, and the name of its end of the cable."""

    name: str
    end: str

    def start(self, command: Sequence[str], cwd: Path, **variables: object) -> subprocess.Popen[str]:
        """Start a command there, as its user would: Gloo is told which network to take."""
        env, pipe = environment(**{"GLOO_SOCKET_IFNAME": self.end, **variables}), subprocess.PIPE
        words = ["ip", "netns", "exec", self.name, *command]
        return subprocess.Popen(words, cwd=cwd, env=env, stdout=pipe, stderr=pipe, text=True)

    def cut(self) -> None:
        """Unplug the cable at this end."""
        ip(f"-n {self.name} link set {self.end} down")


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts, 10.97.0.1 and 10.97.0.2 to each other and to nobody else."""
    if shutil.which("ip") is None:
        pytest.skip("needs iproute2")
    one, two = (Host(f"advect{os.getpid()}{side}", f"cable{side}") for side in "ab")
    with ExitStack() as made:
        for host in (one, two):
            try:
                ip(f"netns add {host.name}")
            except OSError as error:
                pytest.skip(f"no network namespaces here: {error}")
            made.callback(_remove, host)
        ip(f"link add {one.end} netns {one.name} type veth peer name {two.end} netns {two.name}")
        for i, host in enumerate((one, two), 1):
            ip(f"-n {host.name} addr add 10.97.0.{i}/24 dev {host.end}")
            for link in ("lo", host.end):
                ip(f"-n {host.name} link set {link} up")
        yield one, two


def _remove(host: Host) -> None:
    with suppress(OSError):
        ip(f"netns del {host.name}")


@contextmanager
def torchrun(
    hosts: Sequence[Host], words: str, cwd: Path, launcher: str = "static", **variables: object
) -> Iterator[list[subprocess.Popen[str]]]:
    """``torchrun`` of the command line, one process a host; what is left of it is ended."""
    agents: list[subprocess.Popen[str]] = []
    try:
        for host, place in zip(hosts, LAUNCHERS[launcher], strict=True):
            there = ["--nnodes=2", "--nproc-per-node=1", *place.split(), "-m", "advect", *words.split()]
            agents.append(host.start([sys.executable, "-m", "torch.distributed.run", *there], cwd, **variables))
        yield agents
    finally:
        for agent in agents:
            agent.terminate()  # which it passes on
        for agent in agents:
            try:
                agent.communicate(timeout=40)
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.communicate()


def losses(run: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_hosts_train_what_two_local_processes_do(hosts, tmp_path, launcher):
    with torchrun(hosts, f"{MOONS} --max-steps 60 --run-dir far", tmp_path, launcher) as agents:
        said = [agent.communicate(timeout=180) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert "2 processes (ddp): batches of 32 on each, 64 together" in said[0][0] + said[1][0]
    advect_ranks(2, f"{MOONS} --max-steps 60 --run-dir near", cwd=tmp_path, timeout=120)
    assert len(losses(tmp_path / "near")) == 6
    assert losses(tmp_path / "far") == losses(tmp_path / "near")


def test_a_cut_cable_ends_both_hosts_and_the_run_goes_on_from_its_checkpoint(hosts, tmp_path):
    run, every = tmp_path / "run", "--save-every 20 --run-dir run"
    with torchrun(hosts, f"{MOONS} {every} --max-steps 100000", tmp_path, ADVECT_TIMEOUT=10) as agents:
        wait_until(lambda: (run / "checkpoints" / "step-00000060").is_dir(), agents)
        hosts[1].cut()
        said = [agent.communicate(timeout=180) for agent in agents]
    for agent, (_, error) in zip(agents, said, strict=True):
        assert agent.returncode == 1, error
        assert "lost the others" in error and "exitcode  : 75" in error
        assert "advect: rank" in error and 'advect/cli.py", line' not in error  # no traceback of ours
    for path in list_checkpoints(run / "checkpoints"):
        verify_checkpoint(path)
    last = int((run / "checkpoints" / "latest").read_text().split("-")[1])
    assert last >= 60
    advect_ranks(2, f"{MOONS} --resume-from run --max-steps {last + 20}", cwd=tmp_path, timeout=120)
    advect_ranks(2, f"{MOONS} --max-steps {last + 20} --run-dir whole", cwd=tmp_path, timeout=120)
    assert losses(run) == losses(tmp_path / "whole")


def test_hosts_that_meet_but_have_chosen_another_network_are_told_what_to_set(hosts, tmp_path):
    with torchrun(hosts, MOONS, tmp_path, ADVECT_TIMEOUT=10, GLOO_SOCKET_IFNAME="lo") as agents:
        said = [agent.communicate(timeout=180)[1] for agent in agents]
    assert any("they met, but do not reach one another; set GLOO_SOCKET_IFNAME" in error for error in said), said
    assert not any('advect/cli.py", line' in error for error in said)


def wait_until(condition, agents: Sequence[subprocess.Popen[str]]) -> None:
    until = time.monotonic() + 180
    while not condition():
        assert all(agent.poll() is None for agent in agents), [agent.communicate() for agent in agents]
        assert time.monotonic() < until, "waited for three minutes"
        time.sleep(0.02)
