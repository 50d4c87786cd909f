"""What a ModelCheckpoint knows of its files, in a run folder that has moved."""

from pathlib import Path
from typing import Any


def in_folder(state: dict[str, Any], folder: str) -> dict[str, Any]:
    """A ModelCheckpoint's state as if it had been written in `folder`, if its best file lies there.

    Paths in that state are absolute. Where they are not the callback's own, Lightning forgets the
    best score, so that a worse epoch replaces the best checkpoint, and takes a file of the folder
    that was copied for one of its own to delete.
    """
    if not (Path(folder) / Path(state["best_model_path"]).name).is_file():
        return state

    def here(path: str) -> str:
        return path and str(Path(folder) / Path(path).name)

    paths = ("best_model_path", "kth_best_model_path", "last_model_path")
    best = {here(path): score for path, score in state["best_k_models"].items()}
    moved = {name: here(state[name]) for name in paths}
    return state | moved | {"dirpath": folder, "best_k_models": best}
