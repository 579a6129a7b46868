"""Names that strangers chose cannot steer a terminal or forge a line of a log."""

import json
import logging
import os

import pytest

from metricgold.storage.messages import JsonFormatter, Lines, OneLineFormatter, log_formatter, message_of, one_line


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


@pytest.fixture
def json_logs(monkeypatch):
    monkeypatch.setenv("METRICGOLD_LOG", "json")
    monkeypatch.setenv("METRICGOLD_RUN", "night-42")


def test_a_record_as_json_is_one_line_whatever_its_message_holds(json_logs):
    record = logging.LogRecord("metricgold.x", logging.WARNING, "", 0, "%s: no", ("a\nb\x1b\u2028\udcff",), None)
    record.created, record.msecs = 1_700_000_000.25, 250.0
    line = log_formatter().format(record)
    assert len(line.splitlines()) == 1 and line.isprintable()
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "WARNING",
        "logger": "metricgold.x",
        "message": "a\nb\x1b\u2028\udcff: no",
        "run": "night-42",
    }


def test_a_traceback_is_in_the_record(json_logs):
    try:
        raise ValueError("a")
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "c", (), (type(error), error, error.__traceback__))
    assert json.loads(log_formatter().format(record))["traceback"].endswith("ValueError: a")


def test_one_run_for_a_process_and_its_children(json_logs, monkeypatch):
    monkeypatch.delenv("METRICGOLD_RUN")
    record = logging.LogRecord("x", logging.INFO, "", 0, "c", (), None)
    runs = {json.loads(log_formatter().format(record))["run"] for _ in range(2)} | {os.environ["METRICGOLD_RUN"]}
    assert len(runs) == 1 and len(runs.pop()) == 12


def test_another_kind_of_log_is_refused(monkeypatch):
    monkeypatch.setenv("METRICGOLD_LOG", "xml")
    with pytest.raises(ValueError, match="METRICGOLD_LOG=xml: expected plain or json"):
        log_formatter()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://me:word@host:80/a", "http://***@host:80/a"),
        ("MLflow at postgresql://me:w@r/d@host/mlflow: away", "MLflow at postgresql://***@host/mlflow: away"),
        ("https://ghp_token@host/a.git", "https://***@host/a.git"),
        ("postgresql://host/a?user=me&password=word&b=1", "postgresql://host/a?user=me&password=***&b=1"),
        ("https://h/a?X-Amz-Signature=ab&x-amz-date=c gone", "https://h/a?X-Amz-Signature=***&x-amz-date=*** gone"),
        ("http://127.0.0.1:5000/a@b", "http://127.0.0.1:5000/a@b"),
        ("http://127.0.0.1:5000: no alias metricgold@champion", "http://127.0.0.1:5000: no alias metricgold@champion"),
        ("s3://bucket/a@2x.png", "s3://bucket/a@2x.png"),
        ("models:/metricgold@champion?key=1", "models:/metricgold@champion?key=1"),
    ],
)  # fmt: skip
def test_no_credentials_of_addresses_are_told(address, shown):
    assert message_of(ValueError(address)) == shown
    record = logging.LogRecord("metricgold", logging.INFO, "", 0, "%s", (address,), None)
    assert OneLineFormatter("%(message)s").format(record) == shown
    assert json.loads(JsonFormatter().format(record))["message"] == shown
