"""Several averages of a run, and ``advect ema``: from the command line to files that are sampled from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import advect as package
from advect import cli
from advect.checkpoint.tensor_files import load_weights
from advect.commands import ema
from advect.commands.ema import EmaArguments, rebuild
from advect.core.errors import UserError
from advect.model.load import read_average
from advect.sklearn import FlowModel
from advect.training import write_checkpoint
from advect.training.ema import length_file
from advect.training.state import EMA_FILE, MODEL
from forked import ranks
from runs import assert_same_end, wait_for_step

FLAGS = "--width 16 --batch-size 64 --log-every 50 --sample-every 0 --ema-also 0.9 0.99 --posthoc-ema"
ALSO = ("ema-0.9.safetensors", "ema-0.99.safetensors")
POWERS = ("ema-length-0.05.safetensors", "ema-length-0.1.safetensors")


def snapshots(run: Path) -> dict[str, bytes]:
    return {p.relative_to(run).as_posix(): p.read_bytes() for p in (run / "ema").rglob("*") if p.is_file()}


def equal(a: Path, b: Path) -> bool:
    one, other = load_weights(a), load_weights(b)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def far(a: Path, b: Path) -> float:
    """The distance of b's weights from a's, as a share of a's."""
    one, other = load_weights(a), load_weights(b)
    square = sum((one[name] - other[name]).square().sum().item() for name in one)
    return (square / sum(value.square().sum().item() for value in one.values())) ** 0.5


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 300 steps on moons with all averages, of which 0.07 is tracked beside the usual two."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("runs") / "moons"
    with pytest.MonkeyPatch.context() as patch:  # no power is cut here
        patch.setattr("advect.checkpoint.manifest.sync_file", lambda path: None)
        patch.setattr("advect.checkpoint.manifest.sync_folder", lambda path: None)
        cli.run(f"train moons --run-dir {run} --max-steps 300 --posthoc-lengths 0.05 0.1 0.07 {FLAGS}".split())
        for file in list(run.glob("ema/step-*/ema-length-0.07.safetensors")):  # forget the third
            file.unlink()
            _rewrite(file.parent)
    return run


def _rewrite(folder: Path) -> None:
    """Write a snapshot again as a run with the lengths 0.05 and 0.1 alone would have."""
    facts = json.loads((folder / "average.json").read_text())
    (folder / "average.json").write_text(json.dumps({**facts, "lengths": [0.05, 0.1]}))
    (folder / "manifest.json").unlink()

    def fill(new: Path) -> None:
        for file in folder.iterdir():
            shutil.copy(file, new)

    write_checkpoint(folder.parent, int(folder.name[5:]), fill)


def test_a_checkpoint_holds_each_average_as_a_weight_file(averaged: Path) -> None:
    checkpoint = averaged / "checkpoints/step-00000300"
    plain = load_weights(checkpoint / MODEL)
    for name in (EMA_FILE, *ALSO, *POWERS):
        weights = load_weights(checkpoint / name)
        assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in plain.items()}
        assert package.load(checkpoint / name).sample(3, steps=2, progress=False).x.shape == (3, 2)
    spread = [far(checkpoint / MODEL, checkpoint / name) for name in ("ema-0.9.safetensors", ALSO[1])]
    assert 0 < spread[0] < spread[1]  # the longer average lags behind more


def test_load_takes_an_average_by_its_decay(averaged: Path, tmp_path: Path) -> None:
    checkpoint = averaged / "checkpoints/step-00000300"
    for decay, name in ((0.9, ALSO[0]), (0.99, ALSO[1]), (0.999, EMA_FILE), (True, EMA_FILE), (False, MODEL)):
        by_decay = package.load(averaged, ema=decay).sample(4, steps=2, progress=False).x
        assert torch.equal(by_decay, package.load(checkpoint / name).sample(4, steps=2, progress=False).x)
    with pytest.raises(UserError, match=r"has no average of decay 0.5; it has 0.999, 0.9, 0.99"):
        package.load(averaged, ema=0.5)
    with pytest.raises(UserError, match=r"ema is 0.9, and .* is one file of weights"):
        package.load(checkpoint / EMA_FILE, ema=0.9)
    with pytest.raises(UserError, match="holds averaged weights, and the others are asked for"):
        package.load(checkpoint / ALSO[0], ema=False)


def test_sample_takes_an_average_by_its_decay_and_says_so(advect: Callable[..., None], averaged: Path) -> None:
    advect("sample", averaged, "--ema-decay 0.9 --num-samples 3 --num-steps 2 --output-dir a")
    facts = json.loads(Path("a/samples.json").read_text())
    wanted = package.load(averaged, ema=0.9).sample(3, steps=2, progress=False).x
    assert facts["ema"] == 0.9 and np.array_equal(np.load("a/samples.npz")["x"], wanted.numpy())
    with pytest.raises(UserError, match="--no-use-ema and --ema-decay contradict"):
        advect("sample", averaged, "--ema-decay 0.9 --no-use-ema --output-dir b")


def test_a_length_that_the_run_tracked_is_rebuilt_from_the_two_others(
    advect: Callable[..., None], averaged: Path, capsys: pytest.CaptureFixture
) -> None:
    advect("ema", averaged, "--length 0.05 0.07 0.1")
    said = capsys.readouterr().out
    checkpoint = averaged / "checkpoints/step-00000300"
    made = {length: averaged / f"ema/length-{length}-step-00000300.safetensors" for length in (0.05, 0.07, 0.1)}
    for length, error in ((0.05, 1e-6), (0.1, 1e-6), (0.07, 1e-4)):
        assert far(checkpoint / f"ema-length-{length}.safetensors", made[length]) < error
        assert f"length {length} at step 300: {made[length]} (profile within 0." in said
    assert far(checkpoint / "ema-length-0.07.safetensors", made[0.05]) > 1e-3
    assert said.splitlines()[-1] == f"next: advect sample {made[0.1]}"


def test_what_is_made_samples_anywhere_and_says_what_it_is(
    advect: Callable[..., None], averaged: Path, tmp_path: Path
) -> None:
    advect("ema", averaged / "checkpoints/step-00000300", "--length 0.08 --step 256 --output new/small.safetensors")
    advect("sample new/small.safetensors --num-samples 3 --num-steps 2 --output-dir out")
    facts = json.loads(Path("out/samples.json").read_text())
    assert facts["ema"] == read_average(Path("new/small.safetensors"))
    assert facts["ema"]["length"] == 0.08 and facts["ema"]["step"] == 256 and 0 < facts["ema"]["error"] < 0.01
    with safe_open("new/small.safetensors", "pt") as file:
        assert set(file.metadata()) == {"advect", "average"}
    before = Path("new/small.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"--output new/small.safetensors is there already"):
        advect("ema", averaged, "--length 0.1 --output new/small.safetensors")
    assert Path("new/small.safetensors").read_bytes() == before
    advect("ema", averaged, "--length 0.1 --overwrite --output new/small.safetensors")
    assert far(averaged / "checkpoints/step-00000300" / POWERS[1], Path("new/small.safetensors")) < 1e-6


MISTAKES = [
    ("", "--length needs one or more different lengths, such as 0.05 0.1, got none"),
    ("--length 0.1 0.1", "--length needs one or more different lengths, such as 0.05 0.1, got 0.1 0.1"),
    ("--length 0.5", "--length must be above 0 and below 0.288675, got 0.5"),
    ("--length 0.05 0.005", r"--length 0.005 cannot be rebuilt .* \d\d% off; they reach from 0.0[12]\d* to 0.2"),
    ("--length 0.05 --step 257", "--step 257 has no snapshot in .*; the nearest are of steps 240, 256, 272, 288"),
    ("--length 0.05 0.1 --output a.safetensors", "is one file for 2 lengths"),
    ("--length 0.05 --output a.pt", "--output a.pt should end in .safetensors"),
    ("--length 0.05 --overwrite", "--overwrite is about the file of --output"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_writes_nothing(words: str, message: str, advect: Callable[..., None], averaged: Path) -> None:
    before = snapshots(averaged)
    with pytest.raises(UserError, match=message):
        advect("ema", averaged, words)
    assert snapshots(averaged) == before and not list(Path().iterdir())


def test_a_run_without_snapshots_and_a_snapshot_instead_of_a_run(
    advect: Callable[..., None], moons_run: Path, averaged: Path
) -> None:
    with pytest.raises(UserError, match="holds no snapshots of averages; train with --posthoc-ema"):
        advect("ema", moons_run, "--length 0.05")
    with pytest.raises(UserError, match="is a snapshot for advect ema; give the file that it writes"):
        package.load(averaged / "ema/step-00000256")


def test_a_run_of_a_data_transform_with_tensors_takes_them_along(
    advect: Callable[..., None], averaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(averaged, tmp_path / "run")
    (tmp_path / "run/checkpoints/step-00000300/state/data.safetensors").write_bytes(b"components")
    card = ema.read_model_metadata(averaged / "checkpoints/step-00000300" / MODEL)
    whole = card.__class__(**{**vars(card), "tensors": {"transform.w": 0}})
    monkeypatch.setattr(ema, "read_model_metadata", lambda file: whole)
    rebuild(tmp_path / "run", EmaArguments(length=(0.1,), output=tmp_path / "out/a.safetensors"))
    assert (tmp_path / "out/state/data.safetensors").read_bytes() == b"components"
    (tmp_path / "out/state/data.safetensors").write_bytes(b"others")
    with pytest.raises(UserError, match="belongs to another run"):
        rebuild(tmp_path / "run", EmaArguments(length=(0.1,), output=tmp_path / "out/b.safetensors"))


def test_a_unet_trained_on_a_cpu_has_snapshots(advect: Callable[..., None]) -> None:
    """Its weights are channels-last in memory."""
    net = "--model-channels 8 --channel-mult 1 --num-res-blocks 1 --attention-resolutions"
    flags = "--batch-size 8 --max-steps 4 --sample-every 0 --posthoc-ema --posthoc-every 2"
    advect("train digits --run-dir run", net, flags)
    last = load_weights(Path("run/ema/step-00000004") / length_file(0.1))
    kept = load_weights(Path("run/checkpoints/step-00000004") / POWERS[1])
    assert last.keys() == kept.keys() and all(torch.equal(value, kept[name]) for name, value in last.items())


def test_stopped_and_resumed_averages_equal_those_of_a_run_never_stopped(advect: Callable[..., None]) -> None:
    advect("train moons --run-dir whole --max-steps 60", FLAGS)
    advect("train moons --run-dir parts --max-steps 37", FLAGS)
    assert "ema/step-00000037/average.json" in snapshots(Path("parts"))
    advect("train --resume-from parts --run-dir fork --max-steps 60")
    advect("train --resume-from parts --max-steps 60")
    ends = {run: Path(run) / "checkpoints/step-00000060" for run in ("whole", "parts", "fork")}
    for name in (EMA_FILE, *ALSO, *POWERS):
        assert equal(ends["whole"] / name, ends["parts"] / name)
    assert_same_end(Path("whole"), Path("parts"), 60)
    for run in ("fork", "parts"):  # whose cards differ in --max-steps
        assert snapshots(Path("whole")).keys() == snapshots(Path(run)).keys()
        for file in Path("whole").glob("ema/*/*.safetensors"):
            assert equal(file, Path(run) / file.relative_to("whole"))


@pytest.mark.slow
def test_killed_again_and_again_the_snapshots_are_the_same_bytes(advect: Callable[..., None], tmp_path: Path) -> None:
    kills = 6
    steps = 30 * kills
    flags = f"{FLAGS} --max-steps {steps} --save-every 7 --posthoc-every 3"
    advect("train moons --run-dir whole", flags)
    words = f"train moons --run-dir killed {flags}"
    for i in range(kills):
        with ranks(1, words, cwd=tmp_path) as process:
            wait_for_step(process, tmp_path / "killed", 21 * (i + 1))
        words = "train --resume-from killed"
    advect("train --resume-from killed")
    assert_same_end(tmp_path / "whole", tmp_path / "killed", steps)
    assert snapshots(tmp_path / "whole") == snapshots(tmp_path / "killed")


def test_an_average_cannot_begin_in_the_middle_but_may_end_there(advect: Callable[..., None]) -> None:
    tiny = "--width 8 --batch-size 32 --sample-every 0"
    advect("train moons --run-dir plain --max-steps 3", tiny)
    for flags, file in (("--ema-also 0.9", "ema-0.9"), ("--posthoc-ema", "ema-length-0.05")):
        with pytest.raises(UserError, match=f"has no {file}.safetensors, and no average can begin in the middle"):
            advect("train --resume-from plain --max-steps 5", flags)
    advect("train moons --run-dir many --max-steps 3 --ema-also 0.9 0.5", tiny)
    advect("train --resume-from many --max-steps 5 --ema-also 0.5")
    names = {p.name for p in Path("many/checkpoints/step-00000005").glob("ema*")}
    assert names == {EMA_FILE, "ema-0.5.safetensors"}


def test_the_estimator_refuses_what_needs_a_run_folder() -> None:
    with pytest.raises(UserError, match="options has 'posthoc_ema', which writes to a run folder"):
        FlowModel(options={"posthoc_ema": True}).fit(np.zeros((20, 2)))


def test_an_average_that_tells_of_no_number_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(1)}, tmp_path / "a.safetensors", {"average": '{"length": NaN, "step": 1}'})
    with pytest.raises(UserError, match="numbers are not finite"):
        read_average(tmp_path / "a.safetensors")
