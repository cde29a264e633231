"""Inception's figures and CLIP score of a sweep's points: of the very pictures that their other figures are of.

Tokens come from the artist's files and features are kept beside them, so that a second run draws and sees nothing anew.
"""

from __future__ import annotations

from typing import Any

import torch

from .artist import Artist, Drawn
from .clip_score import MODEL, ClipNetwork, captions_of
from .inception import InceptionNetwork, moments, scores
from .points import FidConfig
from .scenes import Scene, real_of


class PointJudge:
    """The networks, and the real pictures as Inception sees them.

    Args:
        config: where the weights are.
        scene: prompts and real pictures.
        device: where to compute.

    Raises:
        ValueError: the extra ``fid`` or a weight file is missing; a CLIP score of pictures without captions.
    """

    def __init__(self, config: FidConfig, scene: Scene, device: str | torch.device) -> None:
        self.scene = scene
        self.captions = captions_of(scene.prompts, f"the data set {scene.folder.path.name}") if config.clip else []
        self.inception = InceptionNetwork(config.inception, device=device)
        self.clip = ClipNetwork(config.clip, config.clip_model or MODEL, device=device) if config.clip else None
        self._real = moments(real_of(scene, scene.places, self.inception))

    def scores(self, artist: Artist, drawn: Drawn) -> dict[str, Any]:
        """Raw figures of a point's pictures, whose features are Inception's."""
        found: dict[str, Any] = {"pictures": len(drawn), "network": self.inception.name}
        found |= {"network_sha256": self.inception.sha256, "clip_network": None, "clip_score": None}
        found |= scores(drawn.features_nd, self._real, self.inception)
        if self.clip is not None:
            captions = self.captions * (len(drawn) // len(self.captions))
            found["clip_network"] = self.clip.name
            found["clip_score"] = float(self.clip(artist.pictures(drawn), captions).mean())
        return found
