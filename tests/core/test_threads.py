"""The cores that a container grants, and the choice of PyTorch's threads by measured time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from advect.core import threads
from advect.core.threads import cpu_quota, kept_threads, limit_threads, measure_threads


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")
    return folder


def test_the_quota_is_the_least_of_a_group_and_those_above(tmp_path: Path) -> None:
    root, proc = tmp_path / "cgroup", tmp_path / "proc"
    write(root, cpu__max="400000 100000")
    write(root / "user/job", cpu__max="150000 100000")
    write(root / "user", cpu__max="max 100000")
    proc.write_text("0::/user/job\n")
    assert cpu_quota(proc, root) == 1.5
    proc.write_text("0::/user\n")
    assert cpu_quota(proc, root) == 4.0
    proc.write_text("0::/elsewhere\n")  # in a container, whose own group is the root
    assert cpu_quota(proc, root) == 4.0


def test_the_quota_of_version_1_and_none(tmp_path: Path) -> None:
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    proc.write_text("5:memory:/m\n3:cpu,cpuacct:/box\n0::/\n")
    write(root / "cpu,cpuacct/box", cpu__cfs_quota_us="250000", cpu__cfs_period_us="100000")
    assert cpu_quota(proc, root) == 2.5
    write(root / "cpu,cpuacct/box", cpu__cfs_quota_us="-1")
    assert cpu_quota(proc, root) is None
    assert cpu_quota(tmp_path / "missing", root) is None


class Clock:
    """A clock that ``work`` moves on by the seconds of PyTorch's number of threads."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.now, self.seconds, self.tried = 0.0, seconds, set[int]()

    def perf_counter(self) -> float:
        return self.now

    def work(self) -> None:
        self.tried.add(torch.get_num_threads())
        self.now += self.seconds[torch.get_num_threads()]


@pytest.mark.parametrize(
    ("seconds", "chosen", "tried"),
    [
        ({8: 0.1, 4: 0.2, 2: 0.4, 1: 0.8}, 8, {8, 4}),  # half as many are slower by half, and so not 2 and 1
        ({8: 2.0, 4: 1.0, 2: 0.5, 1: 0.26}, 1, {8, 4, 2, 1}),  # others hold the cores
        ({8: 0.2, 4: 0.1, 2: 0.3, 1: 0.6}, 4, {8, 4, 2}),  # hyper-threads
        ({8: 0.100, 4: 0.104, 2: 0.2, 1: 0.4}, 4, {8, 4, 2}),  # fewer at nearly the same rate
    ],
)
def test_the_fastest_number_is_taken_and_fewer_for_the_same(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], chosen: int, tried: set[int]
) -> None:
    clock = Clock(seconds)
    monkeypatch.setattr(threads.time, "perf_counter", clock.perf_counter)
    with kept_threads():
        torch.set_num_threads(8)
        choice = measure_threads(clock.work, 1000)
        assert torch.get_num_threads() == choice.threads == chosen
        assert clock.tried == tried
        assert choice.rates[8] == pytest.approx(1 / seconds[8])
    assert torch.get_num_threads() == 1


def test_slow_work_is_done_three_times_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock({8: 20.0, 4: 10.0, 2: 5.0, 1: 2.5})
    monkeypatch.setattr(threads.time, "perf_counter", clock.perf_counter)
    with kept_threads():
        torch.set_num_threads(8)
        assert measure_threads(clock.work, 1000).threads == 4
    assert clock.tried == {8, 4} and clock.now == 20.0 + 20.0 + 10.0


def test_short_work_and_one_thread_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock({8: 0.01, 1: 0.01})
    monkeypatch.setattr(threads.time, "perf_counter", clock.perf_counter)
    assert measure_threads(clock.work, 1000).threads == 1
    assert not clock.tried
    with kept_threads():
        torch.set_num_threads(8)
        assert measure_threads(clock.work, 100).threads == 8
        assert measure_threads(clock.work, 10_000, seconds=4).threads == 8
    assert clock.tried == {8}


def test_a_container_limits_threads_unless_the_environment_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "count_cores", lambda: 2)
    with kept_threads():
        torch.set_num_threads(8)
        monkeypatch.setenv("OMP_NUM_THREADS", "8")
        limit_threads()
        assert torch.get_num_threads() == 8
        monkeypatch.delenv("OMP_NUM_THREADS")
        monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
        limit_threads()
        assert torch.get_num_threads() == 2
