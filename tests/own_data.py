"""A small table and a small file of cells, as users have them; helpers of several folders' tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

RNG = np.random.default_rng(0)


def table(place: Path) -> Path:
    rows = "".join(f"{RNG.normal()},{i},{'ab'[i % 2]},{'' if i % 5 else 3}\n" for i in range(60))
    (place / "table.csv").write_text(f"x,n,kind,gap\n{rows}")
    return place / "table.csv"


def cells(place: Path) -> Path:
    anndata, pd = pytest.importorskip("anndata"), pytest.importorskip("pandas")
    obs = {"type": np.array(["a", "b"])[np.arange(90) % 2], "drug": np.array(["none", "x", "y"])[np.arange(90) // 30]}
    x = RNG.poisson(5, (90, 8)).astype(np.float32)
    anndata.AnnData(x, pd.DataFrame(obs, index=[str(i) for i in range(90)])).write_h5ad(place / "cells.h5ad")
    return place / "cells.h5ad"
