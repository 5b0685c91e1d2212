"""Spherical interpolation between two models (Shoemake 1985)."""

import math

import pytest
import torch
from safetensors.torch import load_file
from tiny import apart_from_each_other, llama

from recall.errors import BadInput
from recall.merging import merge_by
from recall.slerp import arc, slerp


def test_half_way_round_a_right_angle():
    assert arc(0.0, 0.5) == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)))


def test_a_third_of_the_way_round_60_degrees():
    # sin 40 / sin 60 and sin 20 / sin 60
    assert arc(0.5, 1 / 3) == pytest.approx((0.742227, 0.394931), rel=1e-5)


def test_nearly_parallel_vectors_are_interpolated_on_the_line():
    assert arc(0.9999, 0.25) == (0.75, 0.25)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_every_tensor_turns_by_its_own_angle(tmp_path, fraction):
    pool = apart_from_each_other(llama, tmp_path, 2)
    merge_by(pool, slerp(fraction), tmp_path / "out")
    first, second = (load_file(member.folder / "model.safetensors") for member in pool)
    for name, found in load_file(tmp_path / "out" / "model.safetensors").items():
        a, b = first[name].double(), second[name].double()
        cosine = float((a * b).sum() / (a.norm() * b.norm()))
        shares = arc(cosine, fraction)
        torch.testing.assert_close(found.double(), shares[0] * a + shares[1] * b, rtol=1e-5, atol=1e-6)


def test_equal_models_come_back(tmp_path):
    pool = [llama(tmp_path / "a"), llama(tmp_path / "b")]
    merge_by(pool, slerp(0.5), tmp_path / "out")
    merged, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "a"))
    assert all(torch.equal(merged[name], expected[name]) for name in expected)


def test_three_models_are_refused(tmp_path):
    with pytest.raises(BadInput, match="between two models, but 3 were given"):
        merge_by(apart_from_each_other(llama, tmp_path, 3), slerp(0.5), tmp_path / "out")
