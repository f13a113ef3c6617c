"""Children of parents from the command line: a known law is learned and drawn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")

from advect.core.errors import UserError  # noqa: E402
from advect.model.sampling import sample_run  # noqa: E402


def _law(n: int, seed: int, prefix: str):
    """Parents, and Poisson numbers of children: mean 4 for gold, 1 for basic; spent ~ N(10 + 3 level, 1)."""
    rng = np.random.default_rng(seed)
    plan, level = rng.choice(["basic", "gold"], n), rng.normal(size=n).round(4)
    keys = np.array([f"{prefix}{i:04}" for i in rng.permutation(n)])
    place = np.repeat(np.arange(n), rng.poisson(np.where(plan == "gold", 4, 1)))
    spent = (10 + 3 * level[place] + rng.normal(size=len(place))).round(2)
    return pd.DataFrame({"spent": spent, "customer": keys[place]}), pd.DataFrame(
        {"customer": keys, "plan": plan, "level": level}
    )


def test_children_follow_their_parents(advect: Callable[..., None], tmp_path: Path) -> None:
    children, parents = _law(800, 0, "0")
    _, new = _law(800, 1, "00")
    for name, frame in (("children", children), ("parents", parents), ("new", new)):
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    run, file = tmp_path / "run", tmp_path / "new.csv"
    place = ("--data", tmp_path / "children.csv", "--parent", tmp_path / "parents.csv", "--key", "customer")
    small = ("--network", "mlp", "--width", 64, "--depth", 2, "--max-steps", 300, "--sample-every", 10**6)
    advect("train", *place, *small, "--ema-decay", 0.97, "--run-dir", run)
    advect("sample", run, "--parents", file, "--num-steps", 10)

    folder = run / "generated/seed-0"
    drawn = pd.read_csv(folder / "samples.csv", dtype={"customer": str})
    assert list(drawn.columns) == ["spent", "customer"]
    joined = drawn.merge(new, on="customer", how="left")
    assert joined["plan"].notna().all()  # no child without a parent, zeros before the keys kept
    slope, offset = np.polyfit(joined["level"], joined["spent"], 1)
    rest = joined["spent"] - slope * joined["level"] - offset
    assert abs(slope - 3) < 0.3 and abs(offset - 10) < 0.3 and abs(rest.std() - 1) < 0.3
    counts = new["customer"].map(drawn["customer"].value_counts()).fillna(0)
    for plan, mean in (("gold", 4), ("basic", 1)):
        own = counts[new["plan"] == plan]
        assert abs(own.mean() - mean) < 0.25 * mean and 0.6 * mean < own.var() < 1.5 * mean

    assert json.loads((folder / "samples.json").read_text())["n"] == len(drawn)
    parts = sample_run(run, parents=file, output_dir=tmp_path / "parts", part_size=500)
    assert len(pd.read_csv(parts[0])) == len(drawn)
    with pytest.raises(UserError, match="--cond gives plan"):
        sample_run(run, parents=file, cond=["plan=gold"], output_dir=tmp_path / "cond")
    with pytest.raises(UserError, match="give --parents FILE with the key 'customer'"):
        sample_run(run, output_dir=tmp_path / "alone")
    new.iloc[:100].to_csv(file, index=False)
    with pytest.raises(UserError, match="overwrite"):
        sample_run(run, parents=file, output_dir=tmp_path / "parts", part_size=500)
