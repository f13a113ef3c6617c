"""Numbers of children given a parent, as the shares in the leaves of a classification tree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from advect.core.bounds import Finite
from advect.core.errors import UserError
from advect.core.records import as_record
from advect.data.tables.columns import Categories, Column, Number

ONE_HOT = 128
"""Most names of a column that are a feature each; more are numbered in their order."""

LEAST = 20
"""Fewest parents of a leaf, and at least the root of their number."""

CLASSES = 10
"""Most groups of counts that the tree tells apart."""

Whole = Annotated[int, Meta(ge=0)]


def features_of(columns: Sequence[Column], values: np.ndarray) -> np.ndarray:
    """Parents (P, K) in table units, NaN where missing, as features (P, F) without NaN, for :class:`CountLaw`.

    A category is one-hot, all 0 where missing; a missing number lies below all others.
    """
    parts = []
    for column, x in zip(columns, values.T, strict=True):
        if isinstance(column, Categories) and len(column.names) <= ONE_HOT:
            parts += [(x == i).astype(np.float64) for i in range(len(column.names))]
        else:
            low, high = (column.low, column.high) if isinstance(column, Number) else (0.0, len(column.ends))
            parts.append(np.where(np.isnan(x), low - (high - low) - 1, x))
    return np.stack(parts, 1)


@dataclass(frozen=True)
class CountLaw:
    """The law of a count given features: a binary tree with the counts of the training parents of each leaf.

    The tree (Breiman, Friedman, Olshen & Stone 1984, by entropy) has leaves of ``LEAST`` parents or more, so that a
    leaf tells of no single one. Node 0 is the root; a node has no children, or two that come after it.

    Args:
        feature: feature that each node (N,) asks; -1 for a leaf.
        threshold: features of at most this go left.
        left, right: the nodes that follow; 0 for a leaf.
        counts: of each leaf the counts that occur, and of how many parents; none for other nodes.
    """

    feature: tuple[Annotated[int, Meta(ge=-1)], ...]
    threshold: tuple[Finite, ...]
    left: tuple[Whole, ...]
    right: tuple[Whole, ...]
    counts: tuple[tuple[tuple[Whole, Annotated[int, Meta(ge=1)]], ...], ...]

    def __post_init__(self) -> None:
        sizes = {len(self.feature), len(self.threshold), len(self.left), len(self.right), len(self.counts)}
        if len(sizes) > 1 or not self.feature:
            raise UserError("the law of counts has nodes without all of their entries; take another file")
        for i, (asks, *after) in enumerate(zip(self.feature, self.left, self.right, strict=True)):
            if asks < 0 and not self.counts[i]:
                raise UserError("the law of counts has a leaf without counts; take another file")
            if asks >= 0 and not all(i < node < len(self.feature) for node in after):
                raise UserError("the law of counts is no tree; take another file")

    @classmethod
    def fit(cls, features: np.ndarray, counts: np.ndarray) -> CountLaw:
        """Law of counts (P,) int64 given features (P, F), of one parent or more."""
        from sklearn.tree import DecisionTreeClassifier

        least = max(LEAST, math.isqrt(len(counts)))
        ends = np.unique(np.quantile(counts, np.linspace(0, 1, CLASSES + 1)[1:-1], method="lower"))
        model = DecisionTreeClassifier(criterion="entropy", min_samples_leaf=least, random_state=0)
        tree: Any = model.fit(features, np.searchsorted(ends, counts)).tree_
        leaf = tree.children_left < 0
        law = cls(
            feature=tuple(np.where(leaf, -1, tree.feature).tolist()),
            threshold=tuple(np.where(leaf, 0.0, tree.threshold).tolist()),
            left=tuple(np.where(leaf, 0, tree.children_left).tolist()),
            right=tuple(np.where(leaf, 0, tree.children_right).tolist()),
            counts=tuple(((0, 1),) if end else () for end in leaf),
        )
        own = law.leaves(features)  # in float64, which may differ from scikit-learn's at a threshold
        shares = []
        for node, end in enumerate(leaf):
            here = counts[own == node] if end else counts[:0]
            found = zip(*(part.tolist() for part in np.unique(here, return_counts=True)), strict=True)
            shares.append(tuple(found) if len(here) or not end else ((0, 1),))
        return cls(law.feature, law.threshold, law.left, law.right, tuple(shares))

    def leaves(self, features: np.ndarray) -> np.ndarray:
        """Leaf (n,) of features (n, F)."""
        asks, threshold = np.array(self.feature), np.array(self.threshold)
        left, right = np.array(self.left), np.array(self.right)
        node, rows = np.zeros(len(features), np.int64), np.arange(len(features))
        while (asks[node] >= 0).any():
            inner = asks[node] >= 0
            low = features[rows, np.maximum(asks[node], 0)] <= threshold[node]
            node = np.where(inner, np.where(low, left[node], right[node]), node)
        return node

    def sample(self, features: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Counts (n,) int64 of features (n, F), at quantiles u (n,) in [0, 1) of their laws."""
        leaves, drawn = self.leaves(features), np.zeros(len(features), np.int64)
        for leaf in np.unique(leaves):
            values, parents = np.array(self.counts[leaf]).T
            places = np.searchsorted(np.cumsum(parents) / parents.sum(), u[leaves == leaf], side="right")
            drawn[leaves == leaf] = values[np.minimum(places, len(values) - 1)]
        return drawn

    @property
    def mean(self) -> float:
        """Mean count of the parents fitted."""
        pairs = np.array([pair for leaf in self.counts for pair in leaf], np.float64)
        return float((pairs[:, 0] * pairs[:, 1]).sum() / pairs[:, 1].sum())

    def to_config(self) -> dict[str, Any]:
        """JSON object of :func:`count_law_from_config`."""
        return asdict(self)


def count_law_from_config(config: Any, features: int) -> CountLaw:
    """Law of so many features. Raises UserError for another."""
    law = as_record(config, CountLaw, "the law of counts")
    if max(law.feature) >= features:
        raise UserError(f"the law of counts asks feature {max(law.feature)} of {features}; take another file")
    return law
