"""Where one machine keeps what can be made again: encoded texts, converted encoders."""

import os
from pathlib import Path

from common.errors import ConfigError


def default_cache_dir(configured: str) -> Path:
    """Returns the cache folder: the configured one, else HUSHCLICK_CACHE, else hushclick in the user's cache folder.

    Raises:
        ConfigError: when nothing is set and the user has no home folder.
    """
    try:
        for given in (configured, os.environ.get("HUSHCLICK_CACHE", "")):
            if given:
                return Path(given).expanduser()
        base = os.environ.get("XDG_CACHE_HOME", "")
        # The XDG specification says that a relative path is to be ignored.
        return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "hushclick"
    except RuntimeError:
        raise ConfigError('model.cache = "": there is no home folder; set model.cache or HUSHCLICK_CACHE') from None
