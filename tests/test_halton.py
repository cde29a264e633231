"""Halton-MaskGIT against the original's values, full-size shapes, what is refused, and as LlamaGen's completer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from fakes import FakeTokenizer
from safetensors import safe_open
from torch import Tensor

from hybrid.adapters import load
from hybrid.adapters.halton import CONFIGS, HaltonConfig, HaltonMaskGIT, build, create
from hybrid.checkpoint import save_weights
from hybrid.phases import Fill, Sampling
from hybrid.sampler import HybridSampler
from hybrid.sampling import Guidance
from hybrid.schedules import reveal_counts
from hybrid.types import FROM_AR, MASK, Grid, MaskedModel

GOLDEN = Path(__file__).parent / "golden"
FILE = GOLDEN / "halton_c2i.safetensors"
SHAPES: dict[str, list[int]] = json.loads((GOLDEN / "checkpoint_shapes.json").read_text())["halton-c2i-large-384"]
TOLERANCE: dict[str, float] = {"atol": 1e-4, "rtol": 0}
SIZES = ("tiny", "small", "base", "large", "xlarge")


def values() -> dict[str, Tensor]:
    with safe_open(FILE, "pt") as file:
        golden = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    codes = golden["codes"].flatten(1)
    return golden | {"tokens": torch.where(codes == 64, MASK, codes)}


def config() -> dict[str, Any]:
    with safe_open(FILE, "pt") as file:
        return json.loads(file.metadata()["config"])


def bare_weights() -> dict[str, Tensor]:
    prefix = "model_state_dict."
    return {key.removeprefix(prefix): tensor for key, tensor in values().items() if key.startswith(prefix)}


def meta_weights(name: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return build(HaltonConfig(**CONFIGS[name])).state_dict()


def random_model(**changes: Any) -> HaltonMaskGIT:
    """The golden model's size with weights large enough that every part matters."""
    net = build(HaltonConfig(**config() | changes)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for _, parameter in sorted(net.named_parameters()):
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return net


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@torch.no_grad()
def test_equals_the_original() -> None:
    golden, net = values(), load("halton", FILE)
    condition = net.condition(golden["labels"])
    assert (golden["tokens"] == MASK).any() and (golden["tokens"] != MASK).any()
    for asked, name in ((condition, "logits"), (condition.null(), "logits_uncond")):
        torch.testing.assert_close(net.logits(golden["tokens"], asked), golden[name][..., :64], **TOLERANCE)


@torch.no_grad()
def test_given_places_equal_the_original_in_any_order() -> None:
    golden, net = values(), load("halton", FILE)
    places = torch.tensor([[63, 0, 7], [3, 3, 20], [1, 28, 2]])
    expected = golden["logits"].gather(1, places[..., None].expand(-1, -1, 65))[..., :64]
    got = net.logits(golden["tokens"], net.condition(golden["labels"]), places)
    torch.testing.assert_close(got, expected, **TOLERANCE)


def test_is_a_masked_model_in_eval_mode_that_tells_its_configuration() -> None:
    net = load("halton", FILE)
    assert isinstance(net, MaskedModel) and not net.training
    assert (net.codebook_size, net.grid, net.device) == (64, Grid(8, 8), torch.device("cpu"))
    assert net.config == config()
    condition = net.condition([1, 2])
    assert condition.grid == net.condition([1], Grid(8, 8)).grid == Grid(8, 8)
    assert condition.null().labels_b.tolist() == [10, 10]


@torch.no_grad()
def test_the_mask_can_never_be_drawn() -> None:
    state = bare_weights()
    state["head.bias"][64] = 1000  # the mask's column would always win
    net, golden = load("halton", state, config()), values()
    logits = net.logits(golden["tokens"], net.condition(golden["labels"]))
    assert logits.shape == (3, 64, net.codebook_size)
    torch.testing.assert_close(logits, golden["logits"][..., :64], **TOLERANCE)


def test_the_output_stays_tied_to_the_token_table_where_the_file_has_it_so() -> None:
    net = load("halton", FILE)
    assert net.head.weight is net.tok_emb.weight
    untied = bare_weights() | {"head.weight": bare_weights()["head.weight"] + 1}
    net = load("halton", untied, config())
    assert torch.equal(net.head.weight, untied["head.weight"].float())
    assert not torch.equal(net.head.weight, net.tok_emb.weight)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_loads_the_original_file_format(tmp_path: Path, prefix: str) -> None:
    state = {f"{prefix}{key}": tensor for key, tensor in bare_weights().items()}
    beside = {"iter": 5, "global_epoch": 1, "optimizer_state_dict": {"state": {0: torch.ones(1)}}}
    torch.save({"model_state_dict": state} | beside, tmp_path / "ImageNet_384_large.pth")
    assert same_weights(load("halton", tmp_path / "ImageNet_384_large.pth", config()), load("halton", FILE))


@pytest.mark.parametrize("inferred", [False, True])
def test_full_size_shapes(inferred: bool) -> None:
    state = {key: torch.empty(shape, device="meta") for key, shape in SHAPES.items()}
    net = load("halton", state, None if inferred else "large-384", device="meta")
    assert {key: list(tensor.shape) for key, tensor in net.state_dict().items()} == SHAPES
    assert net.config == CONFIGS["large-384"] and net.grid == Grid(24, 24)


def test_the_large_model_has_the_480_million_parameters_that_its_authors_state() -> None:
    with torch.device("meta"):
        net = build(HaltonConfig(**CONFIGS["large-384"]))
    assert sum(parameter.numel() for parameter in net.parameters()) / 1e6 == pytest.approx(480, abs=0.5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pixels", [256, 384])
def test_every_size_is_told_by_its_weights(size: str, pixels: int) -> None:
    name = f"{size}-{pixels}"
    net = load("halton", meta_weights(name), device="meta")
    assert net.config == CONFIGS[name]
    assert net.grid == Grid(pixels // 16, pixels // 16)


def test_what_is_unusual_is_told_by_the_weights_too() -> None:
    fields = CONFIGS["tiny-256"] | {"mlp_dim": 384, "register": 0, "proj": 2, "nclass": 10, "codebook_size": 64}
    with torch.device("meta"):
        state = build(HaltonConfig(**fields)).state_dict()
    assert "reg_tokens.weight" not in state and state["out_proj.weight"].shape == (1536, 384, 1, 1)
    assert load("halton", state, device="meta").config == fields


def test_the_small_models_heads_do_not_divide_its_width() -> None:
    state = meta_weights("small-256")
    assert state["transformer.layers.0.attn.wq.weight"].shape == (510, 512)
    assert state["transformer.layers.0.attn.wo.weight"].shape == (512, 510)


@torch.no_grad()
def test_one_image_of_a_batch_equals_it_alone() -> None:
    net, tokens = load("halton", FILE), values()["tokens"]
    condition = net.condition([1, 2, 3])
    places = torch.tensor([[0, 63], [3, 2], [7, 7]])
    together = net.logits(tokens.repeat(2, 1), condition.cat(condition.null()))
    at_places = net.logits(tokens.repeat(2, 1), condition.cat(condition.null()), places.repeat(2, 1))
    for row, label in enumerate((1, 2, 3)):
        one, alone = slice(row, row + 1), net.condition([label])
        torch.testing.assert_close(net.logits(tokens[one], alone), together[one], atol=1e-5, rtol=0)
        null = net.logits(tokens[one], alone.null())
        torch.testing.assert_close(null, together[3 + row : 4 + row], atol=1e-5, rtol=0)
        torch.testing.assert_close(at_places[row], together[row, places[row]], atol=1e-5, rtol=0)


@torch.no_grad()
def test_every_place_sees_every_known_token_and_the_class() -> None:
    net = load("halton", FILE)
    tokens = torch.full((1, 64), MASK)
    before = net.logits(tokens, net.condition([1]))
    assert ((net.logits(tokens, net.condition([2])) - before).abs().amax(-1) > 1e-3).all()
    tokens[0, 9] = 5
    assert ((net.logits(tokens, net.condition([1])) - before).abs().amax(-1) > 1e-6).all()


@torch.no_grad()
def test_registers_matter() -> None:
    one, tokens = random_model(), values()["tokens"]
    none = build(HaltonConfig(**config() | {"register": 0})).eval()
    none.load_state_dict({key: value for key, value in one.state_dict().items() if key in none.state_dict()})
    asked = one.condition([1, 2, 3])
    assert (one.logits(tokens, asked) - none.logits(tokens, asked)).abs().max() > 1e-3


@torch.no_grad()
def test_a_halved_grid_goes_in_by_blocks_and_comes_out_by_them() -> None:
    """With its gates shut the transformer passes everything through, and only the two projections are left."""
    net, tokens = random_model(proj=2), values()["tokens"]
    for block in net.layers:
        for parameter in block.mlp.parameters():
            parameter.zero_()
    condition = net.condition([1, 2, 3])
    embedded = net.tok_emb(torch.where(tokens == MASK, 64, tokens)) + net.pos_emb.weight
    blocks = rearrange(embedded, "b (h y w x) d -> b h w (d y x)", h=4, y=2, w=4, x=2)
    inner = blocks @ net.in_proj.weight.flatten(1).T
    outer = rearrange(inner @ net.out_proj.weight.flatten(1).T, "b h w (d y x) -> b (h y w x) d", y=2, x=2)
    expected = net.head(net.last_norm(outer, net.cls_emb(condition.labels_b)))[..., :64]
    torch.testing.assert_close(net.logits(tokens, condition), expected, **TOLERANCE)


@torch.no_grad()
def test_bfloat16_stays_close() -> None:
    net, golden = load("halton", FILE, dtype=torch.bfloat16), values()
    logits = net.logits(golden["tokens"], net.condition(golden["labels"]))
    assert logits.dtype == torch.float32
    assert (logits - golden["logits"][..., :64]).abs().mean() < 0.05


def test_a_fresh_model_passes_through_and_its_file_tells_its_configuration(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fresh, full = create(config())
    assert full == config()
    assert not any(block.mlp[1].weight.any() for block in fresh.layers)
    fresh.start_from_codebook(torch.linspace(-1, 1, 64)[:, None])
    assert fresh.head.weight is fresh.tok_emb.weight
    save_weights(tmp_path / "model.safetensors", fresh.state_dict(), metadata={"kind": "halton", "config": full})
    again = load("halton", tmp_path)
    assert same_weights(again, fresh) and again.config == full
    assert again.head.weight is again.tok_emb.weight


def test_only_its_own_grid_labels_and_full_grids_are_taken() -> None:
    net = load("halton", FILE)
    with pytest.raises(ValueError, match=r"^grid 4x16: Halton-MaskGIT has learned positions and knows only 8x8$"):
        net.condition([1], Grid(4, 16))
    with pytest.raises(ValueError, match=r"^prompt 'a cat': a class-conditional model takes integer labels 0\.\.9$"):
        net.condition(["a cat"])
    with pytest.raises(ValueError, match=r"^class label 10 is outside 0\.\.9$"):
        net.condition([10])
    with pytest.raises(ValueError, match=r"^16 tokens do not fill the condition's 8x8 grid$"):
        net.logits(torch.full((1, 16), MASK), net.condition([1]))


def test_a_wrong_configuration_family_or_size_is_named() -> None:
    with pytest.raises(ValueError, match=r"^halton: no weights given$"):
        load("halton", None)
    with pytest.raises(ValueError, match=r"^halton: unknown configuration 'large'; known: tiny-256, .*xlarge-384$"):
        load("halton", bare_weights(), "large")
    with pytest.raises(ValueError, match=r"^halton config: unknown key 'hiden_dim'; did you mean 'hidden_dim'\?$"):
        load("halton", bare_weights(), config() | {"hiden_dim": 32})
    with pytest.raises(ValueError, match=r"^halton config: proj: [^\n]*\(got 3\)$"):
        load("halton", bare_weights(), config() | {"proj": 3})
    with pytest.raises(ValueError, match=r"^maskgil_c2i\.safetensors: has no pos_emb\.weight; its keys are "):
        load("halton", GOLDEN / "maskgil_c2i.safetensors")
    with pytest.raises(
        ValueError, match=r"^weights in memory: pos_emb\.weight expected \(576, 1024\), got \(256, 1024\)$"
    ):
        load("halton", meta_weights("large-256"), "large-384", device="meta")
    with pytest.raises(ValueError, match=r"^weights in memory: the number of heads cannot be told from width 32; "):
        load("halton", bare_weights())
    with pytest.raises(ValueError, match=r"^weights in memory: pos_emb\.weight has 60 rows, which is no square grid$"):
        load("halton", bare_weights() | {"pos_emb.weight": torch.zeros(60, 32)})
    with pytest.raises(ValueError, match=r"^proj 2 halves the grid, and input_size 7 is odd$"):
        build(HaltonConfig(**config() | {"proj": 2, "input_size": 7}))
    with pytest.raises(ValueError, match=r"^hidden_dim 32 is narrower than 64 heads$"):
        build(HaltonConfig(**config() | {"heads": 64}))


@pytest.mark.parametrize("part", ["tok_emb", "pos_emb", "cls_emb", "reg_tokens", "transformer.layers.0", "head.bias"])
def test_weights_without_one_of_their_parts_are_refused_in_one_line(part: str) -> None:
    state = {key: tensor for key, tensor in bare_weights().items() if not key.startswith(part)}
    with pytest.raises(ValueError, match=r"^weights in memory: (missing|has no) [^\n]+$"):
        load("halton", state, config())


def hybrid_sampler() -> HybridSampler:
    return HybridSampler(load("llamagen", GOLDEN / "llamagen_c2i.safetensors"), load("halton", FILE), FakeTokenizer(64))


def test_completes_what_llamagen_began() -> None:
    fill = Fill(12, "halton", order="halton", noise=0, sampling=Sampling(Guidance(3.0), 0.887))
    line = hybrid_sampler()
    prefix = Sampling(Guidance(4.0), top_k=20)
    together = line.generate([1, 2], seeds=[5, 6], ar_fraction=0.25, prefix=prefix, fill=fill)
    assert together.images.shape == (2, 3, 16, 16) and together.grid == Grid(8, 8)
    assert (together.origin[:, :16] == FROM_AR).all() and (together.origin[:, 16:] > FROM_AR).all()
    pure = line.generate([1, 2], seeds=[5, 6], ar_fraction=1, prefix=prefix, fill=fill, grid=Grid(8, 8))
    assert torch.equal(together.tokens[:, :16], pure.tokens[:, :16])
    alone = line.generate([2], seeds=[6], ar_fraction=0.25, prefix=prefix, fill=fill)
    assert torch.equal(alone.tokens[0], together.tokens[1])


def test_reveals_in_the_originals_order_and_counts() -> None:
    fill = Fill(12, "halton", order="halton", noise=0)
    result = hybrid_sampler().generate([1], seeds=[5], ar_fraction=0, fill=fill, decode=False)
    rows, columns = values()["halton_order_8"].T
    passes = torch.repeat_interleave(torch.arange(1, 13), torch.tensor(reveal_counts("halton", 12, 64)))
    assert torch.equal(result.origin[0, rows * 8 + columns], passes)
