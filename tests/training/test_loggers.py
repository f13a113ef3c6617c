"""What TensorBoard and Weights & Biases are given, read back from their files."""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from advect.core.errors import UserError
from advect.model.load import load
from advect.training.loggers import TensorBoardLogger
from advect.training.state import Progress

FLAGS = "--width 16 --batch-size 64 --log-every 5 --sample-every 20 --num-samples 50"


def rows(run: Path) -> dict[int, dict]:
    """The rows of metrics.jsonl by step, those of one step together."""
    found: dict[int, dict] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["step"], {}).update(row)
    return found


def records(file: Path) -> Iterator:
    """The records of a .wandb file: LevelDB's log format of 32 KiB blocks, after a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole = file.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def await_end(file: Path) -> None:
    """Wait for the last record, which the library's own process may write after the run's has gone on."""
    until = time.monotonic() + 30
    while time.monotonic() < until and not any(record.HasField("exit") for record in records(file)):
        time.sleep(0.05)


def history(file: Path) -> dict[int, dict]:
    """What was logged, by step."""
    found = (record.history for record in records(file) if record.HasField("history"))
    return {
        row.step.num: {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row.item}
        for row in found
    }


def test_tensorboard_has_the_rows_and_the_pictures(moons_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(moons_run / "tensorboard"))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    assert losses == pytest.approx({step: row["loss"] for step, row in rows(moons_run).items() if "loss" in row})
    held_out = {event.step: event.value for event in events.Scalars("held_out/loss")}
    assert held_out.keys() == {20, 40} and held_out[40] == pytest.approx(rows(moons_run)[40]["held_out_loss"])
    assert [image.step for image in events.Images("samples")] == [20, 40]


def test_tensorboard_has_the_gradients_by_layer(advect: Callable[..., None], moons_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import HISTOGRAMS, EventAccumulator

    advect("train moons --run-dir run --max-steps 6 --log-gradients 3 --grad-clip 0.001", FLAGS, "--log-every 1")
    events = EventAccumulator("run/tensorboard", size_guidance={HISTOGRAMS: 0})
    events.Reload()
    names = events.Tags()["histograms"]
    sizes = {f"gradients/{name}": shape.numel() for name, shape in network_shapes(Path("run")).items()}
    assert set(names) == sizes.keys()
    for i, step in enumerate((3, 6)):
        found = {name: events.Histograms(name)[i] for name in names}
        assert {event.step for event in found.values()} == {step}
        assert {name: event.histogram_value.num for name, event in found.items()} == sizes
        square = sum(event.histogram_value.sum_squares for event in found.values())
        assert square**0.5 == pytest.approx(rows(Path("run"))[step]["grad_norm"], rel=1e-5)
    off = EventAccumulator(str(moons_run / "tensorboard"))
    off.Reload()
    assert off.Tags()["histograms"] == []


def network_shapes(run: Path) -> dict[str, torch.Size]:
    """Shapes of the trained parameters, by name."""
    net = load(run).net
    return {name: p.shape for name, p in net.named_parameters() if p.requires_grad}


def test_the_histogram_of_a_layer_is_that_of_its_values(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    grad = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).bfloat16()
    logger, trainer = TensorBoardLogger(tmp_path), SimpleNamespace(state=SimpleNamespace(progress=Progress()))
    logger.on_start(trainer)  # pyright: ignore[reportArgumentType]
    logger.on_gradients(trainer, {"first.weight": grad}, 4)  # pyright: ignore[reportArgumentType]
    logger.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (event,) = events.Histograms("gradients/first.weight")
    values, found = grad.double(), event.histogram_value
    assert (event.step, found.num) == (4, 35)
    assert (found.min, found.max) == (values.min().item(), values.max().item())
    assert (found.sum, found.sum_squares) == pytest.approx((values.sum().item(), values.square().sum().item()))
    edges = torch.tensor([-torch.inf, *found.bucket_limit], dtype=torch.float64)
    counts = [((values > low) & (values <= high)).sum().item() for low, high in zip(edges, edges[1:], strict=False)]
    assert counts == list(found.bucket)


def test_weights_and_biases_offline_and_resumed(advect: Callable[..., None], tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    advect("train moons --run-dir run --max-steps 20 --wandb offline --wandb-project toys --log-gradients 10", FLAGS)
    advect("train --resume-from run --max-steps 40")
    first, second = sorted(tmp_path.glob("run/wandb/offline-run-*/*.wandb"))
    await_end(first)
    await_end(second)
    name = (tmp_path / "run/wandb/id").read_text().strip()
    for file, steps in ((first, {5, 10, 15, 20}), (second, {25, 30, 35, 40})):
        (run,) = (record.run for record in records(file) if record.HasField("run"))
        assert (run.run_id, run.project, run.display_name) == (name, "toys", "run")
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert config["network"]["width"] == 16 and config["output"]["wandb_project"] == "toys"
        logged = history(file)
        assert logged.keys() == steps
        for step, values in logged.items():
            row = rows(tmp_path / "run")[step]
            assert all(values[f"train/{name}"] == row[name] for name in ("loss", "grad_norm", "lr", "epoch"))
            grads = {name.split("/")[1] for name in values if name.startswith("gradients/")}
            assert grads == (network_shapes(Path("run")).keys() if step % 10 == 0 else set())
    last = history(second)[40]
    assert last["held_out/loss"] == rows(tmp_path / "run")[40]["held_out_loss"]
    picture = second.parent / "files" / last["samples/path"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [record.exit.exit_code for record in records(second) if record.HasField("exit")] == [0]


def test_weights_and_biases_that_is_not_there_is_named(advect: Callable[..., None], monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb is not installed; run: pip install 'advect\[wandb\]'"):
        advect("train moons --run-dir run --wandb offline", FLAGS)
    assert not Path("run").exists()


def test_online_without_a_login_is_told_before_anything_is_written(advect: Callable[..., None], monkeypatch) -> None:
    pytest.importorskip("wandb")
    for name, value in {"WANDB_API_KEY": "", "NETRC": "none", "HOME": str(Path.cwd())}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="--wandb online cannot log in"):
        advect("train moons --run-dir run --wandb online", FLAGS)
    assert not Path("run").exists()


def test_a_project_without_weights_and_biases_is_a_mistake(advect: Callable[..., None]) -> None:
    with pytest.raises(UserError, match="--wandb-project toys does nothing with --wandb none"):
        advect("train moons --wandb-project toys")
