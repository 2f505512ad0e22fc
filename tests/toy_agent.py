"""An agent for the tests of the cluster: echoes its orders, tells about its process, and fails when told to."""

import json
import os
import time


class Toy:
    """Orders are text: `sleep <s>`, `raise <text>`, `env <name>`; anything else is only echoed."""

    def __init__(self, setup: bytes) -> None:
        if setup == b"broken":
            raise RuntimeError("this toy was born broken")
        self._setup = setup
        self._calls = 0

    def exchange(self, orders: bytes) -> bytes:
        self._calls += 1
        verb, _, argument = orders[:1000].decode(errors="replace").partition(" ")
        if verb == "sleep":
            time.sleep(float(argument))
        if verb == "raise":
            raise ValueError(argument)
        echo = {"echo": len(orders), "setup": self._setup.decode(), "pid": os.getpid(), "calls": self._calls}
        return json.dumps(echo | {"env": os.environ.get(argument, "")}).encode()
