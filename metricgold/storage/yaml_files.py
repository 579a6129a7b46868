"""YAML that people write, read strictly: what stands there is what is read, or it is an error with its line.

By the core schema of YAML 1.2, as DVC reads it: 1e10 and 1e-3 are numbers, 010 is ten, and `no`, dates and 12:30 are
texts. A key given twice is an error, where YAML itself would let the last one win. So are aliases and tags: nothing
here needs them, and a few hundred bytes of aliases can stand for gigabytes.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from metricgold.storage.files import read_at_most, write_aside

MAX_BYTES = 4 << 20
MAX_DEPTH = 32

# Type, what its texts begin with, their pattern. The first that fits counts.
_CORE_SCHEMA = (
    ("null", [*"~nN", ""], r"~|null|Null|NULL|"),
    ("bool", [*"tTfF"], r"true|True|TRUE|false|False|FALSE"),
    ("int", [*"-+0123456789"], r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+"),
    ("float", [*"-+.0123456789"], r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?"),
    ("float", [*"-+."], r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
)


def read_yaml(path: Path) -> Any:
    """Dicts, lists, texts, numbers, booleans and None of a YAML file; None of an empty one.

    Raises ValueError as `file: line N: what is wrong`, and OSError.
    """
    content = read_at_most(path, MAX_BYTES)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}: line {line}: is not YAML: byte 0x{content[error.start]:02x} is not UTF-8") from error
    try:
        _check_structure(text)
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except ConstructorError as error:
        raise ValueError(f"{path}: {_line(error, text)}{error.problem}") from error
    except yaml.YAMLError as error:
        parts = [getattr(error, name, None) for name in ("context", "problem")]
        problem = ", ".join(filter(None, parts)) or " ".join(str(error).split())
        raise ValueError(f"{path}: {_line(error, text)}is not YAML: {problem}") from error


def write_yaml(path: Path, value: Any) -> None:
    """Write plain values so that read_yaml gives them back; keys in their order, completely or not at all."""
    with write_aside(path) as aside:
        text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
        aside.write_text(text, encoding="utf-8")


def _check_structure(text: str) -> None:
    """Refuse aliases, tags and depth before anything is built of them."""
    depth = 0
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        problem, tag = None, getattr(event, "tag", None)
        if isinstance(event, yaml.AliasEvent):
            problem = f"has an alias, *{event.anchor}: write its value out"
        elif tag is not None:
            problem = f"has a tag, {tag}: only plain values are read"
        elif depth > MAX_DEPTH:
            problem = f"is nested more than {MAX_DEPTH} deep"
        if problem:
            mark: Any = event.start_mark  # of one of two classes that are alike
            raise ConstructorError(None, None, problem, mark)


def _line(error: yaml.YAMLError, text: str) -> str:
    """Where the error is; a fault at the end of the file counts for its last line."""
    mark = getattr(error, "problem_mark", None)
    return f"line {min(mark.line + 1, len(text.splitlines()))}: " if mark else ""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the faster one where it is built
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - yaml's own way

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConstructorError(None, None, "has a list or a mapping for a key", key_node.start_mark)
            key = self.construct_object(key_node)
            if key in mapping:
                raise ConstructorError(None, None, f"{key} is given twice", key_node.start_mark)
            mapping[key] = self.construct_object(value_node, deep=deep)
        return mapping

    def construct_whole_number(self, node: yaml.ScalarNode) -> int:
        digits = node.value.replace("_", "")
        try:
            return int(digits, 16 if "x" in digits else 10)
        except ValueError:  # Python reads no more than some thousand digits
            raise ConstructorError(None, None, f"has a number of {len(digits)} digits", node.start_mark) from None


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - decides which texts need quotes


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole_number)
for _kind in (_Loader, _Dumper):
    for _type, _beginnings, _pattern in _CORE_SCHEMA:
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_type}", re.compile(rf"(?:{_pattern})\Z"), _beginnings)
