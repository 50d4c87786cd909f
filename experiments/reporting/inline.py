"""Matplotlib's figures as SVG inside a page, in the page's colours, with values on hover."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Each colour is replaced by a variable of the page's style sheet, which has light and dark values.
# The values here only need to differ from each other and from all other colours of a figure.
NAMES = ("ink", "muted", "grid", "raw", "ema", "swa", "train", "budget")
SERIES = 8
COLOURS = {name: f"#0a0b{i:02x}" for i, name in enumerate(NAMES)} | {
    f"series-{i}": f"#0a0c{i:02x}" for i in range(SERIES)
}
#: matplotlib's settings for the figures of a page
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: readers can search and select it
    "svg.hashsalt": "report",  # equal figures give equal text
    "text.parse_math": False,  # a $ in a name is no formula
    "font.sans-serif": ["DejaVu Sans"],  # decides the space for text
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


@dataclass(frozen=True)
class Mark:
    """A point of a figure, and the text that the page shows at it."""

    axis: Axes
    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Drawing:
    """A figure and its marks, from left to right."""

    figure: Figure
    marks: Sequence[Mark]


@dataclass(frozen=True)
class Chart:
    """A figure as it is in the page."""

    svg: Markup
    caption: str
    marks: list[tuple[float, float, str]]  # shares of width and height from the upper left; text
    note: str  # shown below the text of every mark


def chart(
    drawing: Drawing, name: str, caption: str, description: str = "", note: str = ""
) -> Chart:
    """The chart of a drawing; `name` is unique in the page."""
    figure = drawing.figure
    text = svg(figure, name, description or caption)
    to_shares = figure.transFigure.inverted()  # the axes have their final places after svg()
    marks = []
    for mark in drawing.marks:
        x, y = to_shares.transform(mark.axis.transData.transform((mark.x, mark.y)))
        marks.append((round(float(x), 4), round(1 - float(y), 4), mark.text))
    return Chart(text, caption, marks, note)


def svg(figure: Figure, name: str, description: str) -> Markup:
    """A figure as an `<svg>` with a size and a description.

    Every identifier in it begins with `name`, so that identifiers are unique in the page.
    """
    file = io.StringIO()
    with matplotlib.rc_context(STYLE):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = _shorten(text[text.index("<svg") :])
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    for token, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{token})")
    width, height = (round(inches * 96) for inches in figure.get_size_inches())
    size = f'width="{width}" height="{height}" role="img" aria-label="{escape(description)}"'
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', lambda _: size, text, count=1)
    return Markup(text)  # matplotlib has escaped the texts


def _shorten(text: str) -> str:
    """The drawing in half the characters: coordinates in hundredths of a point.

    It drops the style sheet, which would apply to the whole page, and the names of groups.
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
