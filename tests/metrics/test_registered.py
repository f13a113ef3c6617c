"""Registered metrics: closed forms, and which are taken on which data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from advect.commands.evaluate import _about
from advect.core.errors import UserError
from advect.core.registry import choices, get, register, unregister
from advect.core.types import Category
from advect.metrics import energy_distance, wasserstein
from advect.metrics.base import COLUMNS, LABELS, ODE, EvalContext, FeatureMetric, find_metrics, with_rows
from advect.metrics.statistics import SAMPLES, VALUES, SampleStatistics

THREE = Category(("a", "b", "c"), (0.5, 0.3, 0.2))


def summary(x: Tensor, **more: Tensor) -> SampleStatistics:
    return SampleStatistics.from_parts([{"features": x, "values": x, **more}], len(x))


def normal(n: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)) * scale + shift


def measure(names: list[str], x: SampleStatistics, y: SampleStatistics, **options) -> dict[str, float]:
    context = options.pop("context", None) or EvalContext(y, y, **options)
    found: dict[str, float] = {}
    for name in names:
        found |= get("metric", name)().compare(x, y, context)
    return found


def test_gaussians_have_the_distances_of_the_closed_forms() -> None:
    x, y = summary(normal(2000, 0, shift=1.0, scale=2.0)), summary(normal(2000, 1))
    found = measure(["frechet", "frechet_infinity", "sliced_wasserstein", "two_sample"], x, y)
    # |m|^2 + sum (s_x - s_y)^2 in four dimensions is 4 + 4; over a line in one it is 1 + 1 on average.
    assert found["frechet"] == pytest.approx(8, rel=0.05)
    assert found["frechet_infinity"] == pytest.approx(found["frechet"], rel=0.03)
    assert found["sliced_wasserstein"] == pytest.approx(2**0.5, rel=0.08)
    assert 0.75 < found["two_sample"] <= 1


def test_equal_laws_are_about_nought_and_a_half() -> None:
    x, y = summary(normal(1500, 2)), summary(normal(1500, 3))
    found = measure(["frechet", "energy", "mmd", "two_sample", "marginals", "kernel", "manifolds"], x, y)
    assert abs(found["energy"]) < 0.01 and abs(found["mmd"]) < 0.002 and found["frechet"] < 0.04
    assert found["two_sample"] == pytest.approx(0.5, abs=0.08)
    assert abs(found["kernel"]) < 4 * found["kernel_se"]
    assert found["precision"] > 0.9 and found["density"] == pytest.approx(1, abs=0.05)
    assert found["kolmogorov_smirnov"] < 0.08 and "zero_error" not in found


def test_sets_are_those_of_the_metrics_themselves() -> None:
    a, b = normal(300, 4), normal(200, 5, shift=0.3)
    x, y = summary(a), summary(b)
    found = measure(["energy", "wasserstein"], x, y)
    assert found["energy"] == pytest.approx(energy_distance(a, b, unbiased=True), rel=1e-9)
    few = x.rows["features"][:200]  # transport needs as many rows of both
    assert found["wasserstein"] == pytest.approx(wasserstein(few, b), rel=1e-9)


def test_zeros_are_counted_gene_by_gene() -> None:
    x, y = torch.ones(40, 2) + normal(40, 6)[:, :2].abs(), torch.ones(40, 2) + normal(40, 7)[:, :2].abs()
    x[:10, 0] = 0  # a quarter of the one gene
    y[:20, 1] = 0  # a half of the other
    found = measure(["marginals"], summary(x), summary(y))
    assert found["zero_error"] == pytest.approx((0.25 + 0.5) / 2)


def test_classes_are_told_by_a_classifier_of_held_out_rows() -> None:
    centres = 6 * torch.eye(3, 4)
    rows = lambda labels, seed: centres[labels] + normal(len(labels), seed)
    many = torch.arange(600) % 3
    train, held_out = (summary(rows(many, seed), **{"cond.kind": many}) for seed in (0, 1))
    here = EvalContext(train, held_out, {"kind": THREE})
    two = many[many < 2]
    samples = summary(rows(two, 2))
    # No sample is of the third class, which a third of the data are.
    shares, accuracy = (get("metric", name)() for name in ("class_shares", "class_accuracy"))
    assert shares.compare(samples, held_out, here)["class_shares_kind"] == pytest.approx(1 / 3, abs=0.02)
    expected = 3 * (2 / 9 * (2 / 600)) ** 0.5 / (2 * torch.pi) ** 0.5
    assert shares.floor(train, held_out, here)["class_shares_kind"] == pytest.approx(expected, rel=0.02)
    # A third of the samples that are asked for show another class.
    asked = torch.where(torch.arange(len(two)) % 3 == 0, 1 - two, two)
    wrong = summary(rows(two, 2), **{"cond.kind": asked})
    assert accuracy.compare(wrong, held_out, here)["class_accuracy_kind"] == pytest.approx(2 / 3, abs=0.02)
    assert accuracy.floor(train, held_out, here)["class_accuracy_kind"] > 0.97


def test_training_rows_help_a_classifier_of_few_held_out_rows_unless_features_know_their_labels() -> None:
    names, kinds = tuple("abcdefghijk"), torch.arange(11)
    centres = 8.0 * torch.stack([kinds % 3, kinds // 3 % 3, kinds // 9, 0 * kinds], 1)
    rows = lambda n, seed: (centres[torch.arange(n) % 11] + normal(n, seed), torch.arange(n) % 11)
    train, held_out = (summary(x, **{"cond.kind": y}) for x, y in (rows(132, 0), rows(14, 1)))
    x, asked = rows(300, 2)
    samples, accuracy = summary(x, **{"cond.kind": asked}), get("metric", "class_accuracy")()
    categories = {"kind": Category(names, (1 / 11,) * 11)}
    here = EvalContext(train, held_out, categories)
    found = accuracy.compare(samples, held_out, here)
    assert found.get("class_accuracy_kind", 0) > 0.95, here.left_out
    assert accuracy.floor(train, held_out, here)["class_accuracy_kind"] > 0.95
    alone = EvalContext(train, held_out, categories, labels_seen=True)
    assert not accuracy.compare(samples, held_out, alone) and "cannot judge" in alone.left_out["class_accuracy_kind"]


def test_within_conditions_cells_of_the_wrong_type_are_far_though_all_of_them_are_right() -> None:
    labels = torch.arange(200) % 2
    x = normal(200, 0) + 5 * labels[:, None]
    y = normal(200, 1) + 5 * labels[:, None]
    right, swapped = (summary(x, **{"cond.type": told}) for told in (labels, 1 - labels))
    reference = summary(y, **{"cond.type": labels})
    categories = {"type": Category(("a", "b"), (0.5, 0.5))}
    found = [measure(["energy", "energy_within"], s, reference, categories=categories) for s in (right, swapped)]
    assert found[0]["energy"] == pytest.approx(found[1]["energy"]) and abs(found[0]["energy"]) < 0.3
    assert abs(found[0]["energy_within_type"]) < 0.3 and found[1]["energy_within_type"] > 8


def test_tables_are_measured_by_columns_with_missing_values() -> None:
    numbers, kinds = normal(100, 0)[:, :1].double(), (torch.arange(100) % 2).double()[:, None]
    y = torch.cat([numbers, kinds], 1)
    x = y.clone()
    x[:30, 0] = torch.nan
    features = normal(100, 1)
    sets = [SampleStatistics.from_parts([{"features": features, "values": v}], 100) for v in (x, y)]
    found = measure(["columns"], *sets, categorical=(False, True))
    assert found["largest_column_gap"] == pytest.approx(0.3, abs=0.1) and found["column_gap"] < 0.2
    assert found["association_error"] < 0.2


OFFERS = {
    "image": {SAMPLES, LABELS, ODE},
    "vector": {SAMPLES, LABELS, VALUES, ODE},
    "table": {SAMPLES, LABELS, VALUES, COLUMNS, ODE},
}
STRAIGHT = ("frechet", "energy", "class_shares", "straightness")


@pytest.mark.parametrize("kind", OFFERS)
def test_the_metrics_of_a_kind_are_the_usual_ones_and_then_the_others_it_allows(kind: str) -> None:
    assert tuple(find_metrics((), STRAIGHT, OFFERS[kind], kind)[0]) == STRAIGHT
    found, left_out = find_metrics((), STRAIGHT, OFFERS[kind] - {LABELS}, kind)
    assert tuple(found) == ("frechet", "energy", "straightness") and not left_out
    allowed = [
        name for name in choices("metric") if getattr(get("metric", name), "needs", frozenset()) <= OFFERS[kind]
    ]
    assert ("columns" in allowed, "marginals" in allowed) == (kind == "table", kind != "image")
    found = tuple(find_metrics([*reversed(allowed)], STRAIGHT, OFFERS[kind], kind)[0])
    assert found[:4] == STRAIGHT and sorted(found) == sorted(allowed)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["frechett"], "--metrics frechett is not known; did you mean 'frechet'?"),
        (["columns"], "--metrics columns is for table data, and these are image data"),
        (["class_shares"], "--metrics class_shares needs data with a categorical condition"),
        (["marginals"], "--metrics marginals looks at values, which image data have not"),
    ],
)
def test_mistakes_are_told(names: list[str], message: str) -> None:
    with pytest.raises(UserError) as told:
        find_metrics(names, STRAIGHT, {SAMPLES}, "image")
    assert str(told.value).startswith(message)


def test_what_cannot_be_had_is_left_out_with_the_reason() -> None:
    found, left_out = find_metrics(["columns", "frechet"], STRAIGHT, {SAMPLES}, "image")
    assert list(found) == ["frechet"] and left_out == {"columns": "is for table data, and these are image data"}
    metrics, _ = find_metrics(["frechet", "manifolds", "two_sample", "straightness"], ("manifolds",), {ODE}, "image")
    kept, left_out = with_rows(metrics, {"--num-samples": 5, "reference rows": 100})
    assert list(kept) == ["straightness", "frechet"]
    assert left_out["manifolds"] == "needs 6 rows or more, and --num-samples is 5" and len(left_out) == 2
    assert with_rows(metrics, {"--num-samples": 20, "reference rows": 19})[1].keys() == {"two_sample"}
    assert with_rows(metrics, {"--num-samples": 20, "reference rows": 20}) == (metrics, {})
    with pytest.raises(UserError, match="--metrics two_sample needs 20 rows or more, and reference rows is 3"):
        with_rows({"two_sample": metrics["two_sample"]}, {"--num-samples": 20, "reference rows": 3})


def test_a_metric_of_a_test_is_a_metric_like_all_others() -> None:
    @register("mean_gap")
    class MeanGap(FeatureMetric):
        """Distance of the means."""

        def distance(self, x: Tensor, y: Tensor) -> float:
            return float((x.mean(0) - y.mean(0)).norm())

    try:
        x, y = summary(normal(400, 0, shift=1.0)), summary(normal(400, 1))
        assert measure(["mean_gap"], x, y)["mean_gap"] == pytest.approx(2, rel=0.1)  # 1 in four dimensions
        assert "mean_gap: Distance of the means (when named)" in _about()
        with pytest.raises(UserError, match="--metrics mean_gp is not known; did you mean 'mean_gap'"):
            find_metrics(["mean_gp"], (), set(), "vector")
    finally:
        unregister(MeanGap)
