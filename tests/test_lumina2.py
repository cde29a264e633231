"""Lumina-mGPT 2.0 against the original's values: its vocabulary, prompt, codes and falling guidance."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeTokenizer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from hybrid.adapters import load, lumina2
from hybrid.adapters.lumina import Lumina
from hybrid.checkpoint import save_weights
from hybrid.config import PairConfig, parse, read_yaml
from hybrid.phases import Sampling
from hybrid.sampler import HybridSampler
from hybrid.sampling import Guidance
from hybrid.types import Grid

PATH = Path(__file__).parent / "golden" / "lumina2.safetensors"
TOLERANCE: dict[str, float] = {"atol": 1e-4, "rtol": 0}
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


@cache
def golden() -> dict[str, Tensor]:
    return load_file(PATH)


@cache
def metadata() -> dict[str, str]:
    with safe_open(PATH, "pt") as file:
        return file.metadata()


def captions() -> list[str]:
    return json.loads(metadata()["captions"])


@cache
def weights() -> dict[str, Tensor]:
    """The file holds only the tables' rows that are not zero."""
    state = {key: tensor for key, tensor in golden().items() if key.startswith(("model.", "lm_head."))}
    size = json.loads(metadata()["config"])["vocab_size"]
    for key in TABLES:
        state[key] = torch.zeros(size, state[key].shape[1], dtype=torch.float16).index_copy(
            0, golden()["rows"], state[key]
        )
    return state


def write(folder: Path, *, shard_bytes: int | None = None) -> Path:
    """The folder that Hugging Face would hold."""
    save_weights(folder if shard_bytes else folder / "model.safetensors", weights(), shard_bytes=shard_bytes)
    for name in ("config", "tokenizer", "tokenizer_config"):
        (folder / f"{name}.json").write_text(metadata()[name])
    return folder


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Lumina:
    """Loaded from shards, smaller than the token table."""
    return load("lumina", write(tmp_path_factory.mktemp("lumina2"), shard_bytes=1 << 20)).requires_grad_(False)


def grid_of(i: int) -> Grid:
    return Grid(*golden()[f"forced_codes_{i}"].shape)


def test_a_folder_tells_everything(net: Lumina) -> None:
    assert (net.version, net.codebook_size, net.grid) == (2, 16384, None)
    assert net.ids.code == 155000 and net.ids.token_pixels == 8
    assert net.text_tokenizer is not None


@pytest.mark.parametrize("i", [0, 1])
def test_prompts_equal_the_original(net: Lumina, i: int) -> None:
    condition = net.condition([captions()[i]], grid_of(i))
    assert torch.equal(condition.prompts[0], golden()[f"prompt_{i}"])


@pytest.mark.parametrize("i", [0, 1])
def test_logits_equal_the_original(net: Lumina, i: int) -> None:
    forced = golden()[f"forced_codes_{i}"]
    condition = net.condition([captions()[i]], grid_of(i))
    for name, asked in (("logits", condition), ("logits_uncond", condition.null())):
        logits = net.score(forced.flatten()[None], asked)
        assert logits.shape == (1, forced.numel(), 16384)
        torch.testing.assert_close(logits[0, :, :256], golden()[f"{name}_{i}"], **TOLERANCE)


def test_the_guidance_falls_as_the_originals() -> None:
    for i in (0, 1):
        expected = golden()[f"scales_{i}_cfg100"].flatten().tolist()
        assert Guidance(100.0, "decay").along(len(expected), grid_of(i).width) == expected
        assert expected[0] > 50 and expected[-1] == 4


@pytest.mark.parametrize("i", [0, 1])
@pytest.mark.parametrize("scale", [1, 4, 100])
def test_the_sampler_draws_the_original_codes(net: Lumina, i: int, scale: int) -> None:
    expected = golden()[f"codes_{i}_cfg{scale}"]
    sampling = Sampling(Guidance(scale, "decay"), temperature=0)
    drawn = HybridSampler(net, None, FakeTokenizer(16384)).generate(
        [captions()[i]], seeds=[0], grid=grid_of(i), prefix=sampling, decode=False
    )
    assert torch.equal(drawn.tokens[0], expected.flatten())


def test_a_batch_of_both_streams_equals_each_alone(net: Lumina) -> None:
    grid = grid_of(1)
    condition = net.condition(captions(), grid)
    tokens = torch.randint(16384, (2, grid.places), generator=torch.Generator().manual_seed(0))
    together = net.score(tokens, condition)
    _, state = net.prefill(condition, grid.places)
    cached = net.decode(tokens[:, :-1], torch.zeros(2, dtype=torch.long), state)
    torch.testing.assert_close(cached, together[:, 1:], **TOLERANCE)
    for row, caption in enumerate(captions()):
        alone = net.score(tokens[row : row + 1], net.condition([caption], grid))
        torch.testing.assert_close(together[row : row + 1], alone, **TOLERANCE)


def test_wrong_grids_and_files_are_refused(net: Lumina, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^grid 6x8: both sides must be multiples of 4 tokens \(32 pixels\)$"):
        net.condition(["a"], Grid(6, 8))
    with pytest.raises(ValueError, match=r"^grid 4x400: size tokens end at 32 tokens a side$"):
        net.condition(["a"], Grid(4, 400))
    bare = load("lumina", weights(), json.loads(metadata()["config"]))
    with pytest.raises(ValueError, match=r"^the size tokens are not known: put tokenizer\.json beside the weights"):
        bare.condition([golden()["prompt_0"]], Grid(4, 8))
    write(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    model = load("lumina", tmp_path)
    assert len(model.condition([golden()["prompt_0"]], Grid(4, 8))) == 1
    with pytest.raises(ValueError, match=r"^captions need the token that begins a prompt: put tokenizer_config\.json"):
        model.condition(["a"], Grid(4, 8))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: names no bos_token or eos_token"):
        load("lumina", tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r": Lumina-mGPT 2\.0 needs its config\.json beside the weights"):
        load("lumina", tmp_path)


def test_wrong_vocabularies_and_configurations_are_refused() -> None:
    names: dict[str, Any] = json.loads(metadata()["tokenizer"])["model"]["vocab"]
    assert lumina2.read_ids(names, "<|endoftext|>").begin == 151643
    wrong: list[tuple[dict[str, int], str | None, str]] = [
        ({**names, "<racm3:break>": 8197}, None, r"<racm3:break> expected id 151665, got 8197"),
        ({key: n for key, n in names.items() if key != "<reserved08706>"}, None, r"has no <reserved08706>"),
        ({key: n for key, n in names.items() if not key.startswith("<reserved088")}, None, r"has no <reserved08801>"),
        (names, "<s>", r"has no <s>"),
    ]
    for vocabulary, begin, message in wrong:
        with pytest.raises(ValueError, match=rf"^vocabulary: {message}$"):
            lumina2.read_ids(vocabulary, begin)
    fields = json.loads(metadata()["config"])
    for changed, message in (
        ({"codebook_size": 16385}, r"codebook_size: .*at most 16384"),
        ({"version": 2, "vocab_size": 65536}, r"vocab_size: .*must be above 155000"),
        ({"model_type": "llama"}, r"model_type expected 'chameleon', got 'llama'"),
    ):
        with pytest.raises(ValueError, match=rf"^lumina config: {message}"):
            load("lumina", weights(), fields | changed)


def test_the_shipped_configuration_is_valid() -> None:
    path = Path(__file__).parents[1] / "configs" / "lumina-mgpt-2.yaml"
    pair = parse(PairConfig, read_yaml(path), str(path))
    assert pair.ar is not None and (pair.ar.kind, pair.tokenizer.config) == ("lumina", "movqgan-270M")
    drawing = pair.defaults.ar
    assert pair.grid == (96, 96) and pair.defaults.method == "ar"
    assert (drawing.guidance_scale, drawing.guidance_kind, drawing.top_k) == (4.0, "decay", 4096)
