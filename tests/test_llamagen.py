"""LlamaGen against the original's values, its full-size shapes, its cache, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from hybrid.adapters import load
from hybrid.adapters.llamagen import LlamaGen, build, create
from hybrid.adapters.transformer_config import CONFIGS, TransformerConfig, infer
from hybrid.checkpoint import WRAPPERS, save_weights
from hybrid.types import ARModel, Grid

GOLDEN = Path(__file__).parent / "golden"
SHAPES = {
    name.removeprefix("llamagen-"): shapes
    for name, shapes in json.loads((GOLDEN / "checkpoint_shapes.json").read_text()).items()
    if name.startswith(("llamagen-c2i", "llamagen-t2i"))
}
TOLERANCE: dict[str, float] = {"atol": 1e-4, "rtol": 0}


def values(kind: str) -> dict[str, Tensor]:
    with safe_open(GOLDEN / f"llamagen_{kind}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)


def config(kind: str) -> dict[str, Any]:
    with safe_open(GOLDEN / f"llamagen_{kind}.safetensors", "pt") as file:
        return json.loads(file.metadata()["config"])


def bare_weights(kind: str) -> dict[str, Tensor]:
    return {key.removeprefix("model."): t for key, t in values(kind).items() if key.startswith("model.")}


def prompts(kind: str) -> Any:
    golden = values(kind)
    return golden["labels"] if kind == "c2i" else (golden["caption_emb"], golden["caption_mask"])


def model(kind: str) -> LlamaGen:
    return load("llamagen", GOLDEN / f"llamagen_{kind}.safetensors")


def same_weights(one: LlamaGen, other: LlamaGen) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@torch.no_grad()
def greedy(model: LlamaGen, condition: Any, scale: float, length: int) -> Tensor:
    batch, guided = len(condition), scale != 1
    logits, state = model.prefill(condition.cat(condition.null()) if guided else condition, length)
    tokens: list[Tensor] = []
    for place in range(length):
        if place:
            fed = tokens[-1].repeat(2) if guided else tokens[-1]
            logits = model.decode(fed[:, None], torch.full((len(fed),), place - 1), state)[:, -1]
        conditional, unconditional = logits[:batch], logits[-batch:]
        tokens.append((unconditional + scale * (conditional - unconditional)).argmax(-1))
    return torch.stack(tokens, dim=1)


@pytest.mark.parametrize(("kind", "scale"), [("c2i", 4.0), ("t2i", 7.5)])
def test_equals_the_original(kind: str, scale: float) -> None:
    golden, net = values(kind), model(kind)
    condition = net.condition(prompts(kind))
    with torch.no_grad():
        torch.testing.assert_close(net.score(golden["tokens"], condition), golden["logits"], **TOLERANCE)
        torch.testing.assert_close(net.score(golden["tokens"], condition.null()), golden["logits_uncond"], **TOLERANCE)
    assert torch.equal(greedy(net, condition, 1.0, 16), golden["greedy_cfg1"])
    assert torch.equal(greedy(net, condition, scale, 16), golden[f"greedy_cfg{scale:g}"])


@pytest.mark.parametrize("kind", ["c2i", "t2i"])
def test_is_an_ar_model_in_eval_mode(kind: str) -> None:
    net = model(kind)
    assert isinstance(net, ARModel)
    assert net.codebook_size == 64 and not net.training
    assert net.condition(prompts(kind)).grid == Grid(4, 4)


@pytest.mark.parametrize("kind", ["c2i", "t2i"])
@pytest.mark.parametrize("prefix", ["", "model.", "module.", "_orig_mod.", "module._orig_mod."])
def test_loads_a_mapping_whatever_its_prefix(kind: str, prefix: str) -> None:
    state = {f"{prefix}{key}": tensor for key, tensor in bare_weights(kind).items()}
    assert same_weights(load("llamagen", state, config(kind)), model(kind))


@pytest.mark.parametrize("wrapper", [None, *WRAPPERS])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_loads_the_original_file_format(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    state = {f"{prefix}{key}": tensor for key, tensor in bare_weights("c2i").items()}
    state[f"{prefix}freqs_cis"] = torch.zeros(17, 8, 2)
    other = {key: tensor + 1 for key, tensor in state.items()}
    torch.save(state if wrapper is None else {wrapper: state, "ema": other, "steps": 7}, tmp_path / "c2i.pth")
    assert same_weights(load("llamagen", tmp_path / "c2i.pth", config("c2i")), model("c2i"))


@pytest.mark.parametrize("name", SHAPES)
def test_full_size_shapes(name: str) -> None:
    with torch.device("meta"):
        named = build(TransformerConfig(**CONFIGS[name]))
    assert {key: list(tensor.shape) for key, tensor in named.state_dict().items()} == SHAPES[name]
    assert named.grid == Grid(*{"256": (16, 16), "384": (24, 24), "512": (32, 32)}[name.rsplit("-", 1)[1]])
    told = TransformerConfig(**infer({k: torch.empty(s, device="meta") for k, s in SHAPES[name].items()}, name))
    fields = ("model_type", "dim", "n_layer", "n_head", "hidden", "vocab_size", "cls_token_num")
    asked = TransformerConfig(**CONFIGS[name])
    assert all(getattr(told, field) == getattr(asked, field) for field in fields)


def test_parameters_of_the_named_sizes_in_millions() -> None:
    expected = {"B": 111, "L": 343, "XL": 775, "XXL": 1411, "3B": 3096, "t2i-XL-256": 778}
    for name, millions in expected.items():
        total = sum(torch.Size(shape).numel() for shape in SHAPES[name if "-" in name else f"c2i-{name}-256"].values())
        assert round(total / 1e6) == pytest.approx(millions, abs=1)


def test_weights_alone_tell_the_size() -> None:
    state = {key: torch.empty(shape, device="meta") for key, shape in SHAPES["c2i-3B-256"].items()}
    net = load("llamagen", state, device="meta")
    assert (net.heads, net.head_dim, len(net.layers)) == (32, 100, 24)


@pytest.mark.parametrize("kind", ["c2i", "t2i"])
@pytest.mark.parametrize("grid", [Grid(4, 4), Grid(3, 5)])
@pytest.mark.parametrize("widths", [[1] * 14, [3, 5, 2, 4], [14]])
@torch.no_grad()
def test_windows_of_any_width_equal_the_parallel_score(kind: str, grid: Grid, widths: list[int]) -> None:
    net, tokens = model(kind), values(kind)["tokens"][:, : grid.places]
    condition = net.condition(prompts(kind), grid)
    scored = net.score(tokens, condition)
    logits, state = net.prefill(condition, grid.places)
    parts, place = [logits[:, None]], 0
    for width in widths:
        parts.append(net.decode(tokens[:, place : place + width], torch.full((3,), place), state))
        place += width
    torch.testing.assert_close(torch.cat(parts, dim=1), scored[:, : place + 1], **TOLERANCE)


def test_the_grids_width_matters() -> None:
    net, tokens = model("c2i"), values("c2i")["tokens"]
    with torch.no_grad():
        square, wide = (net.score(tokens, net.condition([1, 2, 3], grid)) for grid in (Grid(4, 4), Grid(2, 8)))
    torch.testing.assert_close(square[:, :4], wide[:, :4], **TOLERANCE)  # up to there both lie in the first row
    assert (square - wide)[:, 6:].abs().amax() > 1e-2


@pytest.mark.parametrize("kind", ["c2i", "t2i"])
@torch.no_grad()
def test_rows_may_stand_at_different_places(kind: str) -> None:
    net, tokens = model(kind), values(kind)["tokens"]
    condition = net.condition(prompts(kind))
    scored = net.score(tokens, condition)
    _, state = net.prefill(condition, 16)
    net.decode(tokens[:, :5], torch.zeros(3, dtype=torch.long), state)
    places = torch.tensor([5, 2, 4])
    for _ in range(3):
        window = places[:, None] + torch.arange(3)
        logits = net.decode(tokens.gather(1, window), places, state)
        torch.testing.assert_close(logits, scored.gather(1, (window + 1)[..., None].expand(-1, -1, 64)), **TOLERANCE)
        places = places + 3


@torch.no_grad()
def test_truncated_tokens_leave_no_trace() -> None:
    net, tokens = model("c2i"), values("c2i")["tokens"]
    condition = net.condition(prompts("c2i"))
    scored = net.score(tokens, condition)
    _, state = net.prefill(condition, 16)
    wrong = tokens.clone()
    wrong[:, 4:] = 63 - wrong[:, 4:]
    net.decode(wrong[:, :12], torch.zeros(3, dtype=torch.long), state)
    state.truncate(torch.tensor([4, 2, 3]))
    state.truncate(torch.tensor([16, 16, 16]))  # brings nothing back
    with pytest.raises(ValueError, match=r"^decode at places \[4, 3, 3\]: only \[4, 2, 3\] tokens were fed$"):
        net.decode(tokens[:, :1], torch.tensor([4, 3, 3]), state)
    places = torch.tensor([4, 2, 3])
    window = places[:, None] + torch.arange(6)
    logits = net.decode(tokens.gather(1, window), places, state)
    torch.testing.assert_close(logits, scored.gather(1, (window + 1)[..., None].expand(-1, -1, 64)), **TOLERANCE)


@torch.no_grad()
def test_decode_refuses_skipped_places_and_a_full_cache() -> None:
    net, tokens = model("c2i"), values("c2i")["tokens"]
    _, state = net.prefill(net.condition(prompts("c2i")), 4)
    start = torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"^decode at places \[0, 1, 0\]: only \[0, 0, 0\] tokens were fed$"):
        net.decode(tokens[:, :1], torch.tensor([0, 1, 0]), state)
    with pytest.raises(ValueError, match=r"^the cache holds 4 image tokens, 5 are needed$"):
        net.decode(tokens[:, :5], start, state)
    net.decode(tokens[:, :4], start, state)
    with pytest.raises(ValueError, match=r"^the cache holds 4 image tokens, 5 are needed$"):
        net.decode(tokens[:, :1], start + 4, state)


@torch.no_grad()
def test_nothing_is_decoded_beyond_the_grid() -> None:
    net, tokens = model("c2i"), values("c2i")["tokens"]
    with pytest.raises(ValueError, match=r"^a cache for 17 image tokens, but a 4x4 grid has 16 places$"):
        net.prefill(net.condition(prompts("c2i")), 17)
    with pytest.raises(ValueError, match=r"^16 tokens are too many for a 3x5 grid$"):
        net.score(tokens, net.condition(prompts("c2i"), Grid(3, 5)))


@torch.no_grad()
def test_what_lies_under_the_padding_is_never_seen() -> None:
    net, golden = model("t2i"), values("t2i")
    embedding, mask = golden["caption_emb"], golden["caption_mask"]
    assert not mask.all() and mask[:, -1].all()
    noisy = torch.where(mask[..., None] == 0, torch.randn_like(embedding), embedding)
    clean = net.prefill(net.condition((embedding, mask)), 1)[0]
    assert torch.equal(clean, net.prefill(net.condition((noisy, mask)), 1)[0])
    torch.testing.assert_close(clean, golden["logits"][:, 0], **TOLERANCE)


@torch.no_grad()
def test_a_caption_without_padding_needs_no_mask() -> None:
    net, golden = model("t2i"), values("t2i")
    full = torch.ones_like(golden["caption_mask"][:1])
    mask = torch.cat((full, golden["caption_mask"][:1]))  # the second row puts the batch on the masked path
    together = net.condition((golden["caption_emb"][:1].repeat(2, 1, 1), mask))
    alone = net.condition((golden["caption_emb"][:1], full))
    tokens = golden["tokens"][:1]
    torch.testing.assert_close(net.score(tokens.repeat(2, 1), together)[:1], net.score(tokens, alone), **TOLERANCE)
    torch.testing.assert_close(net.prefill(together, 4)[0][:1], net.prefill(alone, 4)[0], **TOLERANCE)


@torch.no_grad()
def test_an_empty_caption_stays_finite() -> None:
    net, golden = model("t2i"), values("t2i")
    nothing = net.condition((golden["caption_emb"], torch.zeros_like(golden["caption_mask"])))
    assert torch.isfinite(net.score(golden["tokens"], nothing)).all()
    assert torch.isfinite(net.prefill(nothing, 1)[0]).all()


@pytest.mark.parametrize("kind", ["c2i", "t2i"])
@torch.no_grad()
def test_one_image_of_a_batch_equals_it_alone(kind: str) -> None:
    net, tokens, asked = model(kind), values(kind)["tokens"], prompts(kind)
    together = net.score(tokens, net.condition(asked))
    for row in range(3):
        one = slice(row, row + 1)
        alone = net.condition(tuple(part[one] for part in asked) if isinstance(asked, tuple) else asked[one])
        torch.testing.assert_close(net.score(tokens[one], alone), together[one], **TOLERANCE)


def test_captions_go_through_the_text_encoder() -> None:
    net, golden = model("t2i"), values("t2i")

    class Encoder:
        def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
            assert captions == ["a", "b", "c"]
            return golden["caption_emb"], golden["caption_mask"]

    net.text_encoder = Encoder()
    with torch.no_grad():
        logits = net.score(golden["tokens"], net.condition(["a", "b", "c"]))
    torch.testing.assert_close(logits, golden["logits"], **TOLERANCE)


def test_bfloat16_stays_close() -> None:
    golden = values("c2i")
    net = load("llamagen", GOLDEN / "llamagen_c2i.safetensors", dtype=torch.bfloat16)
    with torch.no_grad():
        logits = net.score(golden["tokens"], net.condition(golden["labels"]))
    assert logits.dtype == torch.float32
    assert 0 < (logits - golden["logits"]).abs().mean() < 0.02 * golden["logits"].abs().max()


def test_a_fresh_model_is_uniform_and_its_file_tells_its_whole_configuration(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fields = config("t2i") | {"cls_token_num": 6, "condition_rope": "keep", "qk_norm": True, "block_size": 12}
    fresh, full = create(fields)
    asked = fresh.condition((torch.randn(2, 6, 24), torch.ones(2, 6)), Grid(3, 4))
    assert not fresh.score(torch.zeros(2, 12, dtype=torch.long), asked).any()
    save_weights(tmp_path / "model.safetensors", fresh.state_dict(), metadata={"kind": "llamagen", "config": full})
    again = load("llamagen", tmp_path)
    assert same_weights(again, fresh) and again.config == full
    assert again.keep_condition_rope and again.heads == 2 and again.grid is None
    with pytest.raises(ValueError, match=r"^this checkpoint has no square grid of its own: pass the grid$"):
        again.condition((torch.randn(2, 6, 24), torch.ones(2, 6)))


@torch.no_grad()
def test_keeping_the_rotary_rows_of_the_text_changes_the_outcome() -> None:
    golden = values("t2i")
    kept = load("llamagen", bare_weights("t2i"), config("t2i") | {"condition_rope": "keep"})
    condition = kept.condition((golden["caption_emb"], golden["caption_mask"]))
    scored = kept.score(golden["tokens"], condition)
    assert (scored - golden["logits"]).abs().max() > 1e-2
    logits, state = kept.prefill(condition, 16)
    torch.testing.assert_close(logits, scored[:, 0], **TOLERANCE)
    decoded = kept.decode(golden["tokens"][:, :15], torch.zeros(3, dtype=torch.long), state)
    torch.testing.assert_close(decoded, scored[:, 1:], **TOLERANCE)


def test_near_codes_start_near_each_other() -> None:
    torch.manual_seed(0)
    net, _ = create(config("c2i"))
    line = torch.linspace(-1, 1, 64)[:, None]
    net.start_from_codebook(torch.cat((line, line.square()), dim=1))
    table = net.tok_embeddings.weight.detach()
    assert (table[0] - table[1]).norm() < (table[0] - table[63]).norm()
    assert table.std() < 0.1


def test_what_the_weights_cannot_tell_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"^weights in memory: the number of heads cannot be told from width 32; "):
        load("llamagen", bare_weights("c2i"))
    with pytest.raises(ValueError, match=r"^llamagen: no weights given$"):
        load("llamagen", None)


def test_a_wrong_configuration_is_named() -> None:
    with pytest.raises(ValueError, match=r"^llamagen: unknown configuration 'M'; known: c2i-B-256, .*t2i-XL-512$"):
        load("llamagen", bare_weights("c2i"), "M")
    with pytest.raises(ValueError, match=r"^llamagen config: unknown key 'n_heads'; did you mean 'n_head'\?$"):
        load("llamagen", bare_weights("c2i"), config("c2i") | {"n_heads": 2})
    with pytest.raises(ValueError, match=r": output\.weight expected \(65, 32\), got \(64, 32\)"):
        load(
            "llamagen",
            bare_weights("c2i") | {"tok_embeddings.weight": torch.zeros(65, 32)},
            config("c2i") | {"vocab_size": 65},
        )


def test_a_file_of_another_family_is_named() -> None:
    with pytest.raises(ValueError, match=r"^maskgil_c2i\.safetensors: has no tok_embeddings\.weight; its keys are"):
        load("llamagen", GOLDEN / "maskgil_c2i.safetensors")


@pytest.mark.parametrize("part", ["tok_embeddings", "cls_embedding", "layers.", "layers.0", "output", "norm"])
def test_weights_without_one_of_their_parts_are_refused_in_one_line(part: str) -> None:
    state = {key: torch.empty(shape, device="meta") for key, shape in SHAPES["c2i-B-256"].items()}
    state = {key: tensor for key, tensor in state.items() if not key.startswith(part)}
    with pytest.raises(ValueError, match=r"^weights in memory: (missing|has no) [^\n]+$"):
        load("llamagen", state, device="meta")
