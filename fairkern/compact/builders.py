"""Unpruned architectures from their names: libraries that have models by name, and callables for who trusts them.

Nothing is fetched, and no weights are read: arguments that would are refused, and connections are.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from fairkern.errors import ArtefactError, FairkernError, InputError
from fairkern.model.offline import offline
from fairkern.model.on_meta import parameters_on_meta
from fairkern.model.tensors import not_saved
from fairkern.model.threads import of_this_thread
from fairkern.options import near, several, short
from fairkern.types import Build

_NO_NUMBER = "__float__"
_MOST = 2**28  # whole numbers in settings of models are smaller: widths, tokens, positions

Maker = Callable[[str, Mapping[str, Any]], Any]

_WEIGHTS = re.compile(
    "pretrained|pretrained_backbone|pretrained_cfg|pretrained_cfg_overlay|weights|weights_backbone|checkpoint|"
    "checkpoint_path|cache_dir"
)
_NOT_TAKEN = {"weights": None, "weights_backbone": None, "pretrained": False, "pretrained_backbone": False}
_CODE = re.compile("_.*|attn_implementation|experts_implementation|auto_map|quantization_config|compression_config")
"""Of a configuration: what a file may not decide, since code would be fetched for it, or is this machine's matter."""


def is_library(name: str) -> bool:
    """Whether the name of a build is one of a library's own list, so that it can be built without being trusted."""
    return name.partition(":")[0] in _LIBRARIES


def make(build: Build, said: str, *, trust: bool, most: int) -> nn.Module:
    """What the build makes, on the CPU, of random or no parameters: those of libraries' models lie on meta where their
    code can do without values, buffers do not. Random states and the default dtype are put back.

    `said` begins the errors; `most`: how many parameters a model like it may register.

    Raises InputError: a callable of no library without `trust`, a package that is not installed, a name that it does
    not have, arguments that would fetch weights, what the code raises, or makes in place of a module.
    """
    library, _, name = build.name.partition(":")
    maker = _LIBRARIES.get(library)
    if maker is None and not trust:
        raise InputError(
            f"{said} that the unpruned model is made by calling {build.name}, which is of no library that fairkern "
            "knows models of, and code that a file names can do anything: look at it, and pass trust=True to have it "
            "imported and called, or load_pruned(model, folder) with the model that it makes"
        )
    refuse_weights(build.arguments, said)
    with contextlib.ExitStack() as entered:
        entered.enter_context(torch.random.fork_rng([]))
        entered.enter_context(torch.device("cpu"))
        entered.enter_context(_default_dtype(getattr(torch, build.dtype)))
        entered.enter_context(offline(f"{build.name}, by which {said} the unpruned model is made,"))
        try:
            if maker is None:
                made = call(find(build.name, said), build.arguments)
            else:
                _check_numbers(build.arguments, said)
                told = f"{said} {build.name} with {short(dict(build.arguments))}"
                entered.enter_context(_at_most(2 * most, told))  # some are built twice
                made = _without_values(partial(maker, name, build.arguments))
        except (FairkernError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            raise InputError(
                f"{said} {build.name} with {short(dict(build.arguments))}, which cannot be built here "
                f"({_versions_of(build)}): {type(error).__name__}: {lines[0][:300]}"
            ) from error
    if not isinstance(made, nn.Module):
        raise InputError(f"{said} {build.name}, which makes a {type(made).__name__}; expected a torch.nn.Module")
    return made


def _without_values(make_it: Callable[[], Any]) -> Any:
    """With parameters on meta, and buffers as ever; whole, where the code asks parameters for values meanwhile (some
    run themselves once), or makes of them what no file has."""
    with contextlib.suppress(NotImplementedError, RuntimeError), parameters_on_meta():
        made = make_it()
        if not isinstance(made, nn.Module) or not any(tensor.is_meta for tensor in not_saved(made).values()):
            return made
    return make_it()


def refuse_weights(arguments: Mapping[str, Any], said: str) -> None:
    """InputError for arguments that ask for weights: those of the folder are what a model gets."""
    for name, value in arguments.items():
        if _WEIGHTS.fullmatch(name) and value not in (None, False, ""):
            raise InputError(
                f"{said} the argument {name}={short(value)}: the weights are in the folder, and nothing is fetched; "
                f"leave {name} out"
            )


def call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """What a callable returns that is told, where it can be, to take no weights from elsewhere."""
    takes: Iterable[str] = ()
    with contextlib.suppress(TypeError, ValueError):  # no signature to look at
        takes = inspect.signature(function).parameters
    return function(**{name: value for name, value in _NOT_TAKEN.items() if name in takes}, **_given(arguments))


def find(spec: str, said: str) -> Any:
    """The callable that `package.module:callable` names; the module is imported. Raises InputError."""
    module_name, _, path = spec.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise InputError(
                f"{said} {spec}: there is no module {error.name!r} that can be imported here; install it, or put its "
                "folder on sys.path"
            ) from error
        raise
    for part in path.split("."):
        if not hasattr(found, part):
            names = [name for name in dir(found) if not name.startswith("_")]
            raise InputError(f"{said} {spec}: {module_name} has no {part!r}{near(part, names)}")
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f"{said} {spec}, which is a {type(found).__name__}; expected a function or class to call")
    return found


def own_name(function: Any) -> str | None:
    """How a library's own list names a function or class; None where none has it."""
    module, name = getattr(function, "__module__", None) or "", getattr(function, "__name__", "")
    library = module.partition(".")[0]
    if library == "torchvision" and name in _torchvision_models().list_models():
        return f"torchvision:{name}" if function is _torchvision_models().get_model_builder(name) else None
    if library == "timm" and importlib.import_module("timm").is_model(name):
        return f"timm:{name}"
    if library == "transformers" and _is_transformer(function):
        return f"transformers:{name}"
    return None


def versions_of(name: str) -> dict[str, str]:
    """Of torch and of the package that a build's name begins with."""
    top = name.partition(":")[0].partition(".")[0]
    found = {"torch": str(torch.__version__)}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found[top] = importlib.metadata.version(top)
    return found


def _versions_of(build: Build) -> str:
    """What is here of torch and of the package that it names, and with what it was written where that is another."""
    now = versions_of(build.name)
    top = build.name.partition(":")[0].partition(".")[0]
    told = []
    for name in dict.fromkeys(["torch", top]):
        was, here = build.versions.get(name), now.get(name)
        more = f", written with {was}" if was is not None and was != here else ""
        if here is not None or was is not None:
            told.append(f"{name} {here or 'not installed'}{more}")
    return ", ".join(told)


def differing_versions(build: Build) -> str:
    """In words, those that are others here; empty where none is."""
    now = versions_of(build.name)
    return ", ".join(
        f"{name} {was}, here {now.get(name, 'not installed')}"
        for name, was in build.versions.items()
        if now.get(name) != was and name in ("torch", build.name.partition(":")[0].partition(".")[0])
    )


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if not _WEIGHTS.fullmatch(name)}


def _package(name: str) -> Any:
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        raise InputError(f"the unpruned model is one of {name.partition('.')[0]}, which is not installed: install it")
    return importlib.import_module(name)


def _torchvision_models() -> Any:
    return _package("torchvision.models")


def _torchvision(name: str, arguments: Mapping[str, Any]) -> Any:
    models = _torchvision_models()
    known = models.list_models()
    if name not in known:
        raise InputError(f"torchvision {_version('torchvision')} has no model {name!r}{near(name, known)}")
    return call(models.get_model_builder(name), arguments)


def _timm(name: str, arguments: Mapping[str, Any]) -> Any:
    timm = _package("timm")
    if not timm.is_model(name):  # names of the hub, of folders and of URLs are none
        raise InputError(f"timm {_version('timm')} has no model {name!r}{near(name, timm.list_models())}")
    return timm.create_model(name, pretrained=False, **_given(arguments))


def _transformers(name: str, arguments: Mapping[str, Any]) -> Any:
    kind = transformer(name)
    return kind(configuration(kind, arguments))


def transformer(name: str) -> Any:
    """A model class of transformers' own. Raises InputError where it has none of that name."""
    package = _package("transformers")
    kind = getattr(package, name, None)
    if not _is_transformer(kind):
        raise InputError(f"transformers {package.__version__} has no model class {name!r}")
    return kind


def pretrained(folder: str | os.PathLike[str], build: Build, said: str) -> nn.Module:
    """A transformers model of a folder's own weights, with the configuration of the build: from safetensors alone.

    Raises InputError where transformers refuses, ArtefactError where weights are missing, as they would be random.
    """
    kind = transformer(build.name.partition(":")[2])
    with offline(said):
        try:
            model, info = kind.from_pretrained(
                folder,
                config=configuration(kind, build.arguments),
                dtype=getattr(torch, build.dtype),
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
        except (FairkernError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            what = f"{type(error).__name__}: {lines[0][:300]}"
            raise InputError(
                f"{said} {build.name}, and transformers does not load the folder as that: {what}"
            ) from error
    lacking = sorted(str(key) for key in info["missing_keys"])
    if lacking:
        raise ArtefactError(f"{folder} lacks {several(lacking)}, of what it says itself: write or fetch it again")
    return model


def _is_transformer(kind: Any) -> bool:
    package = importlib.import_module("transformers")
    return (
        isinstance(kind, type)
        and issubclass(kind, package.PreTrainedModel)
        and kind.__module__.partition(".")[0] == "transformers"
        and isinstance(getattr(kind, "config_class", None), type)
        and getattr(package, kind.__name__, None) is kind
    )


def configuration(kind: Any, fields: Mapping[str, Any]) -> Any:
    """A class's configuration of what `to_dict` gave, or config.json has."""
    return kind.config_class.from_dict(_with_numbers(without_code(fields)))


def _with_numbers(value: Any) -> Any:
    """What JSON has no numbers for, as transformers writes it, as the numbers that they are."""
    if isinstance(value, Mapping):
        if set(value) == {_NO_NUMBER} and value[_NO_NUMBER] in ("Infinity", "-Infinity", "NaN"):
            return float(value[_NO_NUMBER])
        return {name: _with_numbers(item) for name, item in value.items()}
    return [_with_numbers(item) for item in value] if isinstance(value, list) else value


def without_code(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's fields, and those within, without what would have code or weights fetched."""
    kept: dict[str, Any] = {}
    for key, value in fields.items():
        name = str(key)  # of labels they are numbers until they are written
        if _CODE.fullmatch(name):
            continue
        kept[name] = False if name == "use_pretrained_backbone" else _within(value)
    return kept


def _within(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value) if set(value) == {_NO_NUMBER} else without_code(value)
    if isinstance(value, float) and not math.isfinite(value):
        return {_NO_NUMBER: {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")}
    return [_within(item) for item in value] if isinstance(value, (list, tuple)) else value


_LIBRARIES: dict[str, Maker] = {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers}


def _check_numbers(value: Any, said: str, name: str = "arguments") -> None:
    """InputError for whole numbers beyond what models have of anything, before a list or a table as long is made."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_numbers(item, said, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_numbers(item, said, name)
    elif isinstance(value, int) and abs(value) >= _MOST:
        raise InputError(f"{said} {name}={value}, and no model has so many of anything: the file was tampered with")


@cache
def _version(package: str) -> str:
    return importlib.metadata.version(package)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _at_most(parameters: int, said: str) -> Iterator[None]:
    """InputError once this thread has registered more: numbers of a file could have it go on without end."""
    count = 0

    def counted(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal count
        count += 1
        if count > parameters:
            raise InputError(f"{said}, which has more than {parameters} parameters: it is not the model that was cut")

    here: Any = of_this_thread(counted)
    handle = register_module_parameter_registration_hook(here)
    try:
        yield
    finally:
        handle.remove()
