"""What a run leaves behind, and what it refuses to overwrite."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from advect.config.arguments import parse_config
from advect.config.presets import PRESETS
from advect.core.errors import UserError


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_folder_holds_what_the_design_says(moons_run: Path) -> None:
    names = {p.name for p in moons_run.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.jsonl", "tensorboard", "samples", "checkpoints"} <= names
    assert (moons_run / "checkpoints/latest").read_text() == "step-00000040\n"
    assert {p.name for p in (moons_run / "samples").iterdir()} == {"step-00000020.png", "step-00000040.png"}
    files = {p.relative_to(moons_run / "checkpoints/step-00000040").as_posix()
             for p in (moons_run / "checkpoints/step-00000040").rglob("*") if p.is_file()}  # fmt: skip
    assert files == {
        "manifest.json", "model.safetensors", "ema.safetensors", "state/optimizer.safetensors", "state/run.json",
    }  # fmt: skip


def test_a_logged_row_has_the_named_figures(moons_run: Path) -> None:
    logged = [r for r in rows(moons_run) if "loss" in r]
    assert [r["step"] for r in logged] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert all(r["seen"] == 64 * r["step"] for r in logged)
    assert logged[0]["lr"] == pytest.approx(1e-3 * 5 / 100)
    assert all(r["grad_norm"] > 0 and r["samples_per_s"] > 0 for r in logged)
    assert [r["step"] for r in rows(moons_run) if "held_out_loss" in r] == [20, 40]


def test_the_environment_names_versions_command_and_data(moons_run: Path) -> None:
    facts = json.loads((moons_run / "environment.json").read_text())
    assert facts["versions"]["torch"] and facts["versions"]["advect"] == "0.1.0"
    assert len(facts["data_fingerprint"]) == 64
    assert facts["device"].startswith(("cpu", "NVIDIA")) and facts["command"]


def test_tensorboard_holds_the_scalars_and_the_grids(moons_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(moons_run / "tensorboard")).Reload()
    scalars = {"train/loss", "train/lr", "train/grad_norm", "train/samples_per_s", "held_out/loss"}
    assert scalars <= set(events.Tags()["scalars"])
    logged = {r["step"]: r["loss"] for r in rows(moons_run) if "loss" in r}
    assert {e.step: pytest.approx(e.value) for e in events.Scalars("train/loss")} == logged
    assert [e.step for e in events.Images("samples")] == [20, 40]


def test_config_yaml_is_the_resolved_configuration(moons_run: Path) -> None:
    values = yaml.safe_load((moons_run / "config.yaml").read_text())
    network = {"network": "mlp", "width": 16, "depth": 4}
    assert values["preset"] == "moons" and values["network"].items() >= network.items()
    preset, config = parse_config(moons_run / "config.yaml")
    assert preset == "moons" and config.training.max_steps == 40 and type(config) is not type(PRESETS["moons"])


def test_a_checkpoint_is_written_after_each_named_epoch(advect: Callable[..., None]) -> None:
    advect(
        "train digits --model-channels 8 --batch-size 300 --num-epochs 4 --save-epochs 2 --save-every 0",
        "--keep-last 0 --sample-every 0 --run-dir run --log-every 1",
    )
    # 899 images in batches of 300: the second epoch ends in step 6 and the fourth in step 12.
    names = sorted(p.name for p in Path("run/checkpoints").glob("step-*"))
    assert names == ["step-00000006", "step-00000012"]
    ends = [r for r in rows(Path("run")) if "epoch_loss" in r]
    assert [r["step"] for r in ends] == [3, 6, 9, 12]
    steps = {r["step"]: r["loss"] for r in rows(Path("run")) if "loss" in r}
    assert ends[1]["epoch_loss"] == pytest.approx(np.mean([steps[4], steps[5], steps[6]]))


def test_only_the_newest_checkpoints_are_kept(advect: Callable[..., None]) -> None:
    advect("train moons --width 8 --max-steps 10 --save-every 2 --keep-last 2 --sample-every 0 --run-dir run")
    assert sorted(p.name for p in Path("run/checkpoints").glob("*")) == ["latest", "step-00000008", "step-00000010"]


def test_a_folder_in_use_is_refused_and_left_as_it_was(advect: Callable[..., None], moons_run: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in moons_run.rglob("*")}
    with pytest.raises(UserError, match="is not empty; name a new folder with --run-dir, or continue it"):
        advect("train moons --run-dir", moons_run)
    assert {p: p.stat().st_mtime_ns for p in moons_run.rglob("*")} == before


def test_an_unwritable_folder_is_refused(advect: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="--run-dir file is a file"):
        advect("train moons --run-dir file")
    with pytest.raises(UserError, match=r"--run-dir file/run cannot be written to \(Not a directory\)"):
        advect("train moons --run-dir file/run")


def test_minutes_end_a_run(advect: Callable[..., None]) -> None:
    advect("train moons --width 8 --max-minutes 0.005 --sample-every 0 --run-dir run --num-epochs 100000")
    assert list(Path("run/checkpoints").glob("step-*"))


def test_an_image_folder_trains_with_every_listed_flag(advect: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / f"pictures/{i}.png")
    advect(
        "train celeba64 --data-dir pictures --image-size 16 --model-channels 8 --channel-mult 1 2 --num-res-blocks 1",
        "--attention-resolutions 8 --dropout 0.1 --sigma-min 1e-4 --batch-size 4 --num-epochs 3 --learning-rate 1e-4",
        "--weight-decay 0.01 --grad-clip 1.0 --lr-warmup-steps 2 --use-ema --ema-decay 0.99 --mixed-precision",
        "--no-compile-model --sample-every 2 --save-every 2 --log-every 1 --num-samples 4 --sample-steps 2",
        "--num-workers 2 --seed 1 --max-steps 3 --max-minutes 5 --run-dir run",
    )
    assert [r["step"] for r in rows(Path("run")) if "loss" in r] == [1, 2, 3]
    image = Image.open("run/samples/step-00000002.png")
    assert image.mode == "RGB"


def test_a_run_without_held_out_data_trains_and_says_what_a_report_needs(
    advect: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "one/a.png")
    advect(
        "train celeba64 --data-dir one --image-size 8 --model-channels 8 --channel-mult 1 2 --attention-resolutions 4",
        "--batch-size 2 --max-steps 2 --sample-every 2 --num-samples 2 --sample-steps 1 --run-dir run --num-workers 0",
    )
    with pytest.raises(UserError, match="has 1 training and 0 held-out samples, too few to measure with"):
        advect("report run")
    advect("report run --no-measure")
    assert (tmp_path / "run/report.html").is_file()
