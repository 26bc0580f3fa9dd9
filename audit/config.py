"""The job file: YAML in, frozen typed values out, once, at the edge."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from audit import registry
from audit.errors import ConfigError, unknown
from audit.locations import SCHEMES, Location, is_uri, located
from audit.name_lists import listed_names, names_or_data

MAX_BYTES = 1_000_000
MAX_DEPTH = 20


class Frozen(BaseModel):
    """Base of all configuration: immutable, strict types, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=(), allow_inf_nan=False)


def _resolved(value: Any, info: ValidationInfo) -> Any:
    """Text to a path, relative to the folder of the job file."""
    if not isinstance(value, str):
        return value
    folder = (info.context or {}).get("folder", Path())
    return (folder / Path(value).expanduser()).resolve()


def _somewhere(value: Any, info: ValidationInfo) -> Any:
    """Text to a path as `_resolved`, or to the URI of an object store."""
    if isinstance(value, str) and is_uri(value):
        scheme, _, rest = value.partition("://")
        if scheme not in SCHEMES or not rest.strip("/"):
            raise ValueError(f"{value!r} is no place; write a local path, or {SCHEMES[0]}://bucket/prefix")
        return located(value)
    return _resolved(value, info)


LocalPath = Annotated[Path, BeforeValidator(_resolved)]
AnyPlace = Annotated[Location, BeforeValidator(_somewhere)]
Names = Annotated[tuple[str, ...], Field(strict=False)]


def _folder(info: ValidationInfo) -> Path:
    """The folder of the job file."""
    return Path((info.context or {}).get("folder", Path()))


def _class_names(value: Any, info: ValidationInfo) -> Any:
    return names_or_data(value, _folder(info))


def _named_classes(value: Any, info: ValidationInfo) -> Any:
    return listed_names(value, _folder(info))


# One name per output, in the order of the outputs: a list, a mapping {0: cat, 1: dog}, or a file of them. A file is
# read when the job is checked, so that a run records its names and not its place.
NamedClasses = Annotated[Names, BeforeValidator(_named_classes)]
# The same, or 'data': the data set's labels.
ClassNames = Annotated[Literal["data"] | Names, BeforeValidator(_class_names)]


def _one_place(value: str) -> str:
    if value.count("{}") != 1 or set("{}") & set(value.replace("{}", "")):
        raise ValueError(f"{value!r} needs {{}} once, the place of the class name, and no other braces")
    return value


Template = Annotated[str, AfterValidator(_one_place)]


def _says_more(value: str) -> str:
    if value.strip() == "{}":
        raise ValueError("a phrase says something of the class; '{}' alone says nothing")
    return value


Phrases = Annotated[tuple[Annotated[Template, AfterValidator(_says_more)], ...], Field(strict=False, min_length=1)]
_T = TypeVar("_T", bound=Frozen)


class Plugin(Frozen):
    """A plugin's name and its own options, checked by the plugin's `Options`."""

    name: str
    options: Any

    def dump(self) -> dict[str, Any]:
        return {"plugin": self.name, **self.options.model_dump(mode="json")}


def _label_pairs(value: Any, info: ValidationInfo) -> Any:
    """'by_position' stays; other text is a file of pairs: a JSON object, or two columns of CSV or TSV."""
    if isinstance(value, str) and value != "by_position":
        value = _pairs_of(_resolved(value, info))
    if isinstance(value, dict):
        return {str(label) if type(label) is int else label: name for label, name in value.items()}
    return value


_HEADERS = [["label", second] for second in ("output", "class", "name", "prediction")]


def _pairs_of(path: Path) -> Any:
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"cannot read the file of labels {path}: {error}; give a file, pairs, or by_position"
        ) from error
    if path.suffix == ".json":
        return json.loads(text)
    if path.suffix not in (".csv", ".tsv"):
        raise ValueError(f"{path} is not a file of labels: its name must end in .json, .csv or .tsv")
    rows = [row for row in csv.reader(text.splitlines(), delimiter="\t" if path.suffix == ".tsv" else ",") if row]
    if any(len(row) != 2 for row in rows):
        raise ValueError(f"{path}: each line needs two columns, the label and the output")
    if rows and [cell.strip().lower() for cell in rows[0]] in _HEADERS:
        rows = rows[1:]
    labels = [label.strip() for label, _ in rows]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise ValueError(f"{path}: the label {twice!r} is given twice")
    return {label.strip(): name.strip() or None for label, name in rows}


LabelPairs = Annotated[
    dict[str, str | int | None] | Literal["by_position"],
    BeforeValidator(_label_pairs),
]


class LabelOptions(Frozen):
    """How the labels of the data set are matched with the outputs of a model."""

    labels: LabelPairs | None = Field(
        None,
        description="mapping from a label to the name or number of an output, or to null for a class that the model "
        "does not have; a file of such pairs; or by_position: each label is the number of its output",
    )


class Model(Plugin):
    """A model under audit: its loader and, where the job says so, what labels are called by the model."""

    labels: dict[str, str | int | None] | Literal["by_position"] | None = None

    def dump(self) -> dict[str, Any]:
        return super().dump() | ({} if self.labels is None else {"labels": self.labels})


class Compute(Frozen):
    """Where the work runs. Nothing in here changes a result, but for rounding and what a search makes of it."""

    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="actors; auto: one per GPU, else one per core"
    )
    gpus: int = Field(0, ge=0, description="GPUs to use over all workers")
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="items optimised side by side in one call; auto: as many as memory takes, at most 8; what only "
        "looks at images takes 64, and fewer where memory is short",
    )
    deterministic: bool = Field(
        False,
        description="make results independent of batch size, number of workers and threads: one item at a time, "
        "deterministic algorithms, one thread; searches take up to twice as long. For GPUs see docs/architecture.md",
    )
    retries: int = Field(3, ge=0, description="attempts for a unit after its first")
    deadline_minutes: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto",
        description="after which a unit's worker counts as hung; auto: ten times what such units take, at least 10 "
        "minutes, and an hour while that is not known",
    )
    max_quarantined: float = Field(
        0.5, ge=0, le=1, description="share of a stage's items that cannot be used, above which the run stops"
    )
    max_gpu_hours: float | None = Field(
        None, gt=0, description="of work of the whole run, at which it stops; a higher number resumes it"
    )
    start_minutes: float = Field(15, ge=0, description="how long to wait for a first worker, on a cluster that grows")

    @model_validator(mode="after")
    def _budget_of_gpus(self) -> Compute:
        if self.max_gpu_hours is not None and not self.gpus:
            raise ValueError("max_gpu_hours is a budget of GPUs, and 'gpus' is 0: say how many, or leave it out")
        return self


def _a_place(value: str) -> str:
    scheme, found, rest = value.partition("://")
    if found and (scheme not in SCHEMES or not rest.strip("/")):
        raise ValueError(f"{value!r} is no place for runs; write a folder, or {SCHEMES[0]}://bucket/prefix")
    return value.rstrip("/") if found else value


class Output(Frozen):
    uri: Annotated[str, AfterValidator(_a_place)] = Field(
        "runs", description="place of the runs' own folders: a folder, relative to the working folder, or s3://..."
    )


class Job(Frozen):
    """A checked job file."""

    version: Literal[1]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = 0
    data: Plugin
    pool: Plugin | None = None
    models: dict[str, Model]
    embedder: Plugin | None = None
    captioner: Plugin | None = None
    generator: Plugin | None = None
    stages: tuple[Plugin, ...]
    compute: Compute = Compute()
    output: Output = Output()

    def numbers(self) -> dict[str, Any]:
        """What decides results: everything but `compute` and `output`."""
        return {
            "version": self.version,
            "name": self.name,
            "seed": self.seed,
            "data": self.data.dump(),
            "pool": self.pool.dump() if self.pool else None,
            "models": {key: model.dump() for key, model in self.models.items()},
            "embedder": self.embedder.dump() if self.embedder else None,
            "captioner": self.captioner.dump() if self.captioner else None,
            "generator": self.generator.dump() if self.generator else None,
            "stages": [stage.dump() for stage in self.stages],
        }


_OPTIONAL = {"pool": "datasets", "embedder": "classifiers", "captioner": "captioners", "generator": "generators"}


def load_job(path: Path) -> Job:
    """Read and check a job file. Relative paths in it are relative to the file. Raises ConfigError."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the job file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the job file {path} is not UTF-8 text: {error.reason}") from error
    return parse_job(parse_yaml(text), path.parent.resolve())


def parse_job(raw: Any, folder: Path) -> Job:
    """Check a job given as plain values; `folder` anchors relative paths."""
    if not isinstance(raw, dict):
        raise ConfigError(f"a job file is a mapping of keys such as 'name' and 'stages', found {type(raw).__name__}")
    raw = dict(raw)
    _refuse_unknown(raw, Job.model_fields, "job file")
    for key in ("version", "name", "data", "models", "stages"):
        if key not in raw:
            raise ConfigError(f"the job file lacks the key {key!r}")
    context = {"folder": folder}
    raw["data"] = _plugin("datasets", "source", raw["data"], "data", context)
    for key, family in _OPTIONAL.items():
        if raw.get(key) is not None:
            raw[key] = _plugin(family, "source" if family == "datasets" else "loader", raw[key], key, context)
    raw["models"] = _models(raw["models"], context)
    stages = raw["stages"]
    if not isinstance(stages, list) or not stages:
        raise ConfigError("'stages' is a list with at least one stage, such as: - {kind: screen}")
    raw["stages"] = tuple(_stage(stage, f"stages[{i}]", context) for i, stage in enumerate(stages))
    for key, section in (("compute", Compute), ("output", Output)):
        if isinstance(raw.get(key), dict):
            raw[key] = checked(section, raw[key], key, context)
    return checked(Job, raw, "job file", context)


def _models(raw: Any, context: Mapping[str, Any]) -> dict[str, Model]:
    if not isinstance(raw, list) or not raw:
        raise ConfigError("'models' is a list with at least one model, such as: - {id: new, loader: hf, ref: path}")
    models: dict[str, Model] = {}
    for i, entry in enumerate(raw):
        where = f"models[{i}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
            raise ConfigError(f"{where} needs an 'id' of text that names the model in all results")
        if entry["id"] in models:
            raise ConfigError(f"{where} repeats the id {entry['id']!r}; every model needs its own")
        models[entry["id"]] = _model(entry, where, context)
    return models


def _model(entry: Mapping[str, Any], where: str, context: Mapping[str, Any]) -> Model:
    own = {key: value for key, value in entry.items() if key not in ("id", *LabelOptions.model_fields)}
    plugin = _plugin("classifiers", "loader", own, where, context)
    labels = {key: entry[key] for key in LabelOptions.model_fields if key in entry}
    return Model(name=plugin.name, options=plugin.options, labels=checked(LabelOptions, labels, where, context).labels)


def _stage(raw: Any, where: str, context: Mapping[str, Any]) -> Plugin:
    """A stage; of the several methods for counterfactuals, `method` names one."""
    if not isinstance(raw, dict) or raw.get("kind") != "counterfactual":
        return _plugin("methods", "kind", raw, where, context)
    if not isinstance(raw.get("method"), str):
        raise ConfigError(f"{where}: a counterfactual stage names its method, such as: method: uvce")
    return _plugin("methods", "method", {key: raw[key] for key in raw if key != "kind"}, where, context)


def _plugin(family: Any, key: str, raw: Any, where: str, context: Mapping[str, Any]) -> Plugin:
    """Check `{<key>: name, **options}` against the options of that plugin."""
    if not isinstance(raw, dict) or not isinstance(raw.get(key), str):
        raise ConfigError(f"{where} is a mapping with {key!r}; known: {', '.join(registry.names(family))}")
    module = registry.plugin(family, raw[key])
    options = {name: value for name, value in raw.items() if name != key}
    return Plugin(name=raw[key], options=checked(module.Options, options, where, context))


_RESTORED = {"restored": True}


def restored(family: Any, dumped: Mapping[str, Any]) -> Plugin:
    """The plugin that `Plugin.dump` wrote, checked anew. Raises ConfigError."""
    options = {key: value for key, value in dumped.items() if key != "plugin"}
    module = registry.plugin(family, dumped["plugin"])
    return Plugin(name=dumped["plugin"], options=checked(module.Options, options, dumped["plugin"], _RESTORED))


def _restored_model(dumped: Mapping[str, Any]) -> Model:
    plugin = restored("classifiers", {key: value for key, value in dumped.items() if key != "labels"})
    return Model(name=plugin.name, options=plugin.options, labels=dumped.get("labels"))


def is_restored(info: ValidationInfo) -> bool:
    """Whether options are read from a run's record, which leaves out places that decide nothing."""
    return bool((info.context or {}).get("restored"))


def restored_job(numbers: Mapping[str, Any], compute: Mapping[str, Any], output: Location) -> Job:
    """The job that `Job.numbers` wrote, checked anew. Raises ConfigError."""
    raw: dict[str, Any] = {key: value for key, value in numbers.items() if value is not None}
    raw["data"] = restored("datasets", raw["data"])
    for key, family in _OPTIONAL.items():
        if key in raw:
            raw[key] = restored(family, raw[key])
    raw["models"] = {name: _restored_model(model) for name, model in raw["models"].items()}
    raw["stages"] = tuple(restored("methods", stage) for stage in raw["stages"])
    raw["compute"] = checked(Compute, compute, "compute", {})
    raw["output"] = Output(uri=str(output))
    return checked(Job, raw, "job.json", {})


def checked(model: type[_T], raw: Mapping[str, Any], where: str, context: Mapping[str, Any]) -> _T:
    """Plain values as a checked model. `where`: what they are, for messages; 'folder' of `context` anchors relative
    paths.

    Raises ConfigError that names every value that cannot be used.
    """
    _refuse_unknown(raw, model.model_fields, where)
    try:
        return model.model_validate(raw, context=dict(context))
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc'])) or where}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"{where} cannot be used:\n" + "\n".join(lines)) from error


def _refuse_unknown(raw: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    for key in raw:
        if key not in known:
            raise ConfigError(f"{where}: {unknown('key', str(key), known)}")


def digest(value: Any) -> str:
    """sha256 of plain values in canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


_WITH_NUMBERS = ("class_names", "labels")  # keys of mappings whose own keys may be integers


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.2 scalars (no `no` for False, 1e-3 is a number), no aliases, tags or duplicate keys, bounded depth."""

    depth = 0

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._numbered: set[yaml.Node] = set()

    def _line(self) -> int:
        return int(self.get_mark().line) + 1

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ConfigError(f"line {self._line()}: aliases (*name) are not allowed")
        tag = getattr(self.peek_event(), "tag", None)  # type: ignore[no-untyped-call]
        if tag is not None:
            raise ConfigError(f"line {self._line()}: not valid YAML here: tags such as {tag} are not allowed")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ConfigError(f"line {self._line()}: nested deeper than {MAX_DEPTH} levels")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in _WITH_NUMBERS:
                self._numbered.add(value_node)
            if not isinstance(key, str) and not (type(key) is int and node in self._numbered):
                raise ConfigError(f"line {key_node.start_mark.line + 1}: keys are text, found {key!r}")
            if key in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: the key {key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


_StrictLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|false)$", "tf"),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    ("float", r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$", "-+.0123456789"),
    ("null", r"^(?:null|~|)$", ["n", "~", ""]),
):
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def parse_yaml(text: str, what: str = "job file") -> Any:
    """YAML text to plain values; `what` it is. Raises ConfigError with the line of what is wrong."""
    if len(text.encode()) > MAX_BYTES:
        raise ConfigError(f"the {what} is larger than {MAX_BYTES} bytes")
    try:
        return yaml.load(text, _StrictLoader)  # noqa: S506 - the loader is a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"the {what} is not valid YAML: {error}") from error
