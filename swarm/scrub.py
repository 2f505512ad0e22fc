"""Takes what looks like a credential out of text that is kept or shown.

Pure. It knows shapes of secrets, none of their values: a last net below the rule that no process is given what it does
not need. A secret without a shape (a password alone) is not recognised. Code is not changed: who runs it knows it by
its hash. Where `credentials` finds some in code, it is refused.
"""

import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from typing import TypeVar, cast

_SHAPES = (
    r"gh[pousr]_[A-Za-z0-9]{20,255}",  # GitHub
    r"github_pat_[A-Za-z0-9_]{20,255}",
    r"glpat-[A-Za-z0-9_-]{20,255}",  # GitLab
    r"sk-(?=[A-Za-z_-]{0,60}[0-9])[A-Za-z0-9_-]{20,255}",  # Anthropic, OpenAI and others; words have no digits
    r"hf_[A-Za-z0-9]{20,255}",  # Hugging Face
    r"xox[abprs]-[A-Za-z0-9-]{10,255}",  # Slack
    r"(?:AKIA|ASIA)[A-Z0-9]{16}",  # AWS key ids
    r"AIza[A-Za-z0-9_-]{35}",  # Google
    r"eyJ[A-Za-z0-9_-]{10,4000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{0,4000}",  # JSON web tokens
)
_TOKEN = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(_SHAPES)})")
# Of a header, with a digit somewhere: "a more basic parameterization" is none, nor is a template with a name in braces.
_HEADER = re.compile(r"\b(Bearer|bearer|Basic|basic) (?=[A-Za-z._~+/=-]{0,200}[0-9])[A-Za-z0-9._~+/=-]{16,4000}")
_LOGIN = re.compile(r"(?<=://)[^\s/:@]{0,255}:[^\s/@{}$<>]{1,255}(?=@)")
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)", re.DOTALL
)

Thing = TypeVar("Thing")

HOLDS_ONE = "its files hold what looks like a credential, and would be kept and shown: take it out"


def scrub(text: str) -> str:
    """The text with `***` in the place of credentials. Text without any comes back as it is."""
    text = _PRIVATE_KEY.sub("***", text)
    return _LOGIN.sub("***", _HEADER.sub(r"\1 ***", _TOKEN.sub("***", text)))


def scrubbed(thing: Thing) -> Thing:
    """A record, and the records in it, with `***` in the place of credentials in its words; its mappings stay."""
    if isinstance(thing, str):
        return cast(Thing, scrub(thing))
    if type(thing) is tuple:
        return cast(Thing, tuple(map(scrubbed, cast("tuple[object, ...]", thing))))
    if not is_dataclass(thing) or isinstance(thing, type):
        return thing
    before = {field.name: getattr(thing, field.name) for field in fields(thing)}
    changed = {name: clean for name, value in before.items() if (clean := scrubbed(value)) != value}
    return replace(thing, **changed) if changed else thing


def credentials(texts: Iterable[str]) -> frozenset[str]:
    """What looks like a credential in them. Tell nobody: say where it stands."""
    shapes = (_PRIVATE_KEY, _HEADER, _LOGIN, _TOKEN)
    return frozenset(match[0] for text in texts for shape in shapes for match in shape.finditer(text))
