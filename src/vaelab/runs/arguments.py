"""Check the settings of a config against the constructors of the classes that it names, before anything is built."""

import collections.abc
import inspect
import os
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra.utils
from omegaconf import DictConfig, OmegaConf

from vaelab.errors import UserError
from vaelab.runs.config import settings

BUILT = ("data", "model", "objective", "trainer")  # groups that take no arguments later
GROUPS = ("data", "model", "objective", "optimizer", "trainer", "module")
NAMED = ("callbacks", "logger")  # groups of classes, each with a name
WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    types.NoneType: "null",
    list: "a list",
    dict: "a group of settings",
}
PACKAGES = ("vaelab.", "torch.optim.", "lightning.pytorch.")  # their annotations name what a class takes
KNOWN = {**vars(typing), **vars(collections.abc)}  # names that torch imports for type checks only
LISTS = (list, tuple, set, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
TEXTS = (str, Path, os.PathLike)


def check_groups(cfg: DictConfig) -> None:
    """Raise UserError for a group, callback or logger that names no class with `_target_`. The last two may be null.

    Raises OmegaConf's error for a value that is missing or refers to a missing one.
    """
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    for group in GROUPS:
        if group in cfg and not (isinstance(cfg[group], DictConfig) and isinstance(cfg[group].get("_target_"), str)):
            raise UserError(f"{group}={cfg[group]}: this group needs a _target_, which names its class")
    for group in NAMED:
        for name, each in (cfg.get(group) or {}).items():
            key = f"{group}.{name}={each}"
            if isinstance(each, str):
                place = "NAME" if name == "_target_" else name  # version 0.1 had one logger, without a name
                raise UserError(f"{key}: name a class with {group}.{place}._target_={each}")
            if each is not None and not isinstance(each, DictConfig):
                raise UserError(f"{key}: a {group.rstrip('s')} has a _target_, or is null to leave it out")


def check_arguments(cfg: DictConfig) -> None:
    """Raise UserError for a setting that its class does not take, or whose value is not of the annotated type."""
    for key, node in settings(OmegaConf.to_container(cfg, resolve=True)):
        if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
            continue
        for option in ("_partial_", "_recursive_"):
            if not isinstance(node.get(option, True), bool):
                raise UserError(f"{key}.{option}={node[option]}: true or false is needed")
        group, *rest = key.split(".")
        if node.get("_partial_") and (key in BUILT or (group in NAMED and len(rest) == 1)):
            raise UserError(f"{key}._partial_=true: this group is built before the run, so it must not be partial")
        try:
            taken, more = arguments(hydra.utils.get_object(node["_target_"]))
        except Exception:  # building the class raises a clearer error
            continue
        for name, value in node.items():
            if name.startswith("_"):
                continue
            if name not in taken and not more:
                takes = ", ".join(taken)
                raise UserError(f"{key}.{name}: {node['_target_']} takes no such argument; it takes {takes}")
            hint = taken.get(name, Any)
            if not accepts(hint, value, node["_target_"].startswith(PACKAGES)):
                raise UserError(f"{key}.{name}={value}: {needed(hint)} is needed")
            if isinstance(value, dict) and "_target_" in value:
                check_partial(f"{key}.{name}", value, hint, node["_target_"])


def check_partial(key: str, part: dict[str, Any], hint: Any, owner: str) -> None:
    """Raise UserError for a part that is partial where its owner takes the part itself, and the other way round."""
    inner = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    origins = {typing.get_origin(each) or each for each in inner}
    if part.get("_partial_"):
        if all(isinstance(each, type) and each is not collections.abc.Callable for each in origins):
            raise UserError(f"{key}._partial_=true: {owner} takes the part itself: remove _partial_")
    elif origins == {collections.abc.Callable} and isinstance(target := hydra.utils.get_object(part["_target_"]), type):
        parameters = inspect.signature(target).parameters.values()
        needed = [one.name for one in parameters if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
        if missing := [name for name in needed if name not in part]:
            text = f"{part['_target_']} needs {' and '.join(missing)}, which {owner} gives it"
            raise UserError(f"{key}: {text}: set {key}._partial_=true")


def arguments(target: Any) -> tuple[dict[str, Any], bool]:
    """The arguments that a class or a function takes, with their annotations, and whether it takes any other.

    A class that passes **settings to its base class takes the arguments of the base class, too.
    """
    taken: dict[str, Any] = {}
    bases = inspect.getmro(target)[:-1] if isinstance(target, type) else ()
    for each in [base for base in bases if "__init__" in vars(base)] or [target]:
        parameters = inspect.signature(each).parameters.values()
        module = sys.modules.get(each.__module__)
        for one in parameters:
            if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
                taken.setdefault(one.name, _read(one.annotation, {**KNOWN, **(vars(module) if module else {})}))
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            return taken, False
    return taken, True


def _read(annotation: Any, names: dict[str, Any]) -> Any:
    """An annotation of a parameter. It stays a text if it names a class that is imported only for type checks."""
    if annotation is inspect.Parameter.empty:
        return Any
    try:
        return typing.get_type_hints(types.SimpleNamespace(__annotations__={"it": annotation}), names)["it"]
    except NameError:
        return annotation


def accepts(hint: Any, value: Any, strict: bool = True) -> bool:
    """Whether a plain value of a config fits an annotation.

    A list fits any annotation of a sequence. A whole number fits float, and true or false fits only bool. NaN fits
    nothing. With `strict`, an annotation of another class is fitted only by a group with `_target_`.
    """
    origin, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if value != value or hint is Any or isinstance(hint, str):  # a text is an annotation that cannot be read
        return value == value
    if isinstance(value, dict) and "_target_" in value:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(accepts(each, value, strict) for each in inner)
    if origin is typing.Literal:
        return value in inner
    if origin in (bool, int):
        return type(value) is origin
    if origin is float:
        return type(value) in (int, float)
    if origin is types.NoneType:
        return value is None
    if origin in TEXTS:
        return isinstance(value, str)
    if origin in LISTS:
        fixed = origin is tuple and inner and Ellipsis not in inner
        if not isinstance(value, list) or (fixed and len(value) != len(inner)):
            return False
        each = inner if fixed else len(value) * (inner[:1] or (Any,))
        return all(map(accepts, each, value, len(value) * [strict]))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, dict)
    return not strict or not isinstance(origin, type | collections.abc.Callable)


def needed(hint: Any) -> str:
    """The values that fit an annotation, in words."""
    origin, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(needed, inner)))
    if origin is typing.Literal:
        return " or ".join(map(str, inner))
    if origin in LISTS:
        fixed = origin is tuple and inner and Ellipsis not in inner
        if fixed:
            return f"a list of {len(inner)} entries"
        return f"a list, each entry {needed(inner[0])}," if inner and inner[0] in WORDS else "a list"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return WORDS[dict]
    word = "text" if origin in TEXTS else WORDS.get(origin)
    return word or "a group of settings with a _target_"
