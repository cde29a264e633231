"""``hybrid-generate`` draws, on a tiny pair with random weights: files, formats, what it tells, its help."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from generating import Run, files, pixels
from PIL import Image

from hybrid import HybridPipeline, __version__
from hybrid.cli_options import parser
from hybrid.dtypes import CANDIDATES, PhaseTypes
from hybrid.orders import ORDERS
from hybrid.picture_files import read_settings
from hybrid.schedules import RESUMES, SCHEDULES


def test_one_picture_is_named_after_its_prompt_and_a_table_tells_about_it(run: Run, pair_folder: Path) -> None:
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
    expected = HybridPipeline.from_pretrained(pair_folder)("ankle boot", seed=3).images[0]
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
