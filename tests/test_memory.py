"""Memory from shapes alone, against the bytes of real tensors on a tiny pair."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pairs import class_pair, text_pair
from torch import nn

from hybrid.adapters.unified import create
from hybrid.cli import main
from hybrid.memory import DRAW_BYTES, Alive, Memory, build, module_bytes, plan_pair, work_out
from hybrid.pairing import find_pair, read_pair
from hybrid.pipeline import HybridPipeline
from hybrid.sampling import draw
from hybrid.types import MASK, Grid

GRID = Grid(4, 4)
SHAPE = {"dim": 16, "n_layer": 2, "n_head": 2, "multiple_of": 8, "vocab_size": 12, "block_size": 16}


def test_what_is_alive_is_counted_and_what_is_freed_is_not() -> None:
    one = torch.ones(100)
    with Alive() as alive:
        two = one + 1  # 400 bytes; what came from outside does not count
        view = two[:50]
        three = two * 2
        del two, view
        four = three + 1
    assert alive.peak == 800 and len(four) == 100


@pytest.mark.parametrize("make", [class_pair, text_pair])
def test_weights_and_cache_are_those_of_real_tensors(make: type[HybridPipeline]) -> None:
    pipe = make()
    real = {name: sum(v.nbytes for v in (*m.parameters(), *m.buffers())) for name, m in parts(pipe).items()}
    prompts = pipe.encode(["a", "b"] if pipe.text is not None else [0, 1])
    with torch.no_grad():
        _, state = pipe.ar.prefill(pipe.ar.condition(prompts, GRID), 4)
    cache = sum(tensor.nbytes for tensor in state.cache.tensors)
    told = work_out({name: part.to("meta") for name, part in parts(pipe).items()}, GRID, batch=1)
    assert told.weights == real and told.cache == cache
    needs = [told.cache + told.phases["prefix"], told.phases["fill"], told.phases["decode"]]
    assert told.peak == sum(real.values()) + max(needs)


def parts(pipe: HybridPipeline) -> dict[str, nn.Module]:
    return {"ar": pipe.ar, "masked": pipe.masked, "tokenizer": pipe.tokenizer}


def test_the_phases_are_what_real_passes_keep_alive() -> None:
    pipe, grid = class_pair(), Grid(16, 16)
    tokens = torch.full((2, 256), MASK)
    with torch.no_grad(), Alive() as fill:
        logits = pipe.masked.logits(tokens, pipe.masked.condition([0, 1], grid), torch.arange(192).expand(2, -1))
    drawing = logits.nbytes + 192 * 12 * (DRAW_BYTES + 4)
    with torch.no_grad(), Alive() as decode:
        pipe.tokenizer.decode(torch.zeros(1, 256, dtype=torch.long), grid)
    told = work_out({name: part.to("meta") for name, part in parts(pipe).items()}, grid)
    assert told.phases["fill"] == pytest.approx(max(fill.peak, drawing), rel=0.1)
    assert told.phases["decode"] == pytest.approx(decode.peak, rel=0.1)


def test_drawing_keeps_that_many_bytes_for_each_logit() -> None:
    logits = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    with Alive() as alive:
        draw(logits, torch.full((64,), 0.5), top_k=100)
    assert alive.peak / logits.numel() == pytest.approx(DRAW_BYTES, rel=0.05)


def test_a_lumina_grid_with_a_completer() -> None:
    """Figures by hand: 7.0e9 and 0.757e9 parameters; 2 streams of 67 + 576 + 12 + 1 ids in 32 layers of width 4096."""
    told = plan_pair(read_pair(find_pair("lumina-maskgil-768")))
    assert told.weights["ar"] / 2 == pytest.approx(7.0e9, rel=0.01)
    assert told.weights["masked"] / 2 == pytest.approx(757e6, rel=0.01)
    assert told.cache == 2 * 32 * 2 * 4096 * (67 + 576 + 12 + 1) * 2
    assert told.phases["fill"] > 2 * 1728 * 8192 * 4  # the logits alone


def test_mistakes_are_one_line() -> None:
    for kind, config, message in (
        ("whisper", "L", r"memory: what a whisper is, its file alone tells; known are .*"),
        ("maskgil", None, r"memory: maskgil: the pairing does not name its size; give it a config"),
        ("movqgan", "movqgan-67M", r"movqgan config: unknown size 'movqgan-67M'; known: movqgan-270M"),
        ("chameleon-vq", {"n_embed": 8192}, r"chameleon-vq config: missing attn_resolutions, ch, .*, z_channels"),
    ):
        with pytest.raises(ValueError, match=rf"^{message}$"):
            build(kind, config, torch.float32)
    pair = read_pair(find_pair("lumina-maskgil-768"), {"grid": None})
    with pytest.raises(ValueError, match=r"^memory: the pairing names no grid$"):
        plan_pair(pair.model_copy(update={"ar": None, "masked": None}))
    fashion = read_pair(find_pair("fashion"))
    for asked, message in (
        ({"ar_fraction": -2}, r"ar_fraction -2: must be in \[0, 1\]"),
        ({"ar_tokens": 257}, r"ar_tokens 257: must be 0..256 for a 16x16 grid"),
        ({"height": 32}, r"size: give height and width together"),
        ({"height": 32, "width": 31}, r"size 31x32: width and height must be multiples of 2 pixels, from 2"),
    ):
        with pytest.raises(ValueError, match=rf"^{message}$"):
            plan_pair(fashion, **asked)  # type: ignore[arg-type]


def test_the_command_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "lumina-maskgil-768", "--plan-memory"]) == 0
    out = capsys.readouterr().out
    told = plan_pair(read_pair(find_pair("lumina-maskgil-768")))
    assert out.startswith("lumina-maskgil-768, bf16, pictures at once: 1\n")
    assert out.splitlines()[-1].split() == ["peak", f"{told.peak / 1e9:.3f}", "GB"]
    assert main(["--config", "lumina-mgpt-2", "--plan-memory"]) == 2
    assert capsys.readouterr().err.startswith("hybrid-generate: memory: lumina: the pairing does not name its size; ")
    assert main(["--plan-memory", "--dtype", "fp8"]) == 2
    assert capsys.readouterr().err == "hybrid-generate: --plan-memory: --dtype fp8: use fp32, bf16, fp16\n"


def test_the_peak_is_the_neediest_phase() -> None:
    assert Memory({"ar": 10, "masked": 5}, 7, {"prefix": 1, "fill": 9, "decode": 2}).peak == 24
    assert Memory({"ar": 10}, 7, {"prefix": 3, "decode": 9}).peak == 20


PLANNED = """
    emoji fashion llamagen-arpg-256 llamagen-halton-384 llamagen-randar-256 llamagen-t2i-256 llamagen-t2i-512
    lumina-maskgil-768 lumina-mgpt-768 rar-randar-256
"""


@pytest.mark.parametrize("name", PLANNED.split())
def test_every_shipped_pairing_that_names_its_sizes_has_a_plan(name: str) -> None:
    pair = read_pair(find_pair(name))
    one, two = plan_pair(pair), plan_pair(pair, batch=2)
    assert one.weights == two.weights and sum(one.weights.values()) > 0
    assert two.cache == 2 * one.cache > 0
    assert set(one.phases) == {"prefix", "decode"} | ({"fill"} if pair.masked is not None else set())
    assert one.peak < two.peak < 2 * one.peak


def test_an_embedded_pairs_weights_are_those_that_it_loads() -> None:
    pipe = HybridPipeline.from_pretrained("fashion")
    told = plan_pair(read_pair(find_pair("fashion")), torch.float32)
    # A network that is both models counts once, as ``ar``.
    own = {name: module for name, module in parts(pipe).items() if name != "masked" or pipe.masked is not pipe.ar}
    assert told.weights == {name: sum(v.nbytes for v in (*m.parameters(), *m.buffers())) for name, m in own.items()}


def test_a_size_in_a_mapping_is_the_one_that_is_named() -> None:
    from hybrid.adapters.vq import CHAMELEON_SIZES, MOVQGAN_SIZES

    for kind, sizes in (("chameleon-vq", CHAMELEON_SIZES), ("movqgan", MOVQGAN_SIZES)):
        for name, fields in sizes.items():
            named, told = build(kind, name, torch.bfloat16), build(kind, fields, torch.bfloat16)
            assert module_bytes(named) == module_bytes(told) > 0


def test_the_ar_models_grid_may_be_another_one() -> None:
    shape = SHAPE | {"num_classes": 5, "vocab_size": 500}
    shapes = {"ar": build("llamagen", shape, torch.float32), "masked": build("maskgil", shape, torch.float32)}
    coarse, few, many = (
        work_out(shapes, GRID, ar_grid=ar_grid, ar_tokens=length)
        for ar_grid, length in ((Grid(2, 2), 2), (GRID, 2), (GRID, 8))
    )
    assert coarse.cache == few.cache < many.cache
    assert coarse.phases["fill"] == many.phases["fill"] < few.phases["fill"]
    assert "fill" not in work_out(shapes, GRID, ar_grid=Grid(2, 2), ar_tokens=4).phases


def test_a_network_that_is_both_models_counts_once() -> None:
    pipe = class_pair()
    both = {"ar": pipe.ar.to("meta"), "masked": pipe.ar.to("meta"), "tokenizer": pipe.tokenizer.to("meta")}
    assert set(work_out(both, GRID, ar_tokens=16).weights) == {"ar", "tokenizer"}


@pytest.mark.parametrize("kind", [{"num_classes": 5}, {"model_type": "t2i", "caption_dim": 6, "cls_token_num": 3}])
def test_one_network_for_both_keeps_a_cache_of_the_whole_grid_in_the_fill(kind: dict[str, Any]) -> None:
    with torch.device("meta"):
        net = create({**SHAPE, **kind})[0]
    parts = {"ar": net, "masked": net}
    condition_tokens = kind.get("cls_token_num", 1)
    handed_over, alone = (work_out(parts, GRID, ar_tokens=length) for length in (4, 0))
    # Layers, keys and values, rows with guidance, width, tokens, bytes.
    assert handed_over.cache == 2 * 2 * 2 * 16 * (condition_tokens + 16) * 4
    assert alone.cache == 0 and alone.phases["fill"] > 0
    assert 0 < handed_over.phases["fill"] - handed_over.cache <= alone.phases["fill"]


def test_lumina_7b_at_768_with_a_775m_completer_fits_24_gb() -> None:
    assert plan_pair(read_pair(find_pair("lumina-maskgil-768"))).peak < 24e9
