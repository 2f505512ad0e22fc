"""Which sandbox a node uses: the one the configuration names, or the best that this machine offers."""

import importlib

from node.sandbox import Sandbox
from swarm.errors import ConfigError

SHORT_NAMES = {"auto": "node.sandbox.bare:Bare", "bare": "node.sandbox.bare:Bare"}


def choose_sandbox(use: str) -> Sandbox:
    """Build the sandbox that the configuration names.

    Raises:
        ConfigError: no such sandbox.
    """
    module, _, name = SHORT_NAMES.get(use, use).partition(":")
    if not name:
        raise ConfigError(
            f"sandbox {use!r} is unknown; choose one of {', '.join(SHORT_NAMES)}, or package.module:Class"
        )
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"sandbox {use!r} cannot be loaded: {error}") from error
    sandbox: Sandbox = cls()
    return sandbox
