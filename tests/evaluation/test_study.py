"""The whole evaluation, as it lies on disk."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from advect.core.errors import UserError
from advect.evaluation import conditions_like, study
from advect.reporting import write_report


def run(flow, folder, **options):
    (train, label), (held_out, held_label) = flow.data(400, 1), flow.data(300, 2)
    if flow.spec.conditions:
        options = {"train_cond": {"label": label}, "held_out_cond": {"label": held_label}} | options
    return study(flow, train, held_out, folder, nfes=(1, 2, 8), **options)


def test_files_hold_what_a_report_needs(classes, tmp_path):
    result = run(classes, tmp_path / "evaluation", samples=120)
    assert sorted(p.name for p in (tmp_path / "evaluation").iterdir()) == [
        "neighbours.npz",
        "quality.json",
        "trajectories.npz",
    ]
    assert json.loads((tmp_path / "evaluation/quality.json").read_text()) == result
    assert result["frechet"]["samples"] == 120 and result["frechet"]["held_out"] == 300
    assert result["frechet"]["curves"]["midpoint"]["nfe"] == [2, 8]
    assert result["fidelity"]["label"]["share"] == 1.0
    assert result["data"]["kind"] == "image" and result["data"]["shape"] == [1, 2, 2]
    with np.load(tmp_path / "evaluation/trajectories.npz") as saved:
        assert saved["x"].shape == (10, 8, 1, 2, 2) and saved["t"][[0, -1]].tolist() == [0, 1]
    with np.load(tmp_path / "evaluation/neighbours.npz") as saved:
        assert saved["samples"].shape == (12, 1, 2, 2) and saved["neighbours"].shape == (12, 3, 1, 2, 2)
        assert saved["sample_distances"].shape == (120,) and saved["held_out_distances"].shape == (300,)


def test_a_report_can_be_written_from_it(classes, plain, tmp_path):
    for flow, folder in ((classes, tmp_path / "classes"), (plain, tmp_path / "plain")):
        run(flow, folder / "evaluation")
        (folder / "config.yaml").write_text("preset: none\n")
        text = write_report(folder).read_text()
        assert "damaged" not in text and "not there" not in text and "have not been measured" not in text
        assert ("Does it draw what was asked for?" in text) == (flow is classes)


def test_a_flow_that_draws_the_wrong_class_is_found_out(classes, tmp_path):
    classes.shift = 1
    assert run(classes, tmp_path)["fidelity"]["label"]["share"] == 0.0


def test_a_second_study_writes_the_same_bytes_and_another_seed_does_not(plain, tmp_path):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(plain, tmp_path / folder, seed=seed)
    read = {f: (tmp_path / f / "quality.json").read_bytes() for f in "abc"}
    assert read["a"] == read["b"] != read["c"]


def test_vectors_without_conditions_have_no_fidelity(plain, tmp_path):
    result = run(plain, tmp_path, samples=10_000)
    assert result["fidelity"] == {}
    assert result["frechet"]["samples"] == 400  # no more than there are training rows for the floor


def test_progress_comes_to_its_end(plain, tmp_path):
    seen = []
    run(plain, tmp_path, progress=lambda what, done, total: seen.append((what, done, total)))
    assert seen[0] == ("euler at NFE 1", 1, 24)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1][1] == seen[-1][2]


def test_progress_bar_goes_to_stderr(plain, tmp_path, capsys):
    run(plain, tmp_path, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "100%" in err and "trajectories" in err


def test_conditions_keep_their_joint_law():
    cond = {"a": torch.arange(10), "b": torch.arange(10) * 2}
    drawn = conditions_like(cond, 25, seed=3)
    assert torch.equal(drawn["b"], drawn["a"] * 2)
    counts = torch.bincount(drawn["a"], minlength=10)
    assert counts.min() == 2 and counts.max() == 3


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"train_cond": None}, r"train_cond must hold the flow's conditions \['label'\], got \[\]"),
        (
            {"held_out_cond": {"label": torch.zeros(3)}},
            r"held_out_cond\['label'\] must have shape \(300,\), got \(3,\)",
        ),
    ],
)
def test_mistakes_are_told_and_leave_nothing(classes, tmp_path, change, text):
    with pytest.raises(UserError, match=text):
        run(classes, tmp_path / "evaluation", **change)
    assert not (tmp_path / "evaluation").exists()


def test_shapes_and_nan_are_told(plain, tmp_path):
    x = plain.data(20, 0)[0]
    with pytest.raises(UserError, match=r"held_out must have samples of shape \(5,\), got \(4,\)"):
        study(plain, x, x[:, :4], tmp_path)
    with pytest.raises(UserError, match="train has NaN or infinite values in 1 of 20"):
        study(plain, x.index_fill(0, torch.tensor([3]), torch.nan), x, tmp_path)
