"""``advect eval`` on tiny runs: its numbers against those computed without it, its file, and its mistakes."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import advect as library
from advect import cli
from advect.commands.evaluate import evaluate
from advect.core.errors import UserError
from advect.data import Digits, Moons
from advect.evaluation import FeatureNetwork
from advect.evaluation.features import FeatureConfig
from advect.evaluation.protocol import EvalConfig
from advect.evaluation.results import read_result
from advect.metrics import frechet_distance, sliced_wasserstein
from advect.metrics.statistics import subsample

QUICK = "--max-steps 2 --batch-size 16 --sample-every 0 --log-every 1 --lr-warmup-steps 0 --width 8 --depth 1"


def measured(run: Path, output: Path, **request: Any) -> dict[str, Any]:
    file, result = evaluate(run, EvalConfig(output=output, **request))
    assert file == output and json.loads(file.read_text()) == result
    assert read_result(file)["points"] == result["points"]
    return result


def pixels(split) -> torch.Tensor:
    return (split.fetch(np.arange(len(split))).x1 + 1) * 8  # 0 to 16


def test_digits_have_the_distances_of_their_samples_and_the_floor_of_their_data(
    digits_run: Path, tmp_path: Path
) -> None:
    names = ("frechet", "sliced_wasserstein")
    way = {"metrics": names, "features": FeatureConfig(features="pixels")}
    result = measured(digits_run, tmp_path / "a.json", num_samples=700, num_steps=(3,), seed=5, **way)
    data = Digits()
    y = pixels(data.held_out)
    x = library.load(digits_run).sample(700, steps=3, seed=5).x
    (point,) = result["points"]
    value = lambda name: point["metrics"][name]["mean"]
    assert value("frechet") == pytest.approx(frechet_distance(x / 16, y / 16), rel=1e-5)
    assert value("sliced_wasserstein") == pytest.approx(sliced_wasserstein(x / 16, y / 16), rel=1e-5)
    assert (point["solver"], point["nfe"]) == ("midpoint", 6)
    assert point["samples_per_s"] == pytest.approx(700 / point["seconds"])
    assert result["floor"]["samples"] == 700
    whole = measured(digits_run, tmp_path / "b.json", num_steps=(1,), **way)
    assert whole["protocol"]["samples"] == len(data.train) == whole["floor"]["samples"]
    floor = frechet_distance(pixels(data.train) / 16, y / 16)  # black 0 and white 1
    assert whole["floor"]["metrics"]["frechet"] == pytest.approx(floor, rel=1e-5)


def test_the_file_says_all_that_the_numbers_depend_on_and_nothing_else_is_left(
    digits_run: Path, advect: Callable[..., None], capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(digits_run, "run")
    advect("eval run --num-samples 100 --num-steps 1 --guidance 2 --guidance-interval 0.1 0.9 --seed 3 --repeat 2")
    (file,) = Path("run/evaluation").iterdir()
    told, result = capsys.readouterr().out, json.loads(file.read_text())
    assert f"result: {file}\n" in told and "coverage" in told and "±" in told
    assert list(result) == ["format", "protocol", "subject", "made_with", "floor", "flow", "points", "left_out"]
    protocol = result["protocol"]
    assert protocol["features"].items() >= {"name": "a network trained on these data", "dimensions": 64}.items()
    assert protocol | {"rows_for_distances": {}} == {
        "data": "digits",
        "fingerprint": Digits().fingerprint,
        "split": "held-out",
        "reference": 898,
        "features": protocol["features"],
        "samples": 100,
        "metrics": ["frechet", "kernel", "manifolds", "class_shares", "class_accuracy", "straightness"],
        "ways": [{"solver": "midpoint", "grid": "uniform", "steps": 1, "diffusion": None}],
        "guidance": 2.0,
        "guidance_interval": [0.1, 0.9],
        "conditions": {},
        "seeds": [3, 4],
        "rows_for_distances": {},
    }
    assert result["subject"]["checkpoint"] == "step-00000012" and result["subject"]["step"] == 12
    assert result["subject"]["ema"] == 0.995 and len(result["subject"]["sha256"]) == 64
    assert result["made_with"].keys() >= {"advect", "torch", "numpy", "scikit-learn", "python", "device", "processes"}
    names = {"frechet", "kernel", "precision", "recall", "density", "coverage", "class_shares_label"}
    names |= {"class_accuracy_label"}
    assert result["floor"]["metrics"].keys() == names == result["points"][0]["metrics"].keys()
    assert result["flow"]["straightness"]["value"] > 0 and result["flow"]["straightness"]["samples"] == 100
    # Another protocol has another file, the same one the same.
    advect("eval run --num-samples 100 --num-steps 1 --metrics frechet")
    advect("eval run --num-samples 100 --num-steps 1 --metrics frechet")
    assert len(list(Path("run/evaluation").iterdir())) == 2


def test_repetitions_are_the_single_seeds_and_their_spread(moons_run: Path, tmp_path: Path) -> None:
    ask = {"num_samples": 200, "num_steps": (2,), "metrics": ("frechet",)}
    three = measured(moons_run, tmp_path / "3.json", repeat=3, seed=1, **ask)["points"][0]["metrics"]["frechet"]
    ones = [
        measured(moons_run, tmp_path / "1.json", seed=s, **ask)["points"][0]["metrics"]["frechet"] for s in (1, 2, 3)
    ]
    assert three["values"] == [one["mean"] for one in ones] and all(one["std"] is None for one in ones)
    assert three["mean"] == pytest.approx(np.mean(three["values"]))
    assert three["std"] == pytest.approx(np.std(three["values"], ddof=1))


def test_a_sweep_costs_what_its_solvers_ask_for(moons_run: Path, tmp_path: Path) -> None:
    ask = {"num_samples": 60, "metrics": ("frechet",)}
    solvers = ("euler", "midpoint", "rk4", "dpmpp2m", "dopri5")
    points = measured(moons_run, tmp_path / "a.json", solver=solvers, nfe=(2, 8), **ask)["points"]
    found = [(p["solver"], p["steps"], p["nfe"]) for p in points]
    assert found[:-1] == [
        ("euler", 2, 2), ("euler", 8, 8), ("midpoint", 1, 2), ("midpoint", 4, 8), ("rk4", 2, 8), ("dpmpp2m", 2, 2),
        ("dpmpp2m", 8, 8),
    ]  # fmt: skip
    assert found[-1][:2] == ("dopri5", None) and found[-1][2] > 8
    noisy = measured(moons_run, tmp_path / "b.json", solver=("heun",), nfe=(5,), diffusion=0.3, **ask)["points"]
    assert [(p["solver"], p["steps"], p["diffusion"], p["nfe"]) for p in noisy] == [("heun", 3, 0.3, 5)]


def test_samples_of_one_class_are_compared_with_the_rows_of_that_class(
    digits_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "advect")
    result = measured(
        digits_run,
        tmp_path / "a.json",
        num_samples=80,
        num_steps=(1,),
        metrics=("frechet",),
        cond=("label=7",),
        features=FeatureConfig(features="pixels"),
    )
    data = Digits()
    batch = data.held_out.fetch(np.arange(len(data.held_out)))
    y = pixels(data.held_out)[(batch.cond or {})["label"] == 7]
    x = library.load(digits_run).sample(80, steps=1, cond={"label": 7}).x
    expected = frechet_distance(x / 16, y / 16)
    assert result["points"][0]["metrics"]["frechet"]["mean"] == pytest.approx(expected, rel=1e-5)
    assert result["protocol"]["reference"] == len(y) and result["protocol"]["conditions"] == {"label": "7"}
    assert f"note: compared with the {len(y)} rows of label=7" in caplog.messages


def test_with_training_rows_as_reference_held_out_ones_are_the_floor(moons_run: Path, tmp_path: Path) -> None:
    ask = {"num_samples": 50, "num_steps": (1,), "metrics": ("frechet",)}
    result = measured(moons_run, tmp_path / "a.json", reference="train", **ask)
    data, flow = Moons(), library.load(moons_run)
    y = flow.transform.inverse(data.train.fetch(np.arange(len(data.train))).x1)
    found = result["points"][0]["metrics"]["frechet"]["mean"]
    assert found == pytest.approx(frechet_distance(flow.sample(50, steps=1).x, y), rel=1e-5)
    assert result["protocol"]["split"] == "train" and result["floor"]["samples"] == 50


def test_likelihood_is_that_of_the_flow_and_grey_levels_are_spread(
    digits_run: Path, moons_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = {"num_samples": 20, "num_steps": (1,), "metrics": ("likelihood",), "likelihood_samples": 30}
    found = measured(moons_run, tmp_path / "a.json", **ask)["flow"]["bits_per_dim"]
    assert found["samples"] == 30 and found["trace"] == "exact" and found["dequantised"] is False
    flow, data = library.load(moons_run), Moons()
    x = flow.transform.inverse(data.held_out.fetch(subsample(len(data.held_out), 30, 0).numpy()).x1)
    bits = flow.bits_per_dim(x).double()
    assert found["mean"] == pytest.approx(float(bits.mean()), rel=1e-4)
    assert found["standard_error"] == pytest.approx(float(bits.std()) / 30**0.5, rel=1e-4)
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(
        "advect.model.flow.Flow.bits_per_dim", lambda self, x, **k: seen.append(x) or x.mean((1, 2, 3))
    )
    result = measured(digits_run, tmp_path / "b.json", **{**ask, "likelihood_samples": 100})
    assert result["flow"]["bits_per_dim"]["dequantised"] is True and result["protocol"]["likelihood_samples"] == 100
    assert result["flow"]["bits_per_dim"]["trace"] == "hutchinson"
    levels = pixels(Digits().held_out)[subsample(898, 100, 0)]
    spread = torch.cat(seen) - levels  # evenly, over the unit around each level
    assert spread.min() >= -0.5 and spread.max() < 0.5 and len(spread.unique()) > 6000
    assert abs(float(spread.mean())) < 0.02 and float(spread.var()) == pytest.approx(1 / 12, rel=0.03)


def test_a_network_of_ones_own_gives_the_features(digits_run: Path, tmp_path: Path) -> None:
    class Means(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(2)[:, 0, ::20000]

    file = tmp_path / "net.pt"
    torch.jit.script(Means()).save(str(file))
    ask = {"num_samples": 40, "num_steps": (1,), "metrics": ("frechet",), "cond": ("label=3",)}
    result = measured(digits_run, tmp_path / "a.json", features=FeatureConfig(features=file), **ask)
    told = result["protocol"]["features"]
    assert told["name"] == "net.pt" and told["dimensions"] == 5 and len(told["sha256"]) == 64
    net, data = FeatureNetwork(file), Digits()
    labels = (data.held_out.fetch(np.arange(len(data.held_out))).cond or {})["label"]
    x = library.load(digits_run).sample(40, steps=1, cond={"label": 3}).x
    expected = frechet_distance(net(x * 255 / 16), net(pixels(data.held_out)[labels == 3] * 255 / 16))
    assert result["points"][0]["metrics"]["frechet"]["mean"] == pytest.approx(expected, rel=1e-4)


def mistake(words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> str:
    """What a command says that exits with 2 in one sentence."""
    monkeypatch.setattr("sys.argv", ["advect", *words.split()])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main()
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.count("\n") == 1 and told.startswith("advect: ")
    return told


MISTAKES = [
    ("--num-samples 5 --metrics manifolds", "--metrics manifolds needs 6 rows or more, and --num-samples is 5"),
    ("--metrics frechett", "--metrics frechett is not known; did you mean 'frechet'?"),
    ("--metrics columns", "--metrics columns is for table data"),
    ("--solver midpont", "solver 'midpont' is not known; did you mean 'midpoint'?"),
    ("--feature-size 28", "--feature-size does nothing without --features"),
    ("--features nowhere.pt", "features nowhere.pt is no file"),
    ("--features text.pt", "features text.pt is neither a TorchScript file nor a state dict"),
    ("--cond labl=7", "condition 'labl' is not known; did you mean 'label'?"),
    ("--cond label=17", "condition 'label' has no value '17'"),
    ("--guidance-interval 0.2 0.8", "guidance_interval is given, but guidance is 1"),
    ("--repeat 0", "--repeat must be at least 1 and at most 10,000, got 0"),
    ("--num-samples 0", "--num-samples must be at least 1 and at most 1,000,000,000,000, got 0"),
    ("--likelihood-samples 9", "--likelihood-samples does nothing without --metrics likelihood"),
    ("--ema-decay 0.5", "has no average of decay 0.5"),
    ("--no-use-ema --ema-decay 0.9", "contradict each other"),
    ("--output folder", "--output folder is a folder; name a file"),
    ("--nfe 1 --solver heun", "--nfe 1 holds none that heun can meet"),
    ("--reference test", "'test'"),
    ("--batch-size 0", "--batch-size must be at least 1 and at most 16,777,216, got 0"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "message"), MISTAKES)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    flags: str,
    message: str,
    digits_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digits_run, "run")
    (tmp_path / "text.pt").write_text("no network")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert message in mistake(f"eval run {flags}", monkeypatch, capsys)
    assert sorted(tmp_path.rglob("*")) == before


def test_no_run_and_moved_data_and_changed_data_are_told(
    advect: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    say = lambda words: mistake(words, monkeypatch, capsys)
    assert "advect eval needs a run, such as" in say("eval")
    assert "nowhere does not exist" in say("eval nowhere")
    x = np.random.default_rng(0).normal(size=(200, 3))
    np.save("x.npy", x)
    advect(f"train --data x.npy {QUICK} --run-dir run")
    assert "--features net.pt is for images, and these are vector data" in _with_network(say)
    np.save("x.npy", x + 1)
    for words in ("eval run", "report run", "doctor run --samples 20"):
        assert "the data of run have changed since step-00000002 was trained" in say(words)
    Path("x.npy").unlink()
    assert "x.npy; give --data PATH" in say("eval run")
    assert "--data y.npy does not exist" in say("eval run --data y.npy")
    shutil.copy("run/checkpoints/step-00000002/model.safetensors", "alone.safetensors")
    assert "alone.safetensors is no run folder and lies in none" in say("eval alone.safetensors")


def test_data_that_have_moved_are_named_by_data(
    advect: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    np.save("x.npy", np.random.default_rng(0).normal(size=(200, 3)))
    advect(f"train --data x.npy {QUICK} --run-dir run")
    Path("x.npy").rename("y.npy")
    for words in ("eval run", "report run", "doctor run --samples 20"):
        assert "the data of run are no longer at" in mistake(words, monkeypatch, capsys)
    advect("eval run --data y.npy --num-samples 20 --num-steps 1")
    advect("report run --data y.npy --num-samples 20 --nfes 2")
    assert Path("run/report.html").is_file()
    with contextlib.suppress(SystemExit):
        advect("doctor run --samples 20 --data y.npy")
    assert "samples" in capsys.readouterr().out
    np.save("z.npy", np.zeros((200, 3)))
    for words in ("eval run", "report run", "doctor run --samples 20"):
        assert "have changed since" in mistake(f"{words} --data z.npy", monkeypatch, capsys)
    assert "for --samples 500; give both or neither" in mistake("doctor run --data y.npy", monkeypatch, capsys)


def _with_network(say: Callable[[str], str]) -> str:
    torch.jit.script(torch.nn.Flatten()).save("net.pt")
    return say("eval run --features net.pt")


def test_channels_that_the_features_do_not_take_are_told(
    advect: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    np.save("x.npy", np.random.default_rng(0).integers(0, 256, (40, 8, 8, 4), np.uint8))
    torch.jit.script(torch.nn.Flatten()).save("net.pt")
    advect("train --data x.npy --model-channels 8 --batch-size 8 --max-steps 1 --sample-every 0 --run-dir run")
    told = mistake("eval run --features net.pt", monkeypatch, capsys)
    assert "images must be (N, 1 or 3, H, W)" in told and not Path("run/evaluation").exists()


def test_a_flow_that_has_diverged_is_told(
    moons_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(moons_run, tmp_path / "run")
    file = tmp_path / "run/checkpoints/step-00000040/model.safetensors"
    with safe_open(file, "pt") as tensors:
        card, weights = tensors.metadata(), {k: tensors.get_tensor(k) for k in tensors.keys()}  # noqa: SIM118
    save_file({name: torch.full_like(value, torch.nan) for name, value in weights.items()}, file, card)
    told = mistake(f"eval {file}", monkeypatch, capsys)
    assert "is not finite from t =" in told and not (tmp_path / "run/evaluation").exists()


def test_a_reference_that_is_the_training_set_is_refused_unless_asked_for(
    advect: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    x = np.random.default_rng(0).normal(size=(100, 2))
    np.savez("same.npz", x_train=x, x_test=x[:60])
    advect(f"train --data same.npz {QUICK} --run-dir same")
    told = mistake("eval same --num-samples 50", monkeypatch, capsys)
    assert "of the 60 held-out rows 60 are copies of training rows, so that the reference is the training set" in told
    assert not Path("same/evaluation").exists()
    np.savez("some.npz", x_train=x, x_test=np.concatenate([x[:3], x[:57] + 1]))
    advect(f"train --data some.npz {QUICK} --run-dir some")
    advect("eval some --num-samples 50 --num-steps 1 --metrics frechet")
    assert "note: 3 of 60 held-out rows are copies of training rows" in capsys.readouterr().out
    np.save("none.npy", x)
    advect(f"train --data none.npy --held-out 0 {QUICK} --run-dir none")
    assert "none has no held-out rows to compare with" in mistake("eval none", monkeypatch, capsys)
    advect("eval none --reference train --num-samples 50 --num-steps 1 --metrics frechet energy")
    (file,) = Path("none/evaluation").iterdir()
    assert json.loads(file.read_text())["floor"] == {"samples": 0, "metrics": {}, "intervals": {}}


def test_results_are_compared_by_the_command_line(
    moons_run: Path, tmp_path: Path, advect: Callable[..., None], capsys: pytest.CaptureFixture
) -> None:
    ask = {"num_samples": 40, "num_steps": (1,), "metrics": ("frechet",)}
    measured(moons_run, tmp_path / "a.json", **ask)
    measured(moons_run, tmp_path / "b.json", **ask, seed=4, use_ema=False)
    measured(moons_run, tmp_path / "c.json", **{**ask, "num_samples": 41})
    advect("eval --compare a.json b.json")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[1].startswith("a.json") and lines[2].startswith("b.json")
    with pytest.raises(UserError, match="have different protocols: samples was 40 there and is 41 here"):
        advect("eval --compare a.json c.json")
    advect("eval --compare a.json c.json --force")
    assert capsys.readouterr().out.startswith("differs: a.json and c.json: samples was 40 there and is 41 here\n")


def test_usual_metrics_that_need_more_rows_than_are_held_out_are_left_out(
    tmp_path: Path, advect: Callable[..., None], capsys: pytest.CaptureFixture
) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(60, 2)))
    advect(f"train --data {tmp_path / 'x.npy'} --run-dir {tmp_path / 'run'} {QUICK}")
    capsys.readouterr()
    advect(f"eval {tmp_path / 'run'} --num-steps 1")
    told = capsys.readouterr().out
    assert "left out: two_sample: needs 20 rows or more, and the number of reference rows is" in told
    assert "energy" in told and "reference rows are few" in told
