"""The tokenizer's losses put together, learned codebooks, and what contradicts what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.adapters import load
from hybrid.adapters.vq import create_llamagen_vq
from hybrid.checkpoint import read_weights, save_weights
from hybrid.optimization import optimizers
from hybrid.perceptual import DISTANCES
from hybrid.run_folder import read_log
from hybrid.tokenizer_task import Adversary, TokenizerTask
from hybrid.training import Merit, train
from hybrid.types import Grid

CPU = torch.device("cpu")
VQ = {
    "kind": "llamagen-vq",
    "config": {
        "ch": 32,
        "ch_mult": [1, 1],
        "num_res_blocks": 1,
        "z_channels": 32,
        "codebook_size": 12,
        "codebook_embed_dim": 4,
    },
}
ADVERSARIAL = {"weight": 0.7, "start": 1, "width": 8, "layers": 1}


class Squared(nn.Module):
    """A distance whose value is easy to work out."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean()


@pytest.fixture(autouse=True)
def quick(no_plots: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DISTANCES, "efficientnet-lite0", Squared)


def loss(task: TokenizerTask, samples: range) -> tuple[float, dict[str, float]]:
    found, figures = task.loss(task.model, task.batch(samples, CPU))
    return found.item(), {name: value.item() for name, value in figures.items()}


def test_the_parts_add_up_with_their_weights(folder: Path) -> None:
    settings = {"feature_weight": 0.3, "adversarial": ADVERSARIAL, "codebook": {"commitment": 0.5, "entropy": 0.1}}
    task, _ = tiny.task("tokenizer", folder, model=VQ, **settings)
    plain, _ = tiny.task("tokenizer", folder, model=VQ)
    plain.codebook, plain.model = None, task.model

    reconstruction, figures = loss(plain, range(4, 8))
    assert figures.keys() == {"psnr"}
    total, figures = loss(task, range(4, 8))
    images = task.batch(range(4, 8), CPU)["images"]
    latent = task.model.latent(images)
    codes = task.model.quantise(latent)
    output = task.model.render(codes)
    assert figures["reconstruction"] == pytest.approx(reconstruction, rel=1e-5)
    assert figures["feature"] == pytest.approx(F.mse_loss(output, images).item(), rel=1e-5)
    assert figures["codebook"] == pytest.approx(1.5 * F.mse_loss(latent, codes).item(), rel=1e-5)
    assert total == pytest.approx(
        reconstruction
        + 0.3 * figures["feature"]
        + 0.7 * figures["ratio"] * figures["adversarial"]
        + figures["discriminator"]
        + figures["codebook"]
        + 0.1 * figures["entropy"],
        rel=1e-5,
    )
    assert figures["ratio"] > 0 and figures["discriminator"] == pytest.approx(1, abs=0.5)


def test_the_best_evaluation_is_by_what_is_trained_for(folder: Path) -> None:
    plain, _ = tiny.task("tokenizer", folder)
    assert plain.merit == Merit("psnr", higher=True) and "feature" not in plain.evaluate(plain.model)
    task, _ = tiny.task("tokenizer", folder, feature_weight=0.3)
    with torch.no_grad():
        found = task.evaluate(task.model)
        output = task.model.decode(task.model.encode(task.held), Grid(4, 4))
    assert task.merit == Merit("feature", higher=False)
    assert found["feature"] == pytest.approx(F.mse_loss(output, task.held).item(), rel=1e-5)


def test_the_discriminator_starts_at_its_step(folder: Path) -> None:
    task, loop = tiny.task("tokenizer", folder, adversarial=ADVERSARIAL, loop={"accumulate": 2})
    per_step = loop.batch_size * loop.accumulate
    assert loss(task, range(per_step - 4, per_step))[1]["discriminator"] == 0
    assert loss(task, range(per_step, per_step + 4))[1]["discriminator"] > 0


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("ch", "x", "a whole number above 0, got 'x'"),
        ("codebook_size", 0, "a whole number above 0, got 0"),
        ("ch_mult", 4, "a list of whole numbers above 0, got 4"),
        ("encoder_ch_mult", [1, 0], r"a list of whole numbers above 0, got \[1, 0\]"),
    ],
)
def test_sizes_that_make_no_tokenizer_are_named(field: str, value: object, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^llamagen-vq config: \w+: must be {said}$"):
        create_llamagen_vq({**VQ["config"], field: value})  # type: ignore[dict-item]


def test_a_learned_quantiser_is_the_nearest_code_with_gradients_of_its_own(folder: Path) -> None:
    torch.manual_seed(0)
    model, fields = create_llamagen_vq(VQ["config"])  # type: ignore[arg-type]
    assert model.codebook_size == 12 and fields["encoder_ch_mult"] == [1, 1] and fields["codebook_l2_norm"] is True
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    latent = model.latent(images)
    codes = model.quantise(latent)
    assert torch.allclose(latent.norm(dim=1), torch.ones(2, 4, 4))
    tokens = model.encode(images)
    assert torch.equal(codes.flatten(2).transpose(1, 2), model.codebook_kd[tokens])
    assert torch.cdist(latent.flatten(2).transpose(1, 2), model.codebook_kd).argmin(-1).equal(tokens)
    codes.sum().backward()
    used = model.quantize.embedding.weight.grad
    assert used is not None and set(used.abs().sum(1).nonzero()[:, 0].tolist()) <= set(tokens.flatten().tolist())
    assert all(value.grad is None for value in model.encoder.parameters())
    assert not model.codebook_kd.requires_grad and model.codes_kd().requires_grad


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_vq_tokenizer_trains_and_is_read_back(precision: str, folder: Path, tmp_path: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate fixes a process's precision at its first use
    adversarial = {**ADVERSARIAL, "start": 6}
    settings = {"steps": 12, "precision": precision}
    task, loop = tiny.task("tokenizer", folder, model=VQ, loop=settings, adversarial=adversarial)
    before = task.model.quantize.embedding.weight.detach().clone()
    for _ in train(task, loop, tmp_path):
        pass
    AcceleratorState._reset_state(reset_partial_state=True)
    log = read_log(tmp_path / "log.jsonl")
    assert log[-1]["reconstruction"] < log[0]["reconstruction"]
    assert not torch.equal(task.model.quantize.embedding.weight, before)
    tokenizer = load(read_weights(tmp_path / "model.safetensors")[1]["kind"], tmp_path / "model.safetensors")
    evaluated = task.evaluate(tokenizer)
    assert evaluated["psnr"] == pytest.approx(log[-1]["eval_psnr"]) and evaluated["codes_used"] <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook": {}}, "tiny.yaml: codebook: the codes of fsq are fixed; remove it"),
        ({"model": VQ, "codebook": {}, "decoder_only": True}, "tiny.yaml: codebook: stays as it is with decoder_only"),
        ({"decoder_only": True}, "tiny.yaml: decoder_only: the encoder needs weights .*; name them by --init"),
        ({"adversarial": {}}, r"adversarial.layers: 3 need pictures of 24 pixels a side, .* has 8"),
        ({"adversarial": ADVERSARIAL, "loop": {"compile": True}}, "adversarial: .* cannot be compiled"),
        ({"model": {**VQ, "config": {"chanels": 32}}}, "unknown field 'chanels'; did you mean"),
        ({"model": {**VQ, "config": "VQ-9"}}, "unknown size 'VQ-9'; known: VQ-16, VQ-8"),
        ({"model": {**VQ, "kind": "lamagen-vq"}}, "cannot train 'lamagen-vq'; did you mean 'llamagen-vq'"),
    ],
)
def test_contradictions_are_one_line(changes: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        tiny.task("tokenizer", folder, **changes)
    assert "\n" not in str(caught.value)


def test_muon_needs_transformer_blocks(folder: Path) -> None:
    task, loop = tiny.task("tokenizer", folder, loop={"optimizer": "muon"})
    with pytest.raises(
        ValueError, match="muon trains matrices of transformer blocks, and this model has none; use adamw"
    ):
        optimizers(task.model, loop)


def test_a_discriminator_does_not_go_with_fp16(folder: Path) -> None:
    task, loop = tiny.task("tokenizer", folder, adversarial=ADVERSARIAL, loop={"precision": "fp16"})
    with pytest.raises(ValueError, match=r"auxiliary network \(adversarial\) does not go with precision: fp16"):
        optimizers(task.model, loop, task.auxiliary)


def test_an_adversary_has_its_own_optimiser_outside_the_models(folder: Path) -> None:
    task, _ = tiny.task("tokenizer", folder, adversarial={**ADVERSARIAL, "lr": 0.5})
    assert isinstance(task.adversary, Adversary) and task.auxiliary is not None
    assert task.auxiliary.module is task.adversary.discriminator and task.auxiliary.lr == 0.5
    inside = {id(value) for value in task.model.parameters()}
    assert not any(id(value) in inside for value in task.auxiliary.module.parameters())


@pytest.mark.parametrize("model", [tiny.MODELS["tokenizer"], VQ], ids=["fsq", "vq"])
def test_the_decoder_alone_learns_and_every_code_stays(model: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    """To the bit, averaged weights included: what was trained on the codes goes on with the new decoder."""
    first, _ = tiny.task("tokenizer", folder, model=model)
    start = tmp_path / "start.safetensors"
    save_weights(start, first.model.state_dict(), metadata=first.export())
    model = {**model, "init": str(start)}
    task, loop = tiny.task("tokenizer", folder, decoder_only=True, loop={"steps": 4}, model=model)
    assert task.codebook is None
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    tokens = task.model.encode(task.held)
    for _ in train(task, loop, tmp_path):
        pass
    state, fields = read_weights(tmp_path / "model.safetensors")
    made = load(fields["kind"], tmp_path / "model.safetensors")
    assert torch.equal(made.encode(task.held), tokens)
    changed = {name.split(".")[0] for name, value in state.items() if not torch.equal(value, before[name])}
    assert changed == ({"decoder", "post_quant_conv"} if model["kind"] == "llamagen-vq" else {"decoder"})
