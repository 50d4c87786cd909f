"""Pictures as parts of a page: matplotlib's as SVG in the page's own colours, pixels as PNG."""

import base64
import io
import re
from dataclasses import dataclass
from typing import Any

import matplotlib
import torch
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

# Colours that stand for a variable of the page's style sheet, which decides between light and dark.
# Their values only have to differ from each other and from what else is drawn.
NAMES = ("ink", "muted", "grid", "raw", "ema", "swa", "train", "budget")
SERIES = 8
COLOURS = {name: f"#0a0b{i:02x}" for i, name in enumerate(NAMES)} | {
    f"series-{i}": f"#0a0c{i:02x}" for i in range(SERIES)
}
#: matplotlib's settings under which the pictures of a page are drawn
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: found, selected and set in the page's font
    "svg.hashsalt": "report",  # the same picture is the same text
    "text.parse_math": False,  # a name with $ in it is a name
    "font.sans-serif": ["DejaVu Sans"],  # which decides how much room is left for text
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelpad": 7,
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["grid"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


def svg(figure: Figure, name: str, description: str) -> Markup:
    """A figure as an `<svg>` with a size and a description.

    `name` is unique in the page: matplotlib's identifiers, of which a page must hold each once,
    begin with it.
    """
    file = io.StringIO()
    with matplotlib.rc_context(STYLE):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = _shorten(text)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    for token, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{token})")
    width, height = (round(inches * 96) for inches in figure.get_size_inches())
    size = f'width="{width}" height="{height}" role="img" aria-label="{escape(description)}"'
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', lambda _: size, text, count=1)
    # matplotlib escapes what it writes.
    return Markup(text)


def _shorten(text: str) -> str:
    """The same drawing in half of the characters.

    Without its style sheet, which would be the whole page's, without the names of groups, and to
    hundredths of a point.
    """
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(
        r' (d|x|y|transform)="[^"]*"',
        lambda attribute: re.sub(r"(\.\d\d)\d+", r"\1", attribute[0]),
        text,
    )
    text = re.sub(r"<g\s*/>", "", text)
    return re.sub(r">\s+<", "><", text.replace("\n", " "))


def png(pixels: Tensor) -> str:
    """Pixels uint8 (3, H, W) as a `data:` address of a PNG."""
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def colour(values: Tensor, name: str) -> Tensor:
    """Values (H, W) in [0, 1] in the colours of one of matplotlib's maps, uint8 (3, H, W)."""
    rgba = matplotlib.colormaps[name](values.numpy(), bytes=True)
    return torch.from_numpy(rgba[..., :3]).permute(2, 0, 1)


@dataclass(frozen=True)
class Picture:
    """Pixels, with the size that they are shown at and what is said of them."""

    src: str  # a `data:` address
    width: int
    height: int
    alt: str
    caption: str = ""


def picture(pixels: Tensor, alt: str, caption: str = "", scale: int = 1) -> Picture:
    """Pixels uint8 (3, H, W), shown so many times larger than they are."""
    height, width = pixels.shape[1:]
    return Picture(png(pixels), scale * width, scale * height, alt, caption)
