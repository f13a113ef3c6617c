"""Encoders of series and images as conditions of networks."""

import pytest
import torch
from torch import nn

from advect import UserError
from advect.networks import MLP, SequenceTransformer, UNet, Vector
from advect.networks.encoders import MOST, encoder_of


class Counting(nn.Module):
    """Sums (B, 1) of rows, and how many it was asked for."""

    def __init__(self):
        super().__init__()
        self.rows = 0

    def forward(self, x):
        self.rows += len(x)
        return x.flatten(1).sum(1, keepdim=True)


def test_features_of_a_new_network_are_the_numbers_themselves():
    encoder = encoder_of(SequenceTransformer((5, 2), width=8, depth=1, heads=2), (5, 2))
    rows = torch.randn(3, 10)
    assert encoder.features == 10 and torch.allclose(encoder(rows), rows)  # its output starts at zero


def test_features_of_large_images_are_averages_of_neighbours():
    encoder = encoder_of(UNet((1, 64, 64), model_channels=8, channel_mult=(1,), attention_resolutions=()), (1, 64, 64))
    rows = torch.full((2, 64 * 64), 3.0)
    assert encoder.features <= MOST and torch.allclose(encoder(rows), torch.tensor(3.0))


def test_equal_rows_one_after_the_other_are_encoded_once_outside_training():
    encoder = encoder_of(Counting(), (2, 3))
    rows = torch.arange(12.0).reshape(2, 6)[[0, 0, 0, 1, 1, 0]]
    encoder.module.rows = 0
    trained = encoder.train()(rows)
    assert encoder.module.rows == 6
    assert torch.equal(encoder.eval()(rows), trained) and encoder.module.rows == 9


def test_each_network_trains_a_copy():
    encoder = encoder_of(nn.Sequential(nn.Flatten(), nn.Linear(6, 4)), (2, 3))
    nets = [MLP(2, width=8, conditions={"x": Vector(6, encoder)}) for _ in range(2)]
    x_t, t, cond = torch.randn(4, 2), torch.rand(4), {"x": torch.randn(4, 6)}
    nets[0](x_t, t, cond).sum().backward()
    inner = nets[0].conditions.maps[0][0].module[1].weight
    assert inner.grad.abs().sum() > 0
    assert all(p.grad is None for p in (*nets[1].parameters(), *encoder.parameters()))


def test_unusable_modules_are_refused_in_a_sentence():
    with pytest.raises(UserError, match=r"the embedding takes no x of shape \(B, 2, 3\)"):
        encoder_of(nn.Linear(4, 2), (2, 3))
    with pytest.raises(UserError, match=r"must give features \(B, k\)"):
        encoder_of(nn.Identity(), (2, 3))
    with pytest.raises(UserError, match="takes more than x"):
        encoder_of(nn.Bilinear(3, 3, 1), (3,))
