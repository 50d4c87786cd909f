"""Export a network: write its files, load them back, compare them, upload them."""

import logging
import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import onnxruntime  # type: ignore[import-untyped]
import torch
from huggingface_hub import HfApi, get_token
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from datamodules.normalisation import normalise
from experiments.console import UserError
from experiments.exports.model_card import model_card
from experiments.inference.evaluation import open_images
from experiments.inference.finished import FinishedRun, open_run
from experiments.records.integrity import write_checksums
from experiments.records.record import Record, write_record
from lightning_modules.pretrained import Dtype, PretrainedClassifier

Network = Callable[[Tensor], Tensor]

#: test images that are compared
IMAGES = 100
#: largest difference of a logit from the exported network's
TOLERANCE = 1e-4


def export(
    folder: Path,
    output: Path,
    weights: str | None,
    dtype: Dtype,
    only_safetensors: bool,
    verified: bool,
    root: str | None,
    repository: str | None,
) -> None:
    """Write a run's export, whole or not at all; UserError for a user's mistake."""
    if repository and get_token() is None:
        raise UserError("--push needs a login on Hugging Face's Hub: `hf auth login`, or $HF_TOKEN")
    try:
        run = open_run(folder)
        name = weights or run.record.selected or "raw"
        model = pretrained(run, name, dtype)
        images = test_images(run, root) if verified else None
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export", dir=output.parent) as beside:
            draft = Path(beside) / output.name
            record = of_weights(run.record, name)
            write(model, draft, model_card(record, name, model, not only_safetensors))
            write_record(record, draft / "result.json")
            if not only_safetensors:
                write_programs(model, draft)
            if images is not None:
                show(compare(draft, model, images, run.network(name)), len(images))
            write_checksums(draft)
            draft.rename(output)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error}") from None
    print(f"Written: {output}")
    if repository:
        push(output, repository)


def of_weights(record: Record, name: str) -> Record:
    """Return a run's record with the scores of one set of weights."""
    scores = {split: {name: found[name]} for split, found in record.scores.items()}
    same = name == (record.selected or "raw")
    digest = record.weights_digest if same else None
    return replace(record, scores=scores, selected=record.selected and name, weights_digest=digest)


def pretrained(run: FinishedRun, weights: str, dtype: Dtype) -> PretrainedClassifier:
    """A run's network with its "raw", "ema" or "swa" weights, as the Hub's class."""
    images = run.images
    arguments = run.record.config["model"]
    model = PretrainedClassifier(
        arch=run.architecture,
        hyper_parameters=arguments,
        mean=images.mean,
        std=images.std,
        classes=images.classes,
        dtype=dtype,
        image_size=images.image_size,
    )
    model.network.load_state_dict(run.network(weights).state_dict())
    return model


def test_images(run: FinishedRun, root: str | None) -> Tensor:
    """Some of the run's test images, else validation images, uint8 (N, 3, H, W)."""
    loaders = open_images(run, root, torch.device("cpu"))
    return list(loaders.values())[-1].images[:IMAGES]


def write(model: PretrainedClassifier, folder: Path, card: str) -> None:
    """Write model.safetensors, config.json and README.md."""
    folder.mkdir()
    # First, or the library would write a card of its own.
    (folder / "README.md").write_text(card, "utf-8")
    model.save_pretrained(folder)


def write_programs(model: PretrainedClassifier, folder: Path) -> None:
    """Write model.pt2 and model.onnx."""
    # Two images, because torch.export would treat a batch of one as a constant.
    example = (torch.rand(2, 3, model.image_size, model.image_size),)
    batch = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(model, example, dynamic_shapes=batch)
    torch.export.save(program, folder / "model.pt2")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.onnx.export(
        in_32_bits(model),
        example,
        folder / "model.onnx",
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=batch,
        external_data=False,
        dynamo=True,
        verbose=False,
    )


def in_32_bits(model: PretrainedClassifier) -> PretrainedClassifier:
    """Copy a model to 32 bits, onnxruntime's only precision on a CPU."""
    return deepcopy(model).float()


@dataclass(frozen=True)
class Comparison:
    """Differences of the logits of one file, loaded back."""

    file: str
    difference: float  # the largest from the exported network
    from_run: float  # the largest from the run's network in 32 bits
    agreement: float  # share of images with the run's class


def compare(
    folder: Path, model: PretrainedClassifier, images: Tensor, original: nn.Module
) -> list[Comparison]:
    """Load an export's files back and compare logits of images uint8 (N, 3, H, W).

    UserError if a logit differs by more than `TOLERANCE`.
    """
    loaded: dict[str, tuple[Network, Network]] = {
        "model.safetensors": (PretrainedClassifier.from_pretrained(folder, strict=True), model)
    }
    if (folder / "model.pt2").exists():
        loaded["model.pt2"] = torch.export.load(folder / "model.pt2").module(), model
        session = onnxruntime.InferenceSession(
            folder / "model.onnx", providers=["CPUExecutionProvider"]
        )
        loaded["model.onnx"] = (
            lambda pixels: torch.from_numpy(session.run(None, {"images": pixels.numpy()})[0]),
            in_32_bits(model),
        )
    comparisons = []
    with torch.inference_mode():
        normalised = normalise(images, model.mean.flatten(), model.std.flatten())
        from_run = answers(original, normalised)
        for file, (network, exported) in loaded.items():
            logits = answers(network, images / 255)
            comparison = Comparison(
                file,
                difference=(logits - answers(exported, images / 255)).abs().max().item(),
                from_run=(logits - from_run).abs().max().item(),
                agreement=(logits.argmax(1) == from_run.argmax(1)).float().mean().item(),
            )
            if not comparison.difference <= TOLERANCE:  # true for NaN too
                message = f"{file} loaded back differs from the exported network: {comparison}"
                raise UserError(message, exit_code=1)
            comparisons.append(comparison)
    return comparisons


def answers(network: Network, images: Tensor) -> Tensor:
    """Compute logits (N, C) in batches of two sizes."""
    return torch.cat([network(batch) for batch in images.split(IMAGES // 2 - 1)])


def show(comparisons: list[Comparison], images: int) -> None:
    """Print the comparisons."""
    table = Table(title=f"Loaded back, on {images} test images")
    for column in ("file", "difference", "from the run", "same class"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for x in comparisons:
        table.add_row(x.file, f"{x.difference:.1e}", f"{x.from_run:.1e}", f"{x.agreement:.2%}")
    Console().print(table)


def push(folder: Path, repository: str) -> None:
    """Upload an export to the Hub; a missing repository is created."""
    try:
        api = HfApi()
        url = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:  # of the connection, the Hub or the library
        raise UserError(f"{folder} is not on the Hub: {error}") from None
    print(f"Pushed: {url}")
