"""Decoding one batch while the next one is drawn, on a device that has streams.

Token by token an AR model leaves most of a graphics card idle, and a decoder is arithmetic: side by side they take less
than one after the other. This file knows the tokenizer's protocol and no model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hybrid import tiling
from hybrid.types import Grid, ImageTokenizer


class Decoding:
    """Decodes in a stream of its own on CUDA; elsewhere at once.

    Args:
        device: where the tokens are.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(
        self, tokenizer: ImageTokenizer, tokens_bn: Tensor, grid: Grid, *, tile: int | None = None
    ) -> Callable[[], Tensor]:
        """Begin to decode; see ``tiling.decode``. What comes back waits for the images_bchw, float32 in main memory."""
        if self.stream is None:
            images = tiling.decode(tokenizer, tokens_bn, grid, tile=tile).float().cpu()
            return lambda: images
        self.stream.wait_stream(torch.cuda.current_stream(tokens_bn.device))
        tokens_bn.record_stream(self.stream)
        with torch.cuda.stream(self.stream), torch.inference_mode():
            decoded = tiling.decode(tokenizer, tokens_bn, grid, tile=tile).float().to("cpu", non_blocking=True)
            done = self.stream.record_event()

        def wait() -> Tensor:
            done.synchronize()
            return decoded

        return wait
