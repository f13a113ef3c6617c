"""Features by a network from a file: what it is given, what is refused, and the 2015 Inception's weights."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from advect.core.errors import UserError
from advect.evaluation import FeatureNetwork
from advect.evaluation.feature_network import Inception


class Corners(nn.Module):
    """The mean of each channel and the first pixel, (N, 4)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean((2, 3)), x[:, 0, 0, :1]], 1)


class Flat(nn.Module):
    """All pixels of the first channel, (N, 1, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1]


class Row(nn.Module):
    """All pixels of the first channel, (N, H * W)."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0].flatten(1)


class Asked(nn.Module):
    """Takes a second argument, as one well-known file does."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        return x.mean((2, 3)) if return_features else x[:, 0, 0]


def script(folder: Path, net: nn.Module, name: str = "net.pt") -> Path:
    torch.jit.script(net).save(str(folder / name))
    return folder / name


def test_a_script_gets_prepared_images(tmp_path: Path) -> None:
    features = FeatureNetwork(script(tmp_path, Corners()), batch=2)
    x = torch.zeros(5, 3, 8, 8)
    x[:, 0], x[:, 1], x[:, 2] = 0, 128, 255.4
    x[4] = 300
    found = features(x)
    assert found.dtype == torch.float32 and found.shape == (5, 4) and features.dimensions == 4
    assert found[0].tolist() == pytest.approx([-1, 0, 127 / 128, -1], abs=1e-6)
    assert found[4].tolist() == pytest.approx([127 / 128] * 4)
    grey = features(torch.full((1, 1, 8, 8), 64, dtype=torch.uint8))
    assert grey[0].tolist() == pytest.approx([-0.5] * 4)
    imagenet = FeatureNetwork(tmp_path / "net.pt", size=14, mean=(100, 110, 120), std=(50, 60, 70))
    assert imagenet(x)[1].tolist() == pytest.approx([-2, 0.3, 135 / 70, -2])


def test_resizing_is_bilinear_with_pixels_as_areas(tmp_path: Path) -> None:
    x = torch.randint(0, 256, (2, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = FeatureNetwork(script(tmp_path, Row()), size=40, mean=0, std=1)(x).reshape(2, 40, 40)
    # Enlarging, Pillow does not antialias either, and its float images are not rounded.
    wanted = [np.asarray(Image.fromarray(v[0].numpy().astype(np.float32)).resize((40, 40), 2)) for v in x]
    np.testing.assert_allclose(found.numpy(), np.stack(wanted), atol=1e-3)
    # Halving takes the two middle pixels of each axis, not the mean over the whole area as antialiasing would.
    line = torch.zeros(1, 1, 1, 8, dtype=torch.uint8)
    line[..., 1] = 100
    small = FeatureNetwork(tmp_path / "net.pt", size=2, mean=0, std=1)(line.expand(-1, -1, 8, -1))
    assert small[0].tolist() == pytest.approx([50, 0, 50, 0])


def test_the_identity_tells_files_and_preparations_apart(tmp_path: Path) -> None:
    first = FeatureNetwork(script(tmp_path, Corners()))
    copy = tmp_path / "copy.pt"
    copy.write_bytes((tmp_path / "net.pt").read_bytes())
    assert FeatureNetwork(copy, batch=7).identity == first.identity
    assert FeatureNetwork(copy, size=224).identity != first.identity
    assert FeatureNetwork(copy, bf16=True).identity != first.identity
    assert FeatureNetwork(copy, size=224).sha256 == first.sha256
    assert FeatureNetwork(script(tmp_path, Row(), "row.pt"), size=4).sha256 != first.sha256


def inception_weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {k: v for k, v in Inception().state_dict().items() if not k.endswith("num_batches_tracked")}


def test_inceptions_weights_load_from_both_kinds_of_file(tmp_path: Path) -> None:
    weights = inception_weights()
    weights["Mixed_7c.branch_pool.bn.bias"] = torch.arange(192.0)
    save_file(weights, tmp_path / "a.safetensors")
    torch.save(weights | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, tmp_path / "b.pth")
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    found = [FeatureNetwork(tmp_path / name)(x) for name in ("a.safetensors", "b.pth")]
    assert found[0].shape == (2, 2048) and torch.equal(*found)
    # torchvision counts 23,834,568 parameters in the same layers, with a classifier of 1,000 classes.
    assert sum(p.numel() for p in Inception().parameters()) == 23_834_568 - 1000 * 2049
    assert found[0].std() > 0 and found[0][0, -1] > 150  # its last channels are those of the last pool


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda w: w.pop("Mixed_6b.branch7x7dbl_3.bn.bias"), "has no Mixed_6b.branch7x7dbl_3.bn.bias"),
        (lambda w: w.update({"head.weight": torch.zeros(1)}), "has head.weight, which that network has not"),
        (lambda w: w.update({"Conv2d_1a_3x3.bn.bias": torch.zeros(3)}), r"must be \(32,\), got \(3,\)"),
    ],
)
def test_other_weights_are_refused(change, text: str) -> None:
    weights = inception_weights()
    change(weights)
    with pytest.raises(UserError, match=text):
        Inception.from_weights(weights)


class Evil:
    """What a pickle may hold: it writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_files_that_hold_no_network_are_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("nothing of the kind")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    torch.save(Evil(tmp_path / "ran"), tmp_path / "evil.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    script(tmp_path, Flat(), "flat.pt")
    script(tmp_path, Asked(), "asked.pt")
    cut = tmp_path / "cut.pt"
    cut.write_bytes((tmp_path / "flat.pt").read_bytes()[:-300])
    for name, text in (
        ("gone.pt", "is no file; give a TorchScript file"),
        (".", "is no file"),
        ("text.pt", "neither a TorchScript file nor a state dict"),
        ("empty.safetensors", "neither a TorchScript file nor a state dict"),
        ("evil.pth", "loads without running code"),
        ("evil.pt", "loads without running code"),
        ("cut.pt", "neither a TorchScript file nor a state dict"),
        ("list.pt", "holds no state dict"),
        ("other.safetensors", "other.safetensors: the state dict has"),
        ("flat.pt", r"must return \(N, d\) .* got \(1, 1, 299, 299\)"),
        ("asked.pt", "resizes images by its own rule"),
    ):
        with pytest.raises(UserError, match=text) as told:
            FeatureNetwork(tmp_path / name)
        assert "\n" not in str(told.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (torch.zeros(2, 4, 8, 8), r"\(N, 1 or 3, H, W\) with N >= 1, got \(2, 4, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8), "N >= 1"),
        (torch.full((1, 3, 8, 8), torch.nan), "NaN or infinite"),
        (torch.full((1, 3, 8, 8), -0.3), r"0 to 255, got values in \[-1, 1\]"),
    ],
)
def test_images_that_are_none_are_refused(x: Tensor, text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=text):
        FeatureNetwork(script(tmp_path, Corners()))(x)


@pytest.mark.parametrize(
    ("options", "text"),
    [({"size": 0}, "size must be"), ({"batch": 0}, "batch must be"), ({"std": 0}, "std must be > 0"),
     ({"mean": (1, 2)}, "mean must be one finite number or three")],
)  # fmt: skip
def test_arguments_out_of_range_are_refused(options: dict, text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=text):
        FeatureNetwork(script(tmp_path, Corners()), **options)
