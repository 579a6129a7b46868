import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from metricgold.log_depth import LOG, Encoding, EncodingName, LogDepth

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


# -- what a VAE sees of it ----------------------------------------------------------------------------

NAMES = get_args(EncodingName)


def seen(encoding, depth_m):
    return encoding.of_log_depth(encoding.log_depth.normalize(depth_m))


@pytest.mark.parametrize(
    "name, power_of",
    [("linear", lambda z: z), ("inverse", lambda z: 1 / z), ("sqrt", np.sqrt), ("log", np.log)],
)
def test_an_encoding_is_linear_in_its_power_of_depth(name, power_of):
    """Near is -1 and far is +1 in all of them, so that inverse depth is turned round."""
    depth_m = np.geomspace(0.5, 80.0, 200)
    near, far = power_of(0.5), power_of(80.0)
    expected = 2 * (power_of(depth_m) - near) / (far - near) - 1
    e = seen(Encoding(name, 0.5, 80.0), torch.from_numpy(depth_m))
    np.testing.assert_allclose(e, expected, atol=1e-12)
    assert (e.diff() > 0).all() and e[0] == -1 and e[-1] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    "name, middle_m",
    [("log", np.sqrt(0.5 * 80)), ("linear", 40.25), ("inverse", 2 / (1 / 0.5 + 1 / 80)), ("sqrt", 23.2871320)],
)
def test_nought_is_a_mean_of_near_and_far_and_what_is_outside_saturates(name, middle_m):
    """The geometric, arithmetic and harmonic mean; of sqrt the mean of powers 1/2."""
    depth_m = torch.tensor([0.01, 0.5, float(middle_m), 80.0, 4000.0])
    e = seen(Encoding(name, 0.5, 80.0), depth_m)
    torch.testing.assert_close(e, torch.tensor([-1.0, -1, 0, 1, 1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@given(near_m=near, far_over_near=ratio, share=st.floats(0, 1))
def test_an_encoding_and_back_is_the_same_log_depth(name, near_m, far_over_near, share):
    encoding, d = Encoding(name, near_m, near_m * far_over_near), torch.tensor([2 * share - 1], dtype=torch.float64)
    back = encoding.to_log_depth(encoding.of_log_depth(d))
    torch.testing.assert_close(back, d, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("near_m, far_m", [(0.5, 80.0), (0.2, 500.0)])
def test_float32_loses_less_than_a_thousandth_of_the_depth(name, near_m, far_m):
    encoding, depth_m = Encoding(name, near_m, far_m), torch.from_numpy(np.geomspace(near_m, far_m, 1000))
    back_m = encoding.log_depth.denormalize(encoding.to_log_depth(seen(encoding, depth_m.float())))
    torch.testing.assert_close(back_m.double(), depth_m, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_decoder_says_beyond_its_range_is_its_end(name):
    d = Encoding(name, 0.5, 80.0).to_log_depth(torch.tensor([-1.3, -1.0, 1.0, 1.3]))
    torch.testing.assert_close(d, torch.tensor([-1.0, -1.0, 1.0, 1.0]), atol=1e-4, rtol=0)


def test_a_range_times_a_focal_length_is_encoded_alike():
    """So that one encoding serves canonical depth, whose range every lens scales."""
    d = torch.linspace(-1, 1, 50)
    for name in NAMES:
        one, other = Encoding(name, 0.5, 80.0), Encoding(name, 0.5 * 1.7, 80.0 * 1.7)
        torch.testing.assert_close(one.of_log_depth(d), other.of_log_depth(d), atol=1e-6, rtol=0)


def test_log_is_log_depth_itself_bit_by_bit():
    d = torch.linspace(-1, 1, 1000)
    assert LOG.of_log_depth(d) is d and torch.equal(LOG.to_log_depth(d), d)
    assert torch.equal(Encoding("log", 0.5, 80.0).to_log_depth(d), d)


def test_another_encoding_is_refused_by_name():
    with pytest.raises(ValueError, match=r"encoding is 'disparity', expected one of log, linear, inverse, sqrt"):
        Encoding("disparity", 0.5, 80.0)
    with pytest.raises(ValueError, match="near_m=80"):
        Encoding("linear", 80.0, 0.5)
