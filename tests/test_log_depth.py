import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from metricgold.log_depth import LogDepth

near = st.floats(1e-2, 5)
ratio = st.floats(1.5, 1e4)


@given(near, ratio, st.floats(0, 1))
def test_denormalize_inverts_normalize_in_range(near_m, far_over_near, share):
    log_depth = LogDepth(near_m, near_m * far_over_near)
    depth_m = near_m * far_over_near**share
    assert log_depth.denormalize(log_depth.normalize(depth_m)) == pytest.approx(depth_m, rel=1e-9)


@given(near, ratio, st.floats(1e-3, 1e5), st.floats(1e-3, 1e5))
def test_normalize_is_monotone_and_saturates(near_m, far_over_near, a, b):
    log_depth = LogDepth(near_m, near_m * far_over_near)
    da, db = log_depth.normalize(min(a, b)), log_depth.normalize(max(a, b))
    assert -1 <= da <= db <= 1


def test_the_paper_s_formula_at_known_points():
    log_depth = LogDepth(0.5, 80.0)
    depth_m = np.array([0.5, math.sqrt(0.5 * 80), 80.0, 1.0])
    expected = [-1, 0, 1, 2 * math.log(2) / math.log(160) - 1]
    np.testing.assert_allclose(log_depth.normalize(depth_m), expected, atol=1e-12)


def test_outside_the_range_saturates_at_the_ends():
    log_depth = LogDepth(0.5, 80.0)
    np.testing.assert_array_equal(log_depth.normalize(np.array([0.0, 0.1, 500.0])), [-1, -1, 1])
    np.testing.assert_allclose(log_depth.denormalize(np.array([-3.0, 3.0])), [0.5, 80.0])


@pytest.mark.parametrize("depth_m", [np.float32([0.2, 3, 90]), torch.tensor([0.2, 3, 90])])
def test_numpy_and_torch_agree_and_keep_their_type(depth_m):
    log_depth = LogDepth(0.5, 80.0)
    d = log_depth.normalize(depth_m)
    assert type(d) is type(depth_m) and d.dtype == depth_m.dtype
    np.testing.assert_allclose(np.asarray(d), log_depth.normalize(np.float64([0.2, 3, 90])), atol=1e-6)
    assert log_depth.denormalize(d).dtype == depth_m.dtype


@pytest.mark.parametrize("near_m, far_m", [(0, 80), (-1, 80), (80, 0.5), (1, 1), (float("nan"), 80), (1, math.inf)])
def test_a_bad_range_is_refused_with_both_values(near_m, far_m):
    with pytest.raises(ValueError, match=r"near_m=.*far_m="):
        LogDepth(near_m, far_m)
