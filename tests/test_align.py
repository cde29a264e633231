"""Alignment: which tokenizers mean the same by their codes, and what happens where they do not."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fakes import FakeTokenizer, always_ar, always_masked, table_ar, uniform_masked
from torch import Tensor, nn

from hybrid.adapters import load
from hybrid.adapters.fsq import create
from hybrid.align import align, fingerprint, nearest
from hybrid.sampler import HybridSampler
from hybrid.types import FROM_AR, MASK, Grid

GOLDEN = Path(__file__).parent / "golden"
FSQ = {"factor": 2, "width": 8, "blocks": 1, "levels": (4, 4), "channels": 3}


def codebook(codes: int = 16, width: int = 3) -> Tensor:
    return torch.randn(codes, width, generator=torch.Generator().manual_seed(0))


def tokenizer(codebook_kd: Tensor, **options: float) -> FakeTokenizer:
    return FakeTokenizer(codebook_kd=codebook_kd, **options)


def scramble(module: nn.Module) -> None:
    with torch.no_grad():
        next(module.parameters()).add_(0.1)


def test_one_object_and_equal_weights_are_the_identity() -> None:
    one, other = tokenizer(codebook()), tokenizer(codebook())
    assert fingerprint(one) == fingerprint(other)
    tokens = torch.tensor([[0, 5, MASK]])
    for alignment in (align(one, one), align(one, other)):
        assert (alignment.kind, alignment.table_k, alignment.lossy) == ("identity", None, None)
        assert alignment.translate(tokens) is tokens


def test_same_codebook_but_another_decoder_is_refused() -> None:
    one, other = tokenizer(codebook()), tokenizer(codebook(), paint=0.5)
    assert fingerprint(one).codebook == fingerprint(other).codebook
    for lossy in (False, True):
        with pytest.raises(
            ValueError,
            match=r"different decoders \(sha256 \w{8} and \w{8}\), so their codes mean different things although the "
            r"codebooks are equal; use models of one tokenizer, or transcode whole rows through pixels",
        ):
            align(one, other, lossy=lossy)
    with pytest.raises(ValueError, match="mean different things; use models"):
        align(one, tokenizer(codebook() + 1, paint=0.5))


def test_what_is_no_module_cannot_be_compared() -> None:
    plain = [SimpleNamespace(codebook_kd=codebook()) for _ in range(2)]
    assert align(plain[0], plain[0]).kind == "identity"
    for pair in (plain, [tokenizer(codebook()), plain[0]], [plain[0], tokenizer(codebook())]):
        with pytest.raises(ValueError, match="no torch module has no decoder to compare; pass one object for both"):
            align(*pair)


def test_offset() -> None:
    masked = tokenizer(torch.cat((codebook(5) - 9, codebook(16))))
    alignment = align(tokenizer(codebook()), masked)
    assert (alignment.kind, alignment.lossy) == ("offset", None)
    assert alignment.translate(torch.tensor([[0, 15, MASK]])).tolist() == [[5, 20, MASK]]


def test_permutation() -> None:
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    ar, masked = tokenizer(codebook()), tokenizer(codebook()[order])
    alignment = align(ar, masked)
    assert (alignment.kind, alignment.lossy) == ("permutation", None)
    tokens, grid = torch.arange(16)[None], Grid(4, 4)
    moved = alignment.translate(tokens)
    assert torch.equal(order[moved], tokens)
    assert torch.equal(ar.decode(tokens, grid), masked.decode(moved, grid))


def test_rounding_is_no_difference_of_codebooks() -> None:
    alignment = align(tokenizer(codebook()), tokenizer(codebook() + 1e-6))
    assert alignment.lossy is None and torch.equal(alignment.translate(torch.arange(16)[None]), torch.arange(16)[None])


def test_nearest_only_where_loss_is_accepted() -> None:
    ar, masked = tokenizer(codebook()), tokenizer(codebook().roll(1, dims=0) + 0.01)
    words = r"nearest codes, mean distance 0\.01732 where code vectors have mean length \d"
    with pytest.raises(ValueError, match=rf"the codebooks differ \({words}.*\); pass lossy=True to accept nearest"):
        align(ar, masked)
    alignment = align(ar, masked, lossy=True)
    assert alignment.kind == "nearest" and alignment.lossy is not None
    assert alignment.lossy.startswith("nearest codes, mean distance 0.01732")
    assert alignment.translate(torch.tensor([[0, 14, 15, MASK]])).tolist() == [[1, 15, 0, MASK]]


def test_different_widths_are_refused() -> None:
    for lossy in (False, True):
        with pytest.raises(ValueError, match=r"code vectors have different widths: \(16, 3\) and \(16, 2\)"):
            align(tokenizer(codebook()), tokenizer(codebook(width=2)), lossy=lossy)


def test_translate_leaves_mask_and_its_input_alone() -> None:
    alignment = align(tokenizer(codebook()), tokenizer(codebook().flip(0)))
    tokens = torch.tensor([[MASK, 0, MASK], [15, MASK, 1]])
    assert alignment.translate(tokens).tolist() == [[MASK, 15, MASK], [0, MASK, 14]]
    assert tokens.tolist() == [[MASK, 0, MASK], [15, MASK, 1]]


def test_nearest_in_chunks_equals_nearest() -> None:
    source, target = codebook(50, 4), codebook(40, 4) + 0.3
    distance, index = nearest(source, target, chunk=7)
    every = (source[:, None] - target).norm(dim=-1)
    assert torch.equal(index, every.argmin(1))
    torch.testing.assert_close(distance, every.amin(1))


def test_two_fsq_tokenizers_share_a_codebook_but_not_a_decoder() -> None:
    (one, _), (other, _) = create(FSQ), create(FSQ)
    assert torch.equal(one.codebook_kd, other.codebook_kd)
    with pytest.raises(ValueError, match=r"different decoders .* although the codebooks are equal"):
        align(one, other)
    twin = copy.deepcopy(one)
    scramble(twin.encoder)  # the encoder gives no code its meaning
    assert align(one, twin).kind == "identity"
    scramble(twin.decoder)
    with pytest.raises(ValueError, match="different decoders"):
        align(one, twin)
    with pytest.raises(ValueError, match="different decoders"):
        HybridSampler(table_ar(), uniform_masked(), one, ar_tokenizer=other)


def test_two_vq_tokenizers() -> None:
    one = load("llamagen-vq", GOLDEN / "llamagen_vq.safetensors")
    twin = copy.deepcopy(one)
    for part in (twin.encoder, twin.quant_conv):
        scramble(part)
    assert align(one, twin).kind == "identity"
    for name in ("decoder", "post_quant_conv"):
        stranger = copy.deepcopy(one)
        scramble(getattr(stranger, name))
        with pytest.raises(ValueError, match=r"different decoders .* although the codebooks are equal"):
            align(one, stranger)
    # Normalised codes: their stored length means nothing.
    twin.quantize.embedding.weight.data *= 3
    assert align(one, twin).lossy is None
    order = torch.randperm(len(one.codebook_kd), generator=torch.Generator().manual_seed(2))
    twin.quantize.embedding.weight.data = one.quantize.embedding.weight.data[order]
    alignment = align(one, twin)
    assert alignment.kind == "permutation"
    tokens = torch.randint(len(order), (1, 6), generator=torch.Generator().manual_seed(3))
    moved = twin.decode(alignment.translate(tokens), Grid(2, 3))
    torch.testing.assert_close(moved, one.decode(tokens, Grid(2, 3)), atol=1e-5, rtol=0)


def test_the_sampler_translates_the_prefix() -> None:
    ar, masked = always_ar(3), always_masked(7)
    sampler = HybridSampler(ar, masked, tokenizer(codebook().flip(0)), ar_tokenizer=tokenizer(codebook()), lossy=True)
    result = sampler.generate([0], seeds=[0], ar_tokens=6)
    assert result.tokens.tolist() == [[12] * 6 + [7] * 10]
    assert result.origin[0, :6].tolist() == [FROM_AR] * 6
    assert result.lossy is None  # a permutation loses nothing, whatever was allowed
    alone = sampler.generate([0], seeds=[0], ar_fraction=1)
    assert alone.tokens.tolist() == [[3] * 16]  # the AR model's own codes, decoded by its own tokenizer
    assert torch.equal(alone.images[..., 0, 0], sampler.ar_tokenizer.decode(alone.tokens, Grid(4, 4))[..., 0, 0])


def test_a_lossy_prefix_is_labelled() -> None:
    with pytest.raises(ValueError, match="the codebooks differ"):
        HybridSampler(always_ar(3), always_masked(7), tokenizer(codebook() + 0.01), ar_tokenizer=tokenizer(codebook()))
    sampler = HybridSampler(
        always_ar(3), always_masked(7), tokenizer(codebook() + 0.01), ar_tokenizer=tokenizer(codebook()), lossy=True
    )
    lossy = sampler.generate([0], seeds=[0], ar_tokens=4).lossy
    assert lossy is not None and lossy.startswith("nearest codes, mean distance 0.01732")
    for fraction in (0, 1):  # the baselines translate nothing
        assert sampler.generate([0], seeds=[0], ar_fraction=fraction).lossy is None


def test_models_and_tokenizers_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="the AR model has 8 codes, its tokenizer 16"):
        HybridSampler(table_ar(8), uniform_masked(16), FakeTokenizer(16))
    with pytest.raises(ValueError, match="the masked model has 8 codes, its tokenizer 16"):
        HybridSampler(table_ar(16), uniform_masked(8), FakeTokenizer(16))
    with pytest.raises(ValueError, match="the AR model has 16 codes, its tokenizer 8"):
        HybridSampler(table_ar(16), uniform_masked(16), FakeTokenizer(16), ar_tokenizer=FakeTokenizer(8))
