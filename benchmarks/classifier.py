"""A small classifier of Fashion-MNIST pictures: which class does a drawn picture show?

It judges generated pictures only by comparison with real ones, so it need not be the best there is. The weights are in
``hybrid/pretrained/fashion-classifier``; ``python -m hybrid.benchmarks.classifier --data DIR --out FILE`` trains them
anew in under three minutes of one CPU core; theirs reach 0.914 on the test pictures.

This file knows pictures and classes. It does not know any generator.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.checkpoint import fit, read_weights, save_weights, sha256
from hybrid.data.codes import to_images
from hybrid.data.fashion import CLASSES
from hybrid.data.folder import DataError, DataFolder, default_folder
from hybrid.optimization import find_precision
from hybrid.threads import use_threads

RECIPE: dict[str, Any] = {
    "data": "Fashion-MNIST train split, moved by up to 2 pixels, mirrored with probability 0.5",
    "epochs": 6,
    "batch": 128,
    "optimizer": "AdamW, weight decay 0.05",
    "lr": 4e-3,
    "schedule": "OneCycle, 20 % warm-up",
    "label_smoothing": 0.05,
    "precision": "bf16 autocast where the CPU computes in it, stored as float16",
    "seed": 0,
}


class FashionClassifier(nn.Module):
    """Five 3×3 convolutions on a 16×16, 8×8 and 4×4 grid, then a mean: 0.14M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.PixelUnshuffle(2),
            *_layer(4, 32),
            *_layer(32, 32),
            nn.MaxPool2d(2),
            *_layer(32, 64),
            *_layer(64, 64),
            nn.MaxPool2d(2),
            *_layer(64, 128),
        )
        self.head = nn.Linear(128, len(CLASSES))

    def forward(self, images_bchw: Tensor) -> Tensor:
        """RGB images (b, 3, 32, 32) in [-1, 1] to class logits (b, 10)."""
        return self.head(self.body(images_bchw.mean(1, keepdim=True)).mean((2, 3)))


def _layer(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def shipped() -> Path:
    """The trained weights that come with the package."""
    return Path(str(files("hybrid.pretrained"))) / "fashion-classifier" / "model.safetensors"


def load_classifier(weights: str | Path | None = None) -> FashionClassifier:
    """The classifier in eval mode; ``weights`` None takes the shipped ones.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another model.
    """
    path = Path(weights) if weights is not None else shipped()
    state, _ = read_weights(path)
    model = FashionClassifier()
    fit(model, state, source=path.name)
    return model.eval()


@torch.inference_mode()
def correct(
    model: FashionClassifier, images: NDArray[np.uint8], labels: NDArray[np.int64], batch: int = 256
) -> NDArray[np.bool_]:
    """Whether each picture, uint8 (n, 32, 32, 1 or 3), is taken for its label."""
    found = [model(to_images(images[start : start + batch])).argmax(1) for start in range(0, len(images), batch)]
    return torch.cat(found).numpy() == labels


def train_classifier(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    epochs: int = RECIPE["epochs"],
    progress: Callable[[int, int, float], None] | None = None,
) -> FashionClassifier:
    """Train by ``RECIPE``.

    Args:
        images: uint8 (n, 32, 32, 1).
        labels: class of each.
        epochs: passes over the pictures.
        progress: called with (step, steps, loss) every 50 steps.
    """
    generator = torch.Generator().manual_seed(RECIPE["seed"])
    with torch.random.fork_rng():
        torch.manual_seed(RECIPE["seed"])
        model = FashionClassifier()
    batch = min(RECIPE["batch"], len(images))
    steps = epochs * (len(images) // batch)
    decayed = [value for value in model.parameters() if value.dim() > 1]
    plain = [value for value in model.parameters() if value.dim() <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RECIPE["lr"], total_steps=steps, pct_start=0.2)
    half = find_precision("auto", torch.device("cpu")) == "bf16"
    step = 0
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator).numpy()
        for start in range(0, len(images) - batch + 1, batch):
            chosen = np.sort(order[start : start + batch])
            pixels = augment(to_images(images[chosen])[:, :1], generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                logits = model(pixels)
            loss = F.cross_entropy(
                logits.float(), torch.from_numpy(labels[chosen]), label_smoothing=RECIPE["label_smoothing"]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if progress is not None and step % 50 == 0:
                progress(step, steps, loss.item())
    return model.eval()


def augment(images_bchw: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture moved by up to 2 pixels on its own (black comes in) and mirrored half of the time."""
    count, _, height, width = images_bchw.shape
    padded = F.pad(images_bchw, (2, 2, 2, 2), value=-1.0)
    down, right = torch.randint(0, 5, (2, count, 1), generator=generator)
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    return padded[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def main(argv: list[str] | None = None) -> int:
    """Train, measure on the test split, write float16 weights with the recipe and the accuracy as metadata."""
    parser = argparse.ArgumentParser(prog="python -m hybrid.benchmarks.classifier", description=main.__doc__)
    parser.add_argument("--data", type=Path, default=None, help="data folder (default: where hybrid-data writes it)")
    parser.add_argument("--out", type=Path, default=None, help="safetensors file (default: the shipped one)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    arguments = parser.parse_args(argv)
    try:
        use_threads(arguments.threads)
        folder = DataFolder.open(arguments.data or default_folder("fashion"))
        places = {split: folder.indices(split) for split in ("train", "test")}
    except (DataError, ValueError) as error:
        print(f"classifier: {error}", file=sys.stderr)
        return 2
    labels = np.asarray([item["label"] for item in folder.items], dtype=np.int64)
    pictures = np.ascontiguousarray(folder.images[:, 0])
    trained = train_classifier(
        pictures[places["train"]],
        labels[places["train"]],
        progress=lambda step, steps, loss: print(f"step {step}/{steps} loss {loss:.3f}", flush=True),
    )
    out = arguments.out or shipped()
    state = {name: value.half() if value.is_floating_point() else value for name, value in trained.state_dict().items()}
    save_weights(out, state, metadata={"kind": "fashion-classifier", "recipe": RECIPE})
    hits = correct(load_classifier(out), pictures[places["test"]], labels[places["test"]])
    save_weights(
        out,
        state,
        metadata={
            "kind": "fashion-classifier",
            "recipe": RECIPE,
            "classes": CLASSES,
            "test_accuracy": float(hits.mean()),
        },
    )
    print(f"{out}: test accuracy {hits.mean():.4f}, sha256 {sha256(out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
