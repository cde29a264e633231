"""Fidelity statistics against closed forms, and retrieval against planted answers."""

from __future__ import annotations

import numpy as np
import pytest

from hybrid.benchmarks.retrieval import FOLDS, CrossFitted, cross_fit, fit_ridge, fold_of, hits, ranks
from hybrid.benchmarks.statistics import (
    estimate,
    fit_components,
    frechet_distance,
    frechet_draws,
    gaussian_distance,
    kid,
    kid_blocks,
    kid_estimate,
    precision_recall,
    share,
    share_draws,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Fréchet distance


def test_gaussian_distance_is_the_closed_form_where_covariances_commute() -> None:
    mean_x, mean_y = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 5.0])
    deviations_x, deviations_y = np.array([1.0, 2.0, 0.0]), np.array([3.0, 2.0, 0.5])
    expected = 1 + 4 + ((deviations_x - deviations_y) ** 2).sum()
    rotation, _ = np.linalg.qr(rng().normal(size=(3, 3)))
    cov_x, cov_y = (rotation @ np.diag(each**2) @ rotation.T for each in (deviations_x, deviations_y))
    assert gaussian_distance(mean_x, cov_x, mean_y, cov_y) == pytest.approx(expected)
    assert gaussian_distance(mean_x, cov_x, mean_x, cov_x) == pytest.approx(0, abs=1e-12)


def test_gaussian_distance_agrees_with_the_matrix_square_root() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    factors = rng(1).normal(size=(2, 6, 6))
    cov_x, cov_y = (factor @ factor.T for factor in factors)
    mean = np.zeros(6)
    expected = np.trace(cov_x + cov_y - 2 * linalg.sqrtm(cov_x @ cov_y).real)
    assert gaussian_distance(mean, cov_x, mean, cov_y) == pytest.approx(expected)
    assert gaussian_distance(mean, cov_y, mean, cov_x) == pytest.approx(expected)


def test_frechet_distance_of_samples_approaches_that_of_their_gaussians() -> None:
    x, y = rng(2).normal(size=(20_000, 4)), 2 * rng(3).normal(size=(20_000, 4)) + 1
    assert frechet_distance(x, y) == pytest.approx(4 * 1 + 4 * 1, rel=0.03)
    assert frechet_distance(x[:, :1], y[:, :1]) == pytest.approx(2, rel=0.05)
    assert frechet_distance(x, x[::-1]) == pytest.approx(0, abs=1e-9)


def test_frechet_draws_are_centred_and_paired() -> None:
    real, one = rng(4).normal(size=(300, 3)), rng(5).normal(size=(300, 3)) + 0.5
    draws = frechet_draws(one, real, seed=1, draws=50)
    assert draws.mean() == pytest.approx(frechet_distance(one, real)) and draws.std() > 0
    assert np.array_equal(draws, frechet_draws(one, real, seed=1, draws=50))
    # The same pictures twice: paired draws know that the ratio is 1.
    assert np.allclose(frechet_draws(one, real, seed=1, draws=50) / draws, 1)


def test_components_are_the_directions_of_largest_spread() -> None:
    real = rng(6).normal(size=(500, 5)) * np.array([0.1, 5, 0.2, 3, 0.3]) + 7
    components = fit_components(real, 2)
    assert np.abs(components.axes_dk[1, 0]) > 0.99 and np.abs(components.axes_dk[3, 1]) > 0.99
    assert components(real).mean(0) == pytest.approx([0, 0], abs=1e-9)
    assert components(real).var(0, ddof=1) == pytest.approx([25, 9], rel=0.2)
    full = fit_components(real, 5)
    shifted = real + 1
    assert frechet_distance(full(real), full(shifted)) == pytest.approx(5)
    for count in (0, 6, 500):
        with pytest.raises(ValueError, match=f"{count} components need more than {count} pictures and features"):
            fit_components(real, count)


# Kernel distance


def test_kid_by_hand() -> None:
    x, y = np.array([[1.0], [2.0]]), np.array([[0.0], [3.0]])
    # k(a, b) = (ab + 1)³: within x k(1,2) = 27, within y k(0,3) = 1, across 1, 64, 1, 343.
    assert kid(x, y) == pytest.approx(27 + 1 - 2 * (1 + 64 + 1 + 343) / 4)
    with pytest.raises(ValueError, match="at least 2 pictures of each kind, got 1 and 2"):
        kid(x[:1], y)


def test_kid_is_unbiased() -> None:
    draws = rng(7).normal(size=(2000, 2, 5, 2))
    same = np.asarray([kid(x, y) for x, y in draws])
    assert abs(same.mean()) < 4 * same.std() / len(same) ** 0.5 and (same < 0).any()
    # For x ~ N(0, 1), y ~ N(1, 1) in one dimension: E (xx'+1)³ + E (yy'+1)³ − 2 E (xy+1)³ = 4 + 32 − 2·7.
    moved = np.asarray([kid(x[:, :1], y[:, :1] + 1) for x, y in draws])
    assert moved.mean() == pytest.approx(22, abs=4 * moved.std() / len(moved) ** 0.5)


def test_kid_blocks_cover_each_picture_once_and_pair_methods() -> None:
    x, y = rng(8).normal(size=(90, 3)), rng(9).normal(size=(100, 3))
    blocks = kid_blocks(x, y, seed=3)
    assert len(blocks) == 20 and np.array_equal(blocks, kid_blocks(x, y, seed=3))
    assert not np.array_equal(blocks, kid_blocks(x, y, seed=4))
    found = kid_estimate(blocks, seed=0)
    assert found.value == pytest.approx(blocks.mean())
    assert found.interval[0] < found.lower < found.value < found.upper < found.interval[1]
    with pytest.raises(ValueError, match="20 KID blocks need 40 pictures of each kind, got 30, 100"):
        kid_blocks(x[:30], y, seed=0)


def test_kid_interval_covers_the_truth() -> None:
    covered = 0
    for seed in range(100):
        x, y = rng(seed).normal(size=(200, 1)), rng(1000 + seed).normal(size=(200, 1)) + 1
        low, high = kid_estimate(kid_blocks(x, y, seed=seed), seed=seed, draws=500).interval
        covered += low <= 22 <= high
    assert covered >= 85


# Precision and recall


def test_precision_and_recall_of_planted_sets() -> None:
    real = rng(10).uniform(size=(400, 2))
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real + 5, real) == (0, 0)
    left = rng(11).uniform(size=(400, 2)) * np.array([0.5, 1])
    precision, recall = precision_recall(left, real)
    assert precision > 0.95 and 0.4 < recall < 0.65
    half_outside = np.concatenate((rng(12).uniform(size=(200, 2)), rng(13).uniform(size=(200, 2)) + 9))
    assert precision_recall(half_outside, real)[0] == pytest.approx(0.5, abs=0.05)
    with pytest.raises(ValueError, match="3 neighbours: only 3 drawn pictures"):
        precision_recall(real[:3], real)


# Shares


def test_share_and_its_bootstrap() -> None:
    reference = np.array([1.0, 0.5, 0.0, 1.0] * 50)
    assert share(reference, reference, seed=0).interval == (1, 1)
    found = share(0.5 * reference, reference, seed=0)
    assert (found.value, found.lower, found.upper) == (0.5, 0.5, 0.5)
    loose = share(rng(14).permutation(reference), reference, seed=0)
    assert loose.value == 1 and loose.interval[0] < loose.lower < 1 < loose.upper < loose.interval[1]
    # Independent scores: the ratio's standard error by the delta method is √2 · σ / (μ √n).
    draws = share_draws(rng(15).permutation(reference), reference, seed=0)
    assert draws.std() == pytest.approx(2**0.5 * reference.std() / reference.mean() / 200**0.5, rel=0.2)
    few = share_draws(rng(15).permutation(reference), reference, seed=0, size=50)
    assert few.std() == pytest.approx(2 * draws.std(), rel=0.2)
    with pytest.raises(ValueError, match="equally many scores"):
        share(reference[:3], reference, seed=0)
    with pytest.raises(ValueError, match="the reference scores zero everywhere"):
        share(reference, 0 * reference, seed=0)
    assert share_draws(np.ones(2), np.array([0.0, 1.0]), seed=0, draws=100).min() == 0


def test_estimate_quantiles() -> None:
    found = estimate(0.5, np.linspace(0, 1, 1001))
    assert found.interval == pytest.approx((0.025, 0.975)) and (found.lower, found.upper) == pytest.approx((0.05, 0.95))


# Ridge regression and retrieval


def test_ridge_is_the_closed_form() -> None:
    x, noise = rng(16).normal(size=(200, 3)) * np.array([1, 10, 0.1]) + 5, rng(17).normal(size=(200, 2))
    y = x @ rng(18).normal(size=(3, 2)) + 2
    assert np.allclose(fit_ridge(x, y, 1e-9)(x), y, atol=1e-5)
    heavy = fit_ridge(x, y + noise, 1e9)
    assert np.allclose(heavy(x), (y + noise).mean(0), atol=1e-5)
    # One standardised feature: the slope shrinks by 1 / (1 + penalty).
    one = (x[:, :1] - x[:, :1].mean(0)) / x[:, :1].std(0)
    assert fit_ridge(one, 3 * one, 0.5).weight_de.item() == pytest.approx(2)
    assert np.isfinite(fit_ridge(np.ones((5, 2)), y[:5], 0.1)(np.ones((1, 2)))).all()
    with pytest.raises(ValueError, match="ridge penalty 0: must be positive"):
        fit_ridge(x, y, 0)
    with pytest.raises(ValueError, match="200 rows of features but 3 of targets"):
        fit_ridge(x, y[:3])


GROUPS = [f"g{index:02d}" for index in range(40)]


def planted(per_group: int = 6) -> tuple[np.ndarray, np.ndarray, list[str], dict[str, np.ndarray]]:
    """Features that hold each group's embedding in a rotated form, with noise."""
    embeddings = {group: rng(index).normal(size=(1, 8)) for index, group in enumerate(GROUPS)}
    groups = [group for group in GROUPS for _ in range(per_group)]
    targets = np.concatenate([embeddings[group] for group in groups])
    features = targets @ rng(99).normal(size=(8, 12)) + 0.05 * rng(98).normal(size=(len(groups), 12))
    return features, targets, groups, embeddings


def test_no_group_is_scored_by_a_regression_that_saw_it() -> None:
    features, targets, groups, _ = planted()
    fitted = cross_fit(features, targets, groups)
    assert len(fitted.readers) == FOLDS == len(fitted.trained_on)
    for group in GROUPS:
        assert [group in seen for seen in fitted.trained_on] == [fold != fold_of(group) for fold in range(FOLDS)]
    # Changing one group's pictures and targets cannot change how that group is read.
    rows = np.asarray(groups) == "g07"
    changed = np.where(rows[:, None], 1e3, features), np.where(rows[:, None], -1e3, targets)
    again = cross_fit(*changed, groups)
    assert np.array_equal(fitted(features[rows], ["g07"] * 6), again(features[rows], ["g07"] * 6))
    leaky = CrossFitted(fitted.readers, (frozenset(GROUPS),) * FOLDS)
    with pytest.raises(ValueError, match="group 'g07' would be scored by a regression that saw it"):
        leaky(features[rows], ["g07"] * 6)
    with pytest.raises(ValueError, match="1 concept groups are too few for 5 folds"):
        cross_fit(features[:6], targets[:6], groups[:6])


def test_retrieval_finds_planted_groups_and_nothing_without_information() -> None:
    features, targets, groups, embeddings = planted()
    fitted = cross_fit(features, targets, groups, penalty=1e-3)
    assert hits(fitted(features, groups), groups, embeddings, k=1).mean() > 0.9
    # A permutation of the pictures' groups finds them at the rate of chance, 10 of 40.
    shuffled = [groups[index] for index in rng(20).permutation(len(groups))]
    assert hits(fitted(features, groups), shuffled, embeddings).mean() == pytest.approx(0.25, abs=0.1)
    assert not hits(np.zeros((3, 8)), GROUPS[:3], embeddings).any()


def test_a_hit_under_any_alias_counts_once() -> None:
    axes = np.eye(5)
    candidates = {"a": axes[[0, 1]], "b": axes[[2]], "c": axes[[3, 3, 3]]}
    assert ranks(axes[[0, 1, 2, 3]], ["a", "a", "b", "c"], candidates).tolist() == [0, 0, 0, 0]
    # Three aliases of one group ahead of the right one are one group ahead of it.
    assert ranks(np.array([[0.1, 0, 0, 1, 0]]), ["a"], candidates).tolist() == [1]
    assert ranks(axes[[4]], ["a"], candidates).tolist() == [2]
    with pytest.raises(ValueError, match="group 'z' of a scored picture is not among the 3 candidates"):
        ranks(axes[[0]], ["z"], candidates)
