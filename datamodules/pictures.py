"""Read pictures of any size and depth as small squares."""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base
from torch import Tensor

SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".apng", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm",
)  # fmt: skip
#: Pillow's names of the formats; others, such as EPS, start programs
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
#: maximum pixels of a WebP, whose decoder needs 15 bytes per pixel; others need up to 4
WEBP_PIXELS = 50_000_000
#: pictures with more pixels are reduced band by band
LARGE = 2**20
#: shortest side to which a large picture is reduced before the last resampling
COARSE = 256


class PictureError(ValueError):
    """A picture cannot be read."""


def is_hidden(path: Path, folder: Path) -> bool:
    """Return whether a file in a folder, or a folder between them, is hidden."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def read_picture(path: Path, side: int = 32) -> tuple[Tensor, bool]:
    """Read a picture as uint8 (3, side, side), and whether it had another size.

    Transparent pixels become white, and the EXIF rotation is applied. Pillow's Lanczos filter
    resamples the largest square in the middle. An animation gives its first frame.

    Greys of 16 and 32 bits are divided by 257. For float greys, white is 1, 255 or 65535: the
    smallest of them that no pixel exceeds.

    Raises PictureError for an unreadable picture. A picture of more than 178,956,970 pixels (WebP:
    50,000,000) is rejected before it is decoded.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of damaged metadata and of large pictures.
            warnings.simplefilter("ignore")
            with Image.open(path) as opened:
                if opened.format not in FORMATS:
                    raise PictureError(f"is {opened.format}, not {', '.join(FORMATS)}")
                if opened.format == "WEBP" and opened.width * opened.height > WEBP_PIXELS:
                    raise PictureError(f"has more than {WEBP_PIXELS:,} pixels")
                resized = opened.size != (side, side)
                image = _decode(opened)
    except PictureError as error:
        raise PictureError(f"{path} {error}") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise PictureError(f"{path} has more than {limit:,} pixels") from None
    except UnidentifiedImageError:
        raise PictureError(f"{path} is not a picture ({', '.join(FORMATS)})") from None
    except Exception as error:  # its class depends on the format and on the bytes
        system = isinstance(error, OSError) and error.strerror
        reason = system or " ".join(str(error).split()) or type(error).__name__
        raise PictureError(f"{path} is not a whole picture: {reason}") from None
    if resized:
        image = ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), resized


def _decode(opened: Image.Image) -> Image.Image:
    """Decode a picture to RGB, upright; a large picture becomes a smaller square."""
    # A JPEG is decoded at a half, a quarter or an eighth of its size.
    opened.draft(None, (COARSE, COARSE))
    opened.load()
    white = _white(opened)
    if opened.width * opened.height <= LARGE:
        image = _to_rgb(opened, white)
    else:
        # In bands, because a conversion of the whole picture would take gigabytes.
        side = min(opened.size)
        factor = max(1, side // COARSE)
        left, top = (opened.width - side) // 2, (opened.height - side) // 2
        image = Image.new("RGB", (-(-side // factor),) * 2)
        for y in range(0, side, factor):
            bottom = top + min(y + factor, side)
            band = opened.crop((left, top + y, left + side, bottom))
            image.paste(_to_rgb(band, white).reduce(factor), (0, y // factor))
    image.getexif()[Base.Orientation] = opened.getexif().get(Base.Orientation, 1)
    return ImageOps.exif_transpose(image)


def _white(image: Image.Image) -> float:
    """Return the grey that becomes white; it is 255 for pictures of 8 bits."""
    if image.mode[0] not in "IF":
        return 255
    low, high = image.getextrema()
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    for white in (1, 255, 65535) if image.mode == "F" else (65535,):
        if 0 <= low <= high <= white:
            return white
    raise PictureError(f"has greys from {low:g} to {high:g}, outside 0 to 65535")


def _to_rgb(image: Image.Image, white: float) -> Image.Image:
    """Convert a picture of any mode; transparent pixels become white."""
    transparent = image.info.get("transparency")
    if image.mode[0] in "IF":
        greys = np.asarray(image)
        if image.mode == "F" and not np.isfinite(greys).all():
            raise PictureError("has greys that are not finite")
        pixels = (greys * (255 / white) + 0.5).astype(np.uint8)
        if isinstance(transparent, int):
            pixels[greys == transparent] = 255
        image = Image.fromarray(pixels)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
