"""Networks by name: built for the data, on the command line, in config.yaml and in metadata."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from advect.config.arguments import parse_config, parse_train
from advect.config.build import build_network, networks_for
from advect.config.config import network
from advect.core import registry
from advect.core.errors import UserError
from advect.core.types import LENGTH, Category, DataSpec, Length, Quantity
from advect.networks import MLP, DiT, ResidualMLP, SequenceTransformer, UNet

CONDITIONS = {
    "type": Category(("a", "b"), (0.5, 0.5)),
    "dose": Quantity(("x", "y"), (0.0, 0.0), (1.0, 1.0), ((0.0, 0.0),)),
}
SPECS = {
    "image": DataSpec((1, 8, 8), "image", dict(CONDITIONS)),
    "vector": DataSpec((5,), "vector", dict(CONDITIONS)),
    "sequence": DataSpec((6, 2), "sequence", {**CONDITIONS, LENGTH: Length((0.5, 0, 0, 0, 0, 0.5))}),
}
SMALL = {
    "unet": (network("unet", model_channels=8, channel_mult=(1, 2), attention_resolutions=(), patch_size=2), UNet),
    "dit": (network("dit", width=16, depth=1, heads=2, registers=1), DiT),
    "mlp": (network("mlp", width=8, depth=2), MLP),
    "resmlp": (network("resmlp", width=8, depth=1, time_embedding="fourier"), ResidualMLP),
    "transformer": (network("transformer", width=16, depth=1, heads=2), SequenceTransformer),
}


def cond_of(kind: str) -> dict[str, torch.Tensor]:
    cond = {"type": torch.tensor([0, -1]), "dose": torch.tensor([[0.5, 1.0], [float("nan")] * 2])}
    return {**cond, LENGTH: torch.tensor([1, 6])} if kind == "sequence" else cond


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in SPECS for name in networks_for(kind)])
def test_each_network_takes_its_data_and_all_conditions(kind: str, name: str) -> None:
    config, cls = SMALL[name]
    net, spec = build_network(config, SPECS[kind]), SPECS[kind]
    assert isinstance(net, cls)
    x = torch.randn(2, *spec.shape)
    out = net(x, torch.rand(2), cond_of(kind))
    assert out.shape == x.shape and out.isfinite().all()


def test_every_network_has_data_that_it_fits() -> None:
    assert sorted(name for kind in SPECS for name in networks_for(kind)) == sorted(registry.choices("network"))


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("mlp", "image", r"--network mlp does not take image data \(1, 8, 8\); use --network dit or --network unet"),
        ("dit", "vector", "use --network mlp or --network resmlp"),
        ("unet", "sequence", "use --network transformer"),
    ],
)
def test_wrong_pairs_are_one_sentence(name: str, kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_network(SMALL[name][0], SPECS[kind])


def test_grad_checkpointing_reaches_the_network_or_is_refused() -> None:
    net = build_network(SMALL["dit"][0], SPECS["image"], grad_checkpointing=True)
    assert isinstance(net, DiT) and net.grad_checkpointing
    with pytest.raises(UserError, match="--grad-checkpointing does nothing for --network mlp"):
        build_network(SMALL["mlp"][0], SPECS["vector"], grad_checkpointing=True)


def test_the_command_line_takes_another_network_and_its_flags(tmp_path: Path) -> None:
    words = ["digits", "--network", "dit", "--depth", "3", "--width", "32", "--heads", "2", "--qk-norm"]
    preset, arguments = parse_train(words)
    config = arguments.settings
    assert config.network.values() == network("dit", depth=3, width=32, heads=2, qk_norm=True).values()
    text = config.to_yaml(preset)
    assert yaml.safe_load(text)["network"]["network"] == "dit"
    (tmp_path / "config.yaml").write_text(text)
    assert parse_config(tmp_path / "config.yaml") == ("digits", config)
    _, again = parse_train(["--config", str(tmp_path / "config.yaml"), "--depth=4"])
    assert again.settings.network.values() == config.network.values() | {"depth": 4}
    with pytest.raises(UserError, match="which has dit, contradict"):
        parse_train(["--config", str(tmp_path / "config.yaml"), "--network", "unet"])


def test_the_presets_own_network_keeps_its_values() -> None:
    _, plain = parse_train(["digits"])
    _, named = parse_train(["digits", "--network=unet"])
    assert named.settings == plain.settings


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match="--network dot is not known; did you mean 'dit'"):
        parse_train(["digits", "--network", "dot"])
    with pytest.raises(UserError, match="--model-channels is not a flag"):
        parse_train(["digits", "--network", "dit", "--model-channels", "8"])
    with pytest.raises(UserError, match="--network needs a value"):
        parse_train(["digits", "--network"])


def test_help_shows_the_flags_of_the_network(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_train(["digits", "--network", "dit", "--help"])
    text = capsys.readouterr().out
    assert "--registers" in text and "--qk-norm" in text and "--network" in text and "--channel-mult" not in text
