"""``hybrid-generate`` with wrong input, and interrupted: one line, an exit code, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from generating import Run, files
from pairs import class_pair
from PIL import Image

from hybrid import cli_draw


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", 'no prompt; say what to draw, as in: hybrid-generate "a red apple"'),
        ("| |", "prompt: is empty; say what to draw"),
        ("sneeker", "prompt 'sneeker': not a class of tiny; did you mean 'Sneaker'? classes: Sneaker, Ankle boot, Bag"),
        ("7", "class label 7 is outside 0..2"),
        ("bag -n 0", "-n 0: must be at least 1"),
        ("bag -n 99999999999999999999", "-n 99999999999999999999: must be at most 100000"),
        ("bag --scale 99999999999", "--scale 99999999999: must be at most 64"),
        ("bag --height 100000000000000000000 --width 4", "size 4x100000000000000000000: a side has at most 65536"),
        ("bag --batch 0", "--batch 0: must be at least 1"),
        ("bag --scale 0", "--scale 0: must be at least 1"),
        ("bag -n two", "argument -n: invalid int value: 'two'"),
        ("bag --ar-fraction half", "argument --ar-fraction: invalid float value: 'half'"),
        ("bag --stepps 3", "unknown option --stepps; did you mean --steps?"),
        ("bag --steps", "argument --steps: expected one argument"),
        ("bag --ar-fraction 1.5", "ar_fraction 1.5: must be in [0, 1]"),
        ("bag --ar-fraction -0.1", "ar_fraction -0.1: must be in [0, 1]"),
        ("bag --ar-tokens 99", "ar_tokens 99: must be 0..16 for a 4x4 grid"),
        ("bag --steps 13", "13 steps for 12 places"),
        ("bag --steps 1000000000", "1000000000 steps for 12 places"),
        ("bag --steps 0", "0 steps: use at least 1 step"),
        ("bag --temperature -1", "temperature -1: must be 0 (argmax) or above"),
        ("bag --temperature nan", "temperature nan: must be"),
        ("bag --top-p 2", "top_p 2: must be above 0"),
        ("bag --guidance -3", "guidance scale -3: must be"),
        ("bag --method hybird", "method 'hybird': use hybrid"),
        ("bag --method ar --ar-fraction 0.5", "method ar fixes the AR fraction at 1; drop one of the two"),
        ("bag --schedule sine", "schedule 'sine': unknown"),
        ("bag --order zigzag", "order 'zigzag': unknown"),
        ("bag --seed -5", "seed -5: must be 0 or above"),
        ("bag --device tpu", "device 'tpu': use auto, cpu, cuda, mps"),
        ("bag --dtype int4", "dtype 'int4': use auto, fp32, bf16, fp16"),
        ("bag --height 8", "size: give height and width together"),
        ("bag --height 8 --width 9", "size 9x8: width and height must be multiples of 2 pixels"),
        ("bag --negative-prompt sneaker", "negative_prompt: does nothing at guidance scale 1"),
        ("bag --config gone.yaml", "gone.yaml: no such model, folder or file"),
        ("bag --config here", "here: no model_index.json in this folder"),
        ("bag --prompts-file gone.txt", "--prompts-file gone.txt: no such file"),
        ("--prompts-file empty.txt", "--prompts-file empty.txt: holds no prompt; put one on each line"),
        ("--prompts-file here/in.png", "--prompts-file here/in.png: is not UTF-8 text"),
        ("bag --image here/in.png", "--image: in-painting takes --image and --mask together"),
        ("bag --image here/in.png --mask gone.png", "gone.png: no such file"),
        ("bag --image here/in.png --mask here/in.png", "image is 6x6 pixels; this model needs 8x8"),
        ("bag --image empty.txt --mask here/in.png", "empty.txt: not a picture in a known format"),
        ("bag --image here/deep.png --mask here/in.png", "here/deep.png: its mode is I;16; save it with eight bits a"),
        ("bag -o out.gif", "out.gif: cannot write .gif; use .png, .jpg or .webp, or DIR/ for a folder"),
        ("bag -o gone/out.png", "gone: no such folder; make it first"),
        ("bag -o gone/deeper/", "gone: no such folder; make it first"),
        ("bag -o empty.txt", "empty.txt: cannot write .txt"),
        ("bag -o file", "file: is a file without a picture's suffix"),
        ("bag -n 2 -o out.png", "out.png: 2 pictures do not fit one file; give a folder: -o out/"),
        ("bag -o /proc/out.png", "/proc: cannot write there"),
        ("bag --repeats 2", "--repeats: counts the runs of --compare"),
        ("bag --compare --method ar", "--compare draws by every method; leave --method out"),
        ("bag --methods exact", "--methods: names what --compare draws by; add it, or use --method"),
        ("bag --compare --methods ar,eksact", "--methods: 'eksact' is none of ar, jacobi, exact, relaxed, zipar"),
        ("bag --method exact --relax 0.2", "relax: belongs to method relaxed, not exact"),
        ("bag --method ar --steps 8", "steps: belongs to method hybrid or refined or masked, not ar"),
        ("bag --order random --noise 9", "noise: belongs to order confidence or spread, not random"),
        ("bag --compare --relax 0.3", "relax: belongs to method relaxed; name it in --methods, or leave relax out"),
        ("bag --max-memory 4 --ar-fraction -2", "ar_fraction -2: must be in [0, 1]"),
        ("bag --max-memory 4 --ar-tokens 99", "ar_tokens 99: must be 0..16 for a 4x4 grid"),
        ("--plan-memory --height 9 --width 8", "size 8x9: width and height must be multiples of 2 pixels, from 2"),
        ("--plan-memory -n 0", "-n 0: must be at least 1"),
        ("--plan-memory --compare", "--plan-memory: does not go with --compare; leave one out"),
        ("--plan-memory --json", "--plan-memory: does not go with --json; leave one out"),
        ("--plan-memory --max-memory 4", "--plan-memory: does not go with --max-memory; leave one out"),
        ("--plan-memory --tile 16", "--plan-memory: does not go with --tile; leave one out"),
        ("--plan-memory --quantize int8", "--plan-memory: does not count int8 weights; leave --quantize out"),
        ("--plan-memory --method exact", "--plan-memory: does not count what method exact adds; use ar,"),
        ("bag --compare -n 17", "--compare draws all 17 pictures at once; give fewer, or --batch 17"),
    ],
)
def test_a_mistake_is_one_line_with_code_2_and_nothing_is_written(run: Run, line: str, message: str) -> None:
    Path("here").mkdir()
    Image.new("RGB", (6, 6)).save("here/in.png")
    Image.new("I;16", (6, 6)).save("here/deep.png")
    Path("empty.txt").write_text("\n")
    Path("file").write_text("")
    before = files(), files("here")
    code, out, err = run(*(word.strip("|") or " " for word in line.split()))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"hybrid-generate: {message}")
    assert (files(), files("here")) == before


def test_the_shipped_default_is_emoji() -> None:
    from hybrid.cli_options import DEFAULT_CONFIG

    assert DEFAULT_CONFIG == "emoji"


def test_no_cuda_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run("bag", "--device", "cuda")[::2] == (
        2,
        "hybrid-generate: device cuda: this machine or this torch build has no CUDA; use device cpu or auto\n",
    )


def test_broken_pairings_are_one_line(run: Run, pair_folder: Path, tmp_path: Path) -> None:
    class_pair(seed=1).save_pretrained(tmp_path / "other")
    index = yaml.safe_load((pair_folder / "model_index.json").read_text())
    good: dict[str, Any] = {key: dict(index[key]) for key in ("ar", "masked", "tokenizer")}
    for part in good.values():
        part["weights"] = str(pair_folder / part["weights"])
    half = Path(good["ar"]["weights"]).read_bytes()
    Path("half.safetensors").write_bytes(half[: len(half) // 2])
    foreign = {"kind": "fsq", "weights": "other/tokenizer"}
    smaller = good["tokenizer"]["config"] | {"width": 16}
    for name, changed, message in (
        ("key", {"masks": {}}, "unknown key 'masks'; did you mean 'masked'?"),
        ("missing", {"ar": {**good["ar"], "weights": "gone.pt"}}, "gone.pt: neither beside the configuration"),
        ("cut", {"ar": {**good["ar"], "weights": "half.safetensors"}}, "half.safetensors: truncated"),
        ("shape", {"tokenizer": {**good["tokenizer"], "config": smaller}}, "model.safetensors: "),
        ("two", {"ar_tokenizer": foreign}, "the tokenizers have different decoders"),
    ):
        Path(f"{name}.yaml").write_text(yaml.safe_dump({**good, "classes": index["classes"], **changed}))
        code, out, err = run("bag", "--config", f"{name}.yaml")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
    assert "expected (16, 12, 3, 3), got (8, 12, 3, 3)" in run("bag", "--config", "shape.yaml")[2]
    assert not list(tmp_path.glob("*.png"))


def test_unexpected_errors_keep_their_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Exception) -> Callable[..., int]:
        def draw(*_: object) -> int:
            raise error

        return draw

    monkeypatch.setattr(cli_draw, "draw", fail(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        run("bag")
    monkeypatch.setattr(cli_draw, "draw", fail(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\n.")))
    assert run("bag")[::2] == (
        2,
        "hybrid-generate: out of memory; draw fewer pictures at once with --batch, or use --dtype bf16\n",
    )
    monkeypatch.setattr(cli_draw, "draw", fail(OSError(28, "No space left on device", "bag.png")))
    assert run("bag")[::2] == (2, "hybrid-generate: bag.png: No space left on device\n")


def test_interrupting_while_drawing_leaves_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_draw._Steps, "__call__", press)
    assert run("bag", "-o", "new/") == (
        130,
        "",
        "hybrid-generate: interrupted; no picture was left half-written\n",
    )
    assert files() == []


def test_interrupting_while_writing_leaves_the_old_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (2, 2), "red").save("old.png")

    def half(self: Image.Image, path: Path, *_: object, **__: object) -> None:
        path.write_bytes(b"\x89PNG")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", half)
        assert run("bag", "-o", "old.png")[0] == 130
    assert files() == ["old.png"]
    assert Image.open("old.png").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(("option", "codes"), [("--version", {141}), ("--help", {0, 141})])
def test_a_reader_that_leaves_is_no_traceback(option: str, codes: set[int]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, "-m", "hybrid.cli", option]
    done = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode in codes, done.stderr) == (True, "")


@pytest.mark.parametrize("option", ["--config", "--dtype", "--method", "-o", "--from"])
def test_an_empty_value_is_no_default(option: str, run: Run) -> None:
    """An unset variable of a shell would draw something else."""
    code, out, err = run("bag", option, "")
    named = {"-o": "--out"}.get(option, option)
    assert (code, out, err) == (2, "", f"hybrid-generate: {named}: is empty; leave it out\n")
