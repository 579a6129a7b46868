"""YAML is read as it stands there, or refused in one line that says where."""

import time
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from metricgold.storage.yaml_files import MAX_BYTES, MAX_DEPTH, read_yaml, write_yaml


def read(path, content: str | bytes):
    path = path / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_yaml(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e10", 1e10),
        ("1e-3", 1e-3),
        ("-1E+3", -1000.0),
        (".5", 0.5),
        ("3.", 3.0),
        (".inf", float("inf")),
        ("12", 12),
        ("1_000", 1000),
        ("010", 10),
        ("0x1F", 31),
        ("true", True),
        ("no", "no"),
        ("12:30", "12:30"),
        ("2026-13-01", "2026-13-01"),
        ("'1e10'", "1e10"),
        ("~", None),
        ("", None),
    ],
)
def test_what_a_word_means(tmp_path, text, value):
    found = read(tmp_path, text)
    assert (found, type(found)) == (value, type(value))


def test_what_it_means_is_what_dvc_reads(tmp_path):
    from dvc.utils.serialize import parse_yaml

    text = "a: 1e10\nb: 1e-3\nc: 010\nd: no\ne: 12:30\nf: 1.5\ng: 0x1F\nh: true\ni: null\nj: 7\n"
    assert parse_yaml(text, "mine.yaml") == read(tmp_path, text)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("depth: {unit: metre,\n  unit: millimetre}", "line 2: unit is given twice"),
        ("a: 1\nb: 2\n\na: 1", "line 4: a is given twice"),
        ("1: a\n1.0: b", "line 2: 1.0 is given twice"),
        ("a: &x [1]\nb: *x", r"line 2: has an alias, \*x"),
        ("a: !!python/object/apply:os.getcwd []", "line 1: has a tag, tag:yaml.org,2002:python/object/apply:os.getcwd"),
        ("a: !mine 3", "line 1: has a tag, !mine"),
        ("[a]: 1", "line 1: has a list or a mapping for a key"),
        ("a: 1\nb: " + "[" * 100_000, f"line 2: is nested more than {MAX_DEPTH} deep"),
        ("a: " + "9" * 5000, "line 1: has a number of 5000 digits"),
        ("a: 1\nb: [", "line 2: is not YAML: while parsing a flow node"),
        ("a: 1\n---\nb: 2", "line 2: is not YAML: expected a single document"),
        (b"a: 1\nb: \xe4", "line 2: is not YAML: byte 0xe4 is not UTF-8"),
        (b"\xff\xfea\x00", "line 1: is not YAML: byte 0xff is not UTF-8"),
        ("a: \x1b", "is not YAML: unacceptable character"),
        ("#" * (MAX_BYTES + 1), "has more than 4,194,304 bytes"),
    ],
    ids=range(15),
)
def test_what_is_refused(tmp_path, content, problem):
    with pytest.raises(ValueError, match=rf"^{tmp_path}/mine\.yaml: {problem}") as raised:
        read(tmp_path, content)
    assert len(str(raised.value).splitlines()) == 1


def test_aliases_do_not_expand(tmp_path):
    lines = ["a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"{name}: &{name} [{', '.join([f'*{inner}'] * 9)}]" for inner, name in pairwise("abcdefghij")]
    started = time.perf_counter()
    with pytest.raises(ValueError, match="line 2: has an alias"):
        read(tmp_path, "\n".join(lines))
    assert time.perf_counter() - started < 20  # 9^10 words would take hours


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    assert read(tmp_path, "\ufeffa: 1\r\nb: 2\r\n") == {"a": 1, "b": 2}


WORDS = st.sampled_from(["1e10", "010", "09", "no", "null", "~", "", "0x1", "12:30", "=", "<<", ".inf", "2026-01-01"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | WORDS


@given(st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text() | WORDS, inner), max_leaves=9))
def test_what_is_written_is_read_back(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    write_yaml(path, value)
    assert read_yaml(path) == value
