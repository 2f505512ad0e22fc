"""Takes what looks like a credential out of text that is kept or shown.

Pure. It knows shapes of secrets, none of their values: a last net below the rule that no process is given what it does
not need. A secret without a shape (a password alone) is not recognised.
"""

import re

_SHAPES = (
    r"gh[pousr]_[A-Za-z0-9]{20,255}",  # GitHub
    r"github_pat_[A-Za-z0-9_]{20,255}",
    r"glpat-[A-Za-z0-9_-]{20,255}",  # GitLab
    r"sk-[A-Za-z0-9_-]{20,255}",  # Anthropic, OpenAI and others
    r"hf_[A-Za-z0-9]{20,255}",  # Hugging Face
    r"xox[abprs]-[A-Za-z0-9-]{10,255}",  # Slack
    r"(?:AKIA|ASIA)[A-Z0-9]{16}",  # AWS key ids
    r"AIza[A-Za-z0-9_-]{35}",  # Google
    r"eyJ[A-Za-z0-9_-]{10,4000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{0,4000}",  # JSON web tokens
)
_TOKEN = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(_SHAPES)})")
_HEADER = re.compile(r"(?i)\b(bearer|basic) [A-Za-z0-9._~+/=-]{16,4000}")
_LOGIN = re.compile(r"(?<=://)[^\s/:@]{0,255}:[^\s/@]{1,255}(?=@)")
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)", re.DOTALL
)


def scrub(text: str) -> str:
    """The text with `***` in the place of credentials. Text without any comes back as it is."""
    text = _PRIVATE_KEY.sub("***", text)
    return _LOGIN.sub("***", _HEADER.sub(r"\1 ***", _TOKEN.sub("***", text)))
