"""Children of parents: keys, numbers of children, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")

from advect.core.errors import UserError  # noqa: E402
from advect.data import Table  # noqa: E402
from advect.data.modality import Modality  # noqa: E402
from advect.data.tables.counts import CountLaw, count_law_from_config, features_of  # noqa: E402


def tables(n: int = 400, seed: int = 0):
    """Parents of a level and a plan; Poisson numbers of children, of mean 0 for plan "none", 1 or 4; no two-letter
    key is a number.
    """
    rng = np.random.default_rng(seed)
    plan, level = rng.choice(["basic", "gold", "none"], n), rng.normal(size=n).round(4)
    counts = rng.poisson(np.select([plan == "gold", plan == "basic"], [4, 1], 0))
    keys = np.array([f"{i:05}" for i in rng.permutation(n)])
    parents = pd.DataFrame({"plan": plan, "customer": keys, "level": level})
    place = rng.permutation(np.repeat(np.arange(n), counts))
    spent = (10 + 3 * level[place] + rng.normal(size=len(place))).round(2)
    children = pd.DataFrame({"spent": spent, "customer": keys[place], "kind": rng.choice(["a", "b"], len(place))})
    return children, parents, counts


def modality(table: Table) -> Modality:
    return table.modality


def refused(children, parents, **how) -> str:
    with pytest.raises(UserError) as error:
        Table(children, parent=parents, **{"key": "customer", **how})
    assert "\n" not in str(error.value)
    return str(error.value)


def test_children_are_learned_given_their_own_parent_and_without_the_key(tmp_path: Path) -> None:
    children, parents, _ = tables()
    for name, frame in (("children", children), ("parents", parents)):
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    for own, above in ((children, parents), (tmp_path / "children.csv", str(tmp_path / "parents.csv"))):
        table = Table(own, parent=above, key="customer")
        assert set(table.spec.conditions) == {"plan", "level"}
        assert [column["name"] for column in table.metadata["transform"]["columns"]] == ["spent", "kind"]
        joined = children.merge(parents, on="customer")
        level = {s: set(group) for s, group in joined.groupby("spent")["level"]}
        batch = table.train.fetch(np.arange(len(table.train)), None)
        spent = table.transform.inverse(batch.x1)[:, 0].numpy().round(2)
        told = table.spec.conditions["level"]
        for s, x in zip(
            spent, (batch.cond["level"].double()[:, 0] * told.std[0] + told.mean[0]).tolist(), strict=True
        ):
            assert min(abs(x - v) for v in level[s]) < 1e-5
        assert "customer" not in table.metadata["order"] and "00000" not in str(table.metadata)
        assert table.metadata["family"]["columns"] == ["spent", "customer", "kind"]
        # All children of a parent are on one side.
        key = joined.set_index(["spent", "level"])["customer"].to_dict()
        sides = []
        for split in (table.train, table.held_out):
            b = split.fetch(np.arange(len(split)), None)
            x = (b.cond["level"].double()[:, 0] * told.std[0] + told.mean[0]).numpy().round(4)
            y = table.transform.inverse(b.x1)[:, 0].numpy().round(2)
            sides.append({key[s, v] for s, v in zip(y, x, strict=True)})
        assert sides[0] and sides[1] and not sides[0] & sides[1]


def test_counts_follow_the_parents_columns() -> None:
    children, parents, counts = tables(4000)
    facts = Table(children, parent=parents, key="customer").metadata["family"]
    assert "none" in parents["plan"].to_numpy()
    law = count_law_from_config(facts["counts"], 4)  # three plans and the level
    assert law.mean == pytest.approx(counts.mean())
    codes = np.array(
        [[*(plan == p for p in ("basic", "gold", "none")), 0.3] for plan in ("basic", "gold", "none")], float
    )
    u = (np.arange(3000) + 0.5) / 3000
    for row, mean in zip(codes, (1, 4, 0), strict=True):
        drawn = law.sample(np.tile(row, (3000, 1)), u)
        assert abs(drawn.mean() - mean) < 0.7 and (mean or not drawn.any())
    assert all(sum(parents for _, parents in leaf) >= 20 for leaf in law.counts if leaf)


def test_a_law_of_counts_is_the_shares_of_a_leaf_and_takes_missing_values() -> None:
    table = Table(pd.DataFrame({"a": [1.0, 2.0, np.nan] * 100, "b": list("xy") * 150, "c": np.arange(300.0)}))
    columns = [column for column in table.transform.columns if column.name in "ab"]
    values = np.array([[1.0, 0], [2.0, 1], [np.nan, 0]] * 100)
    features = features_of(columns, values)
    assert features.shape == (300, 3) and not np.isnan(features).any()
    assert features[2, 0] < features[:2, 0].min()
    counts = np.array([1, 5, 0] * 100)
    law = CountLaw.fit(features, counts)
    assert law.sample(features, np.full(300, 0.5)).tolist() == counts.tolist()
    single = CountLaw.fit(features[:1], counts[:1])
    assert single.counts == (((1, 1),),)
    halves = CountLaw((-1,), (0.0,), (0,), (0,), (((0, 3), (2, 1)),))
    assert halves.sample(np.zeros((4, 1)), np.array([0.0, 0.5, 0.7499, 0.75])).tolist() == [0, 0, 0, 2]
    for bad in (
        {"feature": (0,), "threshold": (0.0,), "left": (0,), "right": (0,), "counts": ((),)},
        {"feature": (-1,), "threshold": (0.0,), "left": (0,), "right": (0,), "counts": ((),)},
        {"feature": (-1, -1), "threshold": (0.0,), "left": (0,), "right": (0,), "counts": (((1, 1),),)},
    ):
        with pytest.raises(UserError):
            CountLaw(**bad)
    with pytest.raises(UserError, match="asks feature 1 of 1"):
        count_law_from_config(law.to_config() | {"feature": [-1 if f < 0 else 1 for f in law.feature]}, 1)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_new_parents_keep_their_keys_to_the_byte(suffix: str, tmp_path: Path) -> None:
    children, parents, _ = tables()
    own = modality(Table(children, parent=parents, key="customer"))
    new = pd.DataFrame({"note": "n", "level": [0.5, np.nan, -1], "customer": ["007", "7", " a,b "], "plan": "gold"})
    file = tmp_path / f"new.{suffix}"
    new.to_csv(file, index=False) if suffix == "csv" else new.to_parquet(file)
    with pytest.raises(UserError, match="has no 'level' in row 1, and all parents of the data do; fill it in"):
        own.children(file, 0)
    new["level"] = new["level"].fillna(0.25)
    new.to_csv(file, index=False) if suffix == "csv" else new.to_parquet(file)
    made, cond, n = own.children(file, 0)
    assert n == len(cond["plan"]) == len(cond["level"]) and cond["level"].shape == (n, 1)
    x = torch.zeros(n, 2, dtype=torch.float64)
    encoded = {name: value[2:] for name, value in cond.items()}
    frame = pd.read_csv(made.write_data(x[2:], encoded, tmp_path, 2)[0], dtype=str, keep_default_na=False)
    assert list(frame.columns) == ["spent", "customer", "kind"]
    keys = frame["customer"].tolist()
    assert set(keys) <= {"007", "7", " a,b "} and len(keys) == n - 2
    again = own.children(file, 0)
    assert again[2] == n and torch.equal(again[1]["level"], cond["level"])
    assert {own.children(file, seed)[2] for seed in range(9)} != {n}


def test_parents_that_cannot_be_used(tmp_path: Path) -> None:
    children, parents, _ = tables()
    orphan = children.assign(customer=["x1", *children["customer"].iloc[1:]])
    assert "1 of" in refused(orphan, parents) and "a 'customer' that no parent has, the first 'x1'" in refused(
        orphan, parents
    )
    stripped = children.assign(customer=children["customer"].str.lstrip("0"))
    assert "write both alike" in refused(stripped, parents)
    assert "write both alike" in refused(children.assign(customer=children["customer"].astype(int)), parents)
    missing = children.assign(customer=[None, *children["customer"].iloc[1:]])
    assert "missing in 1 of" in refused(missing, parents)
    assert "twice (1 rows repeat a key)" in refused(children, pd.concat([parents, parents.iloc[:1]]))
    assert "have no 'customer' in row 0" in refused(
        children, parents.assign(customer=[None, *parents["customer"].iloc[1:]])
    )
    assert "key has 'costumer', which is no column of data; did you mean 'customer'?" in refused(
        children, parents, key="costumer"
    )
    assert "which is no column of parent" in refused(children, parents.drop(columns="customer"))
    assert "parent needs key" in refused(children, parents, key=None)
    assert "there are no parents" in refused(children, None)
    assert "both have a column 'plan'" in refused(children.assign(plan="x"), parents)
    assert "no column but 'customer'" in refused(children, parents[["customer"]])
    assert "no column but 'customer'" in refused(children[["customer"]], parents)
    assert "in drop" in refused(children, parents, drop=("customer",))
    Table(children.assign(plan="x", id=range(len(children))), parent=parents, key="customer", drop=("plan", "id"))


def test_files_of_parents_that_cannot_be_used(tmp_path: Path) -> None:
    children, parents, _ = tables()
    own = modality(Table(children, parent=parents, key="customer"))

    def refused(frame, *, seed: int = 0) -> str:
        frame.to_csv(tmp_path / "new.csv", index=False)
        with pytest.raises(UserError) as error:
            own.children(tmp_path / "new.csv", seed)
        return str(error.value)

    new = parents.iloc[:5]
    assert "lacks the column 'plan'" in refused(new.drop(columns="plan"))
    assert "lacks the column 'customer'" in refused(new.drop(columns="customer"))
    assert "'silver'" in refused(new.assign(plan="silver"))
    assert "twice" in refused(pd.concat([new, new]))
    assert "no 'customer' in row 4" in refused(new.assign(customer=["1", "2", "3", "4", ""]))
    assert "none of the 5 parents" in refused(new.assign(plan="none"))
    assert "no rows" in refused(new.iloc[:0])
    with pytest.raises(UserError, match="these are children, drawn for parents; give --parents FILE with the key"):
        own.children(None, 0)
    with pytest.raises(UserError, match="is for tables trained with --parent"):
        modality(Table(children.drop(columns="customer"))).children(tmp_path / "new.csv", 0)


def test_numbers_of_children_are_told(caplog: pytest.LogCaptureFixture) -> None:
    children, parents, counts = tables()
    with caplog.at_level(logging.INFO):
        Table(children, parent=parents, key="customer")
    assert f"400 parents with 0 to {counts.max()} children, {counts.mean():.3g} on average" in caplog.text
