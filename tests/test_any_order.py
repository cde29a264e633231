"""RandAR and ARPG against the originals' values, full-size shapes, what is refused, and as completers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeTokenizer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hybrid.adapters import load
from hybrid.adapters.any_order import AnyOrderConfig, known_tokens, prefix_and_queries_mask
from hybrid.adapters.arpg import build as build_arpg
from hybrid.adapters.conditions import ClassCondition
from hybrid.adapters.randar import build as build_randar
from hybrid.orders import halton_order
from hybrid.phases import Fill, Sampling, masked_fill
from hybrid.sampler import HybridSampler
from hybrid.sampling import Guidance
from hybrid.types import FROM_AR, MASK, Grid, MaskedModel

GOLDEN = Path(__file__).parent / "golden"
SHAPES: dict[str, dict[str, Any]] = json.loads((GOLDEN / "layer_shapes.json").read_text())
SIZES = [
    ("randar", "L-llamagen"),
    ("randar", "XL-llamagen"),
    ("randar", "L-maskgit"),
    ("arpg", "L"),
    ("arpg", "XL"),
    ("arpg", "XXL"),
]
BLOCK = r"^((?:blocks|layers)[a-z_.]*)\.\d+\."
TOLERANCE: dict[str, float] = {"atol": 1e-4, "rtol": 0}
PLACES, CODES, SQUARE = 36, 64, Grid(6, 6)
both = pytest.mark.parametrize("kind", ["randar", "arpg"])


def file_of(kind: str) -> Path:
    return GOLDEN / f"{kind}_c2i.safetensors"


def values(kind: str) -> dict[str, Tensor]:
    golden = load_file(file_of(kind))
    return golden | {"tokens": torch.where(golden["codes"] == CODES, MASK, golden["codes"])}


def config(kind: str) -> dict[str, Any]:
    with safe_open(file_of(kind), "pt") as file:
        return json.loads(file.metadata()["config"])


def bare_weights(kind: str) -> dict[str, Tensor]:
    return {key.removeprefix("model."): t for key, t in load_file(file_of(kind)).items() if key.startswith("model.")}


def model(kind: str) -> Any:
    return load(kind, file_of(kind))


def conditions(kind: str, net: Any) -> ClassCondition:
    """The golden labels; the last one is the null class, which nobody can ask for by its number."""
    labels = values(kind)["labels"]
    assert labels[-1] == net.classes
    return replace(net.condition([0] * len(labels)), labels_b=labels)


# The original's values


@both
@torch.no_grad()
def test_unknown_places_equal_the_original(kind: str) -> None:
    net, golden = model(kind), values(kind)
    unknown, asked = golden["tokens"] == MASK, conditions(kind, net)
    assert unknown.sum(1).tolist() == [36, 27, 16, 1]
    for condition, name in ((asked, "logits"), (asked.null(), "logits_uncond")):
        logits = net.logits(golden["tokens"], condition)
        assert logits.shape == (4, PLACES, CODES) and logits.dtype == torch.float32
        torch.testing.assert_close(logits[unknown], golden[name][unknown], **TOLERANCE)


@both
@torch.no_grad()
def test_a_query_does_not_depend_on_which_others_are_asked(kind: str) -> None:
    net, golden = model(kind), values(kind)
    whole = net.logits(golden["tokens"], conditions(kind, net))
    places = torch.stack([(row == MASK).nonzero().flatten()[[-1, 0]] for row in golden["tokens"]])
    two = net.logits(golden["tokens"], conditions(kind, net), places)
    torch.testing.assert_close(two, whole.gather(1, places[..., None].expand(-1, -1, CODES)), atol=1e-5, rtol=0)


@both
@pytest.mark.parametrize("scale", [1, 4])
@torch.inference_mode()
def test_one_place_a_pass_along_the_prefixs_own_order_is_the_originals_loop(kind: str, scale: int) -> None:
    net, golden = model(kind), values(kind)
    asked = net.condition([3, 0, 9])
    fill = Fill(PLACES, order="halton", noise=0, sampling=Sampling(Guidance(scale), temperature=0))
    nothing, uniforms = torch.full((3, PLACES), MASK), torch.zeros(3, PLACES, 2, PLACES)
    tokens, _, passes = masked_fill(net, asked, asked.null(), nothing, uniforms, fill)
    assert passes == PLACES
    assert torch.equal(tokens, golden[f"greedy_cfg{scale}"])


# What the models are


@both
def test_is_a_masked_model_in_eval_mode_that_tells_its_configuration(kind: str) -> None:
    net = model(kind)
    assert isinstance(net, MaskedModel) and not net.training
    assert (net.codebook_size, net.grid, net.device) == (CODES, SQUARE, torch.device("cpu"))
    assert net.config == AnyOrderConfig(**config(kind)).model_dump()
    condition = net.condition([1, 2], SQUARE)
    assert condition.grid == SQUARE and condition.null().labels_b.tolist() == [10, 10]
    assert len([block for block in net.layers if isinstance(block, torch.nn.Module)]) == config(kind)["n_layer"]


@both
@torch.no_grad()
def test_one_image_of_a_batch_equals_it_alone(kind: str) -> None:
    net, golden, asked = model(kind), values(kind), conditions(kind, model(kind))
    together = net.logits(golden["tokens"].repeat(2, 1), asked.cat(asked.null()))
    for row in range(4):
        one = slice(row, row + 1)
        alone = replace(asked, labels_b=asked.labels_b[one])
        unknown = golden["tokens"][row] == MASK
        for condition, index in ((alone, row), (alone.null(), 4 + row)):
            logits = net.logits(golden["tokens"][one], condition)
            torch.testing.assert_close(logits[0, unknown], together[index, unknown], **TOLERANCE)


@both
@torch.no_grad()
def test_every_known_token_and_the_class_matter_to_every_unknown_place(kind: str) -> None:
    net, tokens = model(kind), values(kind)["tokens"][2:3]
    unknown = (tokens == MASK).nonzero()[:, 1][None]
    before = net.logits(tokens, net.condition([1]), unknown)
    assert ((net.logits(tokens, net.condition([2]), unknown) - before).abs().amax(-1) > 1e-4).all()
    for place in (tokens != MASK).nonzero()[:, 1].tolist():
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % CODES
        assert ((net.logits(changed, net.condition([1]), unknown) - before).abs().amax(-1) > 1e-6).all()


@both
@torch.no_grad()
def test_bfloat16_stays_close(kind: str) -> None:
    net, golden = load(kind, file_of(kind), dtype=torch.bfloat16), values(kind)
    unknown = golden["tokens"] == MASK
    logits = net.logits(golden["tokens"], conditions(kind, net))
    assert logits.dtype == torch.float32
    assert (logits - golden["logits"])[unknown].abs().mean() < 0.05


def test_known_tokens_stand_in_halton_order_and_short_rows_are_padded() -> None:
    grid = Grid(2, 3)
    order = halton_order(2, 3).tolist()
    tokens = torch.tensor([[7, MASK, 8, MASK, 9, MASK], [MASK] * 6, [MASK, MASK, 5, MASK, MASK, MASK]])
    known = known_tokens(tokens, grid)
    assert known.counts_b.tolist() == [3, 0, 1]
    assert known.places_bk[0].tolist() == [place for place in order if place in (0, 2, 4)]
    assert known.tokens_bk[0].tolist() == [int(tokens[0, place]) for place in known.places_bk[0]]
    assert (known.places_bk[2, 0], known.tokens_bk[2].tolist()) == (2, [5, 0, 0])
    assert known_tokens(tokens[1:2], grid).places_bk.shape == (1, 0)


def test_the_mask_of_a_prefix_and_its_queries() -> None:
    mask = prefix_and_queries_mask(3, 2, torch.tensor([3, 1]))
    assert mask.shape == (2, 1, 5, 5)
    causal = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]
    assert mask[0, 0].int().tolist() == [*causal, [1, 1, 1, 1, 0], [1, 1, 1, 0, 1]]
    assert mask[1, 0].int().tolist() == [*causal, [1, 0, 0, 1, 0], [1, 0, 0, 0, 1]]


# Files and sizes


def layers(net: torch.nn.Module) -> dict[str, list[Any]]:
    """Keys with ``*`` for a block's number, each with how many there are and their shape."""
    found: dict[str, list[Any]] = {}
    for key, tensor in net.state_dict().items():
        entry = found.setdefault(re.sub(BLOCK, r"\1.*.", key), [0, list(tensor.shape)])
        entry[0] += 1
        assert entry[1] == list(tensor.shape)
    return found


@pytest.mark.parametrize(("kind", "size"), SIZES)
def test_full_size_shapes_by_name_and_as_the_weights_tell_them(kind: str, size: str) -> None:
    with torch.device("meta"):
        build = build_randar if kind == "randar" else build_arpg
        module = __import__(f"hybrid.adapters.{kind}", fromlist=["CONFIGS"])
        state = build(AnyOrderConfig(**module.CONFIGS[size])).state_dict()
    by_name = load(kind, state, size, device="meta")
    inferred = load(kind, state, device="meta")
    assert layers(by_name) == layers(inferred) == SHAPES[f"{kind}-{size}"]
    assert by_name.grid == inferred.grid == Grid(16, 16)
    assert by_name.head_dim == inferred.head_dim == 64


@pytest.mark.parametrize(("size", "millions"), [("L", 320), ("XL", 719), ("XXL", 1302)])
def test_arpg_has_the_parameters_that_its_authors_state(size: str, millions: float) -> None:
    total = sum(count * torch.Size(shape).numel() for count, shape in SHAPES[f"arpg-{size}"].values())
    assert total / 1e6 == pytest.approx(millions, abs=0.5)


@both
@pytest.mark.parametrize("wrapper", ["", "model", "module"])
def test_loads_the_originals_files(kind: str, wrapper: str, tmp_path: Path) -> None:
    state = bare_weights(kind)
    if wrapper:
        path = tmp_path / "arpg_300m.pt"
        torch.save({wrapper: state, "steps": 3, "optimizer": {"step": torch.ones(1)}}, path)
    else:
        path = tmp_path / "randar_0.3b_llamagen_360k_bs_1024_lr_0.0004.safetensors"
        save_file(state, path)
    a, b = load(kind, path, config(kind)).state_dict(), model(kind).state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# What is refused


@both
def test_only_its_own_grid_labels_and_full_grids_are_taken(kind: str) -> None:
    net, name = model(kind), {"randar": "RandAR", "arpg": "ARPG"}[kind]
    with pytest.raises(ValueError, match=rf"^grid 4x9: {name} was trained on 6x6 only$"):
        net.condition([1], Grid(4, 9))
    with pytest.raises(ValueError, match=r"^prompt 'a cat': a class-conditional model takes integer labels 0\.\.9$"):
        net.condition(["a cat"])
    with pytest.raises(ValueError, match=r"^class label 10 is outside 0\.\.9$"):
        net.condition([10])
    with pytest.raises(ValueError, match=r"^16 tokens do not fill the condition's 6x6 grid$"):
        net.logits(torch.full((1, 16), MASK), net.condition([1]))


@both
def test_a_wrong_configuration_family_or_size_is_named(kind: str) -> None:
    state = bare_weights(kind)
    with pytest.raises(ValueError, match=rf"^{kind}: no weights given$"):
        load(kind, None)
    with pytest.raises(ValueError, match=rf"^{kind}: unknown configuration 'S'; known: L"):
        load(kind, state, "S")
    with pytest.raises(ValueError, match=rf"^{kind} config: unknown key 'n_layers'; did you mean 'n_layer'\?$"):
        load(kind, state, config(kind) | {"n_layers": 2})
    with pytest.raises(ValueError, match=rf"^{kind} config: n_head: [^\n]*\(got 0\)$"):
        load(kind, state, config(kind) | {"n_head": 0})
    with pytest.raises(ValueError, match=r"^block_size 35 is no square grid$"):
        load(kind, state, config(kind) | {"block_size": 35})
    with pytest.raises(ValueError, match=r"^dim 32 does not give 16 heads a width that is a multiple of 4$"):
        load(kind, state, config(kind) | {"n_head": 16})
    with pytest.raises(ValueError, match=r"^weights in memory: the number of heads cannot be told from width 32; "):
        load(kind, state)
    with pytest.raises(ValueError, match=r"^weights in memory: [^\n]*expected \(\d+, 32\), got \(\d+, 32\)"):
        load(kind, state, config(kind) | {"vocab_size": 65})
    with pytest.raises(ValueError, match=r"^llamagen_c2i\.safetensors: has no [^\n]+; its keys are "):
        load(kind, GOLDEN / "llamagen_c2i.safetensors")


def test_an_odd_number_of_layers_cannot_be_halved() -> None:
    with pytest.raises(ValueError, match=r"^n_layer 5: half of ARPG's layers go to each decoder; use an even number$"):
        build_arpg(AnyOrderConfig(**config("arpg") | {"n_layer": 5}))


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("randar", "tok_embeddings"),
        ("randar", "cls_embedding"),
        ("randar", "pos_instruct_embeddings"),
        ("randar", "layers.1"),
        ("arpg", "embeddings"),
        ("arpg", "layers.self_dec.0"),
        ("arpg", "layers.cross_dec.2"),
        ("arpg", "layers.to_k"),
    ],
)
def test_weights_without_one_of_their_parts_are_refused_in_one_line(kind: str, part: str) -> None:
    state = {key: tensor for key, tensor in bare_weights(kind).items() if not key.startswith(part)}
    with pytest.raises(ValueError, match=r"^weights in memory: (missing|has no) [^\n]+$"):
        load(kind, state, config(kind))


# As completers


@both
def test_completes_what_llamagen_began(kind: str) -> None:
    line = HybridSampler(load("llamagen", GOLDEN / "llamagen_c2i.safetensors"), model(kind), FakeTokenizer(CODES))
    prefix = Sampling(Guidance(4.0), top_k=20)
    fill = Fill(6, "cosine", "continue", order="random", noise=0, sampling=Sampling(Guidance(4.0, "linear")))
    together = line.generate([1, 2], seeds=[5, 6], ar_fraction=0.25, prefix=prefix, fill=fill)
    assert together.grid == SQUARE and together.phases.passes["fill"] == 6
    assert (together.origin[:, :9] == FROM_AR).all() and (together.origin[:, 9:] > FROM_AR).all()
    pure = line.generate([1, 2], seeds=[5, 6], ar_fraction=1, prefix=prefix, fill=fill, grid=SQUARE)
    assert torch.equal(together.tokens[:, :9], pure.tokens[:, :9])
    alone = line.generate([2], seeds=[6], ar_fraction=0.25, prefix=prefix, fill=fill)
    assert torch.equal(alone.tokens[0], together.tokens[1])


@both
def test_fills_holes_that_differ_between_the_images_of_a_batch(kind: str) -> None:
    line = HybridSampler(None, model(kind), FakeTokenizer(CODES))
    given = torch.randint(0, CODES, (2, PLACES), generator=torch.Generator().manual_seed(0))
    keep = torch.ones(2, PLACES, dtype=torch.bool)
    keep[0, :20], keep[1, 30:] = False, False
    fill = Fill(4, noise=0)
    drawn = line.generate([1, 2], seeds=[5, 6], ar_fraction=0, fill=fill, tokens=given, keep=keep)
    assert torch.equal(drawn.tokens[keep], given[keep])
    alone = line.generate([2], seeds=[6], ar_fraction=0, fill=fill, tokens=given[1:], keep=keep[1:])
    assert torch.equal(alone.tokens[0], drawn.tokens[1])
