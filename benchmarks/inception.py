"""Fréchet Inception Distance and Inception Score, where their network's weights are at hand.

The network is TensorFlow's InceptionV3 of 2015-12-05 as ``torch-fidelity`` ports it (extra ``fid``), which resizes and
scales pictures as the original graph did. Its weights are one file that no package carries::

    weights-inception-2015-12-05-6726825d.pth    release v0.2.0 of github.com/toshas/torch-fidelity

Pictures come in as 8-bit pixels: a generator's output is clamped and rounded, never stretched between its minimum and
its maximum. Published figures are of 50,000 pictures; with fewer the distance is too high.

This project's own machines had no such weights, so no Inception figure of its pairs is published, and the network
itself was run here only on random weights; the two formulas are tested by closed forms and against torch-fidelity's.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hybrid.checkpoint import sha256
from hybrid.perceptual import MISSING

from .statistics import Array, gaussian_distance

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
DIGEST = "6726825d"
"""How the weight file's sha256 begins; the file's name says the same."""

PUBLISHED = 50_000
"""Pictures of a published FID and IS (Heusel et al., arXiv 1706.08500)."""

SPLITS = 10
SHUFFLE = 2020
"""Seed of torch-fidelity's shuffle before the splits, so that both give the same score."""


@dataclass(frozen=True)
class Moments:
    """Mean (d) and covariance (d, d) of features, and of how many pictures; None where a file does not say."""

    mean_d: Array
    cov_dd: Array
    pictures: int | None


class InceptionNetwork:
    """Pool features of InceptionV3. Implements ``features.Features``.

    Args:
        weights: the file; None is where ``torch.hub`` keeps it.
        device: where to compute.
        batch: pictures at a time.

    Raises:
        ValueError: the extra ``fid`` is not installed; no file, or another file.
    """

    name = "InceptionV3 of 2015-12-05 (torch-fidelity), 2048-d"

    def __init__(
        self, weights: str | Path | None = None, *, device: str | torch.device = "cpu", batch: int = 32
    ) -> None:
        path = find_weights(weights)
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import (  # type: ignore[import-not-found]
                FeatureExtractorInceptionV3,
            )
        except ImportError:
            raise ValueError(MISSING.format(purpose="FID", extra="fid")) from None
        self.sha256 = sha256(path)
        # Checked first: torch-fidelity unpickles whatever the file holds.
        if not self.sha256.startswith(DIGEST):
            raise ValueError(f"{path}: not {WEIGHTS}: sha256 {self.sha256[:8]}…, expected {DIGEST}…")
        made = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
        self._network, self.batch = made.to(device), batch
        self._output_kd: Array = made.fc.weight.detach().cpu().double().numpy()

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pictures, uint8 (b, h, w, 1 or 3), to features (b, 2048)."""
        parts = []
        for start in range(0, len(images), self.batch):
            pixels = torch.from_numpy(np.array(images[start : start + self.batch])).permute(0, 3, 1, 2)
            device = self._network.fc.weight.device
            parts.append(self._network(pixels.expand(-1, 3, -1, -1).contiguous().to(device))[0].float().cpu())
        return torch.cat(parts).numpy() if parts else np.empty((0, self._output_kd.shape[1]), np.float32)

    def logits(self, features_nd: Array) -> Array:
        """Class logits (n, 1008) without the bias, as the original Inception Score takes them."""
        return np.asarray(features_nd, dtype=np.float64) @ self._output_kd.T


def find_weights(weights: str | Path | None = None) -> Path:
    """The network's weight file.

    Raises:
        ValueError: no such file; the message says where to put it.
    """
    kept = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    path = kept if weights is None else Path(weights).expanduser()
    if not path.is_file():
        where = f"put {WEIGHTS} (torch-fidelity's release v0.2.0) there, or name its file"
        raise ValueError(f"FID: no Inception weights at {path}; {where}")
    return path


def moments(features_nd: Array) -> Moments:
    """Mean and unbiased covariance.

    Raises:
        ValueError: fewer than two pictures.
    """
    if len(features_nd) < 2:
        raise ValueError(f"FID: {len(features_nd)} picture has no covariance; give at least 2, better {PUBLISHED:,}")
    x_nd = np.asarray(features_nd, dtype=np.float64)
    return Moments(x_nd.mean(0), np.atleast_2d(np.cov(x_nd, rowvar=False)), len(x_nd))


def frechet_inception_distance(drawn: Moments, real: Moments) -> float:
    """FID of two sets (Heusel et al., arXiv 1706.08500).

    Raises:
        ValueError: moments of features of different widths.
    """
    if drawn.mean_d.shape != real.mean_d.shape:
        raise ValueError(
            f"FID: features of {len(drawn.mean_d)} and {len(real.mean_d)} numbers; both sets need the same"
        )
    return gaussian_distance(drawn.mean_d, drawn.cov_dd, real.mean_d, real.cov_dd)


def inception_score(logits_nk: Array, *, splits: int = SPLITS) -> tuple[float, float]:
    """Mean and standard deviation over ``splits`` of exp(mean of KL(p(y|x) ‖ p(y))) (Salimans et al., 1606.03498).

    Raises:
        ValueError: fewer pictures than splits.
    """
    count = len(logits_nk)
    if count < splits:
        raise ValueError(f"Inception Score: {splits} splits need at least as many pictures, got {count}")
    shuffled = np.asarray(logits_nk, dtype=np.float64)[np.random.RandomState(SHUFFLE).permutation(count)]
    scores = []
    for split in range(splits):
        log_p = shuffled[split * count // splits : (split + 1) * count // splits]
        log_p = log_p - log_p.max(1, keepdims=True)
        log_p = log_p - np.log(np.exp(log_p).sum(1, keepdims=True))
        p = np.exp(log_p)
        scores.append(float(np.exp((p * (log_p - np.log(p.mean(0)))).sum(1).mean())))
    return float(np.mean(scores)), float(np.std(scores))


def read_moments(path: Path) -> Moments | None:
    """The moments that a ``.npz`` carries as ``mu`` and ``sigma`` (ADM's reference batches, pytorch-fid), or None.

    Raises:
        ValueError: no ``.npz``, or arrays that do not fit together.
    """
    try:
        # Opened as a zip file first, since numpy takes other files too.
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as held:
            if not {"mu", "sigma"} <= set(held.files):
                return None
            mean, cov = held["mu"], held["sigma"]
    except (zipfile.BadZipFile, EOFError):
        raise ValueError(f"{path}: truncated or not .npz") from None
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise ValueError(f"{path}: mu {mean.shape} and sigma {cov.shape} do not fit together")
    return Moments(mean.astype(np.float64), cov.astype(np.float64), None)


def scores(features_nd: Array, real: Moments | None, network: Any) -> dict[str, Any]:
    """FID (None without real pictures) and Inception Score (None below ten pictures) of drawn pictures' features."""
    found: dict[str, Any] = {"fid": None, "inception_score": None, "inception_score_std": None}
    if real is not None:
        found["fid"] = frechet_inception_distance(moments(features_nd), real)
    if len(features_nd) >= SPLITS:
        mean, deviation = inception_score(network.logits(features_nd))
        found |= {"inception_score": mean, "inception_score_std": deviation}
    return found
