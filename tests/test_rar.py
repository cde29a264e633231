"""RAR against the original's values, its full-size shapes, its cache, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from hybrid.adapters import load
from hybrid.adapters.rar import CONFIGS, RAR, RARConfig, build
from hybrid.phases import Sampling, ar_prefix
from hybrid.sampling import Guidance
from hybrid.types import ARModel, Grid

GOLDEN = Path(__file__).parent / "golden"
FILE = GOLDEN / "rar_c2i.safetensors"
SHAPES: dict[str, Any] = json.loads((GOLDEN / "layer_shapes.json").read_text())
BLOCK = r"^((?:blocks|layers)[a-z_.]*)\.\d+\."
TOLERANCE: dict[str, float] = {"atol": 1e-4, "rtol": 0}


def config() -> dict[str, Any]:
    with safe_open(FILE, "pt") as file:
        return json.loads(file.metadata()["config"])


def bare_weights() -> dict[str, Tensor]:
    return {key.removeprefix("model."): t for key, t in load_file(FILE).items() if key.startswith("model.")}


def golden() -> tuple[RAR, dict[str, Tensor]]:
    return load("rar", FILE), load_file(FILE)


@torch.no_grad()
def test_teacher_forced_logits_equal_the_original() -> None:
    net, values = golden()
    condition = net.condition(values["labels"])
    torch.testing.assert_close(net.score(values["tokens"], condition), values["logits"], **TOLERANCE)
    torch.testing.assert_close(net.score(values["tokens"], condition.null()), values["logits_uncond"], **TOLERANCE)
    torch.testing.assert_close(net.score(values["tokens"][:, :5], condition), values["logits"][:, :5], **TOLERANCE)


@pytest.mark.parametrize("scale", [1, 4])
@torch.inference_mode()
def test_greedy_tokens_equal_the_originals_loop(scale: int) -> None:
    net, values = golden()
    condition = net.condition(values["labels"])
    sampling = Sampling(Guidance(scale), temperature=0)
    tokens, passes = ar_prefix(net, condition, condition.null(), 36, torch.zeros(3, 36), sampling)
    assert passes == 36 and torch.equal(tokens, values[f"greedy_cfg{scale}"])


def test_is_an_ar_model_in_eval_mode_that_tells_its_configuration() -> None:
    net, _ = golden()
    assert isinstance(net, ARModel) and not net.training
    assert (net.codebook_size, net.grid, net.device) == (64, Grid(6, 6), torch.device("cpu"))
    assert net.config == config() and len(net.layers) == 2
    condition = net.condition([1, 2], Grid(6, 6))
    assert condition.grid == Grid(6, 6) and condition.null().labels_b.tolist() == [10, 10]


@pytest.mark.parametrize("widths", [[1] * 35, [3, 5, 2, 4], [36]])
@torch.no_grad()
def test_windows_of_any_width_equal_the_parallel_score(widths: list[int]) -> None:
    net, values = golden()
    condition, tokens = net.condition(values["labels"]), values["tokens"]
    logits, state = net.prefill(condition, 36)
    parts, place = [logits[:, None]], 0
    for width in widths:
        parts.append(net.decode(tokens[:, place : place + width], torch.full((3,), place), state))
        place += width
    got = torch.cat(parts, dim=1)[:, :36]  # what follows the last place means nothing
    torch.testing.assert_close(got, values["logits"][:, : place + 1], **TOLERANCE)


@torch.no_grad()
def test_rows_may_stand_at_different_places_and_truncated_tokens_leave_no_trace() -> None:
    net, values = golden()
    tokens, wrong = values["tokens"], 63 - values["tokens"]
    _, state = net.prefill(net.condition(values["labels"]), 36)
    net.decode(torch.cat((tokens[:, :5], wrong[:, 5:12]), dim=1), torch.zeros(3, dtype=torch.long), state)
    places = torch.tensor([5, 2, 4])
    state.truncate(places)
    with pytest.raises(ValueError, match=r"^decode at places \[5, 3, 4\]: only \[5, 2, 4\] tokens were fed$"):
        net.decode(tokens[:, :1], torch.tensor([5, 3, 4]), state)
    for _ in range(3):
        window = places[:, None] + torch.arange(3)
        logits = net.decode(tokens.gather(1, window), places, state)
        expected = values["logits"].gather(1, (window + 1)[..., None].expand(-1, -1, 64))
        torch.testing.assert_close(logits, expected, **TOLERANCE)
        places = places + 3


@torch.no_grad()
def test_one_image_of_a_batch_equals_it_alone() -> None:
    net, values = golden()
    for row, label in enumerate(values["labels"].tolist()):
        alone = net.score(values["tokens"][row : row + 1], net.condition([label]))
        torch.testing.assert_close(alone[0], values["logits"][row], **TOLERANCE)


@torch.no_grad()
def test_bfloat16_stays_close() -> None:
    net, values = load("rar", FILE, dtype=torch.bfloat16), load_file(FILE)
    logits = net.score(values["tokens"], net.condition(values["labels"]))
    assert logits.dtype == torch.float32
    assert (logits - values["logits"]).abs().mean() < 0.05


def test_full_size_shapes_by_name_and_as_the_weights_tell_them() -> None:
    for size in CONFIGS:
        with torch.device("meta"):
            state = build(RARConfig(**CONFIGS[size])).state_dict()
        for net in (load("rar", state, size, device="meta"), load("rar", state, device="meta")):
            assert net.grid == Grid(16, 16) and net.config == RARConfig(**CONFIGS[size]).model_dump()
            found: dict[str, list[Any]] = {}
            for key, tensor in net.state_dict().items():
                entry = found.setdefault(re.sub(BLOCK, r"\1.*.", key), [0, list(tensor.shape)])
                entry[0] += 1
                assert entry[1] == list(tensor.shape)
            assert found == SHAPES[f"rar-{size}"]


@pytest.mark.parametrize(("size", "millions"), [("B", 261), ("L", 461), ("XL", 955), ("XXL", 1499)])
def test_parameters_of_the_named_sizes_in_millions(size: str, millions: int) -> None:
    total = sum(count * torch.Size(shape).numel() for count, shape in SHAPES[f"rar-{size}"].values())
    assert total / 1e6 == pytest.approx(millions, abs=1)


def test_loads_the_originals_file(tmp_path: Path) -> None:
    torch.save(bare_weights(), tmp_path / "rar_b.bin")
    a, b = load("rar", tmp_path / "rar_b.bin").state_dict(), golden()[0].state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@torch.no_grad()
def test_nothing_is_decoded_beyond_the_grid_or_the_cache() -> None:
    net, values = golden()
    condition = net.condition(values["labels"])
    with pytest.raises(ValueError, match=r"^a cache for 37 image tokens, but a 6x6 grid has 36 places$"):
        net.prefill(condition, 37)
    with pytest.raises(ValueError, match=r"^37 tokens are too many for a 6x6 grid$"):
        net.score(torch.zeros(3, 37, dtype=torch.long), condition)
    _, state = net.prefill(condition, 4)
    with pytest.raises(ValueError, match=r"^the cache holds 4 image tokens, 5 are needed$"):
        net.decode(values["tokens"][:, :5], torch.zeros(3, dtype=torch.long), state)


def test_a_wrong_grid_prompt_configuration_or_family_is_named() -> None:
    net, state = golden()[0], bare_weights()
    with pytest.raises(ValueError, match=r"^grid 2x8: RAR was trained on 6x6 only$"):
        net.condition([1], Grid(2, 8))
    with pytest.raises(ValueError, match=r"^prompt 'a cat': a class-conditional model takes integer labels 0\.\.9$"):
        net.condition(["a cat"])
    with pytest.raises(ValueError, match=r"^rar: no weights given$"):
        load("rar", None)
    with pytest.raises(ValueError, match=r"^rar: unknown configuration 'S'; known: B, L, XL, XXL$"):
        load("rar", state, "S")
    with pytest.raises(ValueError, match=r"^rar config: unknown key 'hiden_size'; did you mean 'hidden_size'\?$"):
        load("rar", state, config() | {"hiden_size": 32})
    with pytest.raises(ValueError, match=r"^hidden_size 32 is not a multiple of num_attention_heads 5$"):
        load("rar", state, config() | {"num_attention_heads": 5})
    with pytest.raises(ValueError, match=r"^image_seq_len 15 is no square grid$"):
        load("rar", state, config() | {"image_seq_len": 15})
    with pytest.raises(ValueError, match=r"^weights in memory: missing 396 of 441 keys: [^\n]*; cls_token expected"):
        load("rar", state, "B")
    with pytest.raises(ValueError, match=r"^llamagen_c2i\.safetensors: has no target_aware_pos_embed; its keys are "):
        load("rar", GOLDEN / "llamagen_c2i.safetensors")


@pytest.mark.parametrize("part", ["cls_token", "embeddings", "pos_embed", "blocks.1", "adaln_before_head", "lm_head"])
def test_weights_without_one_of_their_parts_are_refused_in_one_line(part: str) -> None:
    state = {key: tensor for key, tensor in bare_weights().items() if not key.startswith(part)}
    with pytest.raises(ValueError, match=r"^weights in memory: (missing|has no) [^\n]+$"):
        load("rar", state, config())
