"""Names that strangers chose cannot steer a terminal or forge a line of a log."""

import logging

import pytest

from metricgold.storage.messages import Lines, OneLineFormatter, message_of, one_line


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain ünïcode 深度", "plain ünïcode 深度"),
        ("a\nERROR all is lost", r"a\nERROR all is lost"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\r\tb\x85c\u2028d", r"a\r\tb\x85c\u2028d"),
        ("gpj.\u202egnp", r"gpj.\u202egnp"),
        (b"\xff.jpg".decode("utf-8", "surrogateescape"), r"\udcff.jpg"),
    ],
)
def test_what_is_not_printable_is_escaped(name, shown):
    assert one_line(name) == shown
    assert message_of(ValueError(f"{name}: broken")) == f"{shown}: broken"
    record = logging.LogRecord("metricgold", logging.INFO, "", 0, "%s: done", (name,), None)
    assert OneLineFormatter("%(levelname)s %(message)s").format(record) == f"INFO {shown}: done"


def test_an_error_of_several_lines_has_no_more_than_those():
    assert message_of(OSError(Lines(["2 failed:", "a\nb", "\x1b[2J"]))) == "2 failed:\na\\nb\n\\x1b[2J"


def test_an_error_without_words_has_its_name():
    assert message_of(ValueError()) == "ValueError"


def test_a_traceback_keeps_its_lines():
    try:
        raise ValueError("a\nb")
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "c\nd", (), (type(error), error, error.__traceback__))
    first, *others = OneLineFormatter().format(record).splitlines()
    assert (first, others[0]) == (r"c\nd", "Traceback (most recent call last):")
