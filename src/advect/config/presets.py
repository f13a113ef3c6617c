"""Named starting points: what each trains on, with which network, and for how long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from advect.config.config import (
    Config,
    MethodConfig,
    NetworkConfig,
    OutputConfig,
    TrainingConfig,
    data,
    network,
)
from advect.core.errors import UserError, did_you_mean

PRESETS: dict[str, Preset] = {}
DEFAULT = "digits"


@dataclass(frozen=True)
class Preset:
    """A named configuration, with one line about it.

    ``takes`` lists the data formats it trains on, none if it has its own data; ``fit`` adapts the configuration to an
    image height and width, those of the data unless ``own_size``.
    """

    name: str
    about: str
    build: Callable[[], Config]
    takes: tuple[str, ...] = ()
    fit: Callable[[Config, int, int], Config] | None = None
    own_size: bool = False

    @cached_property
    def config(self) -> Config:
        """The configuration; it imports the parts it names, which takes a second."""
        return self.build()


def preset(
    about: str,
    takes: tuple[str, ...] = (),
    fit: Callable[[Config, int, int], Config] | None = None,
    own_size: bool = False,
) -> Callable[[Callable[[], Config]], Callable[[], Config]]:
    """Add the decorated function's configuration to PRESETS, by the function's name with ``-`` for ``_``."""

    def add(build: Callable[[], Config]) -> Callable[[], Config]:
        name = build.__name__.replace("_", "-")
        PRESETS[name] = Preset(name, about, build, takes, fit, own_size)
        return build

    return add


def fit_images(config: Config, height: int, width: int) -> Config:
    """Configuration with a U-Net for the image size: full with a GPU, else one that a CPU trains in minutes.

    Patches of 4 x 4 pixels predict the data, as 64 channels cannot carry 48 numbers of noise (Li & He 2025, "Back to
    basics: let denoising generative models denoise").
    """
    net = full_unet(height, width) if has_gpu() else folded_unet(height, width)
    method = config.method
    if net.options.get("patch_size", 1) >= 4:
        method = replace(method, prediction="data", loss_space="velocity", t_eps=0.05)
    return replace(config, network=net, method=method)


def fit_unet(config: Config, height: int, width: int) -> Config:
    """Configuration with the usual U-Net for another image size than the preset's."""
    return config if height == width == 64 else replace(config, network=network("unet"))


def has_gpu() -> bool:
    """Whether --device auto is a GPU."""
    import torch  # takes a second to import

    return torch.cuda.is_available()


def folded_unet(height: int, width: int) -> NetworkConfig:
    """Small U-Net on pixels folded into channels, for maps of about 16 pixels; attention in the middle only."""
    small, fold = min(height, width), 1
    while fold < 4 and small >= 24 * fold and height % (4 * fold) == width % (4 * fold) == 0:
        fold *= 2
    halvings = 0
    while halvings < 3 and height % (fold << halvings + 1) == width % (fold << halvings + 1) == 0:
        if halvings and small // fold >> halvings < 16:
            break
        halvings += 1
    return network(
        "unet",
        model_channels=32 if small <= 16 else 64,
        channel_mult=(1, 2, 2, 4)[: halvings + 1],
        num_res_blocks=1,
        attention_resolutions=(),
        dropout=0.0,
        patch_size=fold,
    )


def full_unet(height: int, width: int) -> NetworkConfig:
    """U-Net that halves images down to 4 pixels if divisible, with attention from 16 pixels on."""
    small = min(height, width)
    halvings = 0
    while halvings < 3 and height % 2 ** (halvings + 1) == width % 2 ** (halvings + 1) == 0 and small >> halvings >= 8:
        halvings += 1
    heights = [height >> level for level in range(halvings + 1)]
    return network(
        "unet",
        model_channels=32 if small <= 16 else 64,
        channel_mult=(1, 2, 2, 4)[: halvings + 1],
        num_res_blocks=1 if small <= 32 else 2,
        attention_resolutions=tuple(size for size in heights[1:] if size <= 16),
        patch_size=2 if small >= 128 and height % 16 == width % 16 == 0 else 1,
    )


def cifar_unet() -> NetworkConfig:
    """U-Net of CIFAR-10 with attention at 16 pixels."""
    return network("unet", channel_mult=(1, 2, 2, 2), attention_resolutions=(16,))


def few_passes(config: Config, height: int, width: int) -> Config:
    """Configuration for a CPU, whose few passes over the data are no reason to change images in many ways."""
    return replace(config, network=folded_unet(height, width), data=config.data.replaced(augment="flip"))


@preset("8x8 handwritten digits by class, inside scikit-learn: about two minutes on two CPU cores")
def digits() -> Config:
    return Config(
        data=data("digits"),
        network=network(
            "unet", model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), dropout=0.1
        ),
        training=TrainingConfig(
            batch_size=128,
            num_epochs=250,
            learning_rate=1e-3,
            lr_schedule="cosine",
            lr_warmup_steps=100,
            ema_decay=0.995,
        ),
        output=OutputConfig(log_every=20, sample_every=500, save_every=500, save_epochs=50, num_samples=100),
    )


@preset("two half moons in the plane, a small MLP: seconds")
def moons() -> Config:
    return Config(
        data=data("moons"),
        network=network("mlp", width=256, depth=4),
        training=TrainingConfig(
            batch_size=256,
            num_epochs=100,
            learning_rate=1e-3,
            lr_schedule="cosine",
            lr_warmup_steps=100,
            ema_decay=0.999,
        ),
        output=OutputConfig(
            log_every=100, sample_every=1000, save_every=2000, save_epochs=50, num_samples=2000, sample_steps=25
        ),
    )


@preset(
    "28x28 grey pictures of clothes, from the upstream IDX files in --data-dir: six minutes on two CPU cores",
    takes=("fashion-mnist",),
)
def fashion_mnist() -> Config:
    # Found by experiment, docs/experiments/time-to-quality.md; the epochs are what six minutes allow.
    return Config(
        data=data("fashion-mnist"),
        network=network(
            "unet",
            patch_size=2,
            model_channels=64,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(),
            dropout=0.0,
        ),
        training=TrainingConfig(
            batch_size=128,
            num_epochs=5,
            optimizer="muon",
            learning_rate=4e-3,
            lr_schedule="cosine",
            lr_warmup_steps=100,
            ema_decay=0.9995,
            mixed_precision=True,
        ),
        output=OutputConfig(save_epochs=1, solver="dpmpp2m", sample_steps=20),
    )


@preset(
    "32x32 colour pictures by class: CIFAR-10 or CIFAR-100, upstream's files in --data-dir; on a CPU --num-epochs 5",
    takes=("cifar",),
    fit=lambda config, height, width: config if has_gpu() else few_passes(config, height, width),
)
def cifar10() -> Config:
    return Config(
        data=data("cifar", augment="geometric"),
        network=cifar_unet(),
        training=TrainingConfig(
            batch_size=128,
            num_epochs=400,
            optimizer="muon",
            learning_rate=2e-3,
            lr_schedule="cosine",
            lr_warmup_steps=200,
            ema_decay=0.9999,
            mixed_precision=True,
            num_workers=2,
        ),
        output=OutputConfig(save_epochs=20, solver="dpmpp2m", sample_steps=20),
    )


@preset(
    "64x64 colour images: CelebA in its official layout, or any folder (--data-dir): for a GPU",
    takes=("image-folder", "celeba", "packed", "shards", "parquet-images", "hub-images"),
    fit=fit_unet,
    own_size=True,
)
def celeba64() -> Config:
    return Config(
        data=data("image-folder"),
        network=network("unet", channel_mult=(1, 2, 2, 4), attention_resolutions=(16, 8)),
        method=MethodConfig(sigma_min=1e-4),
        training=TrainingConfig(
            batch_size=32,
            num_epochs=100,
            learning_rate=2e-4,
            lr_schedule="cosine",
            lr_warmup_steps=1000,
            ema_decay=0.9999,
            num_workers=4,
        ),
        output=OutputConfig(log_every=50, sample_every=1000, save_every=5000, save_epochs=1),
    )


@preset(
    "images of your own: a folder or archive, shards, Parquet, arrays; the U-Net follows their size and the device",
    takes=(
        "image-folder",
        "celeba",
        "packed",
        "shards",
        "parquet-images",
        "hub-images",
        "array-file",
        "mnist",
        "cifar",
    ),
    fit=fit_images,
)
def images() -> Config:
    # Rate, warm-up and solver as found for fashion-mnist; runs of minutes on a CPU are in docs/experiments/images.md.
    return Config(
        data=data("image-folder"),
        network=full_unet(64, 64),
        training=TrainingConfig(
            optimizer="muon",
            learning_rate=2e-3,
            lr_schedule="cosine",
            ema_decay=0.9995,
            mixed_precision=True,
            num_workers=2,
        ),
        output=OutputConfig(solver="dpmpp2m", sample_steps=20),
    )


@preset(
    "single cells from an .h5ad file (--data-dir): genes or components, by columns of obs, a residual MLP",
    takes=("cells",),
)
def cells() -> Config:
    # Found by experiment, docs/experiments/cells.md: without dropout the held-out loss rises after 150 epochs.
    return Config(
        data=data("cells"),
        network=network("resmlp", width=256, depth=3, dropout=0.1),
        training=TrainingConfig(
            learning_rate=1e-3,
            lr_schedule="cosine",
            ema_decay=0.995,
        ),
        output=OutputConfig(num_samples=1000),
    )


@preset("a CSV or Parquet table of any column types (--data-dir), a residual MLP", takes=("table",))
def table() -> Config:
    # Times favour the middle, where categories are decided: docs/experiments/tables.md.
    return Config(
        data=data("table"),
        network=network("resmlp", width=256),
        method=MethodConfig(
            objective="variational-flow-matching",
            times="logistic",
            options={"times_mean": -0.25},
        ),
        training=TrainingConfig(
            learning_rate=1e-3,
            lr_schedule="cosine",
            ema_decay=0.999,
            mixed_precision=True,
        ),
        output=OutputConfig(num_samples=1000, sample_steps=25),
    )


@preset(
    "sequences (N, L, C), or of many lengths, or a table of one row a step (--data-dir), a transformer",
    takes=("sequences",),
)
def sequences() -> Config:
    return Config(
        data=data("sequences"),
        network=network("transformer", width=128, depth=4),
        training=TrainingConfig(
            learning_rate=1e-3,
            lr_schedule="cosine",
            ema_decay=0.999,
        ),
        output=OutputConfig(num_samples=64),
    )


@preset(
    "text, FASTA or whole numbers as tokens (--data-dir): discrete flow matching, a transformer",
    takes=("tokens",),
)
def tokens() -> Config:
    return Config(
        data=data("tokens"),
        network=network("transformer", width=128, depth=4),
        method=MethodConfig(objective="discrete-flow-matching", source="masked"),
        training=TrainingConfig(
            learning_rate=1e-3,
            lr_schedule="cosine",
            ema_decay=0.999,
        ),
        output=OutputConfig(num_samples=16, solver="tau-leaping", sample_steps=64),
    )


@preset("vectors of your own from a .npy, .npz or Parquet file (--data-dir), a residual MLP", takes=("array-file",))
def arrays() -> Config:
    return Config(
        data=data("array-file"),
        network=network("resmlp", width=256),
        training=TrainingConfig(
            learning_rate=1e-3,
            lr_schedule="cosine",
            ema_decay=0.999,
        ),
        output=OutputConfig(num_samples=1000),
    )


def get_preset(name: str) -> Preset:
    """Preset ``name``. Raises UserError with the nearest name if unknown."""
    if name not in PRESETS:
        raise UserError(f"preset {name!r} is not known{did_you_mean(name, PRESETS)}")
    return PRESETS[name]
