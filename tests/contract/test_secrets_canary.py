"""Does any secret reach the disk? Forty of them are planted everywhere a run looks, then every byte is searched."""

from __future__ import annotations

import json
import random
import string
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from milepost.environment.capture import capture, trainer_facts
from milepost.environment.code import CodeRecord, capture_code, describe, restore_code
from milepost.environment.secrets import MARK, redact, redact_arguments, redact_tree

_BASE62 = string.ascii_letters + string.digits
_URL_SAFE = _BASE62 + "-_"
_HEX = "0123456789abcdef"


@dataclass(frozen=True)
class Canary:
    """A secret. ``is_bare`` means that nothing but its form gives it away; others stand beside their name."""

    name: str
    value: str
    is_bare: bool = True


def _random(alphabet: str, length: int, seed: str) -> str:
    return "".join(random.Random(seed).choices(alphabet, k=length))


def _canary(name: str, prefix: str, length: int, alphabet: str = _BASE62, *, bare: bool = True) -> Canary:
    # Put together here, because a scanner of this repository must not take the test for a leak.
    return Canary(name, prefix + _random(alphabet, length, name), bare)


CANARIES = [
    _canary("GITHUB_TOKEN", "gh" + "p_", 36),
    _canary("GITHUB_OAUTH_TOKEN", "gh" + "o_", 36),
    _canary("GITHUB_PERSONAL_TOKEN", "github" + "_pat_", 82),
    _canary("GITLAB_TOKEN", "gl" + "pat-", 20, _URL_SAFE),
    _canary("HF_TOKEN", "h" + "f_", 34),
    _canary("OPENAI_API_KEY", "sk" + "-", 48),
    _canary("OPENAI_PROJECT_API_KEY", "sk" + "-proj-", 120, _URL_SAFE),
    _canary("ANTHROPIC_API_KEY", "sk" + "-ant-api03-", 93, _URL_SAFE),
    _canary("STRIPE_API_KEY", "sk" + "_live_", 24),
    _canary("AWS_ACCESS_KEY_ID", "AK" + "IA", 16, string.ascii_uppercase + string.digits),
    _canary("AWS_SECRET_ACCESS_KEY", "", 40, _BASE62 + "+/"),
    _canary("AWS_SESSION_TOKEN", "", 180, _BASE62 + "+/"),
    _canary("GOOGLE_API_KEY", "AI" + "za", 35, _URL_SAFE),
    _canary("GOOGLE_ACCESS_TOKEN", "ya" + "29.", 100, _URL_SAFE),
    _canary("GOOGLE_CLIENT_SECRET", "GOC" + "SPX-", 28, _URL_SAFE),
    _canary("SLACK_BOT_TOKEN", "xo" + "xb-1234567890-", 24),
    _canary("SLACK_APP_TOKEN", "xa" + "pp-1-A0-", 40, _HEX),
    _canary("SLACK_WEBHOOK", "https://hooks.slack" + ".com/services/T0001/B0001/", 24),
    _canary("NPM_TOKEN", "np" + "m_", 36),
    _canary("PYPI_TOKEN", "py" + "pi-AgEIcHlwaS5vcmc", 120, _URL_SAFE),
    _canary("DOCKER_TOKEN", "dckr" + "_pat_", 27, _URL_SAFE),
    _canary("SENDGRID_API_KEY", "SG" + "." + _random(_URL_SAFE, 22, "sendgrid") + ".", 43, _URL_SAFE),
    _canary("WANDB_API_KEY", "", 40, _HEX, bare=False),
    _canary("WANDB_LOCAL_KEY", "loc" + "al-", 40, _HEX),
    _canary("REPLICATE_API_TOKEN", "r" + "8_", 37),
    _canary("NVIDIA_API_KEY", "nv" + "api-", 64, _URL_SAFE),
    _canary("GROQ_API_KEY", "gs" + "k_", 52),
    _canary("VAULT_TOKEN", "hv" + "s.", 90, _URL_SAFE),
    _canary("DATABRICKS_TOKEN", "da" + "pi", 32, _HEX),
    _canary("DIGITALOCEAN_TOKEN", "dop" + "_v1_", 64, _HEX),
    _canary("LINEAR_API_KEY", "lin" + "_api_", 40),
    _canary("ATLASSIAN_API_TOKEN", "ATA" + "TT3", 180, _URL_SAFE),
    _canary("GRAFANA_TOKEN", "gl" + "sa_", 41),
    _canary("TELEGRAM_BOT_TOKEN", "1234567890" + ":AA", 33, _URL_SAFE),
    _canary("JWT", "ey" + "JhbGciOiJIUzI1NiJ9." + "ey" + _random(_URL_SAFE, 60, "payload") + ".", 43, _URL_SAFE),
    _canary("KAGGLE_API_KEY", "", 32, _HEX, bare=False),
    _canary("AZURE_STORAGE_KEY", "", 86, _BASE62 + "+/"),
    _canary("UNLISTED_SERVICE", "", 40),
    Canary("DATABASE_PASSWORD", "correct-Horse7battery", is_bare=False),
    Canary("ADMIN_PASSWORD", "hunter2hunter", is_bare=False),
]

_PEM_LINES = [
    "-----BEGIN RSA " + "PRIVATE KEY-----",
    *(_random(_BASE62 + "+/", 64, f"pem{line}") for line in range(8)),
    _random(_BASE62, 11, "pem-last") + "=",
    "-----END RSA " + "PRIVATE KEY-----",
]


def _leaks(content: str) -> list[str]:
    return [canary.name for canary in CANARIES if canary.value in content] + [
        "PEM" for line in _PEM_LINES[1:-1] if line in content
    ]


def test_there_are_forty_canaries_and_each_is_its_own() -> None:
    assert len({canary.value for canary in CANARIES}) == 40


@pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: canary.name)
class TestOneSecret:
    @pytest.mark.parametrize(
        "line",
        [
            "{name}={value}",
            "export {name}='{value}'",
            '    "{name}": "{value}",',
            "{{'{name}': '{value}', 'lr': 0.1}}",
            "+{name}={value}",
            'step 3: {name} = "{value}"',
            "curl --{option} {value} example.org",
            "curl --{option}={value} example.org",
            "Authorization: Bearer {value}",
            "authorization: token {value}",
            "-H 'X-Api-Key: {value}' -H 'Accept: */*'",
            "Set-Cookie: session={value}; Path=/",
            "https://{value}@example.org/a.git",
            "https://someone:{value}@example.org/a.git",
            "https://{value}:x-oauth-basic@example.org/a.git",
            "GET https://example.org/a?step=3&access_token={value}&x=1",
            "GET /a?api_key={value}",
            'requests.get("https://example.org/a?signature={value}")',
        ],
    )
    def test_is_found_beside_its_name(self, canary: Canary, line: str) -> None:
        option = canary.name.lower().replace("_", "-")
        if canary.name in {"SLACK_WEBHOOK", "UNLISTED_SERVICE", "JWT"} and "value}@" in line:
            return  # an address is no user name
        text = line.format(name=canary.name, value=canary.value, option=option)
        assert canary.value not in redact(text)
        assert MARK in redact(text)

    def test_is_found_alone_if_its_form_gives_it_away(self, canary: Canary) -> None:
        if canary.is_bare:
            assert canary.value not in redact(f"RuntimeError: 401 for {canary.value}, try again")
            assert canary.value not in redact(canary.value)

    def test_is_found_in_configurations_and_arguments(self, canary: Canary) -> None:
        tree = {
            "login": {canary.name: canary.value, "list": [canary.value] if canary.is_bare else []},
            "pod": [{"name": canary.name, "value": canary.value}],
            "text": (f"{canary.name}={canary.value}", b"\xff" + f" {canary.name}={canary.value}".encode()),
        }
        assert _leaks(json.dumps(redact_tree(tree), default=repr)) == []
        option = f"--{canary.name.lower()}"
        arguments = ["train.py", option, canary.value, f"{option}={canary.value}", "--lr", "0.1"]
        shown = redact_arguments(arguments)
        assert _leaks(" ".join(shown)) == []
        assert shown[0] == "train.py"
        assert shown[-2:] == ["--lr", "0.1"]


def _git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=n", "-c", "user.email=n@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def _settings_file() -> str:
    return "\n".join([*(f"{canary.name}={canary.value}" for canary in CANARIES), *_PEM_LINES, "LEARNING_RATE=0.1", ""])


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose commit, changes, untracked files, branch and remote are full of secrets."""
    root = tmp_path / "work"
    root.mkdir()
    _git(root, "init", "-q", "-b", CANARIES[0].value)
    (root / "settings.cfg").write_text(_settings_file())
    (root / "train.py").write_text("rate = 0.1\n" + "pass\n" * 20)
    _git(root, "add", ".")
    _git(root, "commit", "-q", "-m", "first")
    _git(root, "remote", "add", "origin", f"https://{CANARIES[2].value}:x-oauth-basic@example.org/a.git")
    (root / "settings.cfg").write_text(_settings_file().replace("RATE=0.1", "RATE=0.2") + _settings_file())
    (root / "train.py").write_text(f'login("{CANARIES[4].value}")\n' + "pass\n" * 20)
    (root / "notes.txt").write_text(_settings_file())
    (root / ".env").write_text(_settings_file())
    (root / "server.pem").write_text("\n".join(_PEM_LINES))
    (root / f"{CANARIES[4].value}.txt").write_text("its name is the secret")
    return root


def test_nothing_of_the_surroundings_leaks_into_a_store(repository: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    code = capture_code(repository, store / "code", script=str(repository / "train.py"))
    arguments = tuple(part for canary in CANARIES for part in (f"--{canary.name.lower()}", canary.value))
    variables = {canary.name: canary.value for canary in CANARIES}
    allowed = {f"SLURM_{canary.name}": canary.value for canary in CANARIES} | {"SLURM_JWT": CANARIES[34].value}
    facts = trainer_facts(variables | allowed | {"SLURM_JOB_ID": "7"})
    facts = replace(facts, arguments=("python", "train.py", *arguments))
    environment = capture(facts)
    (store / "metadata.json").write_text(json.dumps({"environment": environment, "code": code.to_dict()}))
    (store / "show.txt").write_text("\n".join(describe(code)))
    (store / "experiment.log").write_text("\n".join(map(redact, _settings_file().splitlines())))
    (store / "traceback.txt").write_text(redact(f"Traceback:\n  x\n{_settings_file()}\nValueError: no"))
    files = [path for path in store.rglob("*") if path.is_file()]
    assert {"changes.patch", "notes.txt", "metadata.json"} <= {path.name for path in files}
    for path in files:
        # A line of a key that is printed alone is a short word without a sign; in its key it is found.
        content = path.read_text() if path.name != "experiment.log" else path.read_text().replace(_PEM_LINES[-2], "")
        assert _leaks(content) == [], path
        assert _leaks(path.name) == []
    assert environment["variables"]["SLURM_JOB_ID"] == "7"


def test_a_redacted_difference_still_restores_everything_that_is_no_secret(repository: Path, tmp_path: Path) -> None:
    code = capture_code(repository, tmp_path / "code")
    stored = CodeRecord.from_dict(json.loads(json.dumps(code.to_dict())))
    restored = restore_code(stored, repository, tmp_path / "code", tmp_path / "again")
    was = (repository / "settings.cfg").read_text().splitlines()
    now = (tmp_path / "again" / "settings.cfg").read_text().splitlines()
    kept = len(CANARIES) + len(_PEM_LINES)
    assert now[:kept] == was[:kept]  # these stand in the commit
    assert len(now) == len(was)
    assert now[kept] == "LEARNING_RATE=0.2"
    assert _leaks("\n".join(now[kept + 1 :])) == []
    assert (tmp_path / "again" / "train.py").read_text() == f'login("{MARK}")\n' + "pass\n" * 20
    assert any("settings.cfg has [redacted]" in note for note in restored.notes)
    assert any(note.startswith(".env was not kept") for note in restored.notes)
