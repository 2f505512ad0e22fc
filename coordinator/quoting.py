"""Other people's words on our pages: shown as data, never obeyed by Markdown or by a forge.

Owns what makes a hypothesis, a name or an error message harmless in a pull request, a commit message and a page: it
mentions nobody, links nowhere, closes no issue and cannot leave its place. Pure. Not covered: whether it is true.
"""

import re
import textwrap
import unicodedata

QUOTE_LENGTH = 600  # characters: with its evidence, a request stays one screen
QUOTE_COLUMNS = 96
_INERT = str.maketrans({"`": "'", "<": "‹", ">": "›", "|": "/", "[": "(", "]": ")", "\\": "/", "&": " and "})
_INERT |= str.maketrans({"@": "(at)", "*": "∗", "~": "∼"})


def inline(text: str, limit: int = 80) -> str:
    """One line that is safe in a title, a table cell and a commit message: no markup, mention, link or issue number."""
    words = " ".join(_visible(text).translate(_INERT).split())
    words = re.sub(r"(?<=\w)#(?=\w)", " #", words)  # local#3 is local no. 3
    words = re.sub(r"#(?=\w)|\bGH-(?=\d)", "no. ", words, flags=re.IGNORECASE).replace("://", ": //")
    words = re.sub(r"\b(www)\.(?=\w)", r"\1 .", words, flags=re.IGNORECASE)  # GitHub links it without a scheme
    return _cut(words, limit)


def quote(text: str, limit: int = QUOTE_LENGTH) -> str:
    """A fenced block, in which Markdown means nothing, with a fence longer than any that the text holds."""
    shown = _cut(_visible(text).strip(), limit)
    lines = [part for line in shown.splitlines() for part in textwrap.wrap(line, QUOTE_COLUMNS) or [""]]
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return "\n".join([f"{fence}text", *(lines or ["(no words)"]), fence])


def _visible(text: str) -> str:
    """Without control characters, and without those that nobody sees or that turn the reading direction."""
    return "".join(c if c == "\n" or unicodedata.category(c)[0] != "C" else " " for c in text)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
