"""Recipes: which passes, in which order, under which guards. The only file that knows YAML and pydantic.

    lilliput: 1
    seed: 0
    target: onnx-x86
    guard: {max_drop: 1pt}
    passes:
      - fold_batchnorm
      - [magnitude_pruning: {sparsity: 0.6}, fine_tune: {epochs: 10}]   # one step: one guard for both
      - {quantization: {weight_bits: 8}, guard: {max_drop: 0.5pt}}
      - {together: [weight_clustering, fine_tune], guard: none}

A step is a pass, a list of passes that are judged together, or a mapping with a guard of its own ("none" = no guard).
"""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from lilliput.core.errors import RecipeError
from lilliput.core.guard import Guard, MaxDrop, MinAgreement
from lilliput.core.method import Pass, nearest
from lilliput.core.target import Target
from lilliput.core.task import Role
from lilliput.methods import BUILT_IN

VERSION = 1
KEYS = {"lilliput", "seed", "target", "threads", "guard", "passes", "name"}
ENTRY_POINTS = "lilliput.methods"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Step:
    """Passes that are applied together and kept or dropped together. `guard` None = kept always."""

    passes: tuple[Pass, ...]
    guard: Guard | None = None

    def __post_init__(self) -> None:
        if self.guard is not None and (self.guard.role not in get_args(Role) or self.guard.role == "test"):
            raise RecipeError(
                "guard",
                f"role {self.guard.role!r}",
                "guards look at validation, train or calibration; the test role chooses nothing",
            )

    @property
    def name(self) -> str:
        return " + ".join(p.name for p in self.passes)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`threads` None = as many as torch uses; the number that was used is written into the run's recipe."""

    steps: tuple[Step, ...] = ()
    seed: int = 0
    target: Target = field(default_factory=Target)
    threads: int | None = None
    name: str = ""

    def to_data(self) -> dict[str, Any]:
        """Plain data; `from_data` inverts it."""
        target: dict[str, Any] = {
            k: v for k, v in dataclasses.asdict(self.target).items() if v is not None and v is not False
        }
        data: dict[str, Any] = {
            "lilliput": VERSION,
            "seed": self.seed,
            "target": self.target.name if len(target) == 1 else target,
            "passes": [_step_data(s) for s in self.steps],
        }
        if self.threads is not None:
            data["threads"] = self.threads
        if self.name:
            data["name"] = self.name
        return data

    def to_yaml(self) -> str:
        return yaml_text(self.to_data())


def methods() -> dict[str, type[Pass]]:
    """Every method by its YAML key: the built-in ones, then those that other packages declare as entry points.

    A package whose method cannot be imported is left out; `find_method` says why when its method is asked for.
    """
    table = {method.name: method for method in BUILT_IN}
    for point in metadata.entry_points(group=ENTRY_POINTS):
        with suppress(ImportError, AttributeError):
            loaded = point.load()
            if isinstance(loaded, type) and issubclass(loaded, Pass):
                table.setdefault(loaded.name, loaded)
    return table


def find_method(key: str) -> type[Pass]:
    """A YAML key, or "package.module:Class" for a pass of the user's own."""
    for method in BUILT_IN:  # before other packages are looked through, which takes its time
        if method.name == key:
            return method
    known = methods()
    if key in known:
        return known[key]
    declared = {point.name: point.value for point in metadata.entry_points(group=ENTRY_POINTS)}
    module_name, _, class_name = declared.get(key, key).partition(":")
    if not all(name.isidentifier() for name in (*module_name.split("."), *class_name.split("."))):
        raise RecipeError(f"method {key!r}", "there is no such method", nearest(key, set(known)))
    try:
        found = attrgetter(class_name)(importlib.import_module(module_name))
    except (ImportError, AttributeError) as error:
        raise RecipeError(
            f"method {key!r}", f"it cannot be imported ({error})", "check the module, the class and PYTHONPATH"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Pass)):
        raise RecipeError(f"method {key!r}", f"it is {found!r}, not a Pass", "name a subclass of lilliput.Pass")
    return found


def build_pass(key: str, settings: object) -> Pass:
    """A pass from plain data. Unknown settings are refused with the nearest name."""
    from pydantic import TypeAdapter, ValidationError

    cls = find_method(key)
    if settings is None:
        settings = {}
    if not isinstance(settings, Mapping):
        raise RecipeError(key, f"settings {settings!r}", "write them as a mapping: {name: value}")
    settings = cast(Mapping[str, Any], settings)
    known = {f.name for f in dataclasses.fields(cls)}
    for name in settings:
        if name not in known:
            raise RecipeError(key, f"unknown setting {name!r}", nearest(str(name), known))
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    for name in ("include", "skip"):
        if isinstance(given.get(name), str):
            given[name] = (given[name],)
    schema = TypeAdapter(cls)

    def checked(values: dict[str, Any], where: str) -> Pass:
        try:
            return schema.validate_python(values)
        except ValidationError as error:
            first = error.errors()[0]
            place = " ".join(filter(None, (where, ".".join(str(p) for p in first["loc"]))))
            raise RecipeError(
                f"{key} {place or 'settings'}", f"{first.get('input')!r}", first["msg"].lower()
            ) from error

    overrides = given.pop("overrides", {})
    if not isinstance(overrides, Mapping):
        raise RecipeError(key, f"overrides {overrides!r}", "write {pattern of layers: {setting: value}}")
    typed: dict[str, Mapping[str, Any]] = {}
    for pattern, other in cast(Mapping[str, Any], overrides).items():
        if not isinstance(other, Mapping):
            raise RecipeError(f"{key} override for {pattern!r}", f"{other!r}", "write a mapping: {setting: value}")
        values = cast(Mapping[str, Any], other)
        for name in values:
            if name not in known - {"include", "skip", "overrides"}:
                raise RecipeError(
                    f"{key} override for {pattern!r}", f"unknown setting {name!r}", nearest(str(name), known)
                )
        changed = checked({**given, **values}, f"override for {pattern!r}")
        typed[str(pattern)] = {name: getattr(changed, name) for name in values}
    return dataclasses.replace(checked(given, ""), overrides=typed)


def from_data(data: object) -> Recipe:
    """Raises `RecipeError` for anything unknown or of a wrong type."""
    if isinstance(data, Sequence) and not isinstance(data, str):
        data = {"passes": data}
    if not isinstance(data, Mapping):
        raise RecipeError("recipe", f"a {type(data).__name__}", "write a mapping with the key passes")
    top = cast(Mapping[str, Any], data)
    for key in top:
        if key not in KEYS:
            raise RecipeError("recipe", f"unknown key {key!r}", nearest(str(key), KEYS))
    if top.get("lilliput", VERSION) != VERSION:
        raise RecipeError("recipe", f"version {top['lilliput']!r}", f"write version {VERSION}, or update Lilliput")
    default = _guard(top.get("guard"), "recipe guard")
    passes = top.get("passes")
    if not isinstance(passes, list):
        raise RecipeError("recipe", f"passes: {passes!r}", "list at least one pass")
    return Recipe(
        steps=tuple(_step(item, default) for item in cast(list[Any], passes)),
        seed=_whole(top.get("seed", 0), "seed"),
        target=_target(top.get("target")),
        name=str(top.get("name") or ""),
        threads=None if top.get("threads") is None else _whole(top["threads"], "threads", least=1),
    )


def load(path: str | Path) -> Recipe:
    """A recipe from a YAML file."""
    return from_data(read_yaml(path, "recipe"))


def read_yaml(path: str | Path, what: str) -> Any:
    """The plain data of a YAML file; `what` it should be, for the error."""
    import yaml

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{what} {path}", "it cannot be read", f"check the path ({error.__class__.__name__})"
        ) from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(
            f"{what} {path}", f"not YAML ({' '.join(str(error).split())[:160]})", "mend the file"
        ) from error


def yaml_text(data: object) -> str:
    """Plain data as YAML; `read_yaml` inverts it."""
    import yaml

    return yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=110)


def checked(cls: type[T], data: object, where: str) -> T:
    """A dataclass from a mapping: types as pydantic reads them, unknown names refused with the nearest."""
    from pydantic import TypeAdapter, ValidationError

    known = {f.name for f in dataclasses.fields(cast(Any, cls))}
    if not isinstance(data, Mapping):
        raise RecipeError(where, f"{data!r}", f"write a mapping of {', '.join(sorted(known))}")
    values = cast(Mapping[Any, Any], data)
    for name in values:
        if name not in known:
            raise RecipeError(where, f"unknown key {name!r}", nearest(str(name), known))
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        place = " ".join((where, ".".join(str(p) for p in first["loc"]))).strip()
        found = "nothing" if first["type"] == "missing" else f"{first.get('input')!r}"
        raise RecipeError(place, found, first["msg"].lower()) from error


def to_step(item: Any, default: Guard | None = None) -> Step:
    """A step from a pass, several passes, or plain data."""
    return item if isinstance(item, Step) else _step(item, default)


def _step(item: Any, default: Guard | None) -> Step:
    if isinstance(item, Pass):
        return Step(passes=(item,), guard=default)
    if isinstance(item, str):
        return Step(passes=(build_pass(item, None),), guard=default)
    if isinstance(item, (list, tuple)):
        parts = [_step(part, None) for part in cast(Sequence[Any], item)]
        if not parts:
            raise RecipeError("recipe", "an empty step", "list at least one pass in it")
        if any(part.guard is not None for part in parts):
            raise RecipeError(
                "recipe",
                "a guard inside a list",
                "the passes of a list are judged together: {together: [...], guard: ...}",
            )
        return Step(passes=tuple(p for part in parts for p in part.passes), guard=default)
    if not isinstance(item, Mapping):
        raise RecipeError("recipe", f"a step {item!r}", "write a pass's name, {name: settings}, or a list of these")
    entry = dict(cast(Mapping[str, Any], item))
    guard = _guard(entry.pop("guard"), "guard") if "guard" in entry else default
    if "together" in entry:
        inner = _step(entry.pop("together"), None)
        if entry:
            raise RecipeError("recipe", f"a step with together and {next(iter(entry))!r}", "write one of them")
        return Step(passes=inner.passes, guard=guard)
    if len(entry) != 1:
        raise RecipeError(
            "recipe",
            f"a step with {len(entry)} methods ({', '.join(map(str, entry))})",
            "write one method a step, or a list of methods to judge together",
        )
    key, settings = next(iter(entry.items()))
    return Step(passes=(build_pass(str(key), settings),), guard=guard)


def _guard(data: Any, where: str) -> Guard | None:
    if data is None or data == "none":
        return None
    if isinstance(data, Guard):
        return data
    forms = "write {max_drop: 1pt}, {agreement: 99%} or none"
    if not isinstance(data, Mapping):
        raise RecipeError(where, f"{data!r}", forms)
    values = cast(Mapping[str, Any], data)
    kind = MinAgreement if "agreement" in values else MaxDrop
    known = {f.name for f in dataclasses.fields(kind)}
    for key in values:
        if key not in known:
            raise RecipeError(where, f"unknown key {key!r}", nearest(str(key), known))
    if kind is MinAgreement:
        augmented = values.get("augmented", True)
        if not isinstance(augmented, bool):
            raise RecipeError(where, f"augmented {augmented!r}", "write true or false")
        guard = MinAgreement(agreement=values["agreement"], role=values.get("role", "validation"), augmented=augmented)
        guard.share()
        return guard
    if "max_drop" not in values:
        raise RecipeError(where, "no max_drop", forms)
    drop = values["max_drop"]
    if isinstance(drop, bool) or not isinstance(drop, (str, int, float)):
        raise RecipeError(where, f"max_drop {drop!r}", 'write "0.5pt", "1%" or a number in the score\'s unit')
    return MaxDrop(max_drop=drop, role=values.get("role", "validation"))


def _target(data: Any) -> Target:
    if data is None:
        return Target()
    if isinstance(data, Target):
        return data
    if isinstance(data, str):
        return Target(data)
    known = {f.name for f in dataclasses.fields(Target)}
    if not isinstance(data, Mapping) or not set(cast(Mapping[str, Any], data)) <= known:
        raise RecipeError("recipe target", f"{data!r}", f"write a name, or a mapping of {', '.join(sorted(known))}")
    values = dict(cast(Mapping[str, Any], data))
    kinds = {"name": str, "flash": (int, str, type(None)), "ram": (int, str, type(None)), "reduce_range": bool}
    for key, value in values.items():
        if not isinstance(value, kinds[key]) or (isinstance(value, bool) and key != "reduce_range"):
            raise RecipeError(f"recipe target {key}", f"{value!r}", "write for example name: cortex-m4, flash: 256KiB")
    return Target(**values)


def _whole(value: Any, name: str, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise RecipeError(f"recipe {name}", f"{value!r}", f"give a whole number from {least} up")
    return value


def _step_data(step: Step) -> Any:
    items: list[Any] = []
    for p in step.passes:
        settings = p.settings()
        items.append({_key(p): settings} if settings else _key(p))
    body: Any = items[0] if len(items) == 1 else items
    if step.guard is None:
        return body
    usual = {"role": "validation", "augmented": True}
    guard = {k: v for k, v in dataclasses.asdict(step.guard).items() if usual.get(k) != v}
    if len(items) == 1:
        return {**(body if isinstance(body, dict) else {body: {}}), "guard": guard}
    return {"together": body, "guard": guard}


def _key(method: Pass) -> str:
    cls = type(method)
    if cls in BUILT_IN:
        return cls.name
    return cls.name if methods().get(cls.name) is cls else f"{cls.__module__}:{cls.__qualname__}"
