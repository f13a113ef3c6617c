"""Facts about Muon."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advect.core.errors import UserError
from advect.networks import MLP, ResidualMLP, UNet
from advect.networks.base import VelocityAndScore
from advect.training import AdamW, Muon, hidden_matrices, named_params
from advect.training import optim as module
from advect.training.optim import orthogonalise


@pytest.fixture
def float32(monkeypatch) -> None:
    monkeypatch.setattr(module, "has_fast_bfloat16", lambda device: False)


def give_gradients(params: dict[str, torch.Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in params.values():
        p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16), (1, 8, 8)])
def test_singular_values_come_near_one_and_the_vectors_stay(shape: tuple[int, int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = orthogonalise(x)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    values = u.mT @ y @ vh.mT
    diagonal = values.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(values, torch.diag_embed(diagonal), atol=1e-8, rtol=0)
    well_above_zero = s > 0.1 * s.amax(1, keepdim=True)
    assert ((diagonal > 0.6) & (diagonal < 1.3))[well_above_zero].all()
    assert orthogonalise(torch.zeros(1, 3, 4)).eq(0).all()


def test_matrices_move_as_torchs_muon_and_the_rest_as_adamw() -> None:
    torch.manual_seed(0)
    mine = {
        "a": nn.Parameter(torch.randn(6, 10)),
        "b": nn.Parameter(torch.randn(6, 10)),
        "c": nn.Parameter(torch.randn(9, 4)),
    }
    mine["bias"] = nn.Parameter(torch.randn(5))
    theirs = {name: nn.Parameter(p.detach().clone()) for name, p in mine.items()}
    optimizer = Muon(mine, dict.fromkeys("abc", 1), weight_decay=0.1)
    matrices = torch.optim.Muon([theirs[n] for n in "abc"], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    vectors = AdamW({"bias": theirs["bias"]}, weight_decay=0.1)
    for step in range(5):
        give_gradients(mine, step)
        give_gradients(theirs, step)
        optimizer.step(0.02)
        matrices.step()
        vectors.step(0.02)
    for name in mine:  # theirs iterates in bfloat16
        torch.testing.assert_close(mine[name], theirs[name], rtol=0.02, atol=5e-3)
    assert torch.equal(mine["bias"], theirs["bias"])


@pytest.mark.usefixtures("float32")
def test_the_memory_format_of_a_convolution_does_not_matter() -> None:
    ends = []
    for memory in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Identity(), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 6, 1)).to(memory_format=memory)
        params = named_params(net)
        optimizer = Muon(params, hidden_matrices(net))
        for step in range(3):
            give_gradients(params, step)
            optimizer.step(0.05)
        assert params["1.weight"].is_contiguous(memory_format=memory)
        ends.append(params)
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("float32")
def test_an_update_is_as_large_as_one_of_adamw() -> None:
    p = nn.Parameter(torch.zeros(64, 256))
    optimizer = Muon({"p": p}, {"p": 1})
    give_gradients({"p": p}, 0)
    optimizer.step(1.0)
    assert p.detach().square().mean().sqrt() == pytest.approx(0.2, rel=0.2)  # of Adam: 0.2 to 0.4 (Liu et al. 2025)


def test_continued_from_what_it_stored_it_is_the_same_to_the_last_bit() -> None:
    nets = [MLP(2, width=16, depth=4) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    params = [named_params(net) for net in nets]
    optimizers = [Muon(p, hidden_matrices(net), weight_decay=0.1) for p, net in zip(params, nets, strict=True)]
    for step in range(8):
        if step == 3:
            stored = {k: v.clone() for k, v in optimizers[1].tensors().items()}
            optimizers[1] = Muon(params[1], hidden_matrices(nets[1]), weight_decay=0.1)
            optimizers[1].load(stored, step)
        for p, optimizer in zip(params, optimizers, strict=True):
            give_gradients(p, step)
            optimizer.step(0.02)
    assert all(torch.equal(params[0][name], params[1][name]) for name in params[0])


def test_outer_layers_tables_norms_and_biases_are_left_to_adamw() -> None:
    mlp = MLP(2, width=8, depth=4, conditions={"class": 3})
    assert hidden_matrices(mlp).keys() == {"hidden.0.weight", "hidden.1.weight"}
    two = VelocityAndScore(MLP(2, width=8, depth=3), MLP(2, width=8, depth=3))
    assert hidden_matrices(two).keys() == {"velocity.hidden.0.weight", "score.hidden.0.weight"}
    net = UNet((1, 8, 8), model_channels=8, channel_mult=(1, 2), attention_resolutions=(), conditions={"class": 3})
    hidden, params = hidden_matrices(net), named_params(net)
    assert "down.0.block.conv1.weight" in hidden
    assert not any(name.startswith(("stem", "head", "conditions", "time")) for name in hidden)
    assert not any("modulation" in name for name in [*hidden, *hidden_matrices(ResidualMLP(2, width=8, depth=2))])
    assert all(params[name].ndim >= 2 for name in hidden)
    assert not any("norm" in name for name in hidden)


def test_mistakes_are_told() -> None:
    p = {"w": nn.Parameter(torch.zeros(2, 2)), "b": nn.Parameter(torch.zeros(2))}
    with pytest.raises(UserError, match="'b' is none"):
        Muon(p, {"b": 1})
    with pytest.raises(UserError, match="'nothing' is none"):
        Muon(p, {"nothing": 1})
    with pytest.raises(UserError, match=r"momentum must be at least 0 and below 1, got 1"):
        Muon(p, {"w": 1}, momentum=1.0)
