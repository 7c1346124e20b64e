"""Tasks of the LM-evaluation harness, found by path or by name: local task files, and the thousands of its own.

A local task file is what the harness calls a YAML task or group. Data files that it names are looked for in the current
folder, as the harness does, and then beside the task file. Imports lm_eval, so only harness.py imports it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import huggingface_hub
import lm_eval  # type: ignore[import-untyped]
from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]

from perjoule.core.cache import expand_home
from perjoule.core.errors import ConfigError, DataError, nearest

SUFFIXES = (".yaml", ".yml")
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
DEFINITION = re.compile(r"""^["']?(task|group)["']?:[ ]*["']?([\w.:-]+)["']?[ ]*$""", re.MULTILINE)
"""The line of a task file that names what it defines."""


@dataclass
class Tasks:
    """What was asked for, loaded.

    Args:
        tasks: the harness's tasks by name, those of groups among them.
        groups: the harness's groups by name, those within groups among them.
    """

    tasks: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)

    def add(self, loaded: Mapping[str, Any], origin: str) -> None:
        """Add what the harness loaded for one name or path.

        Raises:
            ConfigError: if a task is there already, perhaps with other settings.
        """
        twice = sorted(set(loaded["tasks"]) & set(self.tasks))
        if twice:
            raise ConfigError(f"harness.tasks {origin}: {', '.join(twice)} is asked for twice; accepted: once")
        self.tasks |= loaded["tasks"]
        self.groups |= loaded.get("groups", {})


def load_tasks(wanted: Sequence[str], include: Sequence[Path]) -> Tasks:
    """Load tasks and their data.

    Args:
        wanted: names of tasks, groups and tags; task or group files; folders of them.
        include: folders whose tasks, groups and tags can be asked for by name.

    Raises:
        ConfigError: if something is no task, or its file has mistakes.
        DataError: if the data of a task cannot be read here.
    """
    found = Tasks()
    for folder in include:
        if not folder.is_dir():
            raise ConfigError(f"harness.include_path {folder} is no folder")
    included = TaskManager(include_path=[folder.resolve() for folder in include], include_defaults=False)
    for name in wanted:
        path = expand_home(Path(name))
        if path.is_dir() and any(path.rglob("*.yaml")):
            _load_folder(path, found)
        elif path.suffix in SUFFIXES and path.is_file():
            _load_file(path, found)
        elif path.suffix in SUFFIXES or len(path.parts) > 1:
            raise ConfigError(f"harness.tasks {name}: there is no such file; accepted: a task file, a folder, a name")
        elif name in included.all_tasks:
            entry = included.task_index[name]
            for member in sorted(entry.tags) if name in included.all_tags else [name]:
                found.add(_load(included, member, included.task_index[member].yaml_path, name), name)
        else:
            found.add(_load(*_of_the_harness(name, include), None, name), name)
    return found


def _load_folder(folder: Path, found: Tasks) -> None:
    """Load the groups of a folder that are in no other group, and the tasks that are in none."""
    manager = TaskManager(include_path=folder.resolve(), include_defaults=False)
    files = {name: entry.yaml_path for name, entry in manager.task_index.items()}
    if not files:
        raise ConfigError(f"harness.tasks {folder}: none of its YAML files has a task or a group")
    groups = {name: _load(manager, name, files[name], f"{folder}: {name}") for name in manager.all_groups}
    inner = {group for name, loaded in groups.items() for group in loaded["groups"] if group != name}
    for name, loaded in groups.items():
        if name not in inner:
            found.add(loaded, str(folder))
    grouped = {task for loaded in groups.values() for task in loaded["tasks"]}
    for name in manager.all_subtasks:
        if name not in grouped:
            found.add(_load(manager, name, files[name], f"{folder}: {name}"), str(folder))


def _load_file(path: Path, found: Tasks) -> None:
    """Load a task, or a group whose members are beside it."""
    whole = path.resolve()
    groups = [name for kind, name in DEFINITION.findall(_text(whole)) if kind == "group"]
    manager = TaskManager(include_path=whole.parent if groups else None, include_defaults=False)
    found.add(_load(manager, groups[0] if groups else str(whole), whole, str(path)), str(path))


def _of_the_harness(name: str, include: Sequence[Path]) -> tuple[TaskManager, str]:
    """Find one of the harness's own. A plain task is its file; for a group or a tag all of them have to be read.

    Raises:
        ConfigError: if there is none of this name.
    """
    names, mentioned = set(), False
    for path in sorted((Path(lm_eval.__file__).parent / "tasks").rglob("*yaml*")):  # included files are *_yaml
        text = _text(path) if path.is_file() else ""
        mentioned = mentioned or name in text
        for kind, defined in DEFINITION.findall(text):
            if (kind, defined) == ("task", name):
                return TaskManager(include_defaults=False), str(path)
            names.add(defined)
    if mentioned:
        manager = TaskManager(include_path=[*include])
        if name in manager.all_tasks:
            return manager, name
    near = nearest(name, names)
    raise ConfigError(
        f"harness.tasks {name}: the LM-evaluation harness has no such task"
        + (f", did you mean {near}?" if near else "")
        + " (accepted: a task or group of those that `lm_eval ls tasks` lists, a task file, or a folder of these)"
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _load(manager: TaskManager, spec: str, file: Path | None, asked: str) -> Mapping[str, Any]:
    """Load one task, group or tag.

    Args:
        manager: that knows it.
        spec: its name or the whole path of its file.
        file: that defines it, if its data may be beside that.
        asked: what to call it in an error.
    """
    try:
        try:
            loaded: Mapping[str, Any] = manager.load([spec])
        except FileNotFoundError:
            if file is None:
                raise
            with contextlib.chdir(file.parent):
                loaded = manager.load([spec])
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"harness.tasks {asked}: its data cannot be read: {_first_line(error)}; {_remedy(error)}"
        ) from error
    except Exception as error:  # whatever a task file can make Python, Jinja or datasets say
        raise ConfigError(f"harness.tasks {asked}: {type(error).__name__}: {_first_line(error)}") from error
    return {"groups": {}, **loaded}


def _first_line(error: Exception) -> str:
    """Return the first line of what went wrong, without its full stop."""
    if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        error = Exception(f"{type(error.__cause__).__name__}: {error.__cause__}")
    return str(error).partition("\n")[0].rstrip(". ")


def _remedy(error: Exception) -> str:
    """Say what would be accepted in place of data that is not there, or is damaged."""
    if isinstance(error, datasets.exceptions.DatasetGenerationError):
        return "accepted: a file that its dataset_path (json: an object per line) can read"
    if isinstance(error, FileNotFoundError) and not isinstance(error, datasets.exceptions.DatasetNotFoundError):
        return "accepted: that file there, or beside the task file"
    return (
        f"accepted: harness.offline=false, a copy in {datasets.config.HF_DATASETS_CACHE}, or a task file of your own "
        "with dataset_path: json and dataset_kwargs: {data_files: …}"
    )


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Keep Hugging Face's libraries from the network: those that are imported, and those of processes they start."""
    before = {name: os.environ.get(name) for name in OFFLINE}
    places = [(huggingface_hub.constants, "HF_HUB_OFFLINE"), *((datasets.config, name) for name in OFFLINE)]
    settings = [getattr(module, name) for module, name in places]
    try:
        os.environ |= dict.fromkeys(OFFLINE, "1")
        for module, name in places:
            setattr(module, name, True)
        yield
    finally:
        for (module, name), setting in zip(places, settings, strict=True):
            setattr(module, name, setting)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
