"""Integer weights: what is measured before they are accepted, with a rounding that is known."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pairs import class_pair, text_pair
from torch import nn

from hybrid import HybridPipeline
from hybrid.cli import main
from hybrid.few_rows import Int8Linear
from hybrid.picture_files import read_settings
from hybrid.quantize import TOLERANCES, Agreement, check, compare, probe, quantize_blocks, replace_weights

Change = Callable[[torch.Tensor], torch.Tensor]
LAYERS = 10  # two models of one block, which has five linear layers


def to_int8(weight: torch.Tensor) -> torch.Tensor:
    """What int8 with a scale for each row keeps."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round() * scale


def install(patch: pytest.MonkeyPatch, change: Change) -> list[nn.Linear]:
    """Int8 layers that change the weights so; the list tells which layers were replaced."""
    given: list[nn.Linear] = []

    def changed(linear: nn.Linear) -> nn.Linear:
        given.append(linear)
        made = nn.Linear(linear.in_features, linear.out_features, bias=False)
        made.weight = nn.Parameter(change(linear.weight.detach()), requires_grad=False)
        return made

    patch.setattr("hybrid.quantize.Int8Linear", changed)
    return given


def test_agreement_of_two_tables_by_hand() -> None:
    one = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 1.0]])
    assert compare(one, one * 3 + 7) == Agreement(pytest.approx(1.0), 1.0)  # neither scale nor a constant counts
    assert compare(one, -one) == Agreement(pytest.approx(-1.0), 0.0)
    half = compare(one, torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, 1.0]]))
    # Without their means the second rows are (-1, 1, 0) and (1, -1, 0).
    assert half == Agreement(pytest.approx(0.0), 0.5)


def test_below_the_tolerance_is_refused_with_the_figures() -> None:
    for scheme, least in TOLERANCES.items():
        check(least, scheme, "ar")
        for wrong in (Agreement(least.cosine - 0.001, 1.0), Agreement(1.0, least.argmax - 0.01)):
            with pytest.raises(ValueError, match=rf"^quantize {scheme}: the ar model's outputs differ [^\n]*$"):
                check(wrong, scheme, "ar")
    with pytest.raises(ValueError, match=r"cosine of the logits nan \(at least 0\.999\), same likeliest code at 0%"):
        check(Agreement(float("nan"), 0.0), "int8", "masked")


def test_blocks_alone_are_quantized_and_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    given = install(monkeypatch, to_int8)
    for made in (class_pair(), text_pair()):
        given.clear()
        heads = [model.output.weight.clone() for model in (made.ar, made.masked)]
        blocks = [model.layers[0].attention.wo.weight.clone() for model in (made.ar, made.masked)]
        found = quantize_blocks(made, "int8")
        assert len(given) == LAYERS and made.quantized == "int8"
        assert all(0.999 < value.cosine < 1 and value.argmax >= 0.9 for value in found.values())
        assert all(map(torch.equal, heads, [made.ar.output.weight, made.masked.output.weight]))
        assert not any(
            map(torch.equal, blocks, [model.layers[0].attention.wo.weight for model in (made.ar, made.masked)])
        )


@pytest.mark.parametrize("change", [torch.zeros_like, lambda weight: weight.flip(0), lambda weight: weight * torch.nan])
def test_weights_that_change_the_outputs_are_refused(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, change)
    with pytest.raises(
        ValueError, match=r"^quantize int8: the ar model's outputs differ too much: cosine of the logits"
    ):
        quantize_blocks(class_pair(), "int8")


def test_a_quantized_pairing_is_neither_cast_nor_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_pair().save_pretrained(tmp_path / "pair")
    install(monkeypatch, to_int8)
    pipe = HybridPipeline.from_pretrained(tmp_path / "pair", quantize="int8")
    with pytest.raises(ValueError, match=r"^ar: quantized; load it without quantize to write it$"):
        pipe.save_pretrained(tmp_path / "copy")
    with pytest.raises(
        ValueError, match=r"^dtype: a model with quantized weights keeps the type that it was loaded in$"
    ):
        pipe(1, dtype="bf16")


def test_the_command_quantizes_and_repeats_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_pair().save_pretrained(tmp_path / "pair")
    given = install(monkeypatch, to_int8)
    out = tmp_path / "a.png"
    asked = ["Bag", "--config", str(tmp_path / "pair"), "--quiet", "--seed", "1", "-o", str(out)]
    assert main([*asked, "--quantize", "int8"]) == 0
    assert read_settings(out).quantize == "int8" and len(given) == LAYERS
    assert main(["--from", str(out), "-o", str(tmp_path / "b.png"), "--quiet"]) == 0
    assert (
        read_settings(tmp_path / "b.png").tokens_sha256 == read_settings(out).tokens_sha256 and len(given) == 2 * LAYERS
    )


def test_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    class_pair().save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    for scheme, message in (
        ("int3", r"quantize 'int3': use int8 or int4"),
        ("int4", r"quantize int4: needs bfloat16 on CUDA, got float32 on cpu; use int8"),
    ):
        with pytest.raises(ValueError, match=rf"^{message}$"):
            HybridPipeline.from_pretrained(tmp_path, quantize=scheme)
    with pytest.raises(ValueError, match=r"^quantize int8: needs torchao \(pip install 'hybrid-imagegen\[quant\]'\)$"):
        replace_weights(class_pair().ar.to("meta"), "int8")  # any device but the CPU
    assert main(["Bag", "--config", str(tmp_path), "--quantize", "int3", "-o", str(tmp_path / "a.png")]) == 2
    assert capsys.readouterr().err == "hybrid-generate: quantize 'int3': use int8 or int4\n"


def test_int8_itself_agrees_and_draws() -> None:
    for made in (class_pair(), text_pair(), class_pair().in_dtype(torch.bfloat16)):
        found = quantize_blocks(made, "int8")
        assert all(value.cosine > 0.999 for value in found.values())
        assert (
            sum(isinstance(part, Int8Linear) for model in (made.ar, made.masked) for part in model.modules()) == LAYERS
        )
        assert made([1, 2] if made.text is None else ["a hat", "a cat"], seed=0).tokens.shape == (2, 16)


def test_torchao_is_given_the_blocks_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[nn.Module, str]] = []
    fake = ModuleType("torchao.quantization")
    told = {"quantize_": lambda *call: given.append(call), "Int8WeightOnlyConfig": lambda: "int8"}
    vars(fake).update(told, Int4WeightOnlyConfig=None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", fake)
    model = class_pair().ar.to("meta")
    replace_weights(model, "int8")
    assert given == [(model.layers, "int8")]


def test_a_kernel_of_single_steps_and_a_second_head_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both may be broken where passes over many places are right."""
    pair = class_pair()
    assert [len(logits) for logits in probe(pair, pair.ar)] == [2 * 16, 2 * 16]
    assert [len(logits) for logits in probe(pair, pair.masked)] == [2 * 8]
    whole = Int8Linear.forward
    few = lambda layer, x: whole(layer, x) * (x.shape[:-1].numel() > 2)  # noqa: E731
    monkeypatch.setattr(Int8Linear, "forward", few)
    with pytest.raises(ValueError, match="the ar model's outputs differ too much"):
        quantize_blocks(class_pair(), "int8")
