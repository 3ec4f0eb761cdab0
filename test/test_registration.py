# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from slam3r_ros.mapping import registration
from slam3r_ros.mapping.registration import RegistrationError, similarity, similarity_ransac

SCALE, ROTATION, TRANSLATION = 2.5, Rotation.from_rotvec([0.3, -1.2, 2.0]).as_matrix(), np.array([1.0, -4.0, 0.5])


@pytest.fixture
def points():
    return np.random.default_rng(0).normal(size=(50, 3))


def moved(points, scale=SCALE):
    return scale * points @ ROTATION.T + TRANSLATION


def test_similarity_is_recovered(points):
    found = similarity(points, moved(points))
    assert found.scale == pytest.approx(SCALE, abs=1e-12)
    np.testing.assert_allclose(found.rotation, ROTATION, atol=1e-12)
    np.testing.assert_allclose(found.translation, TRANSLATION, atol=1e-12)
    np.testing.assert_allclose(found.apply(points), moved(points), atol=1e-12)


def test_rigid_keeps_the_scale_at_one(points):
    found = similarity(points, moved(points, 1.0), with_scale=False)
    np.testing.assert_allclose(found.apply(points), moved(points, 1.0), atol=1e-12)
    assert similarity(points, moved(points), with_scale=False).scale == 1


def test_noisy_fit_is_the_least_squares_one(points):
    target = moved(points) + 0.3 * np.random.default_rng(1).normal(size=points.shape)
    found = similarity(points, target)

    def cost(scale, rotation, translation):
        return np.square(scale * points @ rotation.T + translation - target).sum()

    best = cost(*found)
    for step in np.vstack([np.eye(7), -np.eye(7)]) * 1e-4:
        turned = Rotation.from_rotvec(step[1:4]).as_matrix() @ found.rotation
        assert cost(found.scale + step[0], turned, found.translation + step[4:]) > best


def test_flat_points_give_a_rotation_not_a_reflection(points):
    flat = points * (1, 1, 0)
    found = similarity(flat, moved(flat))
    assert np.linalg.det(found.rotation) == pytest.approx(1)
    np.testing.assert_allclose(found.rotation, ROTATION, atol=1e-9)


def test_mirrored_points_give_a_rotation(points):
    assert np.linalg.det(similarity(points, points * (1, 1, -1)).rotation) == pytest.approx(1)


@pytest.mark.parametrize('source, target, reason', [
    (np.ones((2, 3)), np.ones((2, 3)), 'at least 3'),
    (np.ones((5, 3)), np.eye(5, 3), 'coincide'),
    (np.eye(3), np.full((3, 3), np.nan), 'finite'),
    (np.eye(3), np.eye(4, 3), 'matched'),
])
def test_what_determines_nothing_is_refused(source, target, reason):
    with pytest.raises(RegistrationError, match=reason):
        similarity(source, target)
    with pytest.raises(RegistrationError, match='no transform' if reason == 'coincide' else reason):
        similarity_ransac(source, target, 0.1)


def test_samples_hold_three_points_each_equally_often():
    samples = registration._draw(np.random.default_rng(0), 4, 24_000)
    found, counts = np.unique(samples, axis=0, return_counts=True)
    assert len(found) == 24 and all(len(set(row)) == 3 for row in found.tolist())
    assert counts == pytest.approx(1000, rel=0.15)


def test_hopeless_matches_are_given_up(monkeypatch):
    random, drawn, draw = np.random.default_rng(0), [], registration._draw
    monkeypatch.setattr(registration, '_draw', lambda *arguments: drawn.append(draw(*arguments)) or drawn[-1])
    with pytest.raises(RegistrationError):
        similarity_ransac(random.normal(size=(50, 3)), random.normal(size=(50, 3)), 1e-9, max_iterations=100)
    assert sum(map(len, drawn)) == 100


def test_ransac_finds_the_inliers_among_outliers(points):
    generator = np.random.default_rng(2)
    target = moved(points) + 0.01 * generator.normal(size=points.shape)
    wrong = generator.permutation(50)[:25]
    target[wrong] = 10 * generator.normal(size=(25, 3))
    found, inliers = similarity_ransac(points, target, threshold=0.1)
    assert not inliers[wrong].any() and inliers.sum() == 25
    assert found.scale == pytest.approx(SCALE, rel=0.01)
    np.testing.assert_allclose(found.rotation, ROTATION, atol=0.02)
    rigid, _ = similarity_ransac(points, moved(points, 1.0), 0.1, with_scale=False)
    np.testing.assert_allclose(rigid.apply(points), moved(points, 1.0), atol=1e-9)


def test_ransac_without_agreement_says_so():
    generator = np.random.default_rng(3)
    with pytest.raises(RegistrationError, match='no transform fits'):
        similarity_ransac(np.ones((10, 3)), generator.normal(size=(10, 3)), threshold=1e-9)
    with pytest.raises(RegistrationError, match='at least 3'):
        similarity_ransac(np.ones((2, 3)), np.ones((2, 3)), threshold=1)
