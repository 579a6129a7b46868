"""Messages on their way out: no name steers a terminal or forges a line of a log, no password is told."""

import json
import logging
import os
import re
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# user:password@ of an address, or token@. A password may hold / and @; digits behind the first colon are a port.
_CREDENTIALS = re.compile(r'(\w://)(?:[^:/@\s"]*:(?!\d+(?:[/\s]|$))[^\s"]*|[^/\s"]*)@')
_SECRETS_ASKED = re.compile(r'(?i)([?&;](?:password|token|key|secret|sig|signature|x-amz-[a-z-]+)=)[^&\s"\']*')


def without_passwords(text: str) -> str:
    """The text without what addresses in it hold of credentials: user and password, tokens, signatures."""
    return _SECRETS_ASKED.sub(r"\1***", _CREDENTIALS.sub(r"\1***@", text)) if "://" in text else text


def one_line(text: str) -> str:
    """The text with all that is not printable escaped: newline, ESC, marks that turn the direction, broken UTF-8."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Lines(str):
    """A message of several lines, each by one_line; the only kind of error that is shown in several."""

    def __new__(cls, lines: Iterable[str]) -> "Lines":  # noqa: D102
        return super().__new__(cls, "\n".join(map(one_line, lines)))


def faults_of(path: Path, faults: Iterable[tuple[Sequence[object], str]]) -> Lines:
    """One line for each key, also for one that may be of two kinds: `file: key: what or what`.

    faults  where, as pydantic says it with the kinds that it tried among the keys, and what is wrong there
    """
    texts_of: dict[str, list[str]] = {}
    for place, text in faults:
        key = ".".join(str(part) for part in place if not str(part).startswith(("literal[", "constrained-")))
        texts_of.setdefault(key.removesuffix(".float") or "the file", []).append(text)
    return Lines(f"{path}: {key}: {' or '.join(texts)}" for key, texts in texts_of.items())


def message_of(error: BaseException) -> str:
    """What an error says, as it may be shown: in one line, or in those that it was made of."""
    text = error.args[0] if error.args and isinstance(error.args[0], Lines) else one_line(str(error))
    return without_passwords(text) or type(error).__name__


class OneLineFormatter(logging.Formatter):
    """Log records by one_line; a traceback below keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - its name in logging
        """The record without its traceback."""
        return without_passwords(one_line(super().formatMessage(record)))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - its name in logging
        """A traceback, which may quote an address."""
        return without_passwords(super().formatException(ei))


class JsonFormatter(logging.Formatter):
    """Log records as JSON, one a line: time (UTC), level, logger, message, run and, where there is one, traceback.

    All records of a process, and of those that it starts, have one run: that of METRICGOLD_RUN, else a new one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.run = os.environ.setdefault("METRICGOLD_RUN", uuid.uuid4().hex[:12])

    def format(self, record: logging.LogRecord) -> str:
        """One line of ASCII: json escapes all else, also what would end the line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said = {"time": f"{moment}.{int(record.msecs):03d}Z", "level": record.levelname, "logger": record.name}
        said |= {"message": without_passwords(record.getMessage()), "run": self.run}
        if record.exc_info:
            said["traceback"] = without_passwords(self.formatException(record.exc_info))
        return json.dumps(said)


def log_formatter() -> logging.Formatter:
    """Of all that the program logs: plain lines, or JSON where METRICGOLD_LOG is json. ValueError for another value."""
    kind = os.environ.get("METRICGOLD_LOG") or "plain"
    if kind not in ("plain", "json"):
        raise ValueError(f"METRICGOLD_LOG={one_line(kind)}: expected plain or json")
    return JsonFormatter() if kind == "json" else OneLineFormatter("%(asctime)s %(levelname)s %(message)s")
