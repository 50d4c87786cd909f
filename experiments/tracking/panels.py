"""The panels of the W&B workspace, and the keys that they show."""

import re
from collections.abc import Iterable, Sequence

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces.reports.v2.interface import MetricType, PanelTypes

from experiments.tracking.wandb_keys import (
    AUGMENTED,
    CALIBRATION,
    CLAIMS,
    CONFUSION,
    HARDEST,
    STRATEGIES,
    Chart,
)

WEIGHTS = ("raw", "ema", "swa")
AVERAGES = ("", "_ema", "_swa")
CLAIM_KEYS = list(dict.fromkeys(key for claim in CLAIMS.values() for key in claim))
#: columns of the table of runs, after their names
COLUMNS = ("test/selected/accuracy", "val/selected/accuracy", "parameters")


def build_workspace(entity: str, project: str) -> ws.Workspace:
    """The workspace of a project's runs; nothing is saved, and no account is needed."""
    curves = [
        _over_epochs(
            "Validation accuracy, and the paper's claim",
            [*(f"val/acc{suffix}" for suffix in AVERAGES), *CLAIM_KEYS],
        ),
        _over_epochs("Validation loss", [f"val/loss{suffix}" for suffix in AVERAGES]),
        _over_epochs(
            "Training accuracy (soft: against mixed targets)", ["train/acc", "train/acc_soft"]
        ),
        _over_epochs("Training loss", ["train/loss"]),
        # Only fp16 has a loss scale.
        wr.LinePlot(title="Gradients", x="epoch", metric_regex="^train/(gradient_norm|loss_scale)"),
        # Named by the optimizer, and by the parameter group if there are several.
        wr.LinePlot(title="Learning rate", x="trainer/global_step", metric_regex="^lr-.*"),
    ]
    sizes: list[PanelTypes] = [
        _accuracy_against("parameters", "parameters (budget: 5,000,000)"),
        _accuracy_against("operations_per_image", "operations per image"),
        _bars("Test accuracy of each set of weights", "accuracy"),
    ]
    # Results of `evaluate.py`, for the runs that it has evaluated.
    strategies: list[PanelTypes] = [
        _chart(STRATEGIES),
        wr.WeavePanelSummaryTable(table_name=STRATEGIES.table),
    ]
    calibration: list[PanelTypes] = [
        _chart(CALIBRATION),
        _bars("Expected calibration error on the test set", "ece"),
        _bars("Negative log-likelihood on the test set", "nll"),
    ]
    images = [
        wr.MediaBrowser(title="Training images, augmented", media_keys=[AUGMENTED], num_columns=1),
        wr.MediaBrowser(title="Hardest test images", media_keys=[HARDEST], num_columns=6),
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name="Sub5M",
        sections=[
            _section("Curves", curves),
            _section("Accuracy against size", sizes),
            _section("Strategies of prediction", strategies, columns=2),
            _section("Calibration", calibration),
            _section("Confusion matrix", [_chart(CONFUSION)], columns=1),
            _section("Images", images, columns=2),
        ],
        runset_settings=ws.RunsetSettings(pinned_columns=[f"summary:{key}" for key in COLUMNS]),
    )


def _over_epochs(title: str, keys: list[str]) -> wr.LinePlot:
    return wr.LinePlot(title=title, x="epoch", title_x="epoch, from 0", y=[*keys])


def _accuracy_against(key: str, title: str) -> wr.ScatterPlot:
    return wr.ScatterPlot(
        title=f"Test accuracy against {title}",
        x=wr.SummaryMetric(key),
        y=wr.SummaryMetric("test/selected/accuracy"),
    )


def _section(name: str, panels: Sequence[PanelTypes], columns: int = 3) -> ws.Section:
    layout = ws.SectionLayoutSettings(columns=columns, rows=-(-len(panels) // columns))
    return ws.Section(name=name, panels=[*panels], is_open=True, layout_settings=layout)


def _bars(title: str, measure: str) -> wr.BarPlot:
    return wr.BarPlot(title=title, metrics=[f"test/{weights}/{measure}" for weights in WEIGHTS])


def _chart(chart: Chart) -> wr.CustomChart:
    return wr.CustomChart(
        query={"summaryTable": {"tableKey": chart.table}},
        chart_name=chart.design,
        chart_fields=chart.fields,
        chart_strings={"title": chart.title},
    )


def keys_of(panel: PanelTypes) -> list[str]:
    """The keys that a panel shows, or its regular expression."""
    match panel:
        case wr.LinePlot():
            return _names(panel.x, *panel.y, panel.metric_regex)
        case wr.ScatterPlot():
            return _names(panel.x, panel.y)
        case wr.BarPlot():
            return _names(*panel.metrics)
        case wr.CustomChart():
            return [panel.query["summaryTable"]["tableKey"]]
        case wr.WeavePanelSummaryTable():
            return [panel.table_name]
        case wr.MediaBrowser():
            return panel.media_keys
    raise TypeError(f"the keys of a {type(panel).__name__} are not known")


def _names(*metrics: MetricType | None) -> list[str]:
    return [x if isinstance(x, str) else x.name for x in metrics if x is not None]


def title_of(panel: PanelTypes) -> str:
    """The title of a panel."""
    if isinstance(panel, wr.CustomChart):
        return panel.chart_strings["title"]
    return getattr(panel, "title", None) or "Table"


def is_logged(key: str, logged: Iterable[str]) -> bool:
    """Whether a run has logged a key of a panel."""
    return any(re.fullmatch(key, name) for name in logged)
