"""``HybridPipeline`` drawing, and the checks of its arguments, on tiny models with random weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeTokenizer, table_ar, uniform_masked
from pairs import class_pair, refused, tokens
from PIL import Image

from hybrid import HybridPipeline
from hybrid.config import DefaultsConfig, PhaseConfig
from hybrid.pairing import find_pair
from hybrid.phases import Cancelled, Fill, Sampling, Step, pass_scale
from hybrid.request import as_defaults, find_choice, find_device, find_dtype, find_label
from hybrid.sampling import Guidance
from hybrid.types import FROM_AR, FROM_INPUT, Generation, Grid


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "prompt: give at least one"),
        ({"prompt": " "}, "prompt: is empty; say what to draw"),
        ({"prompt": None}, "prompt: give a caption, a class or a list of these, got NoneType"),
        ({"prompt": b"bag"}, "prompt: give a caption, a class or a list of these, got bytes"),
        ({"prompt": [None]}, "prompt: give captions or classes, got NoneType"),
        ({"steps": 2.5}, "steps 2.5: must be a whole number"),
        ({"seed": 1.5}, "seed 1.5: must be a whole number"),
        ({"height": 8.0, "width": 8}, "height 8.0: must be a whole number"),
        ({"prompt": "sneker"}, "prompt 'sneker': not a class of tiny; did you mean 'Sneaker'? classes: Sneaker, Ankle"),
        ({"prompt": 3}, "class label 3 is outside 0..2"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt 0: must be at least 1"),
        ({"output_type": "jpg"}, "output_type 'jpg': use one of pil, np, pt, tokens"),
        ({"method": "hybird"}, "method 'hybird': use hybrid"),
        ({"ar_fraction": 1.5}, "ar_fraction 1.5: must be in [0, 1]"),
        ({"ar_fraction": float("nan")}, "ar_fraction nan: must be in [0, 1]"),
        ({"ar_tokens": 17}, "ar_tokens 17: must be 0..16 for a 4x4 grid"),
        ({"ar_tokens": 4, "ar_fraction": 0.5}, "give ar_fraction or ar_tokens, not both"),
        ({"method": "ar", "ar_fraction": 0.5}, "method ar fixes the AR fraction at 1; drop one of the two"),
        ({"method": "masked", "ar_tokens": 3}, "method masked fixes the AR fraction at 0; drop one of the two"),
        ({"steps": 0}, "0 steps: use at least 1 step"),
        ({"noise": float("inf")}, "noise inf: must be 0 (none) or above"),
        ({"steps": 17, "method": "masked"}, "17 steps for 16 places"),
        ({"steps": 13}, "13 steps for 12 places"),
        ({"schedule": "cosin"}, "schedule 'cosin': unknown; did you mean"),
        ({"resume": "later"}, "resume 'later': unknown; choose one of"),
        ({"order": "spiral"}, "order 'spiral': unknown; choose one of"),
        ({"noise": -1.0}, "noise -1: must be 0 (none) or above"),
        ({"guidance_scale": -1.0}, "guidance scale -1: must be a number from 0"),
        ({"guidance_kind": "cubic"}, "guidance kind 'cubic': unknown"),
        ({"guidance_floor": 1.0}, "guidance floor 1: must be at least 0 (off) and below 1"),
        ({"temperature": -0.5}, "temperature -0.5: must be 0 (argmax) or above"),
        ({"top_k": -1}, "top_k -1: must be 0 (off) or above"),
        ({"top_p": 0.0}, "top_p 0: must be above 0"),
        ({"height": 8}, "size: give height and width together"),
        ({"height": 7, "width": 8}, "size 8x7: width and height must be multiples of 2 pixels"),
        ({"seed": -1}, "seed -1: must be 0 or above"),
        ({"seed": 2**64}, f"seed {2**64}: must be 0 or above, and below 2^63"),
        ({"seed": 1, "generator": torch.Generator()}, "give seed or generator, not both"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1 pictures; give one for each"),
        ({"negative_prompt": "bag"}, "negative_prompt: does nothing at guidance scale 1"),
        ({"negative_prompt": "", "guidance_scale": 2.0}, "negative_prompt: is empty"),
        ({"negative_prompt": ["bag"] * 2, "guidance_scale": 2.0}, "negative_prompt: 2 for 1 prompts; give one or as"),
        ({"image": torch.zeros(3, 8, 8)}, "in-painting takes image and mask together"),
        ({"image": torch.zeros(3, 8, 9), "mask": torch.ones(8, 9)}, "image is 9x8 pixels; this model needs 8x8"),
        ({"image": torch.zeros(3, 8, 8), "mask": torch.ones(8, 9)}, "mask is 9x8 pixels, the image 8x8"),
        ({"image": torch.zeros(3, 8, 8), "mask": torch.zeros(8, 8)}, "mask has no white place"),
        ({"image": "gone.png", "mask": torch.ones(8, 8)}, "gone.png: no such file"),
        ({"image": __file__, "mask": torch.ones(8, 8)}, "not a picture in a known format"),
        ({"image": torch.zeros(3, 8, 8), "mask": torch.ones(8, 8), "method": "hybrid"}, "method hybrid: in-painting"),
        ({"image": torch.zeros(3, 8, 8), "mask": torch.ones(8, 8), "ar_fraction": 0.5}, "in-painting runs in the mask"),
        (
            {"image": torch.zeros(3, 8, 8), "mask": torch.ones(8, 8), "method": "exact"},
            "method exact: in-painting runs",
        ),
        ({"method": "exact", "ar_fraction": 0.5}, "method exact fixes the AR fraction at 1; drop one of the two"),
        ({"method": "exact", "relax": 0.2}, "relax: belongs to method relaxed, not exact"),
        ({"window": 4}, "window: belongs to method exact or relaxed or jacobi or zipar, not hybrid"),
        ({"method": "relaxed", "relax": 1.0}, "relax 1: must be at least 0 (exact) and below 1"),
        ({"method": "exact", "window": 0}, "window 0: must be at least 1 place"),
        ({"method": "jacobi", "draft": "masked"}, "draft: belongs to method relaxed, not jacobi"),
        ({"method": "relaxed", "draft": "guess"}, "draft 'guess': use masked or jacobi"),
        ({"method": "masked", "rounds": 2}, "rounds: belongs to method refined, not masked"),
        ({"method": "ar", "steps": 8}, "steps: belongs to method hybrid or refined or masked, not ar"),
        ({"method": "exact", "order": "spread"}, "order: belongs to method hybrid or refined or masked, not exact"),
        ({"order": "halton", "noise": 2.0}, "noise: belongs to order confidence or spread, not halton"),
        ({"method": "refined", "redraw": 2.0}, "redraw 2: must be above 0 and at most 1"),
        ({"method": "refined", "ar_fraction": 1.0}, "refinement needs an AR model and a masked phase"),
        ({"dtype": "fp8"}, "dtype 'fp8': use auto, fp32, bf16, fp16"),
    ],
)
def test_wrong_arguments_are_named(pipe: HybridPipeline, arguments: dict[str, Any], message: str) -> None:
    assert message in refused(lambda: pipe(**{"prompt": "bag", "output_type": "tokens", **arguments}))


@pytest.mark.parametrize("height", [None, 8])
def test_exact_with_argmax_is_greedy_ar(pipe: HybridPipeline, height: int | None) -> None:
    how = {"temperature": 0.0, "guidance_scale": 2.0, "height": height, "width": height}
    assert tokens(pipe, method="exact", window=5, **how) == tokens(pipe, method="ar", **how)
    relaxed = pipe("bag", method="relaxed", relax=0.5, seed=0, output_type="tokens", **how)
    assert relaxed.tokens.tolist() == tokens(pipe, method="ar", **how)  # one-hot probabilities cannot be loosened
    assert relaxed.settings["verify"] == {"window": 16, "relax": 0.5, "adapt": True, "draft": "masked"}
    assert tokens(pipe, method="jacobi", window=5, **how) == tokens(pipe, method="ar", **how)
    passes = relaxed.phases.passes
    assert passes["verify"] > 0 and passes["draft"] > 0 and passes["prefix"] == passes["fill"] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"method": "exact", "window": 4},
        {"method": "relaxed", "relax": 0.4},
        {"method": "relaxed", "relax": 0.4, "draft": "jacobi"},
        {"method": "jacobi", "window": 3},
        {"method": "refined", "rounds": 2, "redraw": 0.5, "ar_fraction": 0.5},
    ],
)
def test_judged_methods_are_repeated_by_their_settings(pipe: HybridPipeline, arguments: dict[str, Any]) -> None:
    made = pipe("bag", seed=3, output_type="tokens", **arguments)
    defaults = as_defaults(made.settings, pipe.defaults)
    assert {key: getattr(defaults, key) for key in arguments} == arguments
    repeat = class_pair()
    repeat.defaults = defaults
    assert tokens(repeat, seed=3) == made.tokens.tolist()


def report(path: Path, pair: str | None = None, **settings: Any) -> Path:
    row = {"region": "all", "label": "the one", "settings": settings, "dtype": "bf16", "compile": False, "batch": 1}
    row |= {"fidelity": 0.97, "speed": [{"batch": 1, "median": 0.2, "speedup": 2.0}]}
    path.write_text(json.dumps({"kind": "hybrid-bench report", "header": {"pair": pair}, "rows": [row]}))
    return path


def test_a_report_chooses_the_defaults(pair_folder: Path, tmp_path: Path) -> None:
    path = report(tmp_path / "report.json", method="hybrid", ar_fraction=0.5, steps=3, temperature=0.7)
    chosen = HybridPipeline.from_pretrained(pair_folder, auto=path)
    assert (chosen.defaults.ar_fraction, chosen.defaults.steps, chosen.dtype) == (0.5, 3, torch.bfloat16)
    assert chosen.defaults.ar.temperature == chosen.defaults.masked.temperature == 0.7
    assert chosen("bag", seed=0, output_type="tokens").phases.passes["fill"] == 3
    assert HybridPipeline.from_pretrained(pair_folder, auto=path, max_ms=500, dtype="fp32").dtype == torch.float32
    for arguments, message in (
        ({"quality": 0.99, "auto": path}, "nothing in the report reaches fidelity 0.99; the best is 0.97: the one"),
        ({"max_ms": 100, "auto": path}, "nothing in the report takes at most 100 ms"),
        ({"quality": 0.9}, "quality: says what auto must reach; give auto a report of hybrid-bench run"),
        ({"auto": report(tmp_path / "odd.json", ar_tokens=3)}, "auto: the report's setting 'ar_tokens' is no default"),
    ):
        assert message in refused(lambda arguments=arguments: HybridPipeline.from_pretrained(pair_folder, **arguments))  # type: ignore[misc]


def test_a_report_of_another_shipped_pair_is_refused(pair_folder: Path, tmp_path: Path) -> None:
    path = report(tmp_path / "report.json", "fashion", steps=3)
    told = refused(lambda: HybridPipeline.from_pretrained("emoji", auto=path))
    assert told == "auto: the report is of fashion, not of emoji; load fashion, or give a report of emoji"
    told = refused(
        lambda: HybridPipeline.from_pretrained("emoji", auto=report(tmp_path / "own.json", "runs/mine.yaml"))
    )
    assert "the report is of runs/mine.yaml, not of emoji" in told
    for pair in ("fashion", str(find_pair("fashion"))):
        chosen = find_choice(report(path, pair, steps=3), None, None, find_pair("fashion"))
        assert chosen is not None and chosen.pair == pair
    # One's own pairing may be a copy.
    assert HybridPipeline.from_pretrained(pair_folder, auto=path).defaults.steps == 3


def test_picture_i_has_seed_plus_i_and_does_not_depend_on_its_neighbours(pipe: HybridPipeline) -> None:
    together = pipe(["bag", "sneaker"], num_images_per_prompt=2, seed=5, output_type="tokens")
    assert together.settings["seed"] == 5
    assert together.settings["seeds"] == [5, 6, 7, 8]
    alone = [tokens(pipe, prompt, seed=5 + i)[0] for i, prompt in enumerate(["bag", "bag", "sneaker", "sneaker"])]
    assert together.tokens.tolist() == alone
    assert len({tuple(row) for row in alone}) == 4


def test_without_a_seed_the_settings_tell_the_drawn_one(pipe: HybridPipeline) -> None:
    first = pipe("bag", output_type="tokens")
    assert tokens(pipe, seed=first.settings["seed"]) == first.tokens.tolist()


def test_a_generator_gives_each_pictures_seed_and_several_give_the_noise(pipe: HybridPipeline) -> None:
    made = pipe(["bag"] * 2, generator=torch.Generator().manual_seed(3), output_type="tokens")
    assert made.settings["seed"] is None
    assert [tokens(pipe, seed=seed)[0] for seed in made.settings["seeds"]] == made.tokens.tolist()
    own = pipe(["bag"] * 2, generator=[torch.Generator().manual_seed(s) for s in (9, 4)], output_type="tokens")
    assert own.settings["seeds"] is None
    assert own.tokens.tolist() == [tokens(pipe, seed=9)[0], tokens(pipe, seed=4)[0]]


def test_output_types_and_tokens_in_all_of_them(pipe: HybridPipeline) -> None:
    made = {kind: pipe(["bag"] * 2, seed=1, output_type=kind) for kind in ("pil", "np", "pt", "tokens")}
    assert all(torch.equal(result.tokens, made["pil"].tokens) for result in made.values())
    assert made["tokens"].images is None
    assert made["tokens"].phases.passes["decode"] == 0
    assert made["pt"].images.shape == (2, 3, 8, 8)
    assert made["np"].images.shape == (2, 8, 8, 3)
    assert made["np"].images.min() >= 0 and made["np"].images.max() <= 1
    picture = made["pil"].images[1]
    assert isinstance(picture, Image.Image) and picture.size == (8, 8)
    assert np.abs(np.asarray(picture) / 255 - made["np"].images[1]).max() <= 0.5 / 255 + 1e-6


def test_methods_are_fractions_and_a_number_means_hybrid(pipe: HybridPipeline) -> None:
    assert tokens(pipe, method="ar") == tokens(pipe, ar_fraction=1.0)
    assert tokens(pipe, method="masked") == tokens(pipe, ar_tokens=0)
    assert tokens(pipe) == tokens(pipe, method="hybrid", ar_tokens=4)
    only = class_pair()
    only.defaults = DefaultsConfig(method="ar", steps=4)
    assert tokens(only, ar_fraction=0.25) == tokens(pipe)


def test_with_one_model_a_plain_request_uses_it_and_hybrid_is_refused() -> None:
    ar, masked = class_pair(parts="ar"), class_pair(parts="masked")
    assert ar("bag", seed=0).phases.passes["prefix"] == 16
    assert masked("bag", seed=0).phases.passes["fill"] == 4
    assert refused(lambda: ar("bag", method="hybrid")) == "method hybrid: there is no masked model; use method ar"
    assert refused(lambda: masked("bag", method="hybrid")) == "method hybrid: there is no AR model; use method masked"
    assert refused(lambda: masked("bag", method="relaxed", draft="jacobi")).startswith("method relaxed: there is no AR")
    for method in ("jacobi", "zipar", "relaxed"):  # need no masked model, as defaults either
        alone = class_pair(parts="ar")
        alone.defaults = DefaultsConfig(method=method, draft="jacobi")
        options = {"draft": "jacobi"} if method == "relaxed" else {}
        drawn, named = (
            alone("bag", seed=0, output_type="tokens"),
            ar("bag", seed=0, method=method, output_type="tokens", **options),
        )
        assert drawn.phases.passes == named.phases.passes and drawn.phases.passes["prefix"] < 16
        assert torch.equal(drawn.tokens, named.tokens)
    assert "there is no masked model" in refused(lambda: ar("bag", ar_fraction=0.5))
    picture, mask = torch.zeros(3, 8, 8), torch.ones(8, 8)
    assert "there is no masked model" in refused(lambda: ar("bag", image=picture, mask=mask))


def test_generation_accounts_for_every_token_and_pass(pipe: HybridPipeline) -> None:
    result = pipe("bag", seed=0, ar_tokens=6)
    assert int((result.origin == FROM_AR).sum()) == 6
    assert sorted(set(result.origin[0, 6:].tolist())) == [1, 2, 3, 4]
    assert {phase: count for phase, count in result.phases.passes.items() if count} == {
        "prefix": 6,
        "fill": 4,
        "decode": 1,
    }
    assert result.settings["model"] == "tiny" and result.settings["dtype"] == "float32"
    assert result.settings["prompt"] == "bag"


def test_settings_as_defaults_repeat_the_request(pipe: HybridPipeline) -> None:
    asked = {"ar_tokens": 5, "steps": 3, "schedule": "cosine", "order": "spread", "noise": 1.0, "top_k": 5}
    guidance = {"guidance_scale": 2.0, "guidance_kind": "linear", "guidance_floor": 0.1}
    made = pipe("bag", seed=2, temperature=0.8, top_p=0.9, **guidance, **asked)
    again = class_pair()
    again.defaults = as_defaults(made.settings, again.defaults)
    assert tokens(again, seed=2) == made.tokens.tolist()
    for method in ("ar", "masked"):
        single = pipe("bag", seed=2, method=method, temperature=0.7)
        again.defaults = as_defaults(single.settings, DefaultsConfig())
        assert again.defaults.method == method
        assert tokens(again, seed=2) == single.tokens.tolist()


def test_in_painting_keeps_the_tokens_of_black_places(pipe: HybridPipeline, tmp_path: Path) -> None:
    picture = pipe("sneaker", seed=1).images[0]
    mask = Image.new("L", (8, 8), 0)
    mask.putpixel((7, 7), 255)  # one pixel draws its whole token anew
    mask.save(tmp_path / "mask.png")
    result = pipe("bag", seed=2, image=picture, mask=tmp_path / "mask.png", steps=1)
    given = pipe.tokenizer.encode(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1)
    assert (result.origin[0] == FROM_INPUT).tolist() == [True] * 15 + [False]
    assert torch.equal(result.tokens[0, :15], given[0, :15])
    assert result.settings["ar_tokens"] == 0
    assert "2 steps for 1 place" in refused(lambda: pipe("bag", image=picture, mask=mask, steps=2))


def test_sizes_make_other_grids(pipe: HybridPipeline) -> None:
    result = pipe("bag", seed=0, height=4, width=12)
    assert result.grid == Grid(2, 6)
    assert result.images[0].size == (12, 4)


def test_negative_prompt_replaces_the_null_condition(pipe: HybridPipeline) -> None:
    guided = {"guidance_scale": 3.0, "method": "masked"}
    plain, away = tokens(pipe, **guided), tokens(pipe, negative_prompt="sneaker", **guided)
    assert plain != away
    two = tokens(pipe, "bag", "bag", seed=0, negative_prompt=["sneaker", "ankle boot"], **guided)
    assert two[0] == away[0]
    assert two[1] == tokens(pipe, negative_prompt=1, seed=1, **guided)[0]


def test_class_names_are_found_in_any_case_with_article_or_plural() -> None:
    names = ["Sneaker", "Ankle boot"]
    for prompt in ("sneaker", " SNEAKERS ", "a sneaker", "0", 0):
        assert find_label(prompt, names, "m") == 0
    assert find_label("an ankle boot", names, "m") == 1
    assert find_label("²", None, "m") == "²"


def test_callback_sees_rows_and_passes_and_false_cancels(pipe: HybridPipeline) -> None:
    seen: list[tuple[str, int, int]] = []

    def note(of: HybridPipeline, index: int, phase: str, told: dict[str, Any]) -> bool:
        step = told["step"]
        assert of is pipe and isinstance(step, Step)
        seen.append((phase, index, step.total))
        return (phase, index) != ("fill", 2)

    with pytest.raises(Cancelled, match="cancelled after fill 2 of 4"):
        pipe("bag", seed=0, ar_tokens=6, callback_on_step_end=note)
    assert seen == [("prefix", 1, 2), ("prefix", 2, 2), ("fill", 1, 4), ("fill", 2, 4)]


def test_dtype_of_a_request_runs_on_copies_and_leaves_the_loaded_weights(pipe: HybridPipeline) -> None:
    before = tokens(pipe)
    for kind in ("pil", "np", "pt"):
        half = pipe("bag", seed=0, dtype="bf16", output_type=kind)
        assert half.settings["dtype"] == "bfloat16"
    assert pipe.dtype == torch.float32
    assert tokens(pipe) == before
    assert pipe.in_dtype(torch.bfloat16).in_dtype(torch.float32) is pipe
    picture, mask = torch.zeros(3, 8, 8), torch.ones(8, 8)
    assert pipe("bag", seed=0, dtype=torch.bfloat16, image=picture, mask=mask).settings["dtype"] == "bfloat16"


def test_text_pair_follows_captions_and_guidance(text: HybridPipeline) -> None:
    apple, car = tokens(text, "a red apple"), tokens(text, "a blue car")
    assert apple != car
    assert tokens(text, "a red apple", "a blue car", seed=0)[0] == apple[0]
    assert tokens(text, "a red apple", guidance_scale=1.0) != apple
    assert tokens(text, "a red apple", negative_prompt="a green tree") != apple
    result: Generation = text("a red apple", seed=0, dtype="bf16", negative_prompt="blurry")
    assert result.phases.passes["condition"] == 2
    assert result.images[0].size == (8, 8)


def test_a_caption_of_several_pictures_is_embedded_once(text: HybridPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [text(caption, seed=seed, output_type="tokens").tokens for caption, seed in (("a hat", 4), ("a cat", 6))]
    asked: list[list[str]] = []
    encode = text.text.encode
    monkeypatch.setattr(text.text, "encode", lambda captions: asked.append(captions) or encode(captions))
    made = text(["a hat", "a cat"], num_images_per_prompt=2, seed=4, output_type="tokens")
    assert asked == [["a hat", "a cat"]]
    assert torch.equal(made.tokens[0], alone[0][0]) and torch.equal(made.tokens[2], alone[1][0])


def test_models_without_parameters_work_in_a_pipeline() -> None:
    pipe = HybridPipeline(FakeTokenizer(), ar=table_ar(), masked=uniform_masked())
    assert pipe([1, 2], seed=0).tokens.shape == (2, 16)


def test_devices_and_types() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert "device 'tpu': use auto, cpu, cuda, mps" in refused(lambda: find_device("tpu"))
    assert "device 'meta': use auto" in refused(lambda: find_device("meta"))
    if not torch.cuda.is_available():
        assert "has no CUDA; use device cpu" in refused(lambda: find_device("cuda"))
        assert find_device("auto").type in ("cpu", "mps")
    assert find_dtype("auto", torch.device("cpu")) == torch.float32
    assert find_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert find_dtype(torch.float16, torch.device("cpu")) == torch.float16


@pytest.mark.slow
def test_compiled_draws_the_same_tokens(pipe: HybridPipeline, pair_folder: Path) -> None:
    compiled = HybridPipeline.from_pretrained(pair_folder, compile=True)
    assert tokens(compiled, "bag", 0) == tokens(pipe, "bag", 0)
    assert PhaseConfig() == compiled.defaults.ar


def test_an_interval_of_guidance_holds_in_a_single_pass(pipe: HybridPipeline) -> None:
    fill = Fill(steps=1, sampling=Sampling(Guidance(3.0, "interval", end=0.4)))
    assert pass_scale(fill, 0) == 3.0
    assert pass_scale(replace(fill, steps=2), 1) == 1.0
    assert pass_scale(Fill(steps=1, sampling=Sampling(Guidance(3.0, "linear"))), 0) == 3.0


def test_copies_in_other_types_follow_the_pairing() -> None:
    pipe = class_pair()
    assert pipe("bag", seed=0, method="masked", dtype="bf16").phases.passes["fill"] == 4
    pipe.defaults = pipe.defaults.model_copy(update={"steps": 3})
    assert pipe("bag", seed=0, method="masked", dtype="bf16").phases.passes["fill"] == 3


def test_compiling_reaches_copies_and_leaves_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, compiled = class_pair(), []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compiled.append(module))
    pipe.in_dtype("bf16")
    pipe.compile()
    assert pipe.in_dtype("bf16").compiled
    compiled.clear()
    mixed = pipe.in_dtype("masked=bf16,decode=fp32")
    assert mixed.compiled and mixed.ar is pipe.ar and not compiled  # all parts were compiled in one type or the other


def test_tensors_and_arrays_of_other_shapes_are_refused(pipe: HybridPipeline) -> None:
    picture, mask = torch.zeros(3, 8, 8), torch.zeros(8, 8)
    assert (
        refused(lambda: pipe("bag", image=torch.zeros(8, 8), mask=mask))
        == "image: a tensor must be (3, h, w), got (8, 8)"
    )
    assert refused(lambda: pipe("bag", image=torch.zeros(2, 3, 8, 8), mask=mask)).endswith("got (2, 3, 8, 8)")
    assert refused(lambda: pipe("bag", image=picture, mask=picture)) == "mask: a tensor must be (h, w), got (3, 8, 8)"
    assert refused(lambda: pipe("bag", image=np.zeros((8, 8, 3)), mask=mask)).startswith("a picture must be a PIL")
    mask[:4] = 0.9
    mask[4:] = 0.1  # darker than half
    for given in (mask, mask[None], mask[None, None], mask > 0.5):
        drawn = pipe("bag", image=picture[None], mask=given, seed=0)
        assert (drawn.origin[0, 8:] == FROM_INPUT).all() and (drawn.origin[0, :8] > 0).all()
