"""Classes that a configuration names: one of ours by a short name, or anybody's as `package.module:Class`.

Owns the sentences for a name that leads nowhere. Knows nothing of what the classes do.
"""

import difflib
import importlib
import re
from collections.abc import Mapping
from typing import Any

from swarm.errors import ConfigError

_FULL_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def full_name(what: str, use: str, short_names: Mapping[str, str]) -> str:
    """`package.module:Class` behind a name; nothing is imported.

    Raises:
        ConfigError: it is neither a short name nor written like a class.
    """
    named = short_names.get(use, use)
    if not _FULL_NAME.fullmatch(named):
        close = difflib.get_close_matches(use, short_names, n=1)
        hint = f"did you mean {close[0]!r}? Or" if close else f"choose one of {', '.join(short_names)}, or"
        raise ConfigError(f"{what} {use!r} is unknown; {hint} name your own as package.module:Class")
    return named


def load_class(what: str, use: str, short_names: Mapping[str, str]) -> Any:
    """The class behind a name.

    Raises:
        ConfigError: unknown, or it cannot be imported here.
    """
    module, _, name = full_name(what, use, short_names).partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise ConfigError(
            f"{what} {use!r} cannot be loaded: {error}; install its package on this machine, or correct the name"
        ) from error
    if not isinstance(found, type):
        raise ConfigError(f"{what} {use!r} is no class; name one as package.module:Class")
    return found
