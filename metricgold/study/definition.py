"""studies/NAME.yaml: a question, and the runs that answer it.

    question         one sentence
    fixed            changes of params.yaml, by section, for all runs
    stand_in         further ones where the backbone is the stand-in: what fits two cores
    factors          name -> level -> changes of params.yaml; the runs are the product of all factors
    inference        name -> level -> changes of both `evaluate` and `benchmark`; they need no training of their own
    within           factors within whose levels runs are compared; without any, all are compared with one
    seeds            of training
    budget_minutes   of one call with the stand-in: beyond it no further training starts
    measures         in_domain: the test scenes of `datasets`, or of those that it names
                     benchmarks: data sets that only measure
                     if_there: more of them, left out where their folder is empty
                     uncertainty: whether the standard error that the model states is measured too

Variants that no product makes are the levels of one factor. Of every factor the first level is the one that the others
are compared with. A study names synthetic twins; with another backbone than the stand-in their originals are meant, so
that one file serves both sizes. Rendered data sets that params.yaml does not have, or has by another `synthesize` or
`synthesize_benchmark`, are rendered for the study.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import inf
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, ValidationError, model_validator

from metricgold.datasets import ClosedModel
from metricgold.params import MANIFESTS, DatasetName, Params, Synthesize, SynthesizeBenchmark
from metricgold.storage import digest_json, faults_of, read_yaml

FOLDER = Path("studies")
TWIN = "-synthetic"
World = Synthesize | SynthesizeBenchmark  # how a data set is rendered
# Sections that decide a run's figures.
DECIDING = {
    *("datasets", "synthesize", "synthesize_benchmark", "log_depth", "canonical_depth", "backbone", "encode"),
    *("depth_vae", "train", "evaluate", "benchmark"),
}
COLUMNS = {  # of rows
    *("seed", "set", "scene", "abs_rel", "delta1", "vae_floor", "stated", "within"),
    *("digest", "commit", "machine"),
}

Changes = dict[str, Any]
Part = tuple[str, Changes]  # where the changes stand in the file, and they


def _as_text(name: Any) -> Any:
    """Levels are often numbers, which YAML reads as such."""
    return str(name) if isinstance(name, int | float) and not isinstance(name, bool) else name


Name = Annotated[str, BeforeValidator(_as_text), Field(pattern=r"^[^|\r\n]{1,60}$")]


def _sections(changes: Changes) -> Changes:
    """Changes of params.yaml: a number in place of a section would be lost under the next change of it."""
    for name, keys in changes.items():
        if not isinstance(keys, dict | list):
            raise ValueError(f"{name} is {keys!r:.80}, expected a section with its keys")
    return changes


Sections = Annotated[Changes, AfterValidator(_sections)]
Levels = Annotated[dict[Name, Sections | None], Field(min_length=1)]


class Measures(ClosedModel):
    """What every run is measured on."""

    in_domain: bool | list[DatasetName] = True
    benchmarks: list[DatasetName] = Field([])
    if_there: list[DatasetName] = Field([])
    uncertainty: bool = False

    @model_validator(mode="after")
    def _something(self) -> "Measures":
        if not (self.in_domain or self.benchmarks):
            raise ValueError("nothing is measured: expected in_domain or benchmarks")
        return self


class Study(ClosedModel):
    """One file of studies/."""

    question: Annotated[str, Field(min_length=1)]
    fixed: Sections = Field({})
    stand_in: Sections = Field({})
    factors: dict[Name, Levels] = Field({})
    inference: dict[Name, Annotated[dict[Name, Changes | None], Field(min_length=1)]] = Field({})
    within: list[Name] = Field([])
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    budget_minutes: PositiveFloat = 60
    measures: Measures = Measures()

    def budget_s(self, params: Params) -> float:
        """Of one call: a full size has none."""
        return 60 * self.budget_minutes if is_small(params) else inf

    @property
    def every_factor(self) -> dict[str, list[str]]:
        """Levels by factor, those of inference last."""
        return {name: list(levels) for name, levels in (self.factors | self.inference).items()}

    @model_validator(mode="after")
    def _names_are_columns(self) -> "Study":
        names = [*self.factors, *self.inference]
        if not names:
            raise ValueError("nothing varies: expected factors or inference")
        if taken := sorted({name for name in names if names.count(name) > 1 or name in COLUMNS}):
            raise ValueError(f"a factor cannot be called {', '.join(taken)}: rows have such a column already")
        if unknown := sorted(set(self.within) - set(names)):
            raise ValueError(f"within names {', '.join(unknown)}; the factors are {', '.join(names)}")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds differ, got {self.seeds}")
        return self


@dataclass(frozen=True, slots=True)
class Run:
    """One combination of levels and a seed.

    levels   by factor
    in_domain, benchmarks, measures  what it is measured on, and what of it
    worlds   data sets that are rendered for the study, and how
    """

    levels: Mapping[str, str]
    seed: int
    params: Params
    in_domain: bool | tuple[str, ...]
    benchmarks: tuple[str, ...]
    measures: Measures
    worlds: Mapping[str, World]

    @property
    def key(self) -> dict[str, str]:
        """What names its rows."""
        return {**self.levels, "seed": str(self.seed)}

    @property
    def tested(self) -> Sequence[str]:
        """The data sets whose test scenes are measured."""
        if isinstance(self.in_domain, bool):
            return self.params.datasets if self.in_domain else ()
        return self.in_domain

    @property
    def digest(self) -> str:
        """Of all that decides its rows. Defaults do not count, so that a new key of params.yaml leaves rows valid."""
        values = self.params.model_dump(mode="json", include=DECIDING, exclude_defaults=True)
        return digest_json([values, self.in_domain, self.benchmarks])[:12]

    def __str__(self) -> str:
        return ", ".join(f"{name} {level}" for name, level in self.key.items())


def study_names(folder: Path = FOLDER) -> list[str]:
    """Of the studies that are there."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_study(name: str, folder: Path = FOLDER) -> Study:
    """Read studies/NAME.yaml. ValueError lists every fault as `file: key: what is wrong`."""
    path = folder / f"{name}.yaml"
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) or not path.is_file():
        raise ValueError(f"no study {name!r} in {folder}/; there are: {', '.join(study_names(folder)) or 'none'}")
    try:
        return Study.model_validate(read_yaml(path))
    except ValidationError as error:
        faults = ((fault["loc"], f"{fault['msg']}, got {fault['input']!r:.80}") for fault in error.errors())
        raise ValueError(faults_of(path, faults)) from error


def runs_of(study: Study, params: Params, name: str, folder: Path = FOLDER) -> list[Run]:
    """Every run of a study, in the order of its factors, seeds innermost but for inference.

    params  what the study changes. ValueError, naming file and key, where changes do not make valid params.
    """
    small, measures = is_small(params), study.measures
    benchmarks, in_domain = measures.benchmarks, measures.in_domain
    common: list[Part] = [("fixed", study.fixed), *([("stand_in", study.stand_in)] if small else [])]
    if not small:
        benchmarks, in_domain = _of_originals(benchmarks), _of_originals(in_domain)
    runs = []
    for trained in _combinations("factors", study.factors):
        for seed in study.seeds:
            for inferred in _combinations("inference", study.inference):
                parts = [*common, *trained.values(), ("seeds", {"train": {"seed": seed}})]
                parts += [(place, {"evaluate": keys, "benchmark": keys}) for place, keys in inferred.values()]
                parts.append(("measures", {"benchmarks": benchmarks}))
                if not small:
                    parts = [(place, _of_originals(changes)) for place, changes in parts]
                own = _changed_params(params, parts, folder / f"{name}.yaml")
                levels = {factor: level for factor, level in [*trained, *inferred]}
                _check_measures(own, measures, in_domain, folder / f"{name}.yaml")
                tested = in_domain if isinstance(in_domain, bool) else tuple(in_domain)
                runs.append(Run(levels, seed, own, tested, tuple(benchmarks), measures, _worlds(params, own)))
    return runs


def _check_measures(own: Params, measures: Measures, in_domain: bool | list[str], path: Path) -> None:
    """ValueError for test scenes of data sets that a run does not have, and for an uncertainty that it never states."""
    if not isinstance(in_domain, bool) and (unknown := sorted(set(in_domain) - set(own.datasets))):
        raise ValueError(
            f"{path}: measures.in_domain names {', '.join(unknown)}; datasets are {', '.join(own.datasets)}"
        )
    if measures.uncertainty and own.train.uncertainty is None:
        raise ValueError(f"{path}: measures.uncertainty: train.uncertainty is null; expected that section")


def _worlds(params: Params, own: Params) -> dict[str, World]:
    """The rendered data sets of a run that the project with these params does not have, or has as others."""
    sets: list[tuple[World, World, list[str], list[str]]] = [
        (params.synthesize, own.synthesize, params.datasets, own.datasets),
        (params.synthesize_benchmark, own.synthesize_benchmark, params.benchmarks, own.benchmarks),
    ]
    return {
        name: wanted
        for there, wanted, has, needs in sets
        for name in needs
        if name.endswith(TWIN) and (name not in has or wanted != there)
    }


def is_small(params: Params) -> bool:
    """Whether the backbone is the stand-in."""
    return params.backbone.source == "stand-in"


def _combinations(key: str, factors: Mapping[str, Mapping[str, Changes | None]]) -> Iterator[dict[Any, Part]]:
    """The product of factors: (factor, level) -> where its changes stand, and they."""
    choices = [
        [((factor, level), (f"{key}.{factor}.{level}", changes or {})) for level, changes in levels.items()]
        for factor, levels in factors.items()
    ]
    return map(dict, product(*choices))


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with other ones in their place; a mapping changes only the keys that it names."""
    merged = dict(values)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(value, dict) and isinstance(old, dict)
        merged[key] = changed(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _changed_params(params: Params, parts: Iterable[Part], path: Path) -> Params:
    """Params with the changes of all parts, later ones over earlier ones. ValueError names the part at fault."""
    values, parts = params.model_dump(), list(parts)
    for _, changes in parts:
        values = changed(values, changes)
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        faults = [
            ((*_place_of(fault["loc"], parts), *fault["loc"]), f"{fault['msg']}, got {fault['input']!r:.80}")
            for fault in error.errors()
        ]
        raise ValueError(faults_of(path, faults)) from error


def _place_of(key: tuple[Any, ...], parts: list[Part]) -> list[str]:
    """Where in the file a key of the params was changed last; nowhere for a key that only params.yaml has."""
    return [place for place, changes in parts if _names(changes, key)][-1:]


def _names(changes: Any, key: tuple[Any, ...]) -> bool:
    for name in key:
        if not isinstance(changes, dict):
            return True
        if name not in changes:
            return False
        changes = changes[name]
    return True


def _of_originals(value: Any) -> Any:
    """The same with the names of data sets in place of those of their twins."""
    if isinstance(value, dict):
        return {_of_originals(key): _of_originals(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_of_originals(one) for one in value]
    return original_of(value) if isinstance(value, str) else value


def original_of(name: str) -> str:
    """The data set whose twin this is; the name itself where it is the twin of none."""
    original = name.removesuffix(TWIN)
    return original if (MANIFESTS / f"{original}.yaml").is_file() else name
