"""``hybrid.speech`` and ``adapters.speech``: files, prompts, debouncing, and synthesised speech really recognised."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid.adapters.speech import QUIET, Rehearing, load_recogniser, resample
from hybrid.speech import Debounce, decode_pcm, nearest, prompt_of, read_sound, stream_sound, transcribe


def wav(raw: bytes, width: int, channels: int = 1, rate: int = 16_000) -> bytes:
    held = io.BytesIO()
    with wave.open(held, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(raw)
    return held.getvalue()


# Files


@pytest.mark.parametrize(
    ("width", "raw"),
    [
        (1, bytes([128, 192, 0])),
        (2, b"\x00\x00\x00\x40\x00\x80"),
        (3, b"\x00\x00\x00\x00\x00\x40\x00\x00\x80"),
        (4, b"\x00\x00\x00\x00\x00\x00\x00\x40\x00\x00\x00\x80"),
    ],
)
def test_every_width_gives_the_same_sound(width: int, raw: bytes) -> None:
    sound = read_sound(wav(raw, width, rate=8000))
    assert (sound.samples.tolist(), sound.rate, sound.samples.dtype) == ([0.0, 0.5, -1.0], 8000, np.float32)


def test_two_channels_are_averaged_and_half_a_frame_is_left_out() -> None:
    assert decode_pcm(b"\x00\x40\x00\x00\x00\x20", 2, 2).tolist() == [0.25]


def test_flac_is_the_same_sound(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.flac", np.array([0.0, 0.5, -1.0]), 8000)
    assert read_sound(tmp_path / "a.flac").samples.tolist() == [0.0, 0.5, -1.0]


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", "is empty; give a recording"),
        (b"RIFF", "not a"),
        (wav(b"", 2), "holds no sound"),
        (wav(b"\0\0" * 61_000, 2, rate=1000), "lasts 61 s; give at most 60 s"),
        (b"hello, this is text", "not a"),
    ],
)
def test_what_is_no_recording_is_told(data: bytes, line: str) -> None:
    with pytest.raises(ValueError, match=f"recording: {line}"):
        read_sound(data)


@pytest.mark.parametrize(
    ("frames", "channels", "rate", "line"),
    [
        (60 * 8000 + 1, 1, 8000, "lasts longer than 60 s, says its header; give less"),
        (2**36 - 1, 8, 8000, "lasts longer than 60 s, says its header; give less"),
        (2**36 - 1, 8, 96_000, "96000 Hz, channels: 8; give one or two at 16000 to 192000 Hz"),
    ],
)
def test_what_would_be_large_is_refused_by_its_header(
    frames: int, channels: int, rate: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile = pytest.importorskip("soundfile")
    held = io.BytesIO()
    soundfile.write(held, np.zeros((300, channels), np.int16), rate, format="FLAC")
    data = bytearray(held.getvalue())
    said = int.from_bytes(data[18:26], "big")  # the last 36 bits are the frames
    data[18:26] = (said >> 36 << 36 | frames).to_bytes(8, "big")
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=f"^recording: {line}$"):
        read_sound(bytes(data))


def test_a_wav_of_an_impossible_rate_is_refused_with_soundfile_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^recording: .*768001 Hz.*; give .* at 16000"):
            read_sound(wav(bytes(200), 2, rate=768_001))
        monkeypatch.setitem(sys.modules, "soundfile", None)


def test_no_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.wav: no such file"):
        read_sound(tmp_path / "none.wav")
    with pytest.raises(ValueError, match="cannot be read"):
        read_sound(tmp_path)


def test_flac_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ValueError, match="FLAC needs the package soundfile; give a WAV, or: pip install soundfile"):
        read_sound(b"fLaC....")


def test_a_pipe_is_heard_in_pieces_before_it_ends() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stream, os.fdopen(writer, "wb", buffering=0) as speaker:
        data = wav(b"\x00\x40" * 300, 2, rate=1000)
        speaker.write(data[: 44 + 200])  # 100 of 300 samples
        pieces = stream_sound(stream, 0.1, "pipe")
        first, rate = next(pieces)
        assert (len(first), rate, set(first.tolist())) == (100, 1000, {0.5})
        speaker.write(data[44 + 200 :])
        speaker.close()
        assert sum(len(piece) for piece, _ in pieces) == 200


# Prompts


@pytest.mark.parametrize(
    ("said", "prompt"),
    [
        ("Please draw me a red apple.", "a red apple"),
        ("A star.", "a star"),
        ("could you please show me a picture of a cat?", "a cat"),
        ("I'd like to see the moon", "the moon"),
        ("Please drum me a tree.", "a tree"),
        ("paint brush", "paint brush"),
        ("give me an owl", "an owl"),
        ("a drawer", "a drawer"),
        ("generate me a frog", "a frog"),
        ("Because it draw me a blue fish.", "a blue fish"),
        ("the portrait of a man who will draw me", "the portrait of a man who will draw me"),
        ("  Draw me. ", ""),
        ("...", ""),
    ],
)
def test_prompts_are_what_is_wanted_without_the_asking(said: str, prompt: str) -> None:
    assert prompt_of(said) == prompt


def test_the_nearest_name_is_found_by_letters_and_parts() -> None:
    names = ["T-shirt/top", "Trouser", "Sneaker", "Ankle boot"]
    assert [nearest(said, names) for said in ("sneakers", "a t-shirt", "an ankle boots", "top", "galaxy", "")] == [
        "Sneaker",
        "T-shirt/top",
        "Ankle boot",
        "T-shirt/top",
        None,
        None,
    ]


def test_a_text_is_due_once_after_it_stood_still() -> None:
    debounce = Debounce(0.2)
    debounce.hear("a", 0.0)
    debounce.hear("a cat", 0.1)
    assert debounce.due(0.2) is None
    debounce.hear("a cat", 0.25)
    assert debounce.due(0.35) == "a cat"
    assert debounce.due(9.0) is None
    debounce.hear("", 10.0)
    assert debounce.due(11.0) is None


# Recognisers


def test_resampling_keeps_a_tone_and_drops_what_the_lower_rate_cannot_hold() -> None:
    at = np.arange(4800) / 48_000
    low, high = np.sin(2 * np.pi * 1000 * at), np.sin(2 * np.pi * 10_000 * at)
    found = resample((low + high).astype(np.float32), 48_000, 16_000)
    assert np.allclose(found, np.sin(2 * np.pi * 1000 * np.arange(1600) / 16_000), atol=1e-5)


def test_rehearing_looks_at_everything_at_intervals_and_waits_where_looks_are_slow() -> None:
    now, looks = [0.0], []

    def text_of(samples: np.ndarray, rate: int) -> str:
        looks.append(len(samples))
        now[0] += 0.2
        return f"{len(samples)}"

    listening = Rehearing(text_of, 0.25, clock=lambda: now[0])
    piece = np.full(125, 0.5, np.float32)
    assert [listening.feed(piece, 1000) for _ in range(7)] == [None, "250", None, None, None, "750", None]
    assert (listening.finish(), listening.finish(), looks) == ("875", "875", [250, 750, 875])
    with pytest.raises(ValueError, match="keep one rate"):
        listening.feed(piece, 2000)


def test_silence_is_never_given_to_a_model() -> None:
    listening = Rehearing(lambda samples, rate: "thank you", 0.1)
    assert listening.feed(np.full(200, QUIET / 2, np.float32), 1000) == ""
    assert listening.finish() == ""


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Whisper of one layer, in a folder as transformers writes it, that answers any sound with eight letters k."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    vocabulary = {letter: place for place, letter in enumerate(sorted(ByteLevel.alphabet()))}
    end, start, last = (len(vocabulary) + place for place in range(3))
    vocabulary |= {"<|endoftext|>": end, "<|startoftranscript|>": start, "<|notimestamps|>": last}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[])
    sizes = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}
    config = WhisperConfig(
        vocab_size=len(vocabulary),
        num_mel_bins=8,
        d_model=16,
        **{f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()},
        max_source_positions=100,
        max_target_positions=16,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
        suppress_tokens=[],
        begin_suppress_tokens=[end],
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    model.generation_config.max_length = 8
    decoder = model.model.decoder
    with torch.no_grad():
        directions = torch.nn.functional.normalize(torch.randn(len(vocabulary), 16), dim=1)
        decoder.embed_tokens.weight.copy_(directions)  # its transpose makes the logits
        decoder.layer_norm.weight.zero_()
        decoder.layer_norm.bias.copy_(directions[vocabulary["k"]])
    folder = tmp_path_factory.mktemp("whisper")
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=8, chunk_length=2), tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("rate", [8_000, 16_000])
def test_a_whisper_model_of_transformers_hears_at_its_own_rate(whisper: Path, rate: int) -> None:
    recogniser = load_recogniser(str(whisper))
    heard: list[int] = []
    processor = recogniser.processor  # type: ignore[attr-defined]

    def noting(samples: np.ndarray, **options: Any) -> Any:
        heard.extend((len(samples), options["sampling_rate"]))
        return processor(samples, **options)

    noting.batch_decode = processor.batch_decode  # type: ignore[attr-defined]
    recogniser.processor = noting  # type: ignore[attr-defined]
    listening = recogniser.listen()
    assert listening.feed(np.full(rate // 2, 0.5, np.float32), rate) is None  # looks once a second
    assert set(listening.finish()) == {"k"}  # how many depends on the version of transformers
    assert heard == [8_000, 16_000]


def test_what_is_longer_than_a_model_hears_at_once_is_heard_in_parts(whisper: Path) -> None:
    recogniser = load_recogniser(str(whisper))
    lengths: list[int] = []
    words = recogniser._words  # type: ignore[attr-defined]

    def noting(heard: np.ndarray) -> str:
        lengths.append(len(heard))
        return str(words(heard))

    recogniser._words = noting  # type: ignore[attr-defined]
    alone, both = (recogniser.text_of(np.full(n, 0.5, np.float32), 16_000) for n in (32_000, 40_000))  # type: ignore[attr-defined]
    assert lengths == [32_000, 32_000, 8_000]
    assert both == f"{alone} {alone}" and set(alone) == {"k"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_whisper_of_half_precision_hears_in_full(whisper: Path, dtype: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSpeechSeq2Seq

    folder = tmp_path / "half"
    shutil.copytree(whisper, folder)
    AutoModelForSpeechSeq2Seq.from_pretrained(whisper, dtype=getattr(torch, dtype)).save_pretrained(folder)
    assert set(load_recogniser(str(folder)).text_of(np.full(8_000, 0.5, np.float32), 16_000)) == {"k"}  # type: ignore[attr-defined]


def test_broken_weights_are_told_in_one_line(whisper: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(whisper, folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"^[^\n]*cut: no speech-to-text model of transformers \([^\n]*\)$"):
        load_recogniser(str(folder))


def test_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder; give moonshine"):
        load_recogniser(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="no speech-to-text model of transformers"):
        load_recogniser(str(tmp_path))


def test_moonshine_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "moonshine_voice", None)
    with pytest.raises(ImportError, match=r"pip install 'hybrid-imagegen\[speech\]'"):
        load_recogniser("moonshine")


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("flite", ["-voice", "slt", "-t", "a star", "-o"]),
        ("espeak-ng", ["-v", "en-us", "-s", "150", "please draw me a tree", "-w"]),
    ],
)
def test_synthesised_speech_is_recognised(program: str, arguments: list[str], tmp_path: Path) -> None:
    pytest.importorskip("moonshine_voice", reason="moonshine-voice is not installed")
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    subprocess.run([program, *arguments, str(tmp_path / "said.wav")], check=True)
    found = prompt_of(transcribe((tmp_path / "said.wav").read_bytes()))
    assert found in ("a star", "a tree")


def test_silence_and_noise_have_no_words() -> None:
    pytest.importorskip("moonshine_voice", reason="moonshine-voice is not installed")
    noise = np.random.default_rng(0).normal(0, 0.05, 16_000).clip(-1, 1)
    assert transcribe(wav((noise * 32767).astype("<i2").tobytes(), 2)) == ""
    assert transcribe(wav(bytes(32_000), 2)) == ""
