import numpy as np
import pytest

from metricgold.predict.robust_fit import fit_calibration, student_t_95


def points(count: int, scale: float, power: float = 1.0, scatter: float = 0.03, seed: int = 0):
    rng = np.random.default_rng(seed)
    predicted_m = np.exp(np.linspace(np.log(1.0), np.log(20.0), count))
    return predicted_m, scale * predicted_m**power * np.exp(rng.normal(0, scatter, count))


def fit(predicted_m, measured_m, images=None):
    return fit_calibration(predicted_m, measured_m, images or ["a.jpg"] * len(predicted_m))


@pytest.mark.parametrize("count", [3, 5, 10])
def test_a_scale_is_found_from_few_points(count):
    predicted_m, measured_m = points(count, 0.54)
    found = fit(predicted_m, measured_m)
    assert found.model == "scale" and found.line.power == 1
    assert found.line.apply(np.array([4.0])) == pytest.approx(0.54 * 4, rel=0.05)
    assert found.abs_rel["scale"] < 0.1 < 0.8 < found.abs_rel["none"]
    mean, low, high = found.improvement
    assert 0 < low < mean < high
    assert 0 < found.scale_error < 0.1


def test_a_power_is_chosen_where_scale_does_not_do_and_distances_spread():
    predicted_m, measured_m = points(12, 0.9, power=0.7)
    found = fit(predicted_m, measured_m)
    assert found.model == "scale and power"
    assert found.line.power == pytest.approx(0.7, abs=0.05)
    assert found.abs_rel["scale and power"] < found.abs_rel["scale"] / 2
    ratio = found.line.apply(np.array([0.01, 1.0, 20.0, 1000.0])) / [0.01, 1.0, 20.0, 1000.0]
    assert ratio[0] == pytest.approx(ratio[1]) and ratio[2] == pytest.approx(ratio[3])  # no guess beyond the points
    near_m = np.linspace(3.0, 4.0, 12)  # too alike to say what is farther away
    assert fit(near_m, 0.9 * near_m**0.7).model == "scale"


@pytest.mark.parametrize("count", [5, 10])
def test_a_fifth_of_the_points_may_be_wrong(count):
    predicted_m, measured_m = points(count, 0.54)
    wrong = np.arange(count) % 5 == 1
    measured_m[wrong] /= 0.3048  # in feet
    found = fit(predicted_m, measured_m)
    assert found.model == "scale" and found.used.tolist() == (~wrong).tolist()
    assert found.line.scale == pytest.approx(0.54, rel=0.05)


def test_of_three_points_none_may_disagree():
    with pytest.raises(ValueError, match=r"disagree: 1 of 3 are not .* factor of up to 2.99"):
        fit(np.array([1.0, 2.0, 4.0]), np.array([0.5, 1.01, 6.0]))


def test_points_in_wild_disagreement_are_no_calibration():
    predicted_m = np.full(9, 4.0)
    found_none = fit(predicted_m, 4.0 * np.exp(np.linspace(-2, 2, 9)))
    assert found_none.model == "none"
    measured_m = np.array([2.0, 2.01, 1.99, 2.0, 2.02, 8.0, 16.0, 30.0, 60.0])
    with pytest.raises(ValueError, match="4 of 9"):
        fit(predicted_m, measured_m)


def test_a_right_model_is_left_alone():
    kept = [fit(*points(5, 1.0, scatter=0.12, seed=seed)).model != "none" for seed in range(60)]
    assert sum(kept) <= 6  # one in twenty each for scale and power, by chance


def test_whole_images_are_left_out_where_there_are_three():
    """Each image has a scale of its own: points of one image do not speak for the next."""
    rng = np.random.default_rng(0)
    images = [name for name in "abc" for _ in range(10)]
    of_image = {"a": 0.7, "b": 1.0, "c": 1.4}
    predicted_m = rng.uniform(1, 1.9, 30)
    measured_m = predicted_m * [of_image[name] for name in images]
    found = fit(predicted_m, measured_m, images)
    assert found.num_groups == 3 and found.model == "none"
    assert fit(predicted_m, predicted_m * 0.7, images).model == "scale"


def test_fewer_than_three_points_are_refused():
    with pytest.raises(ValueError, match="3 points at least, got 2"):
        fit(np.array([1.0, 2.0]), np.array([1.0, 2.0]))


def test_a_power_from_many_points():
    predicted_m, measured_m = points(1_000, 0.8, power=0.8)
    assert fit(predicted_m, measured_m).line.power == pytest.approx(0.8, abs=0.01)


def test_students_t():
    table = {2: 2.920, 3: 2.353, 4: 2.132, 9: 1.833, 30: 1.697}  # any textbook's
    assert {freedom: pytest.approx(student_t_95(freedom), rel=0.004) for freedom in table} == table
