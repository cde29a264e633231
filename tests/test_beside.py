"""Decoding beside drawing: the pictures are the decoder's own, by whichever tokenizer the tokens are."""

from __future__ import annotations

import pytest
import torch
from pairs import class_pair

from hybrid.beside import Decoding


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_pictures_are_those_of_the_pipeline(device: str) -> None:
    pipe = class_pair()
    for part in (pipe.ar, pipe.masked, pipe.tokenizer):
        part.to(device)
    decoding = Decoding(torch.device(device))
    waiting, expected = [], []
    for seed in range(3):
        made = pipe([0, 1], seed=seed, steps=2, output_type="tokens")
        waiting.append(decoding.start(pipe.sampler.decoder(only_ar=False), made.tokens, made.grid))
        expected.append(pipe([0, 1], seed=seed, steps=2, output_type="pt").images)
    for wait, images in zip(waiting, expected, strict=True):
        found = wait()
        assert found.device.type == "cpu" and found.dtype == torch.float32
        torch.testing.assert_close(found, images.cpu())


def test_the_ar_models_own_tokenizer_decodes_what_it_wrote_alone() -> None:
    pipe, other = class_pair(), class_pair()
    pipe.sampler.ar_tokenizer = other.tokenizer
    assert pipe.sampler.decoder(only_ar=pipe([0], method="ar", seed=0).settings["ar_fraction"] == 1) is other.tokenizer
    hybrid = pipe([0], ar_fraction=0.5, steps=2, seed=0, output_type="tokens")
    assert pipe.sampler.decoder(only_ar=hybrid.settings["ar_fraction"] == 1) is pipe.tokenizer
