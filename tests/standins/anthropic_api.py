"""A stand-in for the Messages API of Anthropic: HTTP on a loopback port, answers from a script.

It refuses what the real service refuses and our proposer could get wrong: a missing or wrong key, no version header, an
unknown model, a forced tool where the model thinks, turns that do not alternate, tool results that answer no call.
"""

import json
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from threading import Thread
from typing import Any

KEY = "sk-ant-stand-in"
_numbers = count(1)
MODELS = ("claude-sonnet-5-5",)
Json = dict[str, Any]

ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    529: "overloaded_error",
}


@dataclass(frozen=True)
class Answer:
    """One scripted answer."""

    status: int
    body: Json
    headers: Mapping[str, str] = field(default_factory=dict)


def failure(status: int, message: str = "scripted") -> Answer:
    """An error as the service words it. Retries may come at once: tests do not sleep."""
    body = {"type": "error", "error": {"type": ERRORS[status], "message": message}, "request_id": "req_1"}
    return Answer(status, body, {"retry-after": "0", "retry-after-ms": "1"})


def call(tool_input: object, tokens: tuple[int, int] = (1000, 100), cached: tuple[int, int] = (0, 0)) -> Answer:
    """The model thinks a little and calls `propose`. `cached` counts tokens written to and read from the cache."""
    blocks: list[Json] = [
        {"type": "thinking", "thinking": "", "signature": "c2lnbmVk"},
        {"type": "tool_use", "id": f"toolu_{next(_numbers)}", "name": "propose", "input": tool_input},
    ]
    return _message(blocks, "tool_use", tokens, cached)


def prose(text: str, tokens: tuple[int, int] = (1000, 100), stop_reason: str = "end_turn") -> Answer:
    """The model talks and calls nothing."""
    return _message([{"type": "text", "text": text}] if text else [], stop_reason, tokens, (0, 0))


def _message(content: list[Json], stop_reason: str, tokens: tuple[int, int], cached: tuple[int, int]) -> Answer:
    usage = {
        "input_tokens": tokens[0],
        "output_tokens": tokens[1],
        "cache_creation_input_tokens": cached[0],
        "cache_read_input_tokens": cached[1],
    }
    body = {"id": "msg_1", "type": "message", "role": "assistant", "model": MODELS[0], "content": content}
    return Answer(200, body | {"stop_reason": stop_reason, "stop_sequence": None, "usage": usage})


class StandIn:
    """The running server: where it listens, what it will say, what it was asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.script: deque[Answer] = deque()
        self.requests: list[Json] = []

    def answer(self, path: str, headers: Mapping[str, str], body: Json) -> Answer:
        self.requests.append(body)
        # SDK 2.x sends the key as a bearer token, older ones as x-api-key; the service takes both.
        if KEY not in (headers.get("x-api-key"), headers.get("authorization", "").removeprefix("Bearer ")):
            return failure(401, "invalid x-api-key")
        problem = _problem(path, headers, body)
        if problem:
            return failure(400, problem)
        if body["model"] not in MODELS:
            return failure(404, f"model: {body['model']}")
        return self.script.popleft() if self.script else failure(400, "the script of the stand-in has ended")


def _problem(path: str, headers: Mapping[str, str], body: Json) -> str:
    if path != "/v1/messages" or not headers.get("anthropic-version"):
        return "unknown path or no version"
    if missing := {"model", "max_tokens", "messages"} - set(body):
        return f"{sorted(missing)}: field required"
    if body.get("tool_choice", {"type": "auto"})["type"] not in ("auto", "none"):
        return "tool_choice: this model does not support forced tool use"
    turns: list[Json] = body["messages"]
    if [turn["role"] for turn in turns] != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        return "messages: roles must alternate, beginning and ending with user"
    for before, after in zip(turns, turns[1:], strict=False):
        if _ids(before, "tool_use", "id") != _ids(after, "tool_result", "tool_use_id") and after["role"] == "user":
            return "messages: each tool_use block must have a tool_result block in the next message"
    blocks = [block for turn in turns for block in _blocks(turn)]
    if any(block["type"] == "text" and not block["text"] for block in blocks):
        return "messages: text content blocks must be non-empty"
    return ""


def _blocks(turn: Json) -> list[Json]:
    return [] if isinstance(turn["content"], str) else list(turn["content"])


def _ids(turn: Json, kind: str, name: str) -> list[str]:
    return [block[name] for block in _blocks(turn) if block["type"] == kind]


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """Serve until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            answer = server.answer(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            data = json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in {**answer.headers, "content-type": "application/json"}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server = StandIn(f"http://127.0.0.1:{http.server_port}")
        thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
