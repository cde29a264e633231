"""MaskGIL: the released layout against the original's values, and the paper's form against LlamaGen's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from hybrid.adapters import load
from hybrid.adapters.llamagen import LlamaGen
from hybrid.adapters.llamagen import build as build_llamagen
from hybrid.adapters.maskgil import CONFIGS, MaskGIL, MaskGILConfig, build, create
from hybrid.adapters.transformer_config import TransformerConfig
from hybrid.checkpoint import WRAPPERS, save_weights
from hybrid.types import MASK, Grid, MaskedModel

GOLDEN = Path(__file__).parent / "golden"
FILE = GOLDEN / "maskgil_c2i.safetensors"
SHAPES = {
    name.removeprefix("maskgil-"): shapes
    for name, shapes in json.loads((GOLDEN / "checkpoint_shapes.json").read_text()).items()
    if name.startswith("maskgil-")
}
TOLERANCE: dict[str, float] = {"atol": 1e-4, "rtol": 0}
SMALL = {"dim": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64, "block_size": 16, "multiple_of": 32}
CLASSES = SMALL | {"num_classes": 10}
TEXT = SMALL | {"model_type": "t2i", "cls_token_num": 6, "caption_dim": 24}
PAPER = {"rope": "2d", "qk_norm": True, "post_norm": True}


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


def random_weights(module: torch.nn.Module) -> None:
    """Large enough that every part matters."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(module.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.2 * noise if "norm" in name else 0.3 * noise


def paper(fields: dict[str, Any]) -> MaskGIL:
    net = build(MaskGILConfig(**fields)).eval().requires_grad_(False)
    random_weights(net)
    return net


def captions(count: int = 3) -> tuple[Tensor, Tensor]:
    """Embeddings of captions with 6, 4, 2, … real tokens, padded on the left."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(6) >= 2 * torch.arange(count)[:, None]
    return torch.randn(count, 6, 24, generator=generator), mask.long()


def half_masked(grid: Grid, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(64, (batch, grid.places), generator=generator)
    return torch.where(torch.rand(tokens.shape, generator=generator) < 0.5, MASK, tokens)


def same_weights(one: MaskGIL, other: MaskGIL) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@torch.no_grad()
def test_equals_the_original() -> None:
    golden, net = values(), load("maskgil", FILE)
    condition = net.condition(golden["labels"])
    assert (golden["tokens"] == MASK).any() and (golden["tokens"] != MASK).any()
    for asked, name in ((condition, "logits"), (condition.null(), "logits_uncond")):
        torch.testing.assert_close(net.logits(golden["tokens"], asked), golden[name][..., :64], **TOLERANCE)


@torch.no_grad()
def test_given_places_equal_the_original_in_any_order() -> None:
    golden, net = values(), load("maskgil", FILE)
    places = torch.tensor([[255, 0, 7], [3, 3, 200], [1, 128, 2]])
    expected = golden["logits"].gather(1, places[..., None].expand(-1, -1, 65))[..., :64]
    got = net.logits(golden["tokens"], net.condition(golden["labels"]), places)
    torch.testing.assert_close(got, expected, **TOLERANCE)


def test_is_a_masked_model_in_eval_mode() -> None:
    net = load("maskgil", FILE)
    assert isinstance(net, MaskedModel)
    assert net.codebook_size == 64 and not net.training
    assert net.condition([1]).grid == Grid(16, 16)


@torch.no_grad()
def test_the_mask_can_never_be_drawn() -> None:
    state = bare_weights()
    state["output.weight"][64] = 1000 * state["output.weight"][0].sign()  # the mask's column would always win
    net = load("maskgil", state, config())
    logits = net.logits(values()["tokens"], net.condition(values()["labels"]))
    assert logits.shape == (3, 256, net.codebook_size)
    torch.testing.assert_close(logits, values()["logits"][..., :64], **TOLERANCE)


@pytest.mark.parametrize("prefix", ["", "model_state_dict.", "module.", "_orig_mod."])
def test_loads_a_mapping_whatever_its_prefix(prefix: str) -> None:
    state = {f"{prefix}{key}": tensor for key, tensor in bare_weights().items()}
    assert same_weights(load("maskgil", state, config()), load("maskgil", FILE))


@pytest.mark.parametrize("wrapper", [None, *WRAPPERS])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_loads_the_original_file_format(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    state = {f"{prefix}{key}": tensor for key, tensor in bare_weights().items()}
    beside = {"iter": 5, "global_epoch": 1, "optimizer_state_dict": {"state": {0: torch.ones(1)}}}
    torch.save(state if wrapper is None else {wrapper: state} | beside, tmp_path / "maskgil.pth")
    assert same_weights(load("maskgil", tmp_path / "maskgil.pth", config()), load("maskgil", FILE))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("inferred", [False, True])
def test_full_size_shapes(name: str, inferred: bool) -> None:
    if inferred:
        state = {key: torch.empty(shape, device="meta") for key, shape in SHAPES[name].items()}
        net = load("maskgil", state, device="meta")
        assert net.rope == "1d" and net.head_dim == 64
    else:
        with torch.device("meta"):
            net = build(MaskGILConfig(**CONFIGS[name]))
    assert {key: list(tensor.shape) for key, tensor in net.state_dict().items()} == SHAPES[name]


@pytest.mark.parametrize("name", ["paper-c2i-B", "paper-t2i-XL"])
def test_the_papers_sizes_are_told_by_their_weights(name: str) -> None:
    with torch.device("meta"):
        named = build(MaskGILConfig(**CONFIGS[name]))
    told = load("maskgil", named.state_dict(), device="meta")
    assert {k: v.shape for k, v in told.state_dict().items()} == {k: v.shape for k, v in named.state_dict().items()}
    for attribute in ("rope", "classes", "text_tokens", "grid", "head_dim", "keep_condition_rope"):
        assert getattr(told, attribute) == getattr(named, attribute)
    assert told.layers[0].post_norm


@pytest.mark.parametrize(("name", "millions"), [("c2i-XL-256", 775), ("paper-t2i-XL", 778)])
def test_the_papers_775_million(name: str, millions: int) -> None:
    with torch.device("meta"):
        net = build(MaskGILConfig(**CONFIGS[name]))
    assert sum(parameter.numel() for parameter in net.parameters()) / 1e6 == pytest.approx(millions, abs=1)


def test_the_released_layout_refuses_another_grid_and_text() -> None:
    net = load("maskgil", FILE)
    with pytest.raises(ValueError, match=r"^grid 8x32: the released layout has 1-D positions and knows only 16x16$"):
        net.condition([1], Grid(8, 32))
    assert net.condition([1], Grid(16, 16)).grid == Grid(16, 16)
    with pytest.raises(
        ValueError, match=r"^the released layout \(rope: 1d\) is class-conditional; text needs rope: 2d$"
    ):
        build(MaskGILConfig(**TEXT))


@pytest.mark.parametrize("fields", [CLASSES, TEXT], ids=["c2i", "t2i"])
def test_qk_norm_adds_its_two_weights_and_post_norm_none(fields: dict[str, Any]) -> None:
    plain = set(paper(fields | {"rope": "2d"}).state_dict())
    added = {f"layers.{layer}.attention.{name}_norm.weight" for layer in (0, 1) for name in "qk"}
    assert set(paper(fields | {"rope": "2d", "qk_norm": True}).state_dict()) == plain | added
    assert set(paper(fields | {"rope": "2d", "post_norm": True}).state_dict()) == plain
    assert ("cls_embedding.uncond_embedding" in plain) is (fields is TEXT)
    assert len(paper(fields | {"rope": "2d"}).tok_emb.weight) == 65 + (11 if fields is CLASSES else 0)


@pytest.mark.parametrize(
    "switch", [{"qk_norm": False}, {"post_norm": False}, {"rope": "1d"}, {"condition_rope": "keep"}], ids=str
)
@torch.no_grad()
def test_every_switch_changes_the_outcome(switch: dict[str, Any]) -> None:
    tokens = half_masked(Grid(4, 4))
    base, other = paper(CLASSES | PAPER), paper(CLASSES | PAPER | switch)
    shared = {key: tensor for key, tensor in base.state_dict().items() if key in other.state_dict()}
    other.load_state_dict(shared, strict=True)
    outcomes = [net.logits(tokens, net.condition([1, 2, 3])) for net in (base, other)]
    assert (outcomes[0] - outcomes[1]).abs().max() > 1e-2


def test_llamagens_blocks_fit_when_both_norms_are_off() -> None:
    with safe_open(GOLDEN / "llamagen_c2i.safetensors", "pt") as file:
        blocks = {k[6:]: file.get_tensor(k) for k in file.keys() if k.startswith("model.layers.")}  # noqa: SIM118
    net = paper(CLASSES | {"rope": "2d"})
    state = net.state_dict()
    assert {key for key in state if key.startswith("layers.")} == blocks.keys()
    net = load("maskgil", state | blocks, CLASSES | {"rope": "2d"})
    assert all(torch.equal(net.state_dict()[key], tensor.float()) for key, tensor in blocks.items())


@pytest.mark.parametrize("fields", [CLASSES, TEXT], ids=["c2i", "t2i"])
@pytest.mark.parametrize("grid", [Grid(4, 4), Grid(3, 5), Grid(1, 7)], ids=str)
@pytest.mark.parametrize("rope", ["zero", "keep"])
@torch.no_grad()
def test_one_layer_sees_at_the_last_place_what_llamagen_sees_there(fields: Any, grid: Grid, rope: str) -> None:
    """With one layer and no norms of the paper, the last place's row is the same with and without a causal mask."""
    fields = fields | {"n_layer": 1, "condition_rope": rope}
    masked = paper(fields | {"rope": "2d"})
    causal: LlamaGen = build_llamagen(TransformerConfig(**fields)).eval()
    state = masked.state_dict()
    shared = {key: tensor for key, tensor in state.items() if key.startswith(("layers.", "norm.", "cls_embedding."))}
    shared |= {"tok_embeddings.weight": state["tok_emb.weight"][:64], "output.weight": state["output.weight"][:64]}
    if "num_classes" in fields:
        shared["cls_embedding.embedding_table.weight"] = state["tok_emb.weight"][65:]
    causal.load_state_dict(shared, strict=True)
    tokens = half_masked(grid).abs()
    asked: Any = [1, 2, 3] if "num_classes" in fields else captions()
    for null in (False, True):
        ours, theirs = masked.condition(asked, grid), causal.condition(asked, grid)
        ours, theirs = (ours.null(), theirs.null()) if null else (ours, theirs)
        _, cache = causal.prefill(theirs, grid.places)
        expected = causal.decode(tokens, torch.zeros(3, dtype=torch.long), cache)[:, -1]
        torch.testing.assert_close(masked.logits(tokens, ours)[:, -1], expected, **TOLERANCE)


@torch.no_grad()
def test_every_place_sees_every_known_token() -> None:
    net = paper(CLASSES | PAPER)
    condition, tokens = net.condition([1]), torch.full((1, 16), MASK)
    before = net.logits(tokens, condition)
    tokens[0, 9] = 5
    assert ((net.logits(tokens, condition) - before).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("fields", [CLASSES, TEXT], ids=["c2i", "t2i"])
@torch.no_grad()
def test_any_grid_and_its_width_matters(fields: dict[str, Any]) -> None:
    net = paper(fields | PAPER)
    tokens, asked = half_masked(Grid(2, 8)), [1, 2, 3] if fields is CLASSES else captions()
    wide, tall = (net.logits(tokens, net.condition(asked, grid)) for grid in (Grid(2, 8), Grid(8, 2)))
    assert wide.shape == tall.shape == (3, 16, 64)
    assert (wide - tall).abs().max() > 1e-2
    with pytest.raises(ValueError, match=r"^16 tokens do not fill the condition's 3x5 grid$"):
        net.logits(tokens, net.condition(asked, Grid(3, 5)))


@pytest.mark.parametrize("fields", [CLASSES, TEXT], ids=["c2i", "t2i"])
@torch.no_grad()
def test_one_image_of_a_batch_equals_it_alone(fields: dict[str, Any]) -> None:
    net, tokens = paper(fields | PAPER), half_masked(Grid(3, 5))
    asked: Any = torch.tensor([1, 2, 3]) if fields is CLASSES else captions()
    places = torch.tensor([[0, 14], [3, 2], [7, 7]])
    condition = net.condition(asked, Grid(3, 5))
    stacked = condition.cat(condition.null())
    together = net.logits(tokens.repeat(2, 1), stacked)
    at_places = net.logits(tokens.repeat(2, 1), stacked, places.repeat(2, 1))
    for row in range(3):
        one = slice(row, row + 1)
        alone = net.condition(tuple(p[one] for p in asked) if isinstance(asked, tuple) else asked[one], Grid(3, 5))
        torch.testing.assert_close(net.logits(tokens[one], alone), together[one], **TOLERANCE)
        null = net.logits(tokens[one], alone.null())
        torch.testing.assert_close(null, together[3 + row : 4 + row], **TOLERANCE)
        torch.testing.assert_close(at_places[row], together[row, places[row]], **TOLERANCE)
    assert (together[:3] - together[3:]).abs().amax((1, 2)).min() > 1e-3


@torch.no_grad()
def test_text_under_the_padding_is_never_seen_and_real_text_is() -> None:
    net, tokens, (embedding, mask) = paper(TEXT | PAPER), half_masked(Grid(4, 4)), captions()
    base = net.logits(tokens, net.condition((embedding, mask)))
    noisy = torch.where(mask[..., None] == 0, embedding + 9, embedding)
    assert torch.equal(net.logits(tokens, net.condition((noisy, mask))), base)
    embedding[:, -1] += 1
    assert ((net.logits(tokens, net.condition((embedding, mask))) - base).abs().amax((1, 2)) > 1e-3).all()
    nothing = net.condition((embedding, torch.zeros_like(mask)))
    assert torch.isfinite(net.logits(tokens, nothing)).all()


@torch.no_grad()
def test_captions_go_through_the_text_encoder() -> None:
    net, tokens = paper(TEXT | PAPER), half_masked(Grid(4, 4))

    class Encoder:
        def encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
            assert prompts == ["a", "b", "c"]
            return captions()

    net.text_encoder = Encoder()
    assert torch.equal(
        net.logits(tokens, net.condition(["a", "b", "c"])), net.logits(tokens, net.condition(captions()))
    )


def test_a_fresh_model_is_uniform_and_its_file_tells_its_whole_configuration(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fresh, full = create(TEXT | {"rope": "2d", "post_norm": True, "condition_rope": "keep", "block_size": 12})
    assert not fresh.logits(half_masked(Grid(3, 4)), fresh.condition(captions(), Grid(3, 4))).any()
    save_weights(tmp_path / "model.safetensors", fresh.state_dict(), metadata={"kind": "maskgil", "config": full})
    again = load("maskgil", tmp_path)
    assert same_weights(again, fresh) and again.config == full
    assert again.layers[0].post_norm and again.keep_condition_rope
    with pytest.raises(ValueError, match=r"^this checkpoint has no square grid of its own: pass the grid$"):
        again.condition(captions())


def test_near_codes_start_near_each_other_and_the_other_rows_stay() -> None:
    torch.manual_seed(0)
    net, _ = create(CLASSES | PAPER)
    before = net.tok_emb.weight.detach().clone()
    line = torch.linspace(-1, 1, 64)[:, None]
    net.start_from_codebook(torch.cat((line, line.square()), dim=1))
    table = net.tok_emb.weight.detach()
    assert (table[0] - table[1]).norm() < (table[0] - table[63]).norm()
    assert torch.equal(table[64:], before[64:])


def test_what_the_weights_cannot_tell_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"^weights in memory: the number of heads cannot be told from width 32; "):
        load("maskgil", bare_weights())
    with pytest.raises(ValueError, match=r"^maskgil: no weights given$"):
        load("maskgil", None)


def test_a_wrong_configuration_or_family_is_named() -> None:
    with pytest.raises(ValueError, match=r"^maskgil: unknown configuration '3B'; known: c2i-B-256, .*paper-t2i-XL$"):
        load("maskgil", bare_weights(), "3B")
    with pytest.raises(ValueError, match=r"^maskgil config: unknown key 'qknorm'; did you mean 'qk_norm'\?$"):
        load("maskgil", bare_weights(), config() | {"qknorm": True})
    with pytest.raises(
        ValueError, match=r"^maskgil_c2i\.safetensors: missing 4 of \d+ keys: layers\.0\.attention\.q_norm"
    ):
        load("maskgil", FILE, config() | {"qk_norm": True})
    with pytest.raises(ValueError, match=r"^llamagen_c2i\.safetensors: has no tok_emb\.weight; its keys are "):
        load("maskgil", GOLDEN / "llamagen_c2i.safetensors")


@pytest.mark.parametrize("part", ["tok_emb", "layers.", "layers.0", "output", "norm"])
def test_weights_without_one_of_their_parts_are_refused_in_one_line(part: str) -> None:
    state = {key: torch.empty(shape, device="meta") for key, shape in SHAPES["c2i-B-256"].items()}
    state = {key: tensor for key, tensor in state.items() if not key.startswith(part)}
    with pytest.raises(ValueError, match=r"^weights in memory: (missing|has no) [^\n]+$"):
        load("maskgil", state, device="meta")
