"""Messages on their way out: what strangers put into a name cannot steer a terminal or forge a line of a log."""

import logging
from collections.abc import Iterable


def one_line(text: str) -> str:
    """The text with all that is not printable escaped: newline, ESC, marks that turn the direction, broken UTF-8."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Lines(str):
    """A message of several lines, each by one_line; the only kind of error that is shown in several."""

    def __new__(cls, lines: Iterable[str]) -> "Lines":  # noqa: D102
        return super().__new__(cls, "\n".join(map(one_line, lines)))


def message_of(error: BaseException) -> str:
    """What an error says, as it may be shown: in one line, or in those that it was made of."""
    text = error.args[0] if error.args and isinstance(error.args[0], Lines) else one_line(str(error))
    return text or type(error).__name__


class OneLineFormatter(logging.Formatter):
    """Log records by one_line; a traceback below keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - its name in logging
        """The record without its traceback."""
        return one_line(super().formatMessage(record))
