"""The settings of the whole gateway: defaults, bounds, secrets, and how they are described."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
import trustme
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from cgw.config.declare import PLACEHOLDER, list_group_classes, list_variables
from cgw.config.describe import describe_settings
from cgw.config.kinds import Secret
from cgw.errors import ConfigError
from cgw.providers.anthropic.settings import AnthropicSettings
from cgw.providers.registry import PROVIDERS
from cgw.service.reference_settings import REFERENCE_SETTINGS
from cgw.service.settings import Settings, load_settings


def problems_of(environ: dict[str, str]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_settings(environ)
    return caught.value.problems


def test_an_empty_environment_gives_the_documented_defaults() -> None:
    """Without any variable the settings have the defaults of the reference and of the design."""
    settings = load_settings({})
    assert settings == Settings()
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 9992)
    assert settings.server.max_body_bytes == 32 * 1024 * 1024
    assert settings.server.max_head_bytes == 64 * 1024
    assert settings.server.header_timeout_seconds == 10
    assert settings.server.drain_timeout_seconds == 30
    assert settings.upstream.request_timeout_seconds == 600
    assert settings.providers["anthropic"].api_url == "https://api.anthropic.com"
    assert settings.providers["anthropic"].access_token is None
    anthropic = settings.providers["anthropic"]
    assert isinstance(anthropic, AnthropicSettings)
    assert anthropic.max_tokens_to_sample == 4000
    assert settings.providers["openai"].api_url == "https://api.openai.com"
    assert settings.actors.allow_anonymous is False
    assert (settings.actors.concurrency_percentage, settings.actors.concurrency_interval_ms) == (50, 10_000)
    assert settings.redis.endpoint is None
    assert settings.redis.timeout_seconds == 0.1
    assert settings.data.directory.name == "cgw"
    assert settings.warnings == ()


def test_every_kind_of_value_is_read() -> None:
    """Numbers, durations, sizes, truth values, lists, URLs, secrets and paths arrive in their own types."""
    settings = load_settings(
        {
            "PORT": "0",
            "CODY_GATEWAY_MAX_BODY_BYTES": "1MiB",
            "CODY_GATEWAY_BODY_TIMEOUT": "1m30s",
            "CODY_GATEWAY_DRAIN_TIMEOUT": "0",
            "CODY_GATEWAY_ALLOW_ANONYMOUS": "Yes",
            "CODY_GATEWAY_OPENAI_API_URL": "http://127.0.0.1:8080/base/",
            "CODY_GATEWAY_OPENAI_ACCESS_TOKEN": " sk-secret\n",
            "CODY_GATEWAY_OPENAI_ALLOWED_MODELS": "gpt-4o, gpt-4,,gpt-4o",
            "CODY_GATEWAY_ACTORS_FILE": "/etc/cgw/actors.toml",
            "CODY_GATEWAY_ACTOR_CONCURRENCY_LIMIT_INTERVAL": "500ms",
            "CODY_GATEWAY_LOG_LEVEL": "debug",
        }
    )
    assert settings.server.port == 0
    assert settings.server.max_body_bytes == 1024 * 1024
    assert settings.server.body_timeout_seconds == 90
    assert settings.server.drain_timeout_seconds == 0
    assert settings.actors.allow_anonymous is True
    assert settings.providers["openai"].api_url == "http://127.0.0.1:8080/base"
    assert settings.providers["openai"].access_token == Secret("sk-secret")
    assert settings.providers["openai"].allowed_models == ("gpt-4o", "gpt-4")
    assert settings.actors.file == Path("/etc/cgw/actors.toml")
    assert settings.actors.concurrency_interval_ms == 500
    assert settings.logs.level == "DEBUG"


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_an_empty_variable_counts_as_unset(text: str) -> None:
    """A variable that is empty or blank gives the default, as deployment files often leave variables so."""
    assert load_settings({"PORT": text, "CODY_GATEWAY_OPENAI_ACCESS_TOKEN": text}) == Settings()


def test_all_problems_are_reported_at_once() -> None:
    """Each wrong variable gives one sentence, with its name and the allowed values."""
    problems = problems_of(
        {
            "PORT": "65536",
            "CODY_GATEWAY_HEADER_TIMEOUT": "10 sec",
            "CODY_GATEWAY_MAX_BODY_BYTES": "1 byte",
            "CODY_GATEWAY_ALLOW_ANONYMOUS": "perhaps",
            "CODY_GATEWAY_LOG_FORMAT": "xml",
            "CODY_GATEWAY_UPSTREAM_CA_FILE": "/nonexistent/ca.pem",
        }
    )
    assert problems == (
        "PORT: must be a whole number, from 0 to 65535, not '65536': correct or unset it (default: 9992)",
        "CODY_GATEWAY_MAX_BODY_BYTES: must be a size such as 32MiB, 64KiB or 1048576, not '1 byte': "
        "correct or unset it (default: 32MiB)",
        "CODY_GATEWAY_HEADER_TIMEOUT: must be a duration such as 10s, 1m30s or 500ms, not '10 sec': "
        "correct or unset it (default: 10s)",
        "CODY_GATEWAY_UPSTREAM_CA_FILE: must name a file of certificates in PEM form; "
        "/nonexistent/ca.pem: No such file or directory: correct or unset it",
        "CODY_GATEWAY_ALLOW_ANONYMOUS: must be true or false, not 'perhaps': correct or unset it (default: false)",
        "CODY_GATEWAY_LOG_FORMAT: must be one of auto, text, json, not 'xml': correct or unset it (default: auto)",
    )


@pytest.mark.parametrize("name", [row.name for row in describe_settings(Settings())])
def test_no_setting_takes_just_any_text(name: str) -> None:
    """Each setting but paths and lists of names or phrases refuses a text that makes no sense for it, with its name."""
    variable = name.replace(PLACEHOLDER, "ACME")
    environ = {variable: "\x00 no / good ://:99999999"}
    if name in PATHS | MODEL_LISTS | PHRASE_LISTS:
        assert load_settings(environ) != Settings()
    else:
        assert [problem.partition(":")[0] for problem in problems_of(environ)] == [variable]


PHRASE_LISTS = {
    "CODY_GATEWAY_ANTHROPIC_ALLOWED_PROMPT_PATTERNS",
    "CODY_GATEWAY_ANTHROPIC_BLOCKED_PROMPT_PATTERNS",
    "CODY_GATEWAY_ANTHROPIC_FLAGGED_MODEL_NAMES",
    "CODY_GATEWAY_IDENTIFIERS_TO_LOG_FOR",
}
PATHS = {
    "CODY_GATEWAY_ACTORS_FILE",
    "CODY_GATEWAY_DATA_DIR",
    "CODY_GATEWAY_TOKENIZER_FILE",
    "CODY_GATEWAY_TLS_CERT_FILE",
    "CODY_GATEWAY_TLS_KEY_FILE",
}
MODEL_LISTS = {
    "CODY_GATEWAY_ALLOWED_EMBEDDINGS_MODELS",
    *(f"CODY_GATEWAY_{provider.name.upper()}_ALLOWED_MODELS" for provider in PROVIDERS),
    f"CODY_GATEWAY_OPENAI_COMPATIBLE_{PLACEHOLDER}_ALLOWED_MODELS",
}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PORT", "-1"),
        ("PORT", "1e3"),
        ("PORT", "٣"),
        ("CODY_GATEWAY_MAX_HEAD_BYTES", "1GiB"),
        ("CODY_GATEWAY_HEADER_TIMEOUT", "0s"),
        ("CODY_GATEWAY_HEADER_TIMEOUT", "-1s"),
        ("CODY_GATEWAY_HEADER_TIMEOUT", "25h"),
        ("CODY_GATEWAY_HEADER_TIMEOUT", "1s2"),
        ("CODY_GATEWAY_HEADER_TIMEOUT", "s"),
        ("CODY_GATEWAY_ACTOR_CONCURRENCY_LIMIT_PERCENTAGE", "101"),
        ("CODY_GATEWAY_ANTHROPIC_MAX_TOKENS_TO_SAMPLE", "0"),
        ("CODY_GATEWAY_ANTHROPIC_ALLOWED_MODELS", " , "),
        ("CODY_GATEWAY_ANTHROPIC_API_URL", "api.anthropic.com"),
        ("CODY_GATEWAY_ANTHROPIC_API_URL", "ftp://api.anthropic.com"),
        ("CODY_GATEWAY_ANTHROPIC_API_URL", "https://host:99999"),
        ("CODY_GATEWAY_ANTHROPIC_API_URL", "https://host/?a=b"),
        ("CODY_GATEWAY_ANTHROPIC_API_URL", "https://api..anthropic.com"),
        ("CODY_GATEWAY_ANTHROPIC_API_URL", f"https://{'a' * 64}.com"),
        ("CODY_GATEWAY_HOST", "[::1]"),
        ("CODY_GATEWAY_TRUSTED_PROXIES", ","),
        ("CODY_GATEWAY_TRUSTED_PROXIES", "10.1.2.3/8"),
        ("CODY_GATEWAY_MAX_CONNECTIONS", "0"),
        ("CODY_GATEWAY_SHED_TARGET", "-1ms"),
        ("REDIS_ENDPOINT", "http://localhost:6379"),
        ("REDIS_ENDPOINT", "localhost"),
        ("REDIS_ENDPOINT", "redis+cluster://"),
        ("REDIS_ENDPOINT", "redis+cluster://a:1,,b:2"),
        ("REDIS_ENDPOINT", "redis+cluster://a:70000"),
        ("REDIS_ENDPOINT", "redis+sentinel://a:26379"),
        ("REDIS_ENDPOINT", "redis+sentinel://a:26379/service/x"),
        ("REDIS_ENDPOINT", "redis+proxy://a:1"),
        ("REDIS_ENDPOINT", "unix+cluster://a:1"),
        ("CODY_GATEWAY_DATA_DIR", "~no-such-user/cgw"),
        ("CODY_GATEWAY_UPSTREAM_CA_FILE", "~no-such-user/ca.pem"),
    ],
)
def test_values_out_of_bounds_are_refused(name: str, text: str) -> None:
    """A value that cannot work is refused at the start, with the variable's name."""
    (problem,) = problems_of({name: text})
    assert problem.startswith(f"{name}: must ")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("CODY_GATEWAY_OPENAI_ACCESS_TOKEN", "CANARY key"),
        ("CODY_GATEWAY_OPENAI_API_URL", "https://user:CANARY@host/"),
        ("REDIS_ENDPOINT", "redis//:CANARY@host"),
        ("REDIS_ENDPOINT", "redis+cluster://:CANARY@host:port"),
        ("REDIS_ENDPOINT", "redis+sentinel://:CANARY@host:1?sentinel_password=CANARY"),
        ("PORT", "sk-ant-CANARY-0123456789abcdef"),
        ("CODY_GATEWAY_LOG_LEVEL", "sk-ant-CANARY-0123456789abcdef"),
    ],
)
def test_no_problem_repeats_a_secret(name: str, text: str) -> None:
    """A wrong key, or a key in the wrong variable, is not repeated in the error."""
    (problem,) = problems_of({name: text})
    assert "CANARY" not in problem


def test_secrets_are_masked_wherever_settings_are_shown() -> None:
    """Neither ``repr`` nor the table of settings contains a key or a password."""
    settings = load_settings(
        {
            "CODY_GATEWAY_OPENAI_ACCESS_TOKEN": "CANARY1",
            "CODY_GATEWAY_ANTHROPIC_ACCESS_TOKEN": "CANARY2",
            "CODY_GATEWAY_DIAGNOSTICS_SECRET": "CANARY3",
            "REDIS_ENDPOINT": "rediss://user:CANARY4@redis.example:6380/1?password=CANARY5",
        }
    )
    shown = f"{settings!r} {settings} {describe_settings(settings)}"
    assert "CANARY" not in shown
    rows = {row.name: row for row in describe_settings(settings)}
    assert rows["CODY_GATEWAY_OPENAI_ACCESS_TOKEN"].value == "****"
    assert rows["REDIS_ENDPOINT"].value == "rediss://user:****@redis.example:6380/1?****"
    assert settings.providers["openai"].access_token is not None
    assert settings.providers["openai"].access_token.reveal() == "CANARY1"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("redis.internal:6379", "redis://redis.internal:6379"),
        (":6379", "redis://localhost:6379"),
        ("[::1]:6379", "redis://[::1]:6379"),
        ("redis://host/2", "redis://host/2"),
        ("unix:///run/valkey.sock?db=1", "unix:///run/valkey.sock?db=1"),
        ("redis+cluster://a:1,b,[::1]:3", "redis+cluster://a:1,b,[::1]:3"),
        ("rediss+sentinel://u:p@a:26379,b:26379/my.service/1", "rediss+sentinel://u:p@a:26379,b:26379/my.service/1"),
    ],
)
def test_redis_is_named_by_address_or_url(text: str, url: str) -> None:
    """``REDIS_ENDPOINT`` takes host:port, as in the reference, or a URL; its value is always a URL."""
    endpoint = load_settings({"REDIS_ENDPOINT": text}).redis.endpoint
    assert endpoint is not None
    assert endpoint.reveal() == url


def test_networks_are_read_and_the_wrong_one_is_named() -> None:
    """Addresses and networks of both families are read; an error quotes only the part that is wrong."""
    text = "10.0.0.0/8, 192.0.2.1,,fd00::/8"
    networks = load_settings({"CODY_GATEWAY_TRUSTED_PROXIES": text}).server.trusted_proxies
    assert networks == (
        ipaddress.ip_network("10.0.0.0/8"),
        ipaddress.ip_network("192.0.2.1/32"),
        ipaddress.ip_network("fd00::/8"),
    )
    (problem,) = problems_of({"CODY_GATEWAY_TRUSTED_PROXIES": "10.0.0.0/8,proxy.internal"})
    assert problem.endswith("wrong is 'proxy.internal': correct or unset it (default: none)")


def test_password_of_a_cluster_or_sentinels_is_not_shown() -> None:
    """The login and the query in the address of several servers are masked as in the address of one."""
    address = "rediss+sentinel://user:CANARY@a:1,b:2/service/1?sentinel_password=CANARY"
    settings = load_settings({"REDIS_ENDPOINT": address})
    rows = {row.name: row for row in describe_settings(settings)}
    assert rows["REDIS_ENDPOINT"].value == "rediss+sentinel://user:****@a:1,b:2/service/1?****"
    assert "CANARY" not in repr(settings)


def test_unknown_names_are_warned_about_with_the_nearest_known() -> None:
    """A misspelt ``CODY_GATEWAY_*`` name gives a warning with the most similar setting, not an error."""
    settings = load_settings(
        {"CODY_GATEWAY_ALOW_ANONYMOUS": "true", "CODY_GATEWAY_XYZZY": "1", "OTHER": "1", "CODY_GATEWAY_HOST": "::"}
    )
    assert settings.warnings == (
        "CODY_GATEWAY_ALOW_ANONYMOUS: is not a setting of this version, and is ignored: "
        "did you mean CODY_GATEWAY_ALLOW_ANONYMOUS?",
        "CODY_GATEWAY_XYZZY: is not a setting of this version, and is ignored: "
        "correct or remove it; `cgw config` lists all settings",
    )


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("CODY_GATEWAY_PORT", "set PORT instead"),
        ("ANTHROPIC_API_KEY", "set CODY_GATEWAY_ANTHROPIC_ACCESS_TOKEN instead"),
        ("OPENAI_API_KEY", "set CODY_GATEWAY_OPENAI_ACCESS_TOKEN instead"),
        ("REDIS_URL", "set REDIS_ENDPOINT instead"),
        ("CODY_GATEWAY_GOOGLE_API_KEY", "set CODY_GATEWAY_GOOGLE_ACCESS_TOKEN instead"),
    ],
)
def test_known_names_of_other_tools_and_of_the_reference_are_recognised(name: str, advice: str) -> None:
    """Each gives one warning ``variable: what is wrong: what to do``; its value is not repeated, and not read."""
    settings = load_settings({name: "CANARY"})
    (warning,) = settings.warnings
    assert warning.startswith(f"{name}: ")
    assert warning.endswith(advice)
    assert "CANARY" not in warning
    assert evolve(settings, warnings=()) == Settings()


def test_a_secret_of_a_service_that_cgw_does_not_know_gets_no_hint() -> None:
    """No unknown service's secret is mistaken for that of a known one."""
    environ = {
        f"CODY_GATEWAY_{service}_{what}": "CANARY"
        for service in ("AZURE_OPENAI", "OPENAPI", "OPENAL", "ANTHROPICS", "COHERE", "MISTRAL", "FIREWORK", "GROQ")
        for what in ("ACCESS_TOKEN", "API_KEY", "TOKEN", "KEY")
    } | {"CODY_GATEWAY_ACTOR_RATE_LIMIT_NOTIFY_TEAMS_WEBHOOK_URL": "CANARY"}
    warnings = load_settings(environ).warnings
    assert len(warnings) == len(environ)
    assert not [warning for warning in warnings if "did you mean" in warning or "instead" in warning]


def test_warnings_are_not_lost_when_there_are_problems() -> None:
    """The error for wrong variables carries the warnings about others."""
    with pytest.raises(ConfigError) as caught:
        load_settings({"PORT": "x", "CODY_GATEWAY_PORT": "80"})
    assert caught.value.warnings == ("CODY_GATEWAY_PORT: is not read by cgw: set PORT instead",)


def test_no_setting_is_listed_as_missing() -> None:
    """The names that only the reference has, and other tools' names, are none of cgw's settings, each listed once."""
    variables = [variable for group in list_group_classes(Settings) for _, variable in list_variables(group)]
    names = [variable.name for variable in variables] + list(REFERENCE_SETTINGS)
    names += [other for variable in variables for other in variable.other_names]
    assert len(names) == len(set(names))


def test_a_ca_file_must_hold_certificates(tmp_path: Path) -> None:
    """A file without a certificate is refused at the start, not at the first request."""
    ca_file = tmp_path / "ca.pem"
    ca_file.write_text("no certificate")
    (problem,) = problems_of({"CODY_GATEWAY_UPSTREAM_CA_FILE": str(ca_file)})
    assert problem.endswith("has none that can be read: correct or unset it")
    trustme.CA().cert_pem.write_to_path(str(ca_file))
    assert load_settings({"CODY_GATEWAY_UPSTREAM_CA_FILE": str(ca_file)}).upstream.ca_file == ca_file


def test_every_setting_is_described() -> None:
    """Each row has a help text that is a sentence, and a name of its own."""
    rows = describe_settings(Settings())
    assert len({row.name for row in rows}) == len(rows) > 30
    assert all(row.help.endswith(".") and row.default and row.is_default for row in rows)


def test_defaults_can_be_written_as_they_are_shown() -> None:
    """What the table shows as a default, put into the environment, gives that default again."""
    described = {
        "REDIS_ENDPOINT",
        "CODY_GATEWAY_DATA_DIR",
        "CODY_GATEWAY_TRUSTED_PROXIES",
        "CODY_GATEWAY_MAX_CONNECTIONS",
        "CODY_GATEWAY_MAX_CONNECTIONS_PER_ADDRESS",
        "CODY_GATEWAY_MAX_EXCHANGES",
        "CODY_GATEWAY_ADMIN_PORT",
        "CODY_GATEWAY_BIGQUERY_PROJECT_ID",
        "CODY_GATEWAY_EVENTS_RETENTION",
        "CODY_GATEWAY_EVENTS_SINKS",
        *MODEL_LISTS,
    }
    rows = [row for row in describe_settings(Settings()) if row.default != "(not set)" and row.name not in described]
    assert load_settings({row.name: row.default for row in rows}) == Settings()


@given(st.dictionaries(st.sampled_from([row.name for row in describe_settings(Settings())]), st.text(max_size=20)))
def test_any_text_gives_settings_or_problems(environ: dict[str, str]) -> None:
    """Whatever the variables' texts, loading gives settings, or problems that name some of those variables."""
    try:
        load_settings(environ)
    except ConfigError as error:
        assert {problem.partition(":")[0] for problem in error.problems} <= environ.keys()
