"""``advect sample`` from a finished run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from advect.core.errors import UserError
from advect.model.sampler_config import SamplerConfig
from advect.model.sampling import sample_run
from advect.training.state import EMA_FILE, MODEL


def test_files_are_named_and_the_facts_say_which_weights(moons_run: Path, tmp_path: Path) -> None:
    two = SamplerConfig(steps=2)
    files = sample_run(moons_run, 3, two, output_dir=tmp_path / "a")
    assert [f.name for f in files] == ["samples.npz", "samples.csv", "samples.png", "samples.json"]
    assert len((tmp_path / "a/samples.csv").read_text().splitlines()) == 4
    facts = json.loads(files[-1].read_text())
    assert facts["ema"] is True and facts["files"] == [f.name for f in files[:-1]]
    weights = moons_run / "checkpoints/step-00000040"
    shutil.copy(weights / MODEL, tmp_path / "other.safetensors")
    for place, expected in (
        (weights / EMA_FILE, True),
        (weights / MODEL, False),
        (tmp_path / "other.safetensors", None),
    ):
        files = sample_run(place, 3, two, output_dir=tmp_path / "a", overwrite=True)
        assert json.loads(files[-1].read_text())["ema"] is expected


def test_a_folder_that_cannot_be_written_to_is_told_before_sampling(
    moons_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("advect.model.flow.Flow.sample", lambda *a, **k: pytest.fail("it sampled"))
    with pytest.raises(UserError, match=r"--output-dir .* cannot be written to"):
        sample_run(moons_run, 3, output_dir=tmp_path / "file/out")


def test_a_mistake_leaves_no_folder(moons_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'midpoint'"):
        sample_run(moons_run, 3, SamplerConfig("midpont"), output_dir=tmp_path / "out")
    with pytest.raises(UserError, match="--save-individual writes images, and this flow makes vector data"):
        sample_run(moons_run, 3, output_dir=tmp_path / "out", save_individual=True)
    assert not (tmp_path / "out").exists()
