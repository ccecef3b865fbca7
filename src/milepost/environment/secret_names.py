"""What does a name say about its value: surely a secret, a secret if it looks random, or nothing?

The last word of a name decides, together with what kind of key or token it says it is: ``hf_token`` and ``api_key``
are secrets, ``pad_token``, ``num_memory_tokens``, ``sort_key`` and ``key_file`` are words of the field.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

__all__ = ["Verdict", "verdict"]

Verdict = Literal["always", "opaque", "nothing"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_ALWAYS = _words(
    "password passwd passphrase passcode pwd auth secret secrets apikey apikeys secretkey accesskey privatekey "
    "authtoken accesstoken credential credentials authorization cookie cookies bearer jwt"
)
_KINDS_OF_KEY = _words("api access private secret account encryption signing service storage ssh master")
_KINDS_OF_TOKEN = _words(
    "access api auth oauth bearer bot csrf deploy github gitlab hf hub huggingface id jwt login npm personal private "
    "pypi refresh registry sas secret security session slack wandb write xsrf"
)
_KINDS_OF_PASS = _words("admin database db email ftp mail mysql pg postgres proxy redis root smtp user")
_TRAILERS = _words("value text string str hash raw old new prod dev test header")
_FOLDERS = _words("PWD OLDPWD")


@lru_cache(maxsize=4096)
def verdict(name: str) -> Verdict:
    """Judge a value by the name of its key, variable, option or header, in any spelling (``apiKey``, ``API-KEY``)."""
    words = [word.lower() for word in _WORD.findall(name)]
    while len(words) > 1 and words[-1] in _TRAILERS:
        words.pop()
    if not words or name in _FOLDERS:
        return "nothing"
    last, before = words[-1], set(words[:-1])
    if last in _ALWAYS or (last == "id" and words[-2:-1] == ["secret"]):
        return "always"
    if last in {"key", "keys"}:
        return "always" if before & _KINDS_OF_KEY else "nothing"
    if last in {"token", "tokens"}:
        return "always" if before & _KINDS_OF_TOKEN else "opaque"
    if last == "pass":
        return "always" if before & _KINDS_OF_PASS else "nothing"
    return "opaque" if last in {"sig", "signature"} else "nothing"
