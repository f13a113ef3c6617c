from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from advect.core.errors import UserError
from advect.data import Chain, Components, Expression, Standardize, transform_from_config

COUNTS = torch.tensor([[0.0, 1, 7], [3, 0, 90], [12, 5, 0]])
BASIS = torch.linalg.qr(torch.randn(4, 2, generator=torch.Generator().manual_seed(0))).Q.T.contiguous()
PCA = Components(BASIS, torch.tensor([1.0, 2, 3, 4]))


def test_counts_become_the_logarithm_of_their_share_and_come_back_whole():
    scale = Expression(space="counts", target_sum=100, library=50)
    assert scale.forward(COUNTS)[1].tolist() == pytest.approx([math.log1p(6), 0, math.log1p(180)])
    assert torch.equal(scale.inverse(scale.forward(COUNTS)), COUNTS)
    assert scale.inverse(torch.tensor([[-3.0, math.log1p(2.9), 0.1]])).tolist() == [[0, 1, 0]]


def test_counts_follow_the_library_size_of_each_cell():
    scale = Expression(target_sum=100, integer=False)
    x = torch.tensor([[0.1, 0.5, 0.4]]).mul(100).log1p().expand(2, 3)
    counts = scale.counts(x, torch.tensor([10.0, 1000.0]))
    np.testing.assert_allclose(counts, [[1, 5, 4], [100, 500, 400]], rtol=1e-5)


def test_without_library_size_and_logarithm_counts_are_what_they_are():
    assert torch.equal(Expression(space="counts", target_sum=None, log1p=False).forward(COUNTS), COUNTS)


@pytest.mark.parametrize(("non_negative", "least"), [(True, 0.0), (False, -1.0)])
def test_expression_ends_at_zero_if_asked(non_negative, least):
    back = Expression(non_negative=non_negative).inverse(torch.tensor([[-1.0, 0.5]]))
    assert back.tolist() == [[least, 0.5]]


def test_components_project_and_return():
    z = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    x = PCA.inverse(z)
    torch.testing.assert_close(PCA.forward(x), z)
    torch.testing.assert_close(x, torch.tensor([1.0, 2, 3, 4]) + z @ BASIS)
    off = torch.linalg.svd(BASIS).Vh[2:3]  # what the components do not span is lost
    torch.testing.assert_close(PCA.forward(x + 5 * off), z, atol=1e-5, rtol=0)


def test_a_chain_is_stored_as_json_with_its_tensors_beside():
    chain = Chain([Expression(), PCA, Standardize([0.0, 1.0], [2.0, 3.0])])
    config = json.loads(json.dumps(chain.to_config()))
    assert chain.tensors().keys() == {"1.components", "1.mean"}
    again = transform_from_config(config, chain.tensors())
    assert again == chain
    z = torch.randn(5, 2)
    assert torch.equal(again.inverse(z), chain.inverse(z))
    assert Chain([PCA]) != Chain([Components(BASIS, torch.zeros(4))])


def test_a_chain_adds_the_log_determinants_of_its_parts():
    std = Standardize([0.0, 1.0], [2.0, 3.0])
    assert Chain([Expression(), std]).log_det(2) == pytest.approx(-math.log(6))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Expression(target_sum=0), "target_sum must be a finite number > 0, got 0"),
        (lambda: Expression(library=math.nan), "library must be a finite number > 0"),
        (lambda: Expression(space="log"), "space must be 'expression' or 'counts', got 'log'"),
        (lambda: Expression(space="counts").log_det(3), "space='expression'"),
        (lambda: PCA.log_det(4), "2 components of 4 genes"),
        (lambda: Components(torch.ones(2, 3), torch.ones(2)), "got (2, 3) and (2,)"),
        (lambda: Chain([]), "at least one transform"),
        (lambda: transform_from_config({"kind": "components"}), "components"),
        (lambda: transform_from_config({"kind": "chain"}), "parts"),
    ],
)
def test_bad_input(build, words):
    with pytest.raises(UserError) as error:
        build()
    assert words in str(error.value)
