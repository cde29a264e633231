"""The AR model at its best: guidance scale and temperature, chosen by the Fréchet distance of a few pictures of each.

A comparison with an AR model at an unlucky setting proves nothing, so figures and sweeps choose its setting first. The
pictures that choose are among those that are compared afterwards, which errs in the AR model's favour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from hybrid.config import DefaultsConfig

from .artist import Artist, Method, Way
from .figures import Job, Reference, Sheet
from .statistics import estimate, frechet_distance, frechet_draws

GUIDANCE = (1.0, 2.0, 3.0)
TEMPERATURE = (0.5, 0.75, 1.0)
PICTURES = 192
"""Of each setting."""


def frechet_of(
    artist: Artist, way: Way, prompts: Sequence[str | int], seed: int, reference: Reference
) -> dict[str, Any]:
    """The Fréchet distance of one picture of each prompt, with its interval."""
    projected = reference.components(artist.draw(way, prompts, seed).features_nd.astype(np.float32))
    value = frechet_distance(projected, reference.projected_mk)
    draws = frechet_draws(projected, reference.projected_mk, seed=reference.seed)
    return {
        "pictures": len(prompts),
        "frechet": value,
        "frechet_interval": list(estimate(value, draws).interval),
    }


def grid(defaults: DefaultsConfig) -> list[dict[str, float]]:
    """The pair's own setting (as an empty one), then every other guidance scale and temperature."""
    own = (defaults.ar.guidance_scale, defaults.ar.temperature)
    found: list[dict[str, float]] = [{}]
    for guidance, temperature in product(GUIDANCE, TEMPERATURE):
        if (guidance, temperature) != own:
            found.append({"guidance_scale": guidance, "temperature": temperature})
    return found


def at_its_best(
    job: Job,
    sheet: Sheet,
    methods: Sequence[Method],
    prompts: Sequence[str | int],
    reference: Reference,
    known: Mapping[str, Any] | None = None,
) -> list[Method]:
    """``methods`` with the one called ``ar`` at its best; what was tried goes into the sheet's details.

    Args:
        job: pair and sizes.
        sheet: takes ``ar_choice``.
        methods: one of them is called ``ar``.
        prompts: the first of them are drawn.
        reference: the real pictures.
        known: the setting, where it was chosen before; nothing is drawn then.
    """
    plain = next(method for method in methods if method.name == "ar")
    asked, tried = list(prompts[:PICTURES]), []
    for settings in grid(job.artist.pipeline.defaults) if known is None else ():
        way = replace(plain, options=tuple(sorted(settings.items())))
        tried.append({"settings": settings, **frechet_of(job.artist, way, asked, job.seed, reference)})
    settings = min(tried, key=lambda one: one["frechet"])["settings"] if known is None else dict(known)
    sheet.details["ar_choice"] = {"settings": settings, "pictures": len(asked), "tried": tried}
    best = replace(plain, options=tuple(sorted(settings.items())))
    return [best if method is plain else method for method in methods]
