"""What lies in a run's folder of averages, at any step and after any restart."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import nn

from advect.checkpoint.tensor_files import load_weights
from advect.core.errors import UserError
from advect.training import EMA, AdamW, Trainer, TrainState, named_params
from advect.training.ema import length_file
from advect.training.posthoc_ema import Snapshots, bring, combine, read_snapshots, spacing


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is cut here."""
    monkeypatch.setattr("advect.checkpoint.manifest.sync_file", lambda path: None)
    monkeypatch.setattr("advect.checkpoint.manifest.sync_folder", lambda path: None)


class FakeTrainer:
    """Moves the weights to a value that the step alone determines, and tells the hook."""

    def __init__(self, hook: Snapshots, lengths: tuple[float, ...] = (0.05, 0.1)) -> None:
        net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        params = named_params(net)
        self.state, self.hook = TrainState(net, AdamW(params), EMA(params, 0.9, lengths=lengths)), hook

    def flush(self) -> bool:
        return True

    def run(self, until: int, *, end: bool = True) -> FakeTrainer:
        trainer, state = cast(Trainer, self), self.state
        self.hook.on_start(trainer)
        while state.progress.step < until:
            state.progress.step += 1
            generator = torch.Generator().manual_seed(state.progress.step)
            for p in state.net.parameters():
                p.data = torch.randn(p.shape, generator=generator)
            assert state.ema is not None
            state.ema.update()
            self.hook.on_step(trainer)
        if end:
            self.hook.on_end(trainer, "finished")
        return self


def steps(folder: Path) -> list[int]:
    return sorted(int(p.name.split("-")[1]) for p in folder.glob("step-*"))


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_from_256_steps_on_there_are_16_to_32_evenly_spread() -> None:
    for step in (*range(256, 5000), 10**6, 2**20 - 1, 2**20):
        gap = spacing(step)
        assert 16 <= step // gap < 32 and gap & (gap - 1) == 0
    assert [spacing(step) for step in (1, 15, 16, 255, 256, 511, 512)] == [8, 8, 8, 8, 16, 16, 32]


@pytest.mark.parametrize("end", [5, 16, 100, 255, 256, 300, 512, 700])
def test_what_is_there_depends_on_the_number_of_steps_alone(tmp_path: Path, end: int) -> None:
    FakeTrainer(Snapshots(tmp_path / "ema")).run(end)
    gap = spacing(end)
    assert steps(tmp_path / "ema") == sorted({*range(gap, end + 1, gap), end})


def test_with_a_spacing_of_ones_own_all_are_kept(tmp_path: Path) -> None:
    FakeTrainer(Snapshots(tmp_path, every=10)).run(305)
    assert steps(tmp_path) == [*range(10, 301, 10), 305]


@pytest.mark.parametrize("every", [None, 7])
def test_a_killed_and_resumed_run_leaves_the_same_bytes(tmp_path: Path, every: int | None) -> None:
    FakeTrainer(Snapshots(tmp_path / "whole", every=every)).run(300)
    first = FakeTrainer(Snapshots(tmp_path / "parts", every=every)).run(45)  # ended by a limit, where none is due
    first.run(100, end=False)
    (tmp_path / "checkpoint").mkdir()
    first.state.save(tmp_path / "checkpoint")
    first.run(299, end=False)  # and killed
    (tmp_path / "parts/step-00000272").mkdir(exist_ok=True)  # in the middle of something, perhaps of a removal
    (tmp_path / "parts/step-00000272").rename(tmp_path / "parts/.step-00000272.removed.partial")
    resumed = FakeTrainer(Snapshots(tmp_path / "parts", every=every))
    resumed.state.load(tmp_path / "checkpoint")
    resumed.run(300)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_going_on_drops_what_lies_beyond_and_the_end_that_was_not_due(tmp_path: Path) -> None:
    hook = Snapshots(tmp_path, every=10)
    FakeTrainer(hook).run(35)
    hook.start_at(35)
    assert steps(tmp_path) == [10, 20, 30]
    hook.start_at(20)
    assert steps(tmp_path) == [10, 20]


def test_a_run_that_goes_on_elsewhere_takes_them_along(tmp_path: Path) -> None:
    FakeTrainer(Snapshots(tmp_path / "a", every=10)).run(30)
    bring(tmp_path / "a", tmp_path / "b")
    bring(tmp_path / "nothing", tmp_path / "c")
    assert content(tmp_path / "a") == content(tmp_path / "b") and not (tmp_path / "c").exists()


def test_nothing_is_stored_before_the_first_update(tmp_path: Path) -> None:
    trainer = FakeTrainer(Snapshots(tmp_path, every=1))
    trainer.state.progress.step = 1
    trainer.hook.on_step(cast(Trainer, trainer))
    assert not list(tmp_path.iterdir())


def test_a_combination_is_the_weighted_sum_and_keeps_what_is_not_averaged(tmp_path: Path) -> None:
    trainer = FakeTrainer(Snapshots(tmp_path, every=10))
    trainer.run(10)
    trainer.state.net[1].running_mean.fill_(5.0)  # pyright: ignore
    trainer.run(20)
    first, second = snapshots = read_snapshots(tmp_path)
    assert [(s.step, s.updates, s.lengths) for s in snapshots] == [(10, 10, (0.05, 0.1)), (20, 20, (0.05, 0.1))]
    one, two = combine(snapshots, [np.array([0.5, -1.0, 0.25, 1.25]), np.array([0.0, 0.0, 0.0, 1.0])])
    assert trainer.state.ema is not None
    now = trainer.state.ema.shadows[length_file(0.1)]["0.weight"]
    assert torch.equal(two["0.weight"], now)
    parts = [load_weights(s.path / length_file(length))["0.weight"] for s in (first, second) for length in s.lengths]
    wanted = 0.5 * parts[0] - parts[1] + 0.25 * parts[2] + 1.25 * parts[3]
    assert torch.allclose(one["0.weight"], wanted, atol=1e-6)
    assert one["1.running_mean"].tolist() == [5.0, 5.0] and one["1.num_batches_tracked"].dtype == torch.int64


def test_a_flipped_byte_is_found_and_the_others_serve_without_it(tmp_path: Path) -> None:
    FakeTrainer(Snapshots(tmp_path, every=10)).run(30)
    file = tmp_path / "step-00000020" / length_file(0.1)
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"step-00000020 is damaged: the content of ema-len.* remove that folder"):
        read_snapshots(tmp_path)
    assert [s.step for s in read_snapshots(tmp_path, 10)] == [10]
    shutil.rmtree(tmp_path / "step-00000020")
    assert [s.step for s in read_snapshots(tmp_path)] == [10, 30]


def test_one_without_a_manifest_is_not_passed_over(tmp_path: Path) -> None:
    FakeTrainer(Snapshots(tmp_path, every=5)).run(20)
    (tmp_path / "step-00000010/manifest.json").unlink()
    with pytest.raises(UserError, match=r"step-00000010 is incomplete: it has no manifest.json.* to go without it"):
        read_snapshots(tmp_path)
    shutil.rmtree(tmp_path / "step-00000010")
    assert [found.step for found in read_snapshots(tmp_path)] == [5, 15, 20]


def test_a_step_without_a_snapshot_names_its_neighbours(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no snapshots of averages; train with --posthoc-ema"):
        read_snapshots(tmp_path / "none")
    FakeTrainer(Snapshots(tmp_path, every=10)).run(80)
    with pytest.raises(UserError, match=r"--step 35 has no snapshot in .*; the nearest are of steps 20, 30, 40, 50"):
        read_snapshots(tmp_path, 35)


def test_a_snapshot_that_its_step_could_not_write_is_due_where_the_error_writes_it(tmp_path, monkeypatch) -> None:
    """As for one that the disk took at last: a resumption at that step keeps it."""
    fake = FakeTrainer(Snapshots(tmp_path, every=2)).run(3, end=False)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk, pytest.raises(UserError, match="the disk is full"):
        disk.setattr("advect.training.posthoc_ema._fill", full)
        fake.run(4, end=False)
    trainer = cast(Trainer, fake)
    trainer.state.progress.bad_row = None
    fake.hook.on_error(trainer)
    Snapshots(tmp_path, every=2).on_start(trainer)
    assert steps(tmp_path) == [2, 4]


def test_a_folder_where_the_newest_is_named_is_refused_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    trainer = FakeTrainer(Snapshots(tmp_path))
    with pytest.raises(UserError, match=r"latest is a folder, and the file of that name is written there; move it"):
        trainer.run(1)
    assert trainer.state.progress.step == 0
