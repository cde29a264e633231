"""One network for both phases: who sees whom, and that the fill from the AR phase's cache is the fill computed anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import CLASSES, TOKENIZER, TRANSFORMER
from torch import Tensor, nn

from hybrid.adapters import fsq, load, unified
from hybrid.adapters.llama import run
from hybrid.adapters.unified import Unified, leading_known, mixed_mask
from hybrid.benchmarks.cost import metered
from hybrid.checkpoint import save_weights
from hybrid.config import DefaultsConfig, PhaseConfig
from hybrid.handoff import Handoff, is_shared
from hybrid.phases import Fill, Sampling, ar_prefix
from hybrid.pipeline import HybridPipeline
from hybrid.sampler import HybridSampler
from hybrid.sampling import Guidance
from hybrid.types import MASK, ARModel, MaskedModel
from hybrid.verify import Verify, exact_generate

LABELS = {"num_classes": 3, "qk_norm": True}
CAPTIONS = {"model_type": "t2i", "caption_dim": 8, "cls_token_num": 4, "condition_rope": "keep"}
LENGTH, PLACES = 5, 16


def made(kind: dict[str, Any]) -> Unified:
    """Two blocks with random weights, large enough that every input matters."""
    torch.manual_seed(0)
    model, model.config = unified.create(TRANSFORMER | {"n_layer": 2} | kind)
    for parameter in model.parameters():
        if parameter.dim() > 1 or len(parameter) == TRANSFORMER["dim"]:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def asked(model: Unified, images: slice = slice(3)) -> Any:
    """A condition of three images, or of some of them; of captions the second has two padded tokens."""
    if model.classes is not None:
        return model.condition([0, 1, 2][images])
    mask = torch.ones(3, 4)
    mask[1, :2] = 0
    return model.condition((torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1))[images], mask[images]))


@pytest.fixture(scope="module", params=[LABELS, CAPTIONS], ids=["labels", "captions"])
def model(request: pytest.FixtureRequest) -> Unified:
    return made(request.param)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(TRANSFORMER["vocab_size"], (3, PLACES), generator=torch.Generator().manual_seed(2))


def written(model: Unified, tokens: Tensor, condition: Any, fed: int) -> Any:
    """The state after the first ``fed`` tokens, one at a time."""
    rows = len(condition)
    _, state = model.prefill(condition, PLACES)
    for place in range(fed):
        model.decode(tokens[:, place : place + 1].repeat(rows // 3, 1), torch.full((rows,), place), state)
    return state


def test_mixed_mask() -> None:
    seen = mixed_mask(torch.tensor([2, 0, 4]), 4)[:, 0].int().tolist()
    assert seen == [
        [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]],
        [[1, 1, 1, 1]] * 4,
        [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]],
    ]


def test_leading_known() -> None:
    tokens = torch.tensor([[3, 0, MASK, 1], [MASK, 1, 1, 1], [1, 2, 3, 0], [0, MASK, 0, MASK]])
    assert leading_known(tokens).tolist() == [2, 0, 4, 1]


def test_it_is_both_models(model: Unified) -> None:
    assert isinstance(model, ARModel) and isinstance(model, MaskedModel)
    assert is_shared(model, model) and not is_shared(model, None) and not is_shared(model, made(LABELS))


@torch.inference_mode()
def test_decoding_one_at_a_time_scoring_and_training_agree(model: Unified, tokens: Tensor) -> None:
    condition = asked(model)
    scored = model.score(tokens, condition)
    following, _ = model(tokens, condition, torch.full((3,), PLACES))
    torch.testing.assert_close(following, scored, atol=1e-5, rtol=1e-5)
    first, state = model.prefill(condition, PLACES)
    found = [first[:, None]]
    for place in range(PLACES - 1):
        found.append(model.decode(tokens[:, place : place + 1], torch.full((3,), place), state))
    torch.testing.assert_close(torch.cat(found, dim=1), scored, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_the_prefix_sees_nothing_of_the_suffix_and_the_suffix_everything(model: Unified, tokens: Tensor) -> None:
    condition, prefix = asked(model), torch.full((3,), LENGTH)
    following, own = model(tokens, condition, prefix)
    for place in (0, LENGTH - 1, LENGTH, PLACES - 1):
        other = tokens.clone()
        other[:, place] = (other[:, place] + 1) % TRANSFORMER["vocab_size"]
        new_following, new_own = model(other, condition, prefix)
        untouched = min(place, LENGTH) + 1  # the token at a place reaches predictions of the places after it
        torch.testing.assert_close(new_following[:, :untouched], following[:, :untouched])
        assert not torch.isclose(new_own[:, LENGTH:], own[:, LENGTH:]).all(-1).any()


@pytest.mark.parametrize("fed", [LENGTH - 1, LENGTH, LENGTH + 2])
@torch.inference_mode()
def test_a_fill_from_the_cache_is_the_fill_computed_anew(model: Unified, tokens: Tensor, fed: int) -> None:
    condition = asked(model)
    both = condition.cat(condition.null())
    fill = model.after_prefix(written(model, tokens, both, fed), LENGTH)
    assert isinstance(fill, MaskedModel)
    places = torch.tensor([[7, 15, 5]]).expand(3, -1)
    # One pass without guidance on the conditional rows, then all rows; places get known in between.
    for known, guided in ((PLACES, False), (9, True), (6, True), (12, False)):
        grid = tokens.clone()
        grid[:, LENGTH + 1 :] = MASK
        grid[:, known:] = tokens[:, known:]
        grid[1, LENGTH] = MASK
        rows = grid.repeat(2, 1) if guided else grid
        where = places.repeat(2, 1) if guided else places
        own = model(rows, both if guided else condition, torch.full((len(rows),), LENGTH))[1]
        found = fill.logits(rows, both if guided else condition, where)
        torch.testing.assert_close(found, own.gather(1, where[..., None].expand(-1, -1, 12)), atol=1e-5, rtol=1e-5)
        everywhere = fill.logits(rows, both if guided else condition)
        torch.testing.assert_close(everywhere, own[:, LENGTH:], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_guidance_that_begins_with_the_fill_reads_the_prefix_anew(model: Unified, tokens: Tensor) -> None:
    condition = asked(model)
    both = condition.cat(condition.null())
    fill = model.after_prefix(written(model, tokens, condition, LENGTH - 1), LENGTH)
    rows = tokens.repeat(2, 1)
    rows[:, LENGTH:] = MASK
    for _ in range(2):
        own = model(rows, both, torch.full((6,), LENGTH))[1][:, LENGTH:]
        torch.testing.assert_close(fill.logits(rows, both), own, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [0, LENGTH])
@torch.inference_mode()
def test_what_is_remembered_takes_changes_in(length: int, tokens: Tensor, model: Unified) -> None:
    condition = asked(model)
    grid = tokens.clone()
    grid[:, LENGTH + 1 :] = MASK
    fill: Any = model.after_prefix(written(model, tokens, condition, length), length) if length else model
    rows = torch.tensor([[5, 9, 12, 15], [6, 5, 8, 7], [15, 14, 13, 5]])
    places = rows[:, [2, 0]]
    found, memory = fill.remember(grid, condition, places)
    where = places[..., None].expand(-1, -1, 12)
    whole = model(grid, condition, torch.full((3,), length))[1]
    torch.testing.assert_close(found, whole.gather(1, where), atol=1e-5, rtol=1e-5)
    again = fill.recall(grid, rows, places, memory)
    torch.testing.assert_close(again, found, atol=1e-5, rtol=1e-5)
    # What stands at the rows is read anew, and stays in the cache for a later pass over other rows.
    later = grid.scatter(1, rows[:, :1], 3)
    changed = fill.recall(later, rows, places, memory)
    assert not torch.allclose(changed, found, atol=1e-3)
    everything = torch.arange(length, PLACES).expand(3, -1)
    for _ in range(2):  # once for each block, after which nothing is stale
        settled = fill.recall(later, everything, places, memory)
    whole = model(later, condition, torch.full((3,), length))[1]
    torch.testing.assert_close(settled, whole.gather(1, where), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_drafts_read_the_verified_prefix_from_the_cache_each_image_its_own(model: Unified, tokens: Tensor) -> None:
    condition, width = asked(model), 3
    done_b = torch.tensor([5, 9, 13])
    state = written(model, tokens, condition.cat(condition.null()), int(done_b.max()))
    places = done_b[:, None] + torch.arange(width)
    grid = torch.where(torch.arange(PLACES) < done_b[:, None], tokens, MASK)
    for _ in range(2):  # what a draft leaves in the cache after the prefix harms no later one
        found = model.draft_logits(grid, places, state)
        for row, done in enumerate(done_b.tolist()):
            asked_bsd = model.cls_embedding(condition)[row : row + 1]
            offset, known = asked_bsd.shape[1], model.tok_embeddings(tokens[row : row + 1, :done])
            line = torch.cat((asked_bsd, known, model.mask_embedding.expand(1, width, -1)), dim=1)
            mask = mixed_mask(torch.tensor([offset + done]), offset + done + width)
            if hasattr(condition, "mask_bs"):
                real = torch.ones(1, done + width, dtype=torch.bool)
                mask = mask & torch.cat((condition.mask_bs[row : row + 1].bool(), real), dim=1)[:, None, None]
                mask = mask | torch.eye(line.shape[1], dtype=torch.bool)
            rope = model._rope(condition.grid, offset, line.device)[: line.shape[1]]
            out = model.norm(run(model.layers, line, rope, mask=mask))[0, offset + done :]
            torch.testing.assert_close(found[row], model.output_masked(out).float(), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_alone_it_takes_the_leading_tokens_for_the_prefix(model: Unified, tokens: Tensor) -> None:
    condition = asked(model)
    grid = tokens.clone()
    grid[0, 3:9], grid[1, 0], grid[2, 12] = MASK, MASK, MASK
    own = model(grid, condition, torch.tensor([3, 0, 12]))[1]
    torch.testing.assert_close(model.logits(grid, condition), own)
    where = torch.tensor([[8, 3], [0, 4], [12, 13]])
    expected = torch.stack([own[row][place] for row, place in enumerate(where)])
    torch.testing.assert_close(model.logits(grid, condition, where), expected)


def test_mistakes_are_named(model: Unified, tokens: Tensor) -> None:
    condition = asked(model)
    with pytest.raises(ValueError, match="9 tokens do not fill the condition's 4x4 grid"):
        model.logits(tokens[:, :9], condition)
    fill = model.after_prefix(model.prefill(condition, PLACES)[1], LENGTH)
    with pytest.raises(ValueError, match="place 4 is of the prefix; ask for places from 5 on"):
        fill.logits(tokens, condition, torch.tensor([[6, 4]] * 3))
    offset = model.cls_embedding(condition).shape[1]
    with pytest.raises(ValueError, match=f"a cache of {offset + 5} tokens; the fill needs room for all {offset + 16}"):
        model.after_prefix(model.prefill(condition, 5)[1], LENGTH)


class Anew:
    """The same network without its cache: each pass reads the whole grid, with the prefix's length given."""

    def __init__(self, model: Unified, length: int) -> None:
        self.model, self.length, self.codebook_size = model, length, model.codebook_size
        self.condition = model.condition

    def logits(self, tokens_bn: Tensor, condition: Any, places_bm: Tensor) -> Tensor:
        own = self.model(tokens_bn, condition, torch.full((len(tokens_bn),), self.length))[1]
        return own.gather(1, places_bm[..., None].expand(-1, -1, own.shape[-1]))


@pytest.mark.parametrize("ar_scale", [1.0, 2.0])
@pytest.mark.parametrize("kind", ["constant", "linear"])
def test_the_sampler_hands_the_cache_over(ar_scale: float, kind: str) -> None:
    model = made(LABELS)
    tokenizer, _ = fsq.create(TOKENIZER)
    request: dict[str, Any] = {
        "seeds": [1, 2, 3],
        "ar_tokens": LENGTH,
        "prefix": Sampling(Guidance(ar_scale)),
        "fill": Fill(steps=4, sampling=Sampling(Guidance(3.0, kind))),
        "decode": False,
    }
    shared = HybridSampler(model, model, tokenizer).generate([0, 1, 2], **request)
    anew = HybridSampler(model, Anew(model, LENGTH), tokenizer).generate([0, 1, 2], **request)
    assert torch.equal(shared.tokens, anew.tokens) and torch.equal(shared.origin, anew.origin)
    assert shared.phases.passes == anew.phases.passes


def test_a_handoff_is_the_ar_model_and_keeps_its_state(tokens: Tensor) -> None:
    model = made(LABELS)
    handoff = Handoff(model)
    assert isinstance(handoff, ARModel) and handoff.condition([1]) == model.condition([1])
    condition = handoff.condition([0, 1, 2])
    first, state = handoff.prefill(condition, LENGTH)
    assert (
        handoff.state is state
        and state.cache.capacity == 1 + PLACES
        and torch.equal(first, model.prefill(condition, PLACES)[0])
    )
    assert torch.equal(handoff.score(tokens, condition), model.score(tokens, condition))
    following = handoff.decode(tokens[:, :2], torch.zeros(3, dtype=torch.long), state)
    torch.testing.assert_close(following, model.score(tokens, condition)[:, 1:3], atol=1e-5, rtol=1e-5)


def pipeline() -> HybridPipeline:
    model = made(LABELS)
    tokenizer, tokenizer.config = fsq.create(TOKENIZER)
    guided = PhaseConfig(guidance_scale=2.0)
    defaults = DefaultsConfig(steps=4, ar=guided, masked=guided)
    pipe = HybridPipeline(tokenizer.eval(), ar=model, masked=model, classes=CLASSES, defaults=defaults)
    pipe.kinds = {"ar": "unified", "masked": "unified", "tokenizer": "fsq"}
    return pipe


def test_a_saved_pair_is_one_file_and_one_network_again(tmp_path: Path) -> None:
    pipe = pipeline()
    pipe.save_pretrained(tmp_path)
    assert sorted(path.parent.name for path in tmp_path.glob("*/*.safetensors")) == ["ar", "tokenizer"]
    loaded = HybridPipeline.from_pretrained(tmp_path)
    assert loaded.ar is loaded.masked and isinstance(loaded.ar, Unified) and loaded.kinds == pipe.kinds
    half = loaded.in_dtype(torch.bfloat16)
    assert half.ar is half.masked and half.ar is not loaded.ar
    apart = HybridPipeline.from_pretrained(tmp_path, dtype="masked=bf16")
    assert apart.ar is not apart.masked and str(apart.types) == "ar=fp32,masked=bf16,decode=fp32"
    one, other = (each(["Bag", "Sneaker"], seed=3, output_type="tokens").tokens for each in (pipe, loaded))
    assert torch.equal(one, other)


def test_masked_passes_run_over_what_is_left() -> None:
    """Each pass reads the 8 places after the prefix, the first one also the prefix's last token, which the AR phase
    drew and never read; by what linear layers (2·rows·weights operations) and attention (4·queries·keys·width) do."""
    pipe = pipeline()
    with metered(pipe) as parts:
        pipe([0], ar_tokens=8, steps=4, schedule="linear", guidance_scale=1.0, seed=0, output_type="tokens")
    read = (9, 8, 8, 8)
    weights = sum(value.numel() for value in pipe.ar.layers.parameters() if value.dim() == 2)
    attention = len(pipe.ar.layers) * sum(4 * queries * 17 * TRANSFORMER["dim"] for queries in read)
    logits = parts["masked"].flops - 2 * sum(read) * weights - attention
    assert parts["masked"].calls == len(read)
    assert 0 < logits <= 2 * 4 * 8 * TRANSFORMER["dim"] * TRANSFORMER["vocab_size"]


def test_weights_tell_what_they_are(tmp_path: Path) -> None:
    from hybrid.convert import inspect

    model = made(LABELS)
    save_weights(tmp_path / "model.safetensors", model.state_dict(), metadata={"config": model.config})
    found = inspect(tmp_path / "model.safetensors")
    assert (found.kind, found.codes, found.grid) == ("unified", 12, "4x4")
    again = load("unified", tmp_path / "model.safetensors")
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])


@torch.inference_mode()
@pytest.mark.parametrize("guidance", [Guidance(), Guidance(2.0)])
def test_exact_verification_with_drafts_from_the_cache_is_greedy_ar_where_nothing_is_random(
    model: Unified, guidance: Guidance
) -> None:
    condition = asked(model)
    greedy, draft = Sampling(guidance, temperature=0.0), Sampling(guidance)
    noise = torch.zeros(3, PLACES)
    expected, _ = ar_prefix(model, condition, condition.null(), PLACES, noise, greedy)
    for window in (2, 5, 16):
        found = exact_generate(
            model, model, condition, condition.null(), condition, condition.null(),
            generators=[torch.Generator().manual_seed(seed) for seed in range(3)],
            prefix=greedy, draft=draft, verify=Verify(window=window),
        )  # fmt: skip
        assert torch.equal(found.tokens_bn, expected)
        assert found.passes["masked"] > 0 and found.passes["ar"] <= PLACES


@torch.inference_mode()
@pytest.mark.parametrize("guidance", [Guidance(), Guidance(2.0)])
def test_drafts_from_the_cache_do_not_depend_on_neighbours(model: Unified, guidance: Guidance) -> None:
    how = Sampling(guidance)

    def drawn(images: slice) -> Tensor:
        own = asked(model, images)
        return exact_generate(
            model, model, own, own.null(), own, own.null(),
            generators=[torch.Generator().manual_seed(seed) for seed in range(3)[images]],
            prefix=how, draft=how, verify=Verify(window=8),
        ).tokens_bn  # fmt: skip

    together = drawn(slice(3))
    for place in range(3):
        assert torch.equal(drawn(slice(place, place + 1))[0], together[place])
