"""Images of which some pixels are known: PNG files with transparent pixels and arrays with NaN, and their answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from advect.core.errors import UserError
from advect.core.files import atomic_write, open_regular
from advect.data.given import array_conditions, samples_name
from advect.data.numpy_files import load_arrays, save_arrays

_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")


@dataclass(frozen=True, eq=False)
class ImageQuestion:
    """Images of a file.

    Attributes:
        suffix: of the file, which its answers have too.
        x: (n, C, H, W) in data units, NaN where asked for.
        own: the pixels as they stand, bytes of a PNG file.
        last: whether channels are the last axis there.
        name: of the images in a NumPy file.
        arrays: all of a NumPy file.
        conditions: n values each by name.
    """

    suffix: str
    x: np.ndarray
    own: np.ndarray
    last: bool = False
    name: str = ""
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    conditions: Mapping[str, list] = field(default_factory=dict)

    def answer(self, drawn: np.ndarray, path: Path) -> Path:
        """Write the images with what is asked for from ``drawn`` (n, C, H, W), in bytes for PNG.

        The suffix of the file read is appended to ``path``. What was known stands as it was.
        """
        file = path.with_name(path.name + self.suffix)
        asked, drawn = (np.moveaxis(v, 1, -1) if self.last else v for v in (np.isnan(self.x), drawn))
        shape = self.own.shape
        whole = np.where(asked.reshape(shape), drawn.reshape(shape).astype(self.own.dtype), self.own)
        if self.suffix == ".png":
            picture = Image.fromarray(whole)
            atomic_write(file, lambda partial: picture.save(partial, format="PNG", optimize=True))
        else:
            save_arrays(file, {**self.arrays, self.name: whole})
        return file


def read_images(
    path: Path, shape: Sequence[int], pixel_range: tuple[float, float] | None, conditions: Collection[str]
) -> ImageQuestion:
    """Images (C, H, W) of a PNG file, whose transparent pixels are asked for, or of an .npy or .npz with NaN.

    ``conditions`` are names of arrays that an .npz may have. Raises UserError for a file that is none or of other
    images.
    """
    suffix = path.suffix.lower()
    if suffix == ".png":
        return _read_png(path, shape, pixel_range)
    if suffix not in (".npy", ".npz"):
        raise UserError(f"{path} is no .png, .npy or .npz file; give the images to complete as one of these")
    return _read_arrays(path, suffix, shape, pixel_range, conditions)


def _read_png(path: Path, shape: Sequence[int], pixel_range: tuple[float, float] | None) -> ImageQuestion:
    channels, height, width = shape
    if channels not in (1, 3) or pixel_range is None:
        raise UserError(f"{path} is a PNG file, and the flow's images {tuple(shape)} are none; give an .npy with NaN")
    try:
        with open_regular(path) as file, Image.open(file, formats=("PNG",)) as image:
            kind = str(image.tile[0][3])  # "RGB;16B", which Pillow cuts to 8 bits
            if image.size != (width, height) or image.mode not in _MODES or "16" in kind:
                raise UserError(
                    f"{path} is of {image.width} x {image.height} pixels (mode {kind}), and the flow's images"
                    f" of {width} x {height}, of 8 bits a channel; convert it"
                )
            rgba = np.asarray(image.convert("RGBA"))
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable PNG file ({error}); check it or write it again") from error
    asked = rgba[..., 3] == 0
    if ((rgba[..., 3] < 255) & ~asked).any():
        raise UserError(f"{path} has half-transparent pixels; make known pixels opaque and others transparent")
    own = np.where(asked[..., None], 0, rgba[..., :3])
    if channels == 1 and not (own == own[..., :1]).all():
        raise UserError(f"{path} is in colour, and the flow makes grey images; convert it")
    low, high = pixel_range
    x = np.moveaxis(low + own[..., :channels] * ((high - low) / 255), 2, 0)
    x = np.where(asked, np.nan, x)[None]
    return ImageQuestion(".png", x, own[..., 0] if channels == 1 else own, last=True)


def _read_arrays(
    path: Path,
    suffix: str,
    shape: Sequence[int],
    pixel_range: tuple[float, float] | None,
    conditions: Collection[str],
) -> ImageQuestion:
    arrays = load_arrays(path)
    name = samples_name(path, arrays)
    own, (channels, height, width) = arrays[name], shape
    first, last = own.shape[-3:] == tuple(shape), own.shape[-3:] == (height, width, channels)
    grey = channels == 1 and own.shape[-2:] == (height, width) and own.ndim < 4
    if own.dtype.kind != "f" or own.ndim > 4 or not (first or last or grey) or not own.size:
        raise UserError(
            f"{path} must hold real numbers ({', '.join(map(str, shape))}), or several of these, with NaN for the"
            f" pixels asked for; got {own.dtype} of shape {own.shape}"
        )
    x = own.astype(np.float64).reshape(-1, *((height, width, channels) if last and not first else shape))
    x = np.moveaxis(x, -1, 1) if last and not first else x
    low, high = pixel_range or (-np.inf, np.inf)
    if (x < low).any() or (x > high).any():
        raise UserError(f"{path} has pixels outside {low:g} to {high:g}, where those of the data lie; scale them so")
    told = array_conditions(path, arrays, conditions, len(x))
    return ImageQuestion(suffix, x, own, last and not first, name, arrays, told)
