"""Networks by name: built for the data, on the command line, in config.yaml and in a card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from advect.config.network_sections import (
    NETWORKS,
    DiTConfig,
    MLPConfig,
    ResidualMLPConfig,
    SequenceTransformerConfig,
    UNetConfig,
)

from advect.config.arguments import parse_config, parse_train
from advect.config.build import FITS, build_network
from advect.config.yaml_file import to_yaml
from advect.core.errors import UserError
from advect.core.types import LENGTH, Category, DataSpec, Length, Quantity
from advect.model.metadata import ModelMetadata
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
    "unet": (UNetConfig(model_channels=8, channel_mult=(1, 2), attention_resolutions=(), patch_size=2), UNet),
    "dit": (DiTConfig(width=16, depth=1, heads=2, registers=1), DiT),
    "mlp": (MLPConfig(width=8, depth=2), MLP),
    "resmlp": (ResidualMLPConfig(width=8, depth=1, time_embedding="fourier"), ResidualMLP),
    "transformer": (SequenceTransformerConfig(width=16, depth=1, heads=2), SequenceTransformer),
}


def cond_of(kind: str) -> dict[str, torch.Tensor]:
    cond = {"type": torch.tensor([0, -1]), "dose": torch.tensor([[0.5, 1.0], [float("nan")] * 2])}
    return {**cond, LENGTH: torch.tensor([1, 6])} if kind == "sequence" else cond


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in FITS.items() for name in names])
def test_each_network_takes_its_data_and_all_conditions(kind: str, name: str) -> None:
    config, cls = SMALL[name]
    net, spec = build_network(config, SPECS[kind]), SPECS[kind]
    assert isinstance(net, cls)
    x = torch.randn(2, *spec.shape)
    out = net(x, torch.rand(2), cond_of(kind))
    assert out.shape == x.shape and out.isfinite().all()


def test_every_network_has_data_that_it_fits() -> None:
    assert sorted(name for names in FITS.values() for name in names) == sorted(NETWORKS) == sorted(SMALL)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("mlp", "image", r"--network mlp does not take image data \(1, 8, 8\); use --network unet or --network dit"),
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
    with pytest.raises(UserError, match="--grad-checkpointing does nothing for an mlp"):
        build_network(SMALL["mlp"][0], SPECS["vector"], grad_checkpointing=True)


def test_the_command_line_takes_another_network_and_its_flags(tmp_path: Path) -> None:
    words = ["digits", "--network", "dit", "--depth", "3", "--width", "32", "--heads", "2", "--qk-norm"]
    preset, arguments = parse_train(words)
    config = arguments.settings
    assert config.network == DiTConfig(depth=3, width=32, heads=2, qk_norm=True)
    text = to_yaml(config, preset)
    assert yaml.safe_load(text)["network"]["network"] == "dit"
    (tmp_path / "config.yaml").write_text(text)
    assert parse_config(tmp_path / "config.yaml") == ("digits", config)
    _, again = parse_train(["--config", str(tmp_path / "config.yaml"), "--depth=4"])
    assert again.settings.network == DiTConfig(depth=4, width=32, heads=2, qk_norm=True)
    with pytest.raises(UserError, match="which has dit, contradict"):
        parse_train(["--config", str(tmp_path / "config.yaml"), "--network", "unet"])


def test_the_presets_own_network_keeps_its_values() -> None:
    _, plain = parse_train(["digits"])
    _, named = parse_train(["digits", "--network=unet"])
    assert named.settings == plain.settings


def test_a_file_from_before_there_was_a_choice_is_read(tmp_path: Path) -> None:
    _, arguments = parse_train(["digits"])
    values = yaml.safe_load(to_yaml(arguments.settings, "digits"))
    for later in ("network", "patch_size", "time_embedding"):
        del values["network"][later]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    assert parse_config(tmp_path / "config.yaml")[1] == arguments.settings


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


def test_a_card_of_an_older_network_gets_the_options_that_came_later() -> None:
    from advect.data import Digits

    _, arguments = parse_train(["digits"])
    card = ModelMetadata.of(arguments.settings, "digits", Digits(), {"kind": "gaussian"})
    values = json.loads(card.to_text())
    for section in (values["network"], values["config"]["network"]):
        del section["patch_size"], section["time_embedding"]
    assert ModelMetadata.from_text(json.dumps(values), "here") == ModelMetadata.from_text(card.to_text(), "here")
