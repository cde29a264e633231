"""The fashion classifier: it learns, its pictures move, its weights are shipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hybrid.benchmarks import classifier


def test_the_classifier_learns_and_is_shipped(tmp_path: Path) -> None:
    labels = np.arange(96) % 3
    images = np.random.default_rng(0).integers(0, 60, (96, 32, 32, 1), dtype=np.uint8)
    for row, label in enumerate(labels):
        images[row, 4 + 8 * label : 12 + 8 * label, 4:28] = 230
    model = classifier.train_classifier(images, labels, epochs=12)
    assert classifier.correct(model, images, labels, batch=40).mean() > 0.9
    assert not classifier.correct(model, images, (labels + 1) % 3).mean() > 0.1
    moved = classifier.augment(torch.full((4, 1, 32, 32), 1.0), torch.Generator().manual_seed(0))
    assert moved.shape == (4, 1, 32, 32) and set(moved.unique().tolist()) <= {-1.0, 1.0}
    assert classifier.shipped().stat().st_size < 500_000
    classifier.load_classifier()
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors: no such file"):
        classifier.load_classifier(tmp_path / "nothing.safetensors")


def test_no_threads_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert classifier.main(["--threads", "0", "--data", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "classifier: --threads 0: must be at least 1\n"
