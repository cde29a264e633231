"""Lumina-mGPT against the original's values, its batched cache, its files, and what is refused."""

from __future__ import annotations

import copy
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeTokenizer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hybrid.adapters import load
from hybrid.adapters.lumina import Lumina, build
from hybrid.adapters.lumina_config import CONFIGS, LuminaConfig, find_config
from hybrid.adapters.lumina_net import rotary
from hybrid.adapters.lumina_prompt import Ids, LuminaCondition, caption_ids, size_ids
from hybrid.config import PairConfig, parse, read_yaml
from hybrid.phases import Sampling
from hybrid.sampler import HybridSampler
from hybrid.sampling import Guidance
from hybrid.types import MASK, ARModel, Grid

PATH = Path(__file__).parent / "golden" / "lumina.safetensors"
TOLERANCE: dict[str, float] = {"atol": 1e-4, "rtol": 0}
WIDE = Grid(4, 6)


@cache
def golden() -> dict[str, Tensor]:
    return load_file(PATH)


@cache
def config() -> dict[str, Any]:
    with safe_open(PATH, "pt") as file:
        return json.loads(file.metadata()["config"])


@cache
def net() -> Lumina:
    return load("lumina", PATH).requires_grad_(False)


def weights() -> dict[str, Tensor]:
    return {key: tensor for key, tensor in golden().items() if key.startswith(("model.", "lm_head."))}


def case(i: int) -> tuple[LuminaCondition, Tensor]:
    forced = golden()[f"forced_codes_{i}"]
    return net().condition([golden()[f"prompt_{i}"]], Grid(*forced.shape)), forced.flatten()[None]


def both(grid: Grid = WIDE) -> LuminaCondition:
    """Both prompts, of 9 and 14 ids, and the unconditional stream."""
    condition = net().condition([golden()["prompt_0"], golden()["prompt_1"]], grid)
    return condition.cat(net().condition([golden()["prompt_0"]], grid).null())


def codes(rows: int, grid: Grid = WIDE, seed: int = 0) -> Tensor:
    return torch.randint(8192, (rows, grid.places), generator=torch.Generator().manual_seed(seed))


def greedy(condition: LuminaCondition, scale: float) -> Tensor:
    batch, length = len(condition), condition.grid.places
    logits, state = net().prefill(condition.cat(condition.null()), length)
    tokens: list[Tensor] = []
    for place in range(length):
        if place:
            logits = net().decode(tokens[-1].repeat(2)[:, None], torch.full((2 * batch,), place - 1), state)[:, -1]
        asked, null = logits[:batch], logits[batch:]
        tokens.append((null + scale * (asked - null)).argmax(-1))
    return torch.stack(tokens, dim=1)


@pytest.mark.parametrize("i", [0, 1])
def test_equals_the_original(i: int) -> None:
    condition, forced = case(i)
    for name, asked in (("logits", condition), ("logits_uncond", condition.null())):
        logits = net().score(forced, asked)
        assert logits.shape == (1, forced.shape[1], 8192)
        torch.testing.assert_close(logits[0, :, :256], golden()[f"{name}_{i}"], **TOLERANCE)
    for scale in (1, 4):
        assert torch.equal(greedy(condition, scale)[0], golden()[f"codes_{i}_cfg{scale}"].flatten())


@pytest.mark.parametrize("i", [0, 1])
@pytest.mark.parametrize("scale", [1, 4])
def test_the_hybrid_sampler_draws_the_original_codes(i: int, scale: int) -> None:
    expected = golden()[f"codes_{i}_cfg{scale}"]
    sampling = Sampling(guidance=Guidance(scale=scale), temperature=0)
    drawn = HybridSampler(net(), None, FakeTokenizer(8192)).generate(
        [golden()[f"prompt_{i}"]], seeds=[0], grid=Grid(*expected.shape), prefix=sampling, decode=False
    )
    assert torch.equal(drawn.tokens[0], expected.flatten())
    assert drawn.phases.passes["prefix"] == expected.numel()


def test_is_an_ar_model_in_eval_mode() -> None:
    assert isinstance(net(), ARModel)
    assert net().codebook_size == 8192 and net().grid is None and not net().training
    assert net().device == torch.device("cpu")
    assert {key: net().config[key] for key in config()} == config()
    assert len(both()) == 3 and both().grid == WIDE and len(both().null()) == 3
    assert size_ids(WIDE, Ids()) == (8806, 8807)


def test_one_image_of_a_batch_equals_it_alone() -> None:
    tokens = codes(2)
    condition = net().condition([golden()["prompt_0"], golden()["prompt_1"]], WIDE)
    together = net().score(tokens, condition)
    assert torch.equal(greedy(condition, 4)[0], golden()["codes_0_cfg4"].flatten())
    for i in (0, 1):
        alone = net().score(tokens[i : i + 1], net().condition([golden()[f"prompt_{i}"]], WIDE))
        torch.testing.assert_close(together[i : i + 1], alone, **TOLERANCE)


@pytest.mark.parametrize("window", [1, 2, 5, 6, 7, 13, 23])
def test_windows_that_cross_row_ends_equal_one_parallel_pass(window: int) -> None:
    tokens = codes(3)
    expected = net().score(tokens, both())
    logits, state = net().prefill(both(), WIDE.places)
    torch.testing.assert_close(logits, expected[:, 0], **TOLERANCE)
    for place in range(0, WIDE.places - 1, window):
        fed = tokens[:, place : min(place + window, WIDE.places - 1)]
        logits = net().decode(fed, torch.full((3,), place), state)
        torch.testing.assert_close(logits, expected[:, place + 1 : place + 1 + fed.shape[1]], **TOLERANCE)


@pytest.mark.parametrize("window", [1, 3, 6])
def test_rows_stand_at_different_places_and_forget(window: int) -> None:
    """Each row walks its own way, one of them back; a row that crosses no line end feeds an id in vain."""
    tokens = codes(3)
    expected = net().score(tokens, both())
    _, state = net().prefill(both(), WIDE.places)
    back = [2 * window, 0, window - 1]
    for places in (
        [0, 0, 0],
        [1, 0, window],
        [window + 1, window, 2 * window],
        back,
        [3 * window - 1, 1, 2 * window - 1],
    ):
        places_b = torch.tensor(places)
        state.truncate(places_b)
        assert state.filled_b.tolist() == places
        fed = torch.stack([row[place : place + window] for row, place in zip(tokens, places, strict=True)])
        logits = net().decode(fed, places_b, state)
        for row, place in enumerate(places):
            torch.testing.assert_close(logits[row], expected[row, place + 1 : place + 1 + window], **TOLERANCE)


def test_a_forgotten_draft_leaves_no_trace() -> None:
    tokens, draft = codes(3), codes(3, seed=1)
    expected = net().score(tokens, both())
    _, state = net().prefill(both(), WIDE.places)
    net().decode(tokens[:, :4], torch.zeros(3, dtype=torch.long), state)
    net().decode(draft[:, 4:24], torch.full((3,), 4), state)
    state.truncate(torch.tensor([4, 4, 4]))
    logits = net().decode(tokens[:, 4:12], torch.full((3,), 4), state)
    torch.testing.assert_close(logits, expected[:, 5:13], **TOLERANCE)


def test_a_prefix_needs_only_its_own_cache() -> None:
    tokens = codes(3)
    expected = net().score(tokens[:, :7], both())
    torch.testing.assert_close(expected, net().score(tokens, both())[:, :7], **TOLERANCE)
    torch.testing.assert_close(net().score(tokens[:, :1], both())[:, 0], expected[:, 0], **TOLERANCE)
    _, state = net().prefill(both(), 7)
    logits = net().decode(tokens[:, :7], torch.zeros(3, dtype=torch.long), state)
    torch.testing.assert_close(logits[:, :6], expected[:, 1:], **TOLERANCE)
    with pytest.raises(ValueError, match=r"^the cache holds 7 image tokens, 8 are needed$"):
        net().decode(tokens[:, 7:8], torch.full((3,), 7), state)


def test_a_full_cache_holds_the_id_that_one_row_is_fed_in_vain() -> None:
    tokens = codes(3)
    expected = net().score(tokens, both())
    _, state = net().prefill(both(), 11)
    net().decode(tokens[:, :6], torch.zeros(3, dtype=torch.long), state)
    fed = torch.stack((tokens[0, 6:11], tokens[1, 2:7], tokens[2, 6:11]))
    logits = net().decode(fed, torch.tensor([6, 2, 6]), state)
    for row, place in enumerate((6, 2, 6)):
        torch.testing.assert_close(logits[row], expected[row, place + 1 : place + 6], **TOLERANCE)


def test_wrong_places_and_tokens_are_refused() -> None:
    _, state = net().prefill(both(), 8)
    with pytest.raises(ValueError, match=r"^decode at places \[0, 1, 0\]: only \[0, 0, 0\] tokens were fed$"):
        net().decode(codes(3)[:, :1], torch.tensor([0, 1, 0]), state)
    with pytest.raises(ValueError, match=r"^a cache for 25 image tokens, but a 4x6 grid has 24 places$"):
        net().prefill(both(), 25)
    with pytest.raises(ValueError, match=r"^25 tokens are too many for a 4x6 grid$"):
        net().score(torch.zeros(3, 25, dtype=torch.long), both())
    for wrong in (MASK, 8192):
        tokens = torch.full((3, 1), wrong)
        with pytest.raises(ValueError, match=rf"^tokens {wrong}\.\.{wrong}: codes must be 0\.\.8191$"):
            net().decode(tokens, torch.zeros(3, dtype=torch.long), state)
        with pytest.raises(ValueError, match=rf"^tokens {wrong}\.\.{wrong}: codes must be 0\.\.8191$"):
            net().score(tokens, both())


def test_wrong_prompts_and_grids_are_refused() -> None:
    ids = golden()["prompt_0"]
    wrong: list[tuple[Any, Grid | None, str]] = [
        (["a cat"], WIDE, rf"{PATH.parent}: no tokenizer\.json, which captions need; put the model's own there"),
        ([3], WIDE, r"prompt 3: lumina takes a caption or a 1-D tensor of token ids"),
        (ids, WIDE, r"prompt \(\) torch\.int64: lumina takes a caption or a 1-D tensor of token ids"),
        (
            (torch.zeros(1, 4, 8), torch.ones(1, 4)),
            WIDE,
            r"prompt \(1, 4, 8\) torch\.float32: lumina takes a caption .*",
        ),
        ("a cat", WIDE, r"prompts: expected a list of captions or of 1-D tensors of token ids, got one string"),
        ([torch.tensor([0, 8840])], WIDE, r"prompt: token ids 0\.\.8840 are not in 0\.\.8839"),
        ([ids], Grid(4, 5), r"grid 4x5: both sides must be multiples of 2 tokens \(32 pixels\)"),
        ([ids], Grid(3, 4), r"grid 3x4: both sides must be multiples of 2 tokens \(32 pixels\)"),
        ([ids], Grid(4, 72), r"grid 4x72: the vocabulary of 8840 ids has no size tokens for it"),
        ([ids], None, r"this checkpoint's own grid is not known: pass the grid"),
    ]
    for prompts, grid, message in wrong:
        with pytest.raises(ValueError, match=rf"^{message}$"):
            net().condition(prompts, grid)
    with pytest.raises(ValueError, match=r"^caption '\\udcff': not valid Unicode$"):
        caption_ids("\udcff", WIDE, None, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^captions need the vocabulary: set text_tokenizer \(tokenizer\.json\), or"):
        load("lumina", weights(), config()).condition(["a cat"], WIDE)
    with pytest.raises(ValueError, match=r"^grids 4x6 and 6x2 cannot share a batch$"):
        both().cat(both(Grid(6, 2)))


def vocabulary() -> dict[str, int]:
    """Lumina's names: a code's number is spelt with A to J for its digits."""
    names = {
        f"IMGIMG{str(code).translate(str.maketrans('0123456789', 'ABCDEFGHIJ'))}Z": code + 4 for code in range(8192)
    }
    return {"<s>": 0, "<unk>": 3, **names, "a": 8200, "cat": 8201, "64": 8202, "96x": 8203}


def tokenizer(words: dict[str, int]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("x", "merged_with_previous")
    made.pre_tokenizer = pre_tokenizers.Sequence([made.pre_tokenizer, pre_tokenizers.WhitespaceSplit()])
    return made


def test_a_folder_brings_its_configuration_and_vocabulary(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "model.safetensors")
    own = {
        "architectures": ["ChameleonXLLMXForConditionalGeneration"],
        "model_type": "chameleon",
        "rope_theta": 10000.0,
    }
    other = {"vq_config": {}, "vocabulary_map": {}, "mask_image_logits": False, "torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config() | own | other | {"rope_scaling": None, "dropout": 0.05}))
    tokenizer(vocabulary()).save(str(tmp_path / "tokenizer.json"))
    model = load("lumina", tmp_path)
    condition = model.condition(["a cat"], WIDE)
    assert condition.prompts[0][[0, -3, -2, -1]].tolist() == [0, 8200, 8201, 8710]
    assert condition.prompts[0].tolist().index(8203) < condition.prompts[0].tolist().index(8202)  # width first
    assert torch.equal(model.lm_head.weight, net().lm_head.weight)
    assert load("lumina", tmp_path / "model.safetensors").text_tokenizer is not None
    grid = load("lumina", tmp_path, config() | {"resolution": 96}).condition(["a cat"]).grid
    assert grid == Grid(6, 6)


def test_broken_files_beside_the_weights_are_named(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not JSON \([^\n]*\)$"):
        load("lumina", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer \([^\n]*\)$"):
        load("lumina", tmp_path, config())


def test_a_vocabulary_whose_codes_stand_elsewhere_is_refused() -> None:
    model = copy.copy(net())
    swapped = vocabulary() | {"IMGIMGBAZ": 15, "IMGIMGBBZ": 14}
    with pytest.raises(ValueError, match=r"^vocabulary: image code 10 expected id 14, got 15$"):
        model.text_tokenizer = tokenizer(swapped)
    with pytest.raises(ValueError, match=r"^vocabulary: expected 8192 image codes \(IMGIMG…Z\), got 0$"):
        model.text_tokenizer = tokenizer({"<unk>": 3})
    model.text_tokenizer = tokenizer(vocabulary())


@pytest.mark.parametrize("name", ["7B-768", "34B-512", "7B"])
def test_full_size_keys_are_those_of_transformers(name: str) -> None:
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    fields = {key: value for key, value in CONFIGS[name].items() if key != "resolution"}
    with torch.device("meta"):
        original = ChameleonForConditionalGeneration(ChameleonConfig(**fields, vocabulary_map={"<image>": 8711}))
    shapes = {key: t.shape for key, t in original.state_dict().items() if not key.startswith("model.vqmodel.")}
    model = build(LuminaConfig(**CONFIGS[name]))
    assert {key: t.shape for key, t in model.state_dict().items()} == shapes
    side = CONFIGS[name].get("resolution", 0) // 16
    assert model.grid == (Grid(side, side) if side else None)
    billions = {"7": 7.0, "3": 34.3}[name[0]]
    assert sum(t.numel() for t in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.1)
    inferred = find_config(None, {}, None, dict(original.state_dict()), "x")
    assert inferred == LuminaConfig(**fields)


@pytest.mark.parametrize("swin_norm", [False, True])
def test_grouped_heads_and_swin_norms_equal_transformers(swin_norm: bool) -> None:
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    torch.manual_seed(0)
    fields = config() | {"num_key_value_heads": 2, "swin_norm": swin_norm}
    vq = {"base_channels": 32, "channel_multiplier": [1], "latent_channels": 8, "embed_dim": 8, "num_embeddings": 8}
    original = ChameleonForConditionalGeneration(
        ChameleonConfig(**fields, vq_config=vq, vocabulary_map={"<image>": 8711}, initializer_range=0.2)
    ).eval()
    for name, parameter in original.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.2)
    model = load("lumina", original.state_dict(), fields)
    prompt, tokens = golden()["prompt_1"], codes(1, Grid(2, 2))
    a, b, c, d = (tokens[0] + 4).tolist()
    ids = torch.cat((prompt, torch.tensor([8197, 8805, 8805, a, b, 8803, c, d])))
    with torch.no_grad():
        hidden = original.model(ids[None]).last_hidden_state[0, [-6, -5, -3, -2]]
        condition = model.condition([prompt], Grid(2, 2))
        expected = original.lm_head(hidden)[:, 4:8196]
        torch.testing.assert_close(model.score(tokens, condition)[0], expected, **TOLERANCE)
        _, state = model.prefill(condition, 4)
        logits = model.decode(tokens[:, :3], torch.zeros(1, dtype=torch.long), state)
        torch.testing.assert_close(logits[0], expected[1:], **TOLERANCE)


def test_head_norms_of_the_original_files_are_one_row_for_each_shard() -> None:
    norms = {key: tensor[:1] for key, tensor in weights().items() if "_norm." in key}
    assert len(norms) == 8
    model = load("lumina", weights() | norms, config())
    row = norms["model.layers.1.self_attn.k_norm.weight"].float()
    assert torch.equal(model.model.layers[1].self_attn.k_norm.weight, row.expand(4, 8))


def test_rotary_angles_are_exact_whatever_the_weights_are() -> None:
    table = rotary(torch.tensor([[0, 9311]]), 8, 10000.0)
    assert table.dtype == torch.float32 and table[0, 0].tolist() == [[1, 0]] * 4
    angles = [9311 / 10000 ** (pair / 4) for pair in range(4)]
    assert table[0, 1].flatten().tolist() == pytest.approx(
        [part for angle in angles for part in (math.cos(angle), math.sin(angle))], abs=1e-3
    )
    model = load("lumina", PATH, dtype=torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16
    condition, forced = case(0)
    logits = model.score(forced, condition)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits[0, :, :256], golden()["logits_0"], atol=0.2, rtol=0)
    _, state = model.prefill(condition, 24)
    assert {tensor.dtype for tensor in state.cache.tensors} == {torch.bfloat16}


def test_wrong_weights_and_configurations_are_refused() -> None:
    missing = {key: t for key, t in weights().items() if key != "model.layers.1.self_attn.q_norm.bias"}
    wrong: list[tuple[Any, Any, str]] = [
        (None, None, r"lumina: no weights given"),
        (weights(), "13B", r"lumina: unknown configuration '13B'; known: 7B-512, 7B-768, 7B-1024, 34B-512, 7B, 34B"),
        (weights(), None, r"weights in memory: 2 layers of width 32 are neither 7B nor 34B; pass its whole config"),
        (weights(), {"hiden_size": 4}, r"lumina config: unknown key 'hiden_size'; did you mean 'hidden_size'\?"),
        (
            weights(),
            config() | {"rope_scaling": {"type": "linear"}},
            r"lumina config: rope_scaling expected none, got .*",
        ),
        (weights(), config() | {"resolution": 100}, r"lumina config: resolution: .*32.*"),
        (
            weights(),
            config() | {"hidden_size": 64},
            r".*model\.embed_tokens\.weight expected \(8840, 64\), got \(8840, 32\).*",
        ),
        (missing, config(), r"weights in memory: missing 1 of \d+ keys: model\.layers\.1\.self_attn\.q_norm\.bias"),
        ({"lm_head.weight": torch.zeros(1)}, None, r"weights in memory: has no model\.embed_tokens\.weight; .*"),
    ]
    for state, fields, message in wrong:
        with pytest.raises(ValueError, match=rf"^{message}$"):
            load("lumina", state, fields)


def test_the_shipped_configuration_is_valid() -> None:
    path = Path(__file__).parents[1] / "configs" / "lumina-mgpt-768.yaml"
    pair = parse(PairConfig, read_yaml(path), str(path))
    assert pair.ar is not None and pair.ar.config == "7B-768"
    assert pair.grid == (48, 48) and pair.defaults.method == "ar"
    assert (pair.defaults.ar.guidance_scale, pair.defaults.ar.top_k, pair.defaults.ar.temperature) == (4.0, 2000, 1.0)
