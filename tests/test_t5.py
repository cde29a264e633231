"""T5 against transformers' own output, caption cleaning against LlamaGen's, and a text-conditional pair from a YAML."""

from __future__ import annotations

import json
import logging
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

from hybrid.adapters import fsq, load
from hybrid.adapters import t5 as t5_module
from hybrid.adapters.captions import clean_caption, plain_text
from hybrid.adapters.t5 import T5
from hybrid.adapters.transformer_config import CONFIGS
from hybrid.checkpoint import save_weights
from hybrid.config import PairConfig, parse, read_yaml
from hybrid.pipeline import HybridPipeline
from hybrid.weights import PUBLISHED, resolve_weights

GOLDEN = Path(__file__).parent / "golden"
ORIGINAL: list[tuple[str, str]] = json.loads((GOLDEN / "t5_captions.json").read_text())
CAPTIONS = ["A Red Apple", "apple", "a green pear, and a red apple &amp; a pear"]
WORDS = "a red green apple pear and of the on in".split()
VOCABULARY = [
    *[(name, 0.0) for name in ("<pad>", "</s>", "<unk>")],
    *[(f"▁{word}", -1.0) for word in WORDS],
    *[(letter, -5.0) for letter in "▁abcdefghijklmnopqrstuvwxyz,."],
]


def write_tokenizer(folder: Path) -> None:
    """A Unigram tokenizer with the end token, as T5's is."""
    tokenizer = Tokenizer(Unigram(VOCABULARY, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = Metaspace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5 with its decoder, in shards, as flan-t5-xl is published."""
    path = tmp_path_factory.mktemp("t5") / "tiny-t5"
    torch.manual_seed(0)
    fields = {"d_model": 24, "d_kv": 8, "num_heads": 3, "d_ff": 32, "num_layers": 2, "vocab_size": 64}
    config = T5Config(**fields, feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(path, max_shard_size="10KB")
    write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def t5(folder: Path) -> T5:
    return load("t5", folder)


def direct(folder: Path, captions: list[str], tokens: int = 120) -> tuple[Tensor, Tensor]:
    """What transformers computes, padded on the right to ``tokens``, then rotated and masked as LlamaGen does it."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(tokens)
    tokenizer.enable_padding(length=tokens, pad_id=0, pad_token="<pad>")
    encoded = tokenizer.encode_batch([clean_caption(caption) for caption in captions])
    mask = torch.tensor([entry.attention_mask for entry in encoded])
    model = T5EncoderModel.from_pretrained(folder).eval()
    with torch.no_grad():
        hidden = model(torch.tensor([entry.ids for entry in encoded]), attention_mask=mask).last_hidden_state
    rows = [torch.roll(row, -int(length), dims=0) for row, length in zip(hidden, mask.sum(1), strict=True)]
    flipped = mask.flip(1)
    return torch.stack(rows) * flipped[..., None], flipped


@pytest.mark.parametrize(("caption", "expected"), ORIGINAL)
def test_cleaning_gives_what_the_original_gives(caption: str, expected: str) -> None:
    assert clean_caption(caption) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A Cat", "a cat"),
        ("a cat from https://example.com/cat", "a cat from"),
        ("fish &amp; chips, it&#39;s", "fish chips, it's"),
        ("***wow*** [cat] (dog)", "wow cat dog"),
        ("say “a” — ‘b’ now", "say \"a\" - 'b' now"),
        ("cafe\u0301 \ufb01ne \uff21", "caf\u00e9 fine a"),
        ("a photo.jpg 640x480 of a cat", "a of a cat"),
        ("http://example.com", ""),
    ],
)
def test_cleaning_in_short(caption: str, expected: str) -> None:
    assert clean_caption(caption) == expected


def test_text_of_markup() -> None:
    assert plain_text("<p>a<b>b</b><script>no</script><style>no</style>c<br/>&eacute;&#233;&nothing;</p>") == (
        "abcéé&nothing"
    )
    assert plain_text("a < b") == "a < b"
    assert plain_text("<b>a</b> <![ new ]>") == "<b>a</b> <![ new ]>"


def test_embeddings_equal_the_original(tmp_path: Path) -> None:
    """LlamaGen's T5Embedder and the rotation of its sampling script: cleaning, truncation, encoder and left padding."""
    path = GOLDEN / "t5_encoder.safetensors"
    golden = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    for name in ("config", "tokenizer"):
        (tmp_path / f"{name}.json").write_text(metadata[name])
    save_file({key: tensor for key, tensor in golden.items() if "caption" not in key}, tmp_path / "model.safetensors")
    embedding, mask = load("t5", tmp_path).encode(json.loads(metadata["captions"]))
    assert mask.sum(1).tolist() == [4, 2, 11, 120] and torch.equal(mask, golden["caption_mask"])
    torch.testing.assert_close(embedding, golden["caption_emb"], atol=1e-4, rtol=0)


def test_embeddings_equal_transformers(folder: Path, t5: T5) -> None:
    embedding, mask = t5.encode(CAPTIONS)
    expected, expected_mask = direct(folder, CAPTIONS)
    assert embedding.shape == (3, 120, 24) and torch.equal(mask, expected_mask)
    assert expected.abs().sum() > 100
    torch.testing.assert_close(embedding, expected, atol=1e-5, rtol=0)


def test_captions_are_padded_on_the_left_with_zeros(t5: T5) -> None:
    embedding, mask = t5.encode(["a red apple", "apple"])
    assert mask.tolist() == [[0] * 116 + [1] * 4, [0] * 118 + [1] * 2]  # the end token counts
    assert not embedding[mask == 0].any()
    assert embedding[mask == 1].abs().sum(-1).min() > 0


def test_one_caption_of_a_batch_equals_it_alone(t5: T5) -> None:
    together = t5.encode(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        alone = t5.encode([caption])
        torch.testing.assert_close(alone[0][0], together[0][row], atol=1e-5, rtol=0)
        assert torch.equal(alone[1][0], together[1][row])


def test_long_captions_are_cut_with_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    short = load("t5", folder, {"tokens": 4})
    with caplog.at_level(logging.WARNING):
        embedding, mask = short.encode(["a red apple"])
        assert mask.all() and not caplog.records
        cut, mask = short.encode(["a red apple and a pear"])
    assert cut.shape == (1, 4, 24) and mask.all()
    assert [record.getMessage() for record in caplog.records] == [
        "caption cut after 4 tokens: 'a red apple and a pear'"
    ]
    torch.testing.assert_close(cut, embedding)  # the end token stays
    expected, _ = direct(folder, ["a red apple and a pear"], tokens=4)
    torch.testing.assert_close(cut, expected, atol=1e-5, rtol=0)


def test_a_caption_that_cleaning_empties_is_warned_about(t5: T5, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        _, mask = t5.encode(["http://example.com"])
    assert mask.sum() == 1
    assert [record.getMessage() for record in caplog.records] == [
        "caption is empty after cleaning: 'http://example.com'"
    ]


def test_cleaning_can_be_left_out(folder: Path, t5: T5) -> None:
    plain = load("t5", folder, {"clean": False})
    assert torch.equal(plain.encode([" A Pear "])[0], t5.encode(["a pear"])[0])
    assert plain.encode(["(a pear)"])[1].sum() > t5.encode(["(a pear)"])[1].sum()


def test_every_layout_of_a_folder_gives_the_same(folder: Path, t5: T5, tmp_path: Path) -> None:
    expected, _ = t5.encode(CAPTIONS)
    model = T5EncoderModel.from_pretrained(folder)
    single, pickled, bare = tmp_path / "single", tmp_path / "pickled", tmp_path / "bare"
    model.save_pretrained(single)
    state = model.state_dict()
    assert {"shared.weight", "encoder.embed_tokens.weight"} <= state.keys()
    for path in (pickled, bare):
        path.mkdir()
        shutil.copy(folder / "config.json", path)
    torch.save(state, pickled / "pytorch_model.bin")
    save_weights(bare / "model.safetensors", {key: value for key, value in state.items() if key != "shared.weight"})
    for path in (single, pickled, bare):
        shutil.copy(folder / "tokenizer.json", path)
        assert torch.equal(load("t5", path).encode(CAPTIONS)[0], expected), path.name


def test_is_frozen_and_holds_the_encoder_alone(t5: T5) -> None:
    assert not t5.training and not any(parameter.requires_grad for parameter in t5.parameters())
    assert not [name for name in t5.state_dict() if "decoder" in name or "lm_head" in name]
    assert sum(name.endswith("embed_tokens.weight") for name in t5.state_dict()) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_is_that_of_the_embeddings(folder: Path, t5: T5, dtype: torch.dtype) -> None:
    half = load("t5", folder, dtype=dtype)
    embedding, _ = half.encode(CAPTIONS)
    assert embedding.dtype == dtype and embedding.isfinite().all()
    wide = {name for name, parameter in half.named_parameters() if parameter.dtype == torch.float32}
    assert all(name.endswith("wo.weight") for name in wide) and len(wide) == (2 if dtype == torch.float16 else 0)
    torch.testing.assert_close(embedding.float(), t5.encode(CAPTIONS)[0], atol=0.1, rtol=0)


def copy_without(folder: Path, path: Path, *absent: str) -> Path:
    shutil.copytree(folder, path)
    for name in absent:
        for file in path.glob(name):
            file.unlink()
    return path


def refused(path: Any, config: Any = None) -> str:
    with pytest.raises(ValueError) as caught:
        load("t5", path, config)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_is_wrong_with_a_folder_is_said_in_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "absent"
    assert refused(path) == f"{path}: no such folder; expected one of a T5 encoder, such as google/flan-t5-xl"
    path = copy_without(folder, tmp_path / "one", "config.json")
    assert refused(path) == f"{path}: no config.json; expected a folder of a T5 encoder, such as google/flan-t5-xl"
    (path / "config.json").write_text('{"model_type": "bert"}')
    assert refused(path) == f"{path / 'config.json'}: model_type: expected 't5', got 'bert'"
    (path / "config.json").write_text("{")
    assert refused(path).startswith(f"{path / 'config.json'}: not valid JSON (")
    path = copy_without(folder, tmp_path / "two", "tokenizer.json")
    assert refused(path) == f"{path}: neither tokenizer.json nor spiece.model; captions need one of them"
    (path / "spiece.model").write_bytes(b"none")
    monkeypatch.setattr(t5_module, "_installed", lambda name: name != "sentencepiece")
    assert refused(path) == (
        f"{path / 'spiece.model'}: cannot be read without sentencepiece; "
        "pip install sentencepiece protobuf, or put the model's tokenizer.json beside it"
    )
    monkeypatch.setattr(t5_module, "_installed", lambda name: True)
    assert refused(path) == f"{path / 'spiece.model'}: not a SentencePiece model"
    (path / "tokenizer.json").write_text("{}")
    assert refused(path).startswith(f"{path / 'tokenizer.json'}: not a tokenizer (")
    path = copy_without(folder, tmp_path / "three", "*.safetensors", "*.index.json")
    assert refused(path).startswith("three: no .safetensors, ")
    path = copy_without(folder, tmp_path / "four", "model-00001-*")
    assert refused(path).startswith("four: missing 1 of ")


def test_weights_and_vocabularies_of_other_models_are_refused(folder: Path, tmp_path: Path) -> None:
    path = copy_without(folder, tmp_path / "wider")
    fields = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(fields | {"d_ff": 40}))
    assert "wi_0.weight expected (40, 24), got (32, 24)" in refused(path)
    (path / "config.json").write_text(json.dumps(fields | {"vocab_size": 8}))
    assert refused(path) == f"{path / 'tokenizer.json'}: {len(VOCABULARY)} tokens, but the model embeds 8"
    (path / "config.json").write_text(json.dumps(fields))
    Tokenizer(Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0, byte_fallback=False)).save(str(path / "tokenizer.json"))
    assert refused(path) == f"{path / 'tokenizer.json'}: no token '<pad>'; expected T5's vocabulary"
    path = copy_without(folder, tmp_path / "other", "*.safetensors", "*.index.json")
    save_weights(path / "model.safetensors", {"layers.0.weight": torch.zeros(1)})
    assert refused(path) == "other: has no encoder.*; its keys are layers.0.weight"


def test_arguments_and_captions_that_cannot_be_read_are_refused(folder: Path, t5: T5) -> None:
    assert refused({"a": torch.zeros(1)}) == "t5: weights must be a folder and config a mapping"
    assert refused(None) == "t5: weights must be a folder and config a mapping"
    assert refused(folder, "xl") == "t5: weights must be a folder and config a mapping"
    assert refused(folder, {"token": 8}) == "t5 config: unknown key 'token'; did you mean 'tokens'?"
    assert refused(folder, {"tokens": 1}).startswith("t5 config: tokens: ")
    with pytest.raises(ValueError, match=r"^caption 'a \\ud800': not valid Unicode$"):
        t5.encode(["a \ud800"])


@pytest.fixture(scope="module")
def pair(folder: Path) -> Path:
    """A YAML beside a tiny T5: LlamaGen's golden text model and an untrained tokenizer of its 64 codes."""
    torch.manual_seed(0)
    model, fields = fsq.create({"factor": 2, "width": 8, "blocks": 1, "levels": [8, 8]})
    save_weights(folder.parent / "vq.safetensors", model.state_dict(), metadata={"kind": "fsq", "config": fields})
    path = folder.parent / "tiny.yaml"
    described = {
        "ar": {"kind": "llamagen", "weights": str(GOLDEN / "llamagen_t2i.safetensors")},
        "tokenizer": {"kind": "fsq", "weights": "vq.safetensors"},
        "text": {"kind": "t5", "weights": "tiny-t5"},
        "defaults": {"method": "ar", "ar": {"guidance_scale": 7.5, "top_k": 20}},
    }
    path.write_text(yaml.safe_dump(described))
    return path


def test_a_caption_is_drawn_from_a_yaml(pair: Path, t5: T5, tmp_path: Path) -> None:
    pipe = HybridPipeline.from_pretrained(pair)
    drawn = pipe("A Red Apple", seed=3)
    assert drawn.images[0].size == (8, 8) and drawn.settings["prompt"] == "A Red Apple"
    assert torch.equal(pipe("a red *apple*", seed=3).tokens, drawn.tokens)  # the same caption once cleaned
    embedded, _ = pipe.encode(["A Red Apple"])
    assert torch.equal(embedded, t5.encode(["A Red Apple"])[0])
    both = pipe(["A Red Apple", "a green pear"], seed=3, temperature=0.0, output_type="tokens").tokens
    alone = pipe("a green pear", seed=3, temperature=0.0, output_type="tokens").tokens
    assert torch.equal(both[1:], alone)
    pipe.save_pretrained(tmp_path / "saved")
    again = HybridPipeline.from_pretrained(tmp_path / "saved")
    assert torch.equal(again("A Red Apple", seed=3).tokens, drawn.tokens)


def test_another_number_of_tokens_than_the_models_is_refused(pair: Path) -> None:
    text = {"kind": "t5", "weights": "tiny-t5", "config": {"tokens": 16}}
    pipe = HybridPipeline.from_pretrained(pair, overrides={"text": text})
    with pytest.raises(ValueError, match=r"^text embeddings: expected \(b, 120, 24\), got \(1, 16, 24\)$"):
        pipe("a red apple", seed=0)


@pytest.mark.parametrize(("pixels", "stage"), [(256, 1), (512, 2)])
def test_the_shipped_configurations(pixels: int, stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(str(files("hybrid.configs"))) / f"llamagen-t2i-{pixels}.yaml"
    config = parse(PairConfig, read_yaml(path), str(path))
    assert config.ar is not None and config.text is not None
    assert config.ar.weights == f"t2i_XL_stage{stage}_{pixels}.pt" in PUBLISHED
    fields = CONFIGS[str(config.ar.config)]
    assert config.grid == (pixels // 16,) * 2 and fields["block_size"] == config.grid[0] ** 2
    assert (config.text.kind, config.text.config) == ("t5", {"tokens": fields["cls_token_num"]})
    assert config.tokenizer.weights == "vq_ds16_t2i.pt" and config.tokenizer.weights in PUBLISHED
    drawing = config.defaults.ar
    assert (config.defaults.method, drawing.guidance_scale, drawing.top_k, drawing.temperature) == ("ar", 7.5, 1000, 1)
    (tmp_path / "flan-t5-xl").mkdir()
    monkeypatch.setenv("HYBRID_WEIGHTS", str(tmp_path))
    assert resolve_weights(str(config.text.weights), path.parent) == tmp_path / "flan-t5-xl"
    with pytest.raises(ValueError, match=rf"^t2i_XL_stage{stage}_{pixels}\.pt: neither beside .*llamagen_t2i"):
        HybridPipeline.from_pretrained(path)
