import glob
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from metricgold.storage.globs import Wanted, depth, literal_head, matches, split

KEYS = ("a.jpg", "b.png", "d/a.jpg", "d/b.jpg", "d/e/a.jpg", "d/e/f/c.png", "de/a.jpg", "x[1]/a.jpg", "x/y/z")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for key in KEYS:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).touch()
    return root


segments = st.text(st.sampled_from("adexy*?[]1.!-"), min_size=1, max_size=5).filter(lambda s: s not in (".", ".."))
patterns = st.lists(segments | st.just("**") | st.sampled_from(["a.jpg", "d", "e", "*.jpg"]), min_size=1, max_size=4)


@settings(max_examples=400)
@given(patterns.map("/".join).filter(lambda pattern: not any(part.startswith(".") for part in pattern.split("/"))))
def test_as_the_standard_library_matches(tree, pattern):
    expected = set(KEYS) & set(glob.glob(pattern, root_dir=tree, recursive=True))  # noqa: PTH207
    found = {key for key in KEYS if matches(pattern, key)}
    assert found == expected
    assert all(key.startswith(literal_head(pattern)) for key in found)
    assert all(depth(pattern) in (None, key.count("/")) for key in found)
    assert "".join(split(pattern)) == pattern


def test_a_final_slash_means_all_below():
    assert [key for key in KEYS if matches("d*/", key)] == [key for key in KEYS if key.startswith("d")]


def test_what_is_wanted():
    assert [key for key in KEYS if key in Wanted()] == list(KEYS)
    assert [key for key in KEYS if key in Wanted(include=("*.png", "x/**"))] == ["b.png", "d/e/f/c.png", "x/y/z"]
    assert [key for key in KEYS if key in Wanted("d/**", ("*.jpg",), ("d/e/", "b.*"))] == ["d/a.jpg"]


def test_composed_and_decomposed_letters_are_the_same():
    composed, decomposed = "d/caf\u00e9.jpg", "d/cafe\u0301.jpg"
    for pattern, key in ((composed, decomposed), (decomposed, composed)):
        assert matches(pattern, key)
        assert key in Wanted(include=("*" + pattern[-7:],))
        assert key not in Wanted(exclude=(pattern,))
    assert matches("d/caf?.jpg", decomposed)
    assert not matches("d/cafe.jpg", decomposed)
    assert matches("*.jpg", "\udcff.jpg")  # bytes that are no text
