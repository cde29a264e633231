"""Configurations: what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hybrid.config import LoopConfig, TrainConfig, parse, read_yaml

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("train-*.yaml"))
GOOD: dict[str, Any] = {"task": "ar", "data": "tiny", "model": {"kind": "llamagen"}, "loop": {"steps": 3}}


def test_training_configurations_that_ship_are_valid() -> None:
    assert CONFIGS
    for path in CONFIGS:
        parse(TrainConfig, read_yaml(path), path.name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"balanse": True}, "run.yaml: unknown key 'balanse'; did you mean 'balance'?"),
        ({"zzz": 1}, "run.yaml: unknown key 'zzz'"),
        ({"loop": {"steps": 3, "warm_up": 5}}, "run.yaml: unknown key 'loop.warm_up'; did you mean 'warmup'?"),
        ({"model": {"kint": "x", "kind": "y"}}, "run.yaml: unknown key 'model.kint'; did you mean 'kind'?"),
        ({"loop": {"steps": 0}}, "run.yaml: loop.steps: Input should be greater than 0 (got 0)"),
        ({"loss_on": "some"}, "run.yaml: loss_on: Input should be 'masked' or 'all' (got 'some')"),
        (
            {"loop": {"steps": 3, "precision": "bf61"}},
            "run.yaml: loop.precision: Input should be 'auto', 'no', 'bf16' or",
        ),
    ],
)
def test_a_wrong_key_or_value_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(TrainConfig, GOOD | change, "run.yaml")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("task", "setting", "owner"),
    [
        ("ar", {"adversarial": {}}, "tokenizer"),
        ("masked", {"feature_weight": 1.0}, "tokenizer"),
        ("unified", {"codebook": {}}, "tokenizer"),
        ("ar", {"decoder_only": True}, "tokenizer"),
        ("unified", {"label_smoothing": 0.1}, "masked"),
        ("ar", {"loss_on": "all"}, "masked"),
        ("ar", {"prefix_share": 0.7}, "masked or unified"),
        ("masked", {"masked_weight": 2.0}, "unified"),
        ("tokenizer", {"balance": True}, "ar or masked or unified"),
        ("tokenizer", {"token_noise": 0.1}, "ar or masked or unified"),
        ("tokenizer", {"null_noise": 0.1}, "ar or masked or unified"),
        ("tokenizer", {"text": {"pooled": True}}, "ar or masked or unified"),
        ("ar", {"feature_loss": "lpips"}, "tokenizer"),
    ],
)
def test_a_setting_that_a_task_does_not_read_is_refused(task: str, setting: dict[str, Any], owner: str) -> None:
    (name,) = setting
    with pytest.raises(ValueError) as caught:
        parse(TrainConfig, GOOD | {"task": task} | setting, "run.yaml")
    assert str(caught.value).startswith(f"run.yaml: {name}: Value error, only for task: {owner}")
    default = TrainConfig.model_fields[name].get_default(call_default_factory=True)
    parse(TrainConfig, GOOD | {"task": task, name: default}, "run.yaml")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ValueError, match=r"run\.yaml: loop: Field required"):
        parse(TrainConfig, {key: value for key, value in GOOD.items() if key != "loop"}, "run.yaml")


def test_configurations_are_frozen() -> None:
    settings = LoopConfig(steps=3)
    with pytest.raises(ValueError, match="frozen"):
        settings.steps = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"), [("a: [1", "not valid YAML"), ("- 1", "expected a mapping of settings, got list")]
)
def test_a_file_that_is_no_mapping(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no such file"):
        read_yaml(tmp_path / "missing.yaml")
