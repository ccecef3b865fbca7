"""Which words are credentials by their shape alone, whatever stands around them?

Two answers: the forms that issuers give their tokens, and disorder. The second is for those nobody listed.
"""

from __future__ import annotations

import re
from itertools import pairwise

__all__ = ["SHAPES", "SHORTEST", "is_disordered", "looks_opaque"]

#: No word shorter than this is taken for a credential by its shape.
SHORTEST = 20

#: One alternative per issuer. Every shape is at least ``SHORTEST`` characters long.
SHAPES = re.compile(
    r"""(?<![A-Za-z0-9])(?:
      gh[pousr]_[A-Za-z0-9]{20,} | github_pat_\w{20,}                                   # GitHub
    | gl(?:pat|dt|rt|cbt|ptt|ft|imt|agent|soat|oas|ffct)-[\w\-]{16,}                    # GitLab
    | (?:hf|api_org)_[A-Za-z0-9]{20,}                                                   # Hugging Face
    | sk-(?:proj-|ant-|or-|svcacct-|admin-)?[\w\-]{17,}                                 # OpenAI, Anthropic, OpenRouter
    | (?:[sr]k|whsec)_(?:live_|test_)?[A-Za-z0-9]{17,}                                  # Stripe
    | (?:AKIA|ASIA|ABIA|ACCA|AROA|AIDA)[A-Z0-9]{16}                                     # AWS
    | ABSK[A-Za-z0-9+/=]{40,}                                                           # AWS Bedrock
    | AIza[\w\-]{30,} | ya29\.[\w\-]{20,} | GOCSPX-[\w\-]{20,} | 1//0[\w\-]{20,}         # Google
    | xox[abeoprs]-[\w\-]{15,} | xapp-[\w\-]{15,}                                       # Slack
    | npm_[A-Za-z0-9]{30,} | pypi-[\w\-]{20,} | dckr_(?:pat|oat)_[\w\-]{16,}            # registries
    | SG\.[\w\-]{16,}\.[\w\-]{16,} | key-[0-9a-f]{32} | SK[0-9a-f]{32}                  # SendGrid, Mailgun, Twilio
    | wandb_v\d_\w{20,} | local-[0-9a-f]{40}                                            # W&B
    | r8_[A-Za-z0-9]{30,} | nvapi-[\w\-]{20,} | gsk_[A-Za-z0-9]{20,} | pplx-[A-Za-z0-9]{20,}
    | xai-[A-Za-z0-9]{20,} | tvly-[\w\-]{20,} | fw_[A-Za-z0-9]{20,} | jina_[A-Za-z0-9]{20,}
    | hv[sbr]\.[\w\-]{20,} | dapi[0-9a-f]{32}(?:-\d)? | KGAT_[0-9a-f]{16,}              # Vault, Databricks, Kaggle
    | (?:dop|doo|dor)_v1_[0-9a-f]{32,} | shp(?:at|ss|ca|pa)_[0-9a-fA-F]{20,}            # DigitalOcean, Shopify
    | lin_api_\w{20,} | ntn_\w{20,} | secret_[A-Za-z0-9]{30,} | figd_[\w\-]{20,}        # Linear, Notion, Figma
    | ATATT3[\w\-=]{20,} | ATCTT3[\w\-=]{20,} | PMAK-[\w\-]{20,} | NRAK-[A-Z0-9]{20,}   # Atlassian, Postman, New Relic
    | sntry[su]_[\w+/=]{20,} | gl(?:sa|c)_[\w+/=]{20,} | dp\.(?:pt|st|ct)\.[\w.\-]{20,} # Sentry, Grafana, Doppler
    | pul-[0-9a-f]{32,} | [A-Za-z0-9]{14}\.atlasv1\.[\w\-]{20,} | sq0[a-z]{3}-[\w\-]{20,}
    | EAA[A-Za-z0-9]{30,} | ops_eyJ[\w\-]{20,} | AGE-SECRET-KEY-1[A-Z0-9]{20,}          # Meta, 1Password, age
    | pat[A-Za-z0-9]{14}\.[0-9a-f]{32,} | \d{8,10}:AA[\w\-]{30,}                        # Airtable, Telegram
    | [MNO][A-Za-z\d_\-]{23,27}\.[\w\-]{6}\.[\w\-]{27,}                                 # Discord
    | eyJ[\w\-]{8,}\.[\w\-]{8,}(?:\.[\w\-]*)*                                           # JWT
    | (?:hooks\.slack\.com/(?:services|workflows)|discord(?:app)?\.com/api/webhooks)/[\w/\-]{16,}
    )""",
    re.VERBOSE,
)

_FEWEST_PAIRS = 20
_CLASS_CHANGES = 0.4


def looks_opaque(value: str) -> bool:
    """Whether a value under a name such as ``token`` is a credential rather than a word (``"<pad>"``, ``"[CLS]"``)."""
    if len(value) < 16 or not re.fullmatch(r"[\w.~+/=:\-]+", value):
        return False
    return any(c.isdigit() for c in value) and any(c.isalpha() for c in value)


def is_disordered(run: str) -> bool:
    """Whether upper case, lower case and digits alternate as in random text.

    Two neighbours in random base-62 text are of different kinds with probability 0.62; in names and paths, where words
    stay whole, with less than 0.3. Hexadecimal digests have one case only, so they do not count.
    """
    kinds = [_kind(c) for c in run]
    if any(kinds.count(kind) < 2 for kind in "Aa0"):
        return False
    pairs = [(a, b) for a, b in pairwise(kinds) if a != "-" and b != "-"]
    return len(pairs) >= _FEWEST_PAIRS and sum(a != b for a, b in pairs) >= _CLASS_CHANGES * len(pairs)


def _kind(character: str) -> str:
    if character.isdigit():
        return "0"
    if character.isalpha():
        return "A" if character.isupper() else "a"
    return "-"
