"""The version of the files of a kit: what one version of Hushclick hands out, another must not half understand."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from common.config import parse_table, read_toml
from common.errors import ConfigError

KIT_VERSION = 1


def take_version(table: dict[str, Any], path: Path, *, needed: bool = True) -> None:
    """Takes `kit = 1` out of the table of a file.

    Args:
        table: of the file; changed in place.
        path: of the file, for the error.
        needed: whether a file without a version is refused; what a simulation writes has none.

    Raises:
        ConfigError: for another version, or none.
    """
    if "kit" not in table and not needed:
        return
    found = table.pop("kit", None)
    if found is None:
        raise ConfigError(f"{path}: kit: missing; the files of a kit say kit = {KIT_VERSION} at the top")
    if type(found) is not int or found != KIT_VERSION:
        raise ConfigError(
            f"{path}: kit = {found!r}: this version of hushclick reads kit {KIT_VERSION}; install the version that"
            " wrote the kit, or have this one provision it again"
        )


T = TypeVar("T")


def load_kit_file(kind: type[T], path: Path, paths: Sequence[str]) -> T:
    """Returns the configuration in a file of a kit; values named in `paths`, given or not, are of the file's folder.

    Raises:
        ConfigError: where it cannot be read, is of another kit version, or has a wrong key or value.
    """
    table = read_toml(path)
    take_version(table, path)
    folder, defaults = path.resolve().parent, {field.name: field.default for field in fields(kind)}  # type: ignore[arg-type]
    for key in paths:
        value = table.get(key, defaults[key])
        if isinstance(value, str) and value:
            table[key] = str((folder / Path(value).expanduser()).resolve())
    return parse_table(kind, table)
