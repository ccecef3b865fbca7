"""Which parts of a text are secrets, and what is shown in their place?

Everything that a run keeps of the world around it (environment variables, arguments, configuration, the address of a
repository, a diff, console lines, tracebacks) passes through here once, before it reaches a disk. Four rules, each
strong where the others are weak:

* **Names**: ``api_key=...``, ``--password ...``, ``Authorization: ...``, and dictionaries with such keys.
* **Shapes**: what the services that machine learning meets give out (``hf_...``, ``ghp_...``, ``sk-...``, JWT, PEM).
* **Addresses**: everything before the ``@`` of a URL, user name included, and query values that sign or authorise.
* **Disorder**: long words in which upper case, lower case and digits alternate the way they do in random text.

**Invariants**: what was found is replaced by a visible mark; the number of lines never changes; redacting twice gives
what redacting once gave. Names of the field (``num_memory_tokens``, ``use_cls_token``, ``pad_token``), commit hashes,
checksums, tensor names and paths stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from milepost.environment.secret_names import Verdict, verdict
from milepost.environment.token_shapes import SHAPES, SHORTEST, is_disordered, looks_opaque

__all__ = ["MARK", "redact", "redact_arguments", "redact_tree"]

MARK = "[redacted]"

_DEEPEST = 100

_NAMED = "token|key|secret|pass|auth|cred|cookie|bearer|pwd|jwt|sig"

#: Cheap answer to "could there be an assignment?"; runs on lower-cased text.
_MAYBE_ASSIGNMENT = re.compile(rf"""(?:{_NAMED})[\w.\-]{{0,80}}+\\?["']?[ \t]*+[=:]""")
_ASSIGNMENT = re.compile(
    rf"""(?<![\w.\-])(?P<name>[\w.\-]{{0,80}}?(?:{_NAMED})[\w.\-]{{0,80}})
    (?P<joint>\\?["']?[ \t]*(?:=>|:=|=(?!=)|:(?!//))[ \t]*|[ \t]+)
    (?P<value>[rbfu]{{0,2}}(?P<quote>\\?["'])(?P<inside>.*?)(?P=quote)|[^\s"',;&(){{}}\[\]]+)
    (?P<after>.?)""",
    re.IGNORECASE | re.VERBOSE,
)
_HEADER = re.compile(
    r"""(?i)(?P<name>\b(?:proxy-)?authorization|\b(?:set-)?cookie|\bx-[a-z-]*(?:key|token|auth|secret))"""
    r"""(?P<joint>["']?[ \t]*[:=][ \t]*["']?)(?P<value>[^"'\r\n]{4,})"""
)
_BEARER = re.compile(r"(?i)\b(?P<scheme>bearer[ \t]+)(?P<value>[\w.~+/=\-]{12,})")
_BASIC = re.compile(r"(?i)\b(?P<scheme>basic[ \t]+)(?P<value>[A-Za-z0-9+/]{10,}={1,2})")
_USERINFO = re.compile(
    r"""(?i)(?P<scheme>\b[a-z][a-z0-9+.\-]{0,20}://)"""
    r"""(?:(?P<user>[^\s/"'<>]+)|[^\s/:@"'<>]{1,200}:(?!\d{1,5}/)[^\s@"'<>]{1,200})@"""
)
_QUERY = re.compile(r"(?P<name>[?&;][\w.\-]{1,60})=(?P<value>[^&\s\"'#<>;]+)")
_SIGNATURE = re.compile(r"(?i)(?:sig|signature|.*[-_](?:signature|credential))")

_PEM_START = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----")
_PEM_END = re.compile(r"-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----")
_PEM_BODY = re.compile(r"""[\s"',+]*[A-Za-z0-9+/=]+(?:\\[nr])*[\s"',+\\]*|[A-Z][\w-]+: .*""")
_PEM_IN_LINE = re.compile(f"{_PEM_START.pattern}.*?(?:{_PEM_END.pattern}|$)")

_LONG_RUN = re.compile(r"[A-Za-z0-9+/=_\-]{32,}")
_PUBLIC_RUN = re.compile(r"(?i)sha(?:1|256|384|512)[-=]|AAAA[BCE]3Nza|AAAAE2Vj")
_LONGEST_RUN = 256

_PLAIN_WORD = re.compile(
    "(?i)none|null|nil|true|false|yes|no|str|string|bytes|int|float|bool|any|optional|secretstr|required|default|"
    "undefined|unset|empty|hidden|redacted"
)
_EXPRESSION = re.compile(r"[A-Za-z_][A-Za-z_.]*")
_SETTING_LINE = re.compile(r"[+\- ]?\s*(?:export\s+)?$")


def redact(text: str) -> str:
    """``text`` with every secret replaced by ``[redacted]``; fast where there is none.

    Args:
        text: One line or many; the number of lines does not change.
    """
    if "\n" in text:
        return _redact_lines(text)
    low = text.lower()
    # The chain is spelled out because this runs for every printed line: a loop over it costs three times as much.
    named = (
        "token" in low
        or "key" in low
        or "secret" in low
        or "pass" in low
        or "auth" in low
        or "cred" in low
        or "cookie" in low
        or "bearer" in low
        or "pwd" in low
        or "jwt" in low
        or "sig" in low
    )
    if named:
        text = _redact_named(text, low)
    if "basic" in low:
        text = _BASIC.sub(_without_scheme_value, text)
    if "@" in text and "://" in text:
        text = _USERINFO.sub(_without_user, text)
    words = text.split()
    if words and len(max(words, key=len)) >= SHORTEST:
        text = _redact_opaque(text)
    return text


def redact_tree(value: Any) -> Any:
    """``value`` with every secret in it replaced: in texts by :func:`redact`, below telling keys as a whole.

    Args:
        value: A tree of mappings, lists, tuples, sets and plain values, such as a configuration. Mappings come back as
            dicts; everything else keeps its type. Objects of other types are returned as they are.
    """
    return _redact_node(value, "nothing", 0)


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """Command line arguments, where ``--api-key`` and its value may be two of them."""
    shown: list[str] = []
    awaited: Verdict = "nothing"
    for argument in arguments:
        is_option = argument.startswith("-")
        shown.append(redact(argument) if is_option else _redact_value(argument, awaited))
        awaited = verdict(argument) if is_option and "=" not in argument else "nothing"
    return shown


def _redact_lines(text: str) -> str:
    """Line by line; only a private key spans lines, and a part of a diff may hold its start or its end alone."""
    lines = text.split("\n")
    in_key = [False] * len(lines)
    for at, line in enumerate(lines):
        starts, ends = _PEM_START.search(line), _PEM_END.search(line)
        if starts and not ends:
            _mark_key(lines, in_key, range(at + 1, len(lines)))
        elif ends and not starts:
            _mark_key(lines, in_key, range(at - 1, -1, -1))
    return "\n".join(MARK if hidden else redact(line) for line, hidden in zip(lines, in_key, strict=True))


def _mark_key(lines: list[str], in_key: list[bool], places: range) -> None:
    for at in places:
        if len(lines[at]) > _LONGEST_RUN or not _PEM_BODY.fullmatch(lines[at]):
            return
        in_key[at] = True


def _redact_named(text: str, low: str) -> str:
    if "PRIVATE KEY" in text:
        text = _PEM_IN_LINE.sub(MARK, text)
    if "authorization" in low or "cookie" in low or "x-" in low:
        text = _HEADER.sub(_without_value, text)
    if "bearer" in low:
        text = _BEARER.sub(_without_scheme_value, text)
    if "=" in text and ("?" in text or "&" in text):
        text = _QUERY.sub(_without_query_value, text)
    if "--" in text or _MAYBE_ASSIGNMENT.search(low):
        text = _ASSIGNMENT.sub(_without_assigned, text)
    return text


def _without_value(found: re.Match[str]) -> str:
    return f"{found['name']}{found['joint']}{MARK}"


def _without_scheme_value(found: re.Match[str]) -> str:
    return f"{found['scheme']}{MARK}"


def _without_user(found: re.Match[str]) -> str:
    # ``git`` is the login of every user of a hosting service.
    return found[0] if found["user"] in {"git", MARK} else f"{found['scheme']}{MARK}@"


def _without_query_value(found: re.Match[str]) -> str:
    name = found["name"][1:]
    if name.lower() in {"key", "code"}:
        judged: Verdict = "opaque"
    elif name.lower() == "token" or _SIGNATURE.fullmatch(name):
        judged = "always"
    else:
        judged = verdict(name)
    is_secret = judged == "always" or (judged == "opaque" and looks_opaque(found["value"]))
    return f"{found['name']}={MARK}" if is_secret else found[0]


def _without_assigned(found: re.Match[str]) -> str:
    name, joint, value, inside = found["name"], found["joint"], found["value"], found["inside"]
    judged = verdict(name)
    if judged == "nothing" or value.startswith(MARK[:-1]) or (joint.isspace() and not name.startswith("-")):
        return found[0]
    literal = value if inside is None else inside
    if _is_placeholder(literal) or (judged == "opaque" and not looks_opaque(literal)):
        return found[0]
    if inside is None:
        return found[0] if _is_code(found) else f"{name}{joint}{MARK}{found['after']}"
    opening = value[: found.start("inside") - found.start("value")]
    return f"{name}{joint}{opening}{MARK}{found['quote']}{found['after']}"


def _is_code(found: re.Match[str]) -> bool:
    """Whether an unquoted value is an expression of a program (``password=self.password``), not a literal."""
    value = found["value"]
    if found["after"] in {"(", "[", "{"} or value[0] in "$<%*" or value == found["name"]:
        return True
    if not _EXPRESSION.fullmatch(value) or found["name"].startswith("--"):
        return False
    # ``PASSWORD=correcthorse`` and ``password: correcthorse`` alone on a line are settings, whatever the value.
    before, is_last = found.string[: found.start()], found.end() == len(found.string) and not found["after"]
    is_alone = is_last and _SETTING_LINE.fullmatch(before) is not None
    return not (is_alone and (found["name"].isupper() or "." not in value))


def _is_placeholder(value: str) -> bool:
    return not value.strip() or _PLAIN_WORD.fullmatch(value) is not None or value == MARK or value.strip("*.xX") == ""


def _redact_opaque(text: str) -> str:
    return _LONG_RUN.sub(_without_disorder, SHAPES.sub(MARK, text))


def _without_disorder(found: re.Match[str]) -> str:
    run = found[0]
    if len(run) > _LONGEST_RUN or _PUBLIC_RUN.match(run):
        return run
    return MARK if is_disordered(run) else run


def _redact_node(value: Any, judged: Verdict, depth: int) -> Any:
    if depth > _DEEPEST:
        return MARK
    if isinstance(value, Mapping):
        return _redact_mapping(value, judged, depth)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(**_redact_mapping(dict(zip(value._fields, value, strict=True)), judged, depth))
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value)(_redact_node(item, judged, depth + 1) for item in value)
    return _redact_leaf(value, judged)


def _redact_leaf(value: Any, judged: Verdict) -> Any:
    if isinstance(value, str):
        return _redact_value(value, judged)
    if isinstance(value, bytes):
        return _redact_value(value.decode("latin-1"), judged).encode("latin-1")
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return MARK if is_number and judged == "always" else value


def _redact_mapping(value: Mapping[Any, Any], judged: Verdict, depth: int) -> dict[Any, Any]:
    shown: dict[Any, Any] = {}
    for key, item in value.items():
        below = judged if judged == "always" else _verdict_of_key(key, value)
        shown[redact(key) if isinstance(key, str) else key] = _redact_node(item, below, depth + 1)
    return shown


def _verdict_of_key(key: object, siblings: Mapping[Any, Any]) -> Verdict:
    """``{"name": "HF_TOKEN", "value": "..."}``, as in a pod's description, names its value beside it."""
    if key == "value" and isinstance(siblings.get("name"), str):
        return verdict(siblings["name"])
    return verdict(key) if isinstance(key, str) else "nothing"


def _redact_value(text: str, judged: Verdict) -> str:
    is_secret = judged == "always" or (judged == "opaque" and looks_opaque(text))
    return MARK if is_secret and not _is_placeholder(text) else redact(text)
