"""Free TCP ports, and whether something answers on one."""

import random
import socket

RAY_WORKERS = range(10_002, 20_000)  # the ports that Ray gives its workers
# Below Linux' range for outgoing connections (32768-60999) and above the workers', so that nobody takes the head's port
# while the head restarts.
_LOWEST, _HIGHEST = 20_000, 32_000


def is_free(port: int) -> bool:
    """Whether nothing on this machine listens on the port, on any address."""
    with socket.socket(socket.AF_INET) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Distinct ports that are free now; drawn at random, so that two callers seldom draw the same."""
    drawn = random.SystemRandom().sample(range(_LOWEST, _HIGHEST), 200)
    free = [port for port in drawn if is_free(port)]
    return free[:count]


def answers(address: str, timeout_s: float = 2.0) -> bool:
    """Whether something accepts connections at `host:port`."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout_s):
            return True
    except (OSError, ValueError):
        return False


def own_address(host: str) -> str:
    """The IP address behind the name when it belongs to an interface of this machine, else nothing."""
    with socket.socket(socket.AF_INET) as trial:
        try:
            trial.bind((host, 0))
        except OSError:
            return ""
        ip: str = trial.getsockname()[0]
        return ip
