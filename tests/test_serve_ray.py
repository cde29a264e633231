"""``configs/serve.yaml`` and the Ray Serve application; what needs Ray runs where the extra ``ray`` is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hybrid.pairing import find_pair

CONFIG: dict[str, Any] = yaml.safe_load((Path(__file__).parent.parent / "configs" / "serve.yaml").read_text())


def test_the_deployment_is_not_listed_as_a_model() -> None:
    with pytest.raises(ValueError, match="shipped models") as caught:
        find_pair("no-such-pair")
    assert "serve" not in str(caught.value)


def test_the_file_names_the_application_and_fits_the_engine() -> None:
    (application,) = CONFIG["applications"]
    (deployment,) = application["deployments"]
    assert application["import_path"] == "hybrid.serve.ray_app:build"
    assert deployment["max_ongoing_requests"] > application["args"]["queue"] + application["args"]["batch"]
    assert deployment["ray_actor_options"]["num_cpus"] == application["args"]["threads"]
    find_pair(application["args"]["pair"])


def test_ray_accepts_the_file_and_the_application_it_names() -> None:
    schema = pytest.importorskip("ray.serve.schema")
    from hybrid.serve.ray_app import build

    schema.ServeDeploySchema.model_validate(CONFIG)
    build(CONFIG["applications"][0]["args"])
    with pytest.raises(ValueError, match="args: unknown key 'pear'; did you mean 'pair'"):
        build({"pear": "emoji"})
    with pytest.raises(ValueError, match="args: grace: Input should be less than or equal to"):
        build({"grace": float("inf")})
