"""``hybrid-generate``, mostly in this process, on tiny models with random weights."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from pairs import class_pair
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hybrid import HybridPipeline, __version__, cli, cli_draw
from hybrid.cli_options import parser
from hybrid.dtypes import CANDIDATES, PhaseTypes
from hybrid.orders import ORDERS
from hybrid.picture_files import KEY, plan_files, read_settings, slug, write_picture
from hybrid.schedules import RESUMES, SCHEDULES

Run = Callable[..., "tuple[int, str, str]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "tiny"
    class_pair().save_pretrained(path)
    return path


@pytest.fixture
def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in an empty folder, with the tiny pair as the default one: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "DEFAULT_CONFIG", str(folder))

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


def files(folder: Path | str = ".") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def pixels(path: Path | str) -> bytes:
    return Image.open(path).convert("RGB").tobytes()


# Drawing


def test_one_picture_is_named_after_its_prompt_and_a_table_tells_about_it(run: Run, folder: Path) -> None:
    code, out, err = run("Ankle boot", "--seed", 3)
    assert (code, err) == (0, "")
    assert files() == ["ankle-boot.png"]
    lines = out.splitlines()
    assert lines[0] == "tiny: 1 picture of 8x8, hybrid, 25% AR, seed 3, cpu fp32"
    assert [line.split()[0] for line in lines if line[:6] in ("phase ", "AR pre", "masked", "decode", "total ")] == [
        "phase",
        "AR",
        "masked",
        "decode",
        "total",
    ]
    assert "tokens: 4 by the AR model, 12 by the masked model" in lines
    assert lines[-1] == "ankle-boot.png"
    expected = HybridPipeline.from_pretrained(folder)("ankle boot", seed=3).images[0]
    assert pixels("ankle-boot.png") == expected.tobytes()


def test_approximations_and_types_are_kept_in_the_picture(run: Run) -> None:
    options = ("--reuse", 2, "--tile", 16, "--height", 24, "--width", 24, "--dtype", "masked=bf16")
    assert run("bag", "--seed", 3, *options, "-o", "one.png", "--quiet")[0] == 0
    kept = read_settings(Path("one.png"))
    assert (kept.drawing.reuse, kept.drawing.tile, kept.dtype) == (2, 16, "ar=fp32,masked=bf16,decode=fp32")
    code, out, _ = run("--from", "one.png", "-o", "two.png", "--json")
    assert code == 0 and json.loads(out)["repeated"] is True
    assert pixels("two.png") == pixels("one.png")

    code, out, _ = run("bag", "--seed", 3, "--method", "zipar", "--window", 2)
    assert code == 0 and "lossy: the AR model's rows are written side by side, each 2 of 4 columns ahead" in out
    code, out, _ = run("--from", "bag.png", "-o", "again.png", "--json")
    assert code == 0 and json.loads(out)["repeated"] is True and pixels("again.png") == pixels("bag.png")

    assert run("bag", "--method", "zipar", "--window", 5)[::2] == (
        2,
        "hybrid-generate: window 5: a 4x4 grid has 4 columns; use at most as many\n",
    )
    assert run("bag", "--tile", 15)[::2] == (
        2,
        "hybrid-generate: tile 15: must be a multiple of 2 pixels, from 16\n",
    )
    code, out, _ = run("bag", "--seed", 3, "--dtype", "fastest", "-o", "fast.png", "--json")
    assert code == 0 and json.loads(out)["settings"]["dtype"] in {
        str(PhaseTypes(*kinds)) for kinds in product(CANDIDATES, repeat=3)
    }


def test_names_are_never_reused_unless_given(run: Run) -> None:
    for _ in range(2):
        assert run("bag", "--quiet")[:2] == (0, "")
    assert files() == ["bag-2.png", "bag.png"]
    assert run("bag", "sneaker", "-n", 2, "--quiet")[0] == 0
    assert files() == ["bag-2.png", "bag-3.png", "bag-4.png", "bag.png", "sneaker-2.png", "sneaker.png"]
    assert run("bag", "-o", "bag.png", "--quiet", "--seed", 1)[0] == 0
    assert read_settings(Path("bag.png")).seed == 1


def test_several_pictures_go_into_a_folder_with_numbers_that_go_on(run: Run) -> None:
    assert run("bag", "-n", 2, "sneaker", "-o", "new", "--quiet")[0] == 0  # options may stand between prompts
    names = ["001-bag.png", "002-bag.png", "003-sneaker.png", "004-sneaker.png"]
    assert files("new") == names
    assert run("bag", "-o", "new/", "--quiet")[0] == 0
    assert files("new") == [*names, "005-bag.png"]


def test_batches_draw_what_one_batch_draws(run: Run) -> None:
    run("bag", "-n", 3, "--seed", 5, "-o", "one/")
    code, out, _ = run("bag", "-n", 3, "--seed", 5, "-o", "two/", "--batch", 2, "--json")
    assert code == 0
    assert [pixels(f"one/{name}") for name in files("one")] == [pixels(f"two/{name}") for name in files("two")]
    told = json.loads(out)
    assert {phase: count for phase, count in told["passes"].items() if count} == {"prefix": 8, "fill": 8, "decode": 2}
    assert told["tokens"] == {"given": 0, "ar": 12, "masked": 36}


def test_json_is_the_only_output_and_tells_everything(run: Run) -> None:
    code, out, err = run("bag", "--json", "--seed", 2, "--method", "masked", "--steps", 3, "--guidance", 2)
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["files"] == ["bag.png"] == files()
    assert told["pictures"] == [{"file": "bag.png", "prompt": "bag", "seed": 2}]
    drawing = told["settings"]["drawing"]
    assert (drawing["method"], drawing["steps"], drawing["masked"]["guidance_scale"]) == ("masked", 3, 2.0)
    assert told["seconds"]["total"] == pytest.approx(sum(told["seconds"][key] for key in told["passes"]), abs=1e-3)
    assert (told["version"], told["passes"]["fill"]) == (__version__, 3)


def test_prompts_of_a_file_follow_those_of_the_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("list.txt").write_text("\ufeffsneaker\n\n  ankle boot \n", encoding="utf-8")
    told = json.loads(run("bag", "--prompts-file", "list.txt", "--json")[1])
    assert [picture["prompt"] for picture in told["pictures"]] == ["bag", "sneaker", "ankle boot"]
    monkeypatch.setattr("sys.stdin", io.StringIO("bag\nsneaker\n"))
    assert len(json.loads(run("--prompts-file", "-", "--json")[1])["files"]) == 2


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_formats_and_whole_number_scale(run: Run, suffix: str) -> None:
    assert run("bag", "-o", f"big.{suffix}", "--scale", 4, "--quiet")[0] == 0
    assert Image.open(f"big.{suffix}").size == (32, 32)
    if suffix != "jpg":
        picture = Image.open(f"big.{suffix}").convert("RGB")
        assert picture.getpixel((0, 0)) == picture.getpixel((3, 3))


def test_in_painting(run: Run) -> None:
    run("sneaker", "-o", "in.png")
    mask = Image.new("L", (8, 8), 0)
    mask.paste(255, (0, 0, 8, 2))
    mask.save("mask.png")
    code, out, _ = run("bag", "--image", "in.png", "--mask", "mask.png", "-o", "a.png", "--json")
    assert code == 0
    assert json.loads(out)["tokens"] == {"given": 12, "ar": 0, "masked": 4}
    assert json.loads(run("--from", "a.png", "--json", "-o", "b.png")[1])["repeated"] is True
    assert pixels("a.png") == pixels("b.png")
    mask.save("mask.png", compress_level=0)
    assert "mask.png: has changed since the picture was painted from it; give --mask FILE" in run("--from", "a.png")[2]
    Path("in.png").unlink()
    assert "in.png: the picture was painted from this file, which is missing; give --image" in run("--from", "a.png")[2]


# Repeating


def test_from_repeats_one_picture_of_many_exactly(run: Run) -> None:
    drawn = ["--guidance", 2, "--temperature", 0.9, "--top-k", 7, "--order", "halton", "--negative-prompt", "sneaker"]
    assert run("bag", "-n", 3, "-o", "many", "--seed", 4, "--scale", 2, *drawn)[0] == 0
    code, out, err = run("--from", "many/003-bag.png", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["repeated"] is True
    assert json.loads(out)["pictures"] == [{"file": "bag.png", "prompt": "bag", "seed": 6}]
    assert pixels("bag.png") == pixels("many/003-bag.png")
    assert Image.open("bag.png").size == (16, 16)


def test_options_beside_from_override_its_settings(run: Run) -> None:
    run("bag", "--seed", 4, "--steps", 2, "--ar-tokens", 3)
    told = json.loads(run("--from", "bag.png", "--method", "ar", "--json")[1])
    assert (told["tokens"]["ar"], told["repeated"]) == (16, None)
    told = json.loads(run("--from", "bag.png", "sneaker", "-n", 2, "--seed", 9, "--json")[1])
    assert [(one["prompt"], one["seed"]) for one in told["pictures"]] == [("sneaker", 9), ("sneaker", 10)]
    assert (told["tokens"]["ar"], told["passes"]["fill"]) == (6, 2)


def test_a_repetition_that_differs_says_so(run: Run, tmp_path: Path) -> None:
    class_pair().save_pretrained(tmp_path / "mine")
    run("bag", "--config", "mine", "--seed", 1)
    class_pair(seed=8).save_pretrained(tmp_path / "mine")
    code, out, err = run("--from", "bag.png", "--json")
    assert (code, json.loads(out)["repeated"]) == (0, False)
    assert "note: the tokens differ from the repeated picture's" in err


def test_a_judged_picture_is_repeated_and_methods_are_compared(run: Run) -> None:
    run("bag", "--seed", 4, "--method", "relaxed", "--relax", 0.4, "--window", 4)
    code, out, _ = run("--from", "bag.png", "--json", "-o", "again.png")
    told = json.loads(out)
    assert (code, told["repeated"], told["settings"]["drawing"]["method"]) == (0, True, "relaxed")
    assert told["passes"]["verify"] > 0 and told["tokens"]["ar"] + told["tokens"]["masked"] == 16
    asked = ("--methods", "relaxed,refined", "--relax", 0.4, "--rounds", 2, "--repeats", 1)
    told = json.loads(run("bag", "--seed", 4, "--compare", *asked, "--json", "-o", "sheet.png")[1])
    assert list(told["methods"]) == ["ar", "relaxed", "refined"]
    assert told["methods"]["relaxed"]["settings"]["relax"] == 0.4
    assert told["methods"]["refined"]["passes"]["score"] == 2


def test_settings_stand_in_a_text_chunk(run: Run, folder: Path) -> None:
    run("bag", "--seed", 4)
    raw = Path("bag.png").read_bytes()
    assert b"tEXthybrid\x00{" in raw
    told = json.loads(Image.open("bag.png").text[KEY])
    assert (told["prompt"], told["seed"], told["config"], told["version"]) == ("bag", 4, str(folder), __version__)


def test_pictures_without_settings_cannot_be_repeated(run: Run, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save("plain.png")
    Image.new("RGB", (8, 8)).save("plain.jpg")
    for name, text in (("broken.png", "{"), ("other.png", '{"seed": 1}')):
        info = PngInfo()
        info.add_text(KEY, text)
        Image.new("RGB", (8, 8)).save(name, pnginfo=info)
    run("bag", "-o", "cut.png", "--scale", 8)
    Path("cut.png").write_bytes(Path("cut.png").read_bytes()[:-200])
    for name, message in (
        ("plain.png", "holds no settings"),
        ("plain.jpg", "holds no settings; only single PNG pictures from hybrid-generate do"),
        ("broken.png", "its settings are damaged"),
        ("other.png", "settings: version: Field required"),
        ("gone.png", "no such file"),
        ("cut.png", "not a readable picture"),
    ):
        code, out, err = run("--from", name)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert err.startswith(f"hybrid-generate: {name}: {message}")


# Mistakes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", 'no prompt; say what to draw, as in: hybrid-generate "a red apple"'),
        ("| |", "prompt: is empty; say what to draw"),
        ("sneeker", "prompt 'sneeker': not a class of tiny; did you mean 'Sneaker'? classes: Sneaker, Ankle boot, Bag"),
        ("7", "class label 7 is outside 0..2"),
        ("bag -n 0", "-n 0: must be at least 1"),
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
        ("bag --compare -n 17", "--compare draws all 17 pictures at once; give fewer, or --batch 17"),
    ],
)
def test_a_mistake_is_one_line_with_code_2_and_nothing_is_written(run: Run, line: str, message: str) -> None:
    Path("here").mkdir()
    Image.new("RGB", (6, 6)).save("here/in.png")
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


def test_broken_pairings_are_one_line(run: Run, folder: Path, tmp_path: Path) -> None:
    class_pair(seed=1).save_pretrained(tmp_path / "other")
    index = yaml.safe_load((folder / "model_index.json").read_text())
    good: dict[str, Any] = {key: dict(index[key]) for key in ("ar", "masked", "tokenizer")}
    for part in good.values():
        part["weights"] = str(folder / part["weights"])
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


# Interruption


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


# Speed of --help


def test_help_imports_nothing_heavy_and_states_defaults() -> None:
    code = (
        "import sys; from hybrid.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as left: print('LEFT', left.code)\n"
        "heavy = {'torch', 'pydantic', 'numpy', 'PIL', 'rich', 'yaml', 'transformers'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "LEFT 0\nHEAVY []" in shown
    assert "(default: emoji)" in shown and "examples:" in shown


def test_mistakes_that_need_no_model_are_told_before_torch_is_loaded(tmp_path: Path) -> None:
    code = (
        "import sys; from hybrid.cli import main\n"
        "for line in ('bag -o gone/a.png', 'bag -n 0', 'bag --from gone.png', 'bag --config gone', 'bag --seed x'):\n"
        "    assert main(line.split()) == 2\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "False\n"
    assert done.stderr.count("\n") == 5


def test_help_lists_the_schedules_and_orders_there_are() -> None:
    shown = " ".join(parser().format_help().split())
    for names in (SCHEDULES, ORDERS, RESUMES):
        assert ", ".join(names) in shown


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"hybrid-generate {__version__}\n", "")


# Files


def test_slugs() -> None:
    assert slug("A red apple!") == "a-red-apple"
    assert slug("../../etc") == "etc"
    assert slug("Äpfel 苹果") == "äpfel-苹果"
    assert slug("?!") == "picture"
    assert len(slug("word " * 40)) <= 50


def test_numbers_go_on_after_those_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "041-x.png").touch()
    assert [path.name for path in plan_files(str(tmp_path), ["a b", "c"])] == ["042-a-b.png", "043-c.png"]


def test_a_failed_write_leaves_no_part(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        write_picture(Image.new("RGB", (2, 2)), tmp_path / "gone" / "deeper" / "a.png")
    with pytest.raises((OSError, ValueError)):
        write_picture(Image.new("RGB", (0, 0)), tmp_path / "a.png")
    assert os.listdir(tmp_path) == []
