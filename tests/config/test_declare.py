"""Declaring, reading and describing settings, with a small root class."""

# ruff: noqa: RUF009 - the defaults of fields are made by cgw.config.declare

from __future__ import annotations

from collections.abc import Mapping

import pytest
from attrs import frozen

from cgw.config.declare import group, list_group_classes, list_groups, named_groups, setting
from cgw.config.describe import SettingRow, describe_settings, list_secrets
from cgw.config.environment import find_unknown_variables, read_settings
from cgw.config.kinds import BOOLEAN, SECRET, Secret, integer
from cgw.errors import ConfigError


@frozen
class Server:
    """A group with a fixed and a computed default."""

    port: int = setting("PORT", integer(least=0, most=65535), 9992, "The port.")
    workers: int = setting(
        "CODY_GATEWAY_WORKERS", integer(least=1), None, "Processes.", factory=lambda: 4, default_text="one for each CPU"
    )
    mode: bool = setting("CODY_GATEWAY_MODE", BOOLEAN, False, "The mode.", alias="CODY_GATEWAY_OLD_MODE")


@frozen
class Shop:
    """A group of a named one."""

    key: Secret | None = setting("CODY_GATEWAY_SHOP_KEY", SECRET, None, "The key.")


@frozen
class Bank:
    """Another group of a named one."""

    key: Secret | None = setting("CODY_GATEWAY_BANK_KEY", SECRET, None, "The key.")


@frozen
class Root:
    """Groups, named groups, and a field that is not a group."""

    server: Server = group(Server)
    shops: Mapping[str, Shop | Bank] = named_groups({"shop": Shop, "bank": Bank})
    remarks: tuple[str, ...] = ()


def test_an_empty_environment_gives_the_defaults() -> None:
    """Without variables a root class has the defaults of all its groups, as if it had been called."""
    settings = read_settings(Root, {})
    assert settings == Root()
    assert (settings.server.port, settings.server.workers) == (9992, 4)
    assert settings.shops == {"shop": Shop(), "bank": Bank()}


def test_variables_reach_their_groups() -> None:
    """Each variable sets its field, in plain and named groups; blanks around a value do not count."""
    settings = read_settings(Root, {"PORT": " 80\n", "CODY_GATEWAY_BANK_KEY": "k", "CODY_GATEWAY_SHOP_KEY": " "})
    assert settings == Root(server=Server(port=80), shops={"shop": Shop(), "bank": Bank(key=Secret("k"))})


def test_all_problems_are_raised_together() -> None:
    """One error has a sentence for each wrong variable, in the order of declaration."""
    with pytest.raises(ConfigError) as caught:
        read_settings(Root, {"CODY_GATEWAY_BANK_KEY": "a b", "PORT": "x", "CODY_GATEWAY_WORKERS": "0"})
    assert [problem.partition(": must ")[0] for problem in caught.value.problems] == [
        "PORT",
        "CODY_GATEWAY_WORKERS",
        "CODY_GATEWAY_BANK_KEY",
    ]


def test_an_alias_is_read_too() -> None:
    """An older name sets the same field, is not warned about, and problems have the name that was used."""
    environ = {"CODY_GATEWAY_OLD_MODE": "T"}
    assert read_settings(Root, environ).server.mode is True
    assert find_unknown_variables(Root, environ) == []
    assert read_settings(Root, environ | {"CODY_GATEWAY_MODE": "1"}).server.mode is True
    with pytest.raises(ConfigError, match=r"^CODY_GATEWAY_OLD_MODE: must be true or false"):
        read_settings(Root, {"CODY_GATEWAY_OLD_MODE": "perhaps"})


def test_a_name_and_its_alias_must_not_differ() -> None:
    """With two values, neither wins silently."""
    with pytest.raises(ConfigError, match=r"^CODY_GATEWAY_MODE: must not differ from CODY_GATEWAY_OLD_MODE"):
        read_settings(Root, {"CODY_GATEWAY_MODE": "false", "CODY_GATEWAY_OLD_MODE": "true"})


def test_only_names_with_the_prefix_are_warned_about() -> None:
    """An unknown name with cgw's prefix gives a warning, with the most similar setting if there is one."""
    environ = {"PROT": "1", "CODY_GATEWAY_WORKER": "1", "CODY_GATEWAY_XYZZY": "1", "CODY_GATEWAY_WORKERS": "1"}
    assert find_unknown_variables(Root, environ) == [
        "CODY_GATEWAY_WORKER is not a setting of this version, and is ignored; did you mean CODY_GATEWAY_WORKERS?",
        "CODY_GATEWAY_XYZZY is not a setting of this version, and is ignored",
    ]


def test_groups_are_listed_in_the_order_of_declaration() -> None:
    """Classes and instances come in the same order, without the other fields."""
    assert list_group_classes(Root) == [Server, Shop, Bank]
    assert list_groups(Root()) == [Server(), Shop(), Bank()]


def test_rows_show_values_and_defaults() -> None:
    """A row has the effective value, the default or its text, and whether they are the same; secrets are masked."""
    settings = Root(server=Server(port=80), shops={"shop": Shop(key=Secret("CANARY")), "bank": Bank()})
    assert describe_settings(settings) == [
        SettingRow("PORT", "80", "9992", "The port.", is_default=False),
        SettingRow("CODY_GATEWAY_WORKERS", "4", "one for each CPU", "Processes.", is_default=True),
        SettingRow("CODY_GATEWAY_MODE", "false", "false", "The mode.", is_default=True),
        SettingRow("CODY_GATEWAY_SHOP_KEY", "****", "(not set)", "The key.", is_default=False),
        SettingRow("CODY_GATEWAY_BANK_KEY", "(not set)", "(not set)", "The key.", is_default=True),
    ]
    assert list(list_secrets(settings)) == ["CANARY"]
