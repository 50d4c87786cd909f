"""Write the model card of an export from its run's record."""

from huggingface_hub import EvalResult, ModelCardData

from experiments.records.images import SOURCES
from experiments.records.record import Record
from lightning_modules.pretrained import PretrainedClassifier

CARD = """---
{metadata}
---

# {record.name}

{record.arch} with {record.parameters:,} parameters. The files contain the {weights} weights \
({score.checkpoint}, after
{score.epoch} epochs) in {dtype}. Its classes: {classes}.
{warning}
## Use

Pixels go in as float (N, 3, {size}, {size}) in [0, 1], not normalised; logits (N, {count}) come
out. Every file takes any number of images.

- `model.safetensors` and `config.json`: `PretrainedClassifier.from_pretrained(FOLDER, strict=True)`
  of this project's `lightning_modules.pretrained`
{programs}
## Figures

Scores of the run on {source}, with one view of each image.
{splits}

| split | weights | accuracy | NLL | ECE | images |
|---|---|---|---|---|---|
{scores}

## Training

{record.epochs} epochs of {record.train_images:,} images, {record.steps:,} steps, \
{record.training_seconds:.0f} s on {record.device}, precision
{record.precision}, seed {record.seed}; one image takes {record.operations_per_image:,} \
operations. Commit {commit}, {record.finished}.

```
{command}
```
"""
PROGRAMS = """\
- `model.pt2`: `torch.export.load("model.pt2").module()`, with PyTorch alone
- `model.onnx`: `onnxruntime.InferenceSession("model.onnx").run(None, {"images": pixels})`, always
  in 32 bits
"""
SPLITS = {
    "val": "`val` was held out of the training images and chose the checkpoint.",
    "test": "`test` was read once, after training.",
}
SYNTHETIC = """
**Trained on a synthetic stand-in, not on {source}**: its figures say nothing about photographs.
"""
QUICK = """
**From a `--quick` run**, a check of the program that says nothing about the network.
"""


def model_card(
    record: Record, weights: str, model: PretrainedClassifier, programs: bool = True
) -> str:
    """A model card for the Hub: its metadata, then Markdown.

    Without `programs` there is neither model.pt2 nor model.onnx.
    """
    tested = "test" in record.scores
    score = record.scores["test" if tested else "val"][weights]
    synthetic = record.source == "synthetic"
    data_set = record.config["data"].get("dataset", "cifar10")
    # Synthetic images have no name on the Hub, and their scores must not look like real ones; the
    # pictures of a folder have no name there either.
    public = not synthetic and data_set != "folder"
    result = EvalResult(
        task_type="image-classification",
        dataset_type=data_set,
        dataset_name=SOURCES[data_set],
        dataset_split="test",
        metric_type="accuracy",
        metric_value=round(score.accuracy, 4),
    )
    metadata = ModelCardData(
        library_name="sub5m",
        license="mit",
        pipeline_tag="image-classification",
        tags=["sub5m", record.arch],
        datasets=[data_set] if public else None,
        eval_results=[result] if tested and public else None,
        model_name=record.name,
    )
    scores = [
        f"| {split} | {name} | {x.accuracy:.2%} | {x.nll:.4f} | {x.ece:.4f} | {x.images:,} |"
        for split, by_weights in record.scores.items()
        for name, x in by_weights.items()
    ]
    return CARD.format(
        metadata=metadata.to_yaml(),
        record=record,
        score=score,
        classes=", ".join(model.classes),
        weights=weights,
        dtype=str(model.dtype).removeprefix("torch."),
        warning=synthetic * SYNTHETIC.format(source=SOURCES[data_set]) + record.quick * QUICK,
        source="the synthetic stand-in" if synthetic else SOURCES[data_set],
        programs=PROGRAMS * programs,
        size=model.image_size,
        count=len(model.classes),
        splits="\n".join(SPLITS[split] for split in record.scores),
        scores="\n".join(scores),
        commit=record.commit + (" and uncommitted changes" if record.dirty else ""),
        command="\n".join(record.command),
    )
