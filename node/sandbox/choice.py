"""Which sandbox a node uses: the one the configuration names, or the best that this machine offers."""

from node.sandbox import Sandbox
from swarm.errors import ConfigError
from swarm.plugins import full_name, load_class

SHORT_NAMES = {"auto": "node.sandbox.bare:Bare", "bare": "node.sandbox.bare:Bare"}


def check_name(use: str) -> None:
    """Refuse a name that no node could know; nothing is imported.

    Raises:
        ConfigError: neither one of ours nor written like a class.
    """
    full_name("sandbox", use, SHORT_NAMES)


def choose_sandbox(use: str) -> Sandbox:
    """Build the sandbox that the configuration names.

    Raises:
        ConfigError: no such sandbox, or it cannot be built.
    """
    cls = load_class("sandbox", use, SHORT_NAMES)
    try:
        sandbox: Sandbox = cls()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"sandbox {use!r} cannot be built: {error}; correct nodes.sandbox") from error
    return sandbox
