from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from advect.core.errors import UserError
from advect.data.images.decoding import Decoder


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


HALF_BLACK = encoded(Image.new("RGBA", (9, 9), (0, 0, 0, 128)))


@pytest.mark.parametrize(
    ("background", "shown"),
    [("white", (127, 127, 127)), ("red", (127, 0, 0)), ("#0080ff", (0, 64, 127)), ((10, 20, 255), (5, 10, 127))],
)
def test_transparent_pixels_are_laid_on_the_background(background, shown):
    pixels = Decoder(image_size=5, background=background)(HALF_BLACK)
    assert abs(pixels[:, 2, 2].astype(int) - shown).max() <= 1


def test_four_channels_keep_alpha_and_do_not_bleed_what_it_hides():
    assert Decoder(image_size=5, channels=4)(HALF_BLACK)[:, 2, 2].tolist() == [0, 0, 0, 128]
    opaque = Decoder(image_size=5, channels=4)(encoded(Image.new("RGB", (9, 9), (1, 2, 3))))
    assert opaque[:, 2, 2].tolist() == [1, 2, 3, 255]
    picture = np.zeros((16, 16, 4), np.uint8)
    picture[:, :8] = (0, 255, 0, 0)  # green that no one sees
    picture[:, 8:] = (255, 0, 0, 255)
    pixels = Decoder(image_size=4, channels=4)(encoded(Image.fromarray(picture)))
    seen = pixels[:, pixels[3] > 20]
    assert seen.size and (seen[1] <= 1).all() and (seen[0] >= 250).all()


def test_sixteen_bits_become_eight_at_both_ends_and_between():
    deep = np.array([[0, 257, 32896, 65535]], np.uint16).repeat(4, 0)
    for channels in (1, 3, 4):
        row = Decoder(image_size=4, channels=channels)(encoded(Image.fromarray(deep)))[0, 0]
        assert row.tolist() == [0, 1, 128, 255]


def test_a_palette_with_a_transparent_entry(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    pixels = Decoder(image_size=4, background="red")(encoded(image, transparency=0))
    assert pixels[:, 0, 0].tolist() == [255, 0, 0] and pixels[:, 3, 3].tolist() == [0, 0, 255]


def columns(width: int, height: int) -> bytes:
    """An image whose pixels are the numbers of their columns."""
    return encoded(Image.fromarray(np.broadcast_to(np.arange(width, dtype=np.uint8), (height, width)).copy()))


def test_height_and_width_differ_and_the_longer_side_is_cropped():
    pixels = Decoder(image_size=(8, 16), channels=1)(columns(40, 8))
    assert pixels.shape == (1, 8, 16)
    assert pixels[0, 0].tolist() == list(range(12, 28))
    assert Decoder(image_size=(16, 8), channels=1)(columns(40, 16))[0, 0].tolist() == list(range(16, 24))


def test_the_place_of_a_crop_reaches_both_edges_and_no_further():
    decode = Decoder(image_size=8, channels=1)
    firsts = {int(decode(columns(11, 8), (0.0, place))[0, 0, 0]) for place in np.linspace(0, 1 - 2**-24, 50)}
    assert firsts == {0, 1, 2, 3}


def test_a_window_is_cut_from_the_centre_before_scaling():
    whole = encoded(Image.fromarray(np.broadcast_to(np.arange(178, dtype=np.uint8), (218, 178)).copy()), "BMP")
    assert Decoder(image_size=140, channels=1, window=140)(whole)[0, 0].tolist() == list(range(19, 159))
    small = Decoder(image_size=35, channels=1, window=140)(whole)[0, 5, 2:-2].astype(float)
    assert abs(small - (19 + (np.arange(2, 33) + 0.5) * 4 - 0.5)).max() <= 1


def test_a_window_of_a_jpeg_that_is_halved_while_decoding_is_the_same_part():
    ramp = Image.fromarray(np.broadcast_to(np.linspace(0, 255, 1600).astype(np.uint8), (1600, 1600)).copy())
    row = Decoder(image_size=16, channels=1, window=800)(encoded(ramp, "JPEG", quality=95))[0, 8].astype(float)
    assert abs(row - (400 + (np.arange(16) + 0.5) * 50) * 255 / 1600).max() < 3


def test_an_image_turned_by_exif_is_cropped_after_it_is_turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None] * 20, (8, 24)).copy())
    pixels = Decoder(image_size=8, channels=1)(encoded(image, exif=exif))
    assert pixels[0, 4].tolist() == [140, 120, 100, 80, 60, 40, 20, 0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"image_size": (1, 2, 3)}, "image_size must be one number or (height, width), got (1, 2, 3)"),
        ({"window": 0}, "window must be at least 1 and at most 16,384, got 0"),
        ({"background": (1, 2)}, "background must be three numbers"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(UserError) as error:
        Decoder(**arguments)
    assert words in str(error.value)
