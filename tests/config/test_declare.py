"""Declaring, reading and describing settings, with a small root class."""

# ruff: noqa: RUF009 - the defaults of fields are made by cgw.config.declare

from __future__ import annotations

from collections.abc import Mapping

import pytest
from attrs import frozen

from cgw.config.declare import group, list_group_classes, list_groups, named_groups, setting
from cgw.config.describe import SettingRow, describe_settings, list_secrets
from cgw.config.environment import examine_environment, find_unknown_variables
from cgw.config.kinds import BOOLEAN, SECRET, Secret, integer


@frozen
class Server:
    """A group with a fixed and a computed default."""

    port: int = setting(
        "PORT", integer(least=0, most=65535), 9992, "The port.", other_names=("CODY_GATEWAY_PORT", "HTTP_PORT")
    )
    workers: int = setting(
        "CODY_GATEWAY_WORKERS", integer(least=1), None, "Processes.", factory=lambda: 4, default_text="one for each CPU"
    )
    mode: bool = setting("CODY_GATEWAY_MODE", BOOLEAN, False, "The mode.", alias="CODY_GATEWAY_OLD_MODE")
    seats: int | None = setting("CODY_GATEWAY_SEATS", integer(least=1), None, "The seats.", fallback="ALL_SEATS")


@frozen
class Shop:
    """A group of a named one."""

    key: Secret | None = setting("CODY_GATEWAY_SHOP_KEY", SECRET, None, "The key.")


@frozen
class Bank:
    """Another group of a named one."""

    key: Secret | None = setting("CODY_GATEWAY_BANK_KEY", SECRET, None, "The key.")


@frozen
class Stall:
    """A template: a group for each name in the environment."""

    key: Secret | None = setting("CODY_GATEWAY_STALL_<NAME>_KEY", SECRET, None, "The key.")
    size: int = setting("CODY_GATEWAY_STALL_<NAME>_SIZE", integer(least=1), 5, "The size.")


@frozen
class Market:
    """A root with a template."""

    stalls: Mapping[str, Shop | Stall] = named_groups({"shop": Shop}, templates=[Stall], reserved_names=["shop", "v1"])


@frozen
class Root:
    """Groups, named groups, and a field that is not a group."""

    server: Server = group(Server)
    shops: Mapping[str, Shop | Bank] = named_groups({"shop": Shop, "bank": Bank})
    remarks: tuple[str, ...] = ()


def test_an_empty_environment_gives_the_defaults() -> None:
    """Without variables a root class has the defaults of all its groups, as if it had been called."""
    settings = examine_environment(Root, {}).settings
    assert settings == Root()
    assert (settings.server.port, settings.server.workers) == (9992, 4)
    assert settings.shops == {"shop": Shop(), "bank": Bank()}


def test_variables_reach_their_groups() -> None:
    """Each variable sets its field, in plain and named groups; blanks around a value do not count."""
    environ = {"PORT": " 80\n", "CODY_GATEWAY_BANK_KEY": "k", "CODY_GATEWAY_SHOP_KEY": " "}
    reading = examine_environment(Root, environ)
    assert not reading.problems
    assert reading.settings == Root(server=Server(port=80), shops={"shop": Shop(), "bank": Bank(key=Secret("k"))})


def test_all_problems_are_found_together() -> None:
    """Each wrong variable has a line ``variable: what is wrong: what to do``; the other variables are read."""
    environ = {
        "CODY_GATEWAY_BANK_KEY": "a b",
        "PORT": "x",
        "CODY_GATEWAY_WORKERS": "0",
        "CODY_GATEWAY_SHOP_KEY": "k",
    }
    reading = examine_environment(Root, environ)
    assert reading.problems == {
        "PORT": "PORT: must be a whole number, from 0 to 65535, not 'x': correct or unset it (default: 9992)",
        "CODY_GATEWAY_WORKERS": "CODY_GATEWAY_WORKERS: must be a whole number, at least 1, not '0': "
        "correct or unset it (default: one for each CPU)",
        "CODY_GATEWAY_BANK_KEY": "CODY_GATEWAY_BANK_KEY: must consist of visible ASCII characters, without spaces or "
        "line breaks: correct or unset it",
    }
    assert reading.settings == Root(shops={"shop": Shop(key=Secret("k")), "bank": Bank()})


def test_an_alias_is_read_too() -> None:
    """An older name sets the same field, is not warned about, and problems have the name that was used."""
    environ = {"CODY_GATEWAY_OLD_MODE": "T"}
    assert examine_environment(Root, environ).settings.server.mode is True
    assert find_unknown_variables(Root, environ) == []
    assert examine_environment(Root, environ | {"CODY_GATEWAY_MODE": "1"}).problems == {}
    assert list(examine_environment(Root, {"CODY_GATEWAY_OLD_MODE": "perhaps"}).problems) == ["CODY_GATEWAY_OLD_MODE"]


def test_a_name_and_its_alias_must_not_differ() -> None:
    """With two values, neither wins silently."""
    reading = examine_environment(Root, {"CODY_GATEWAY_MODE": "false", "CODY_GATEWAY_OLD_MODE": "true"})
    assert reading.problems == {
        "CODY_GATEWAY_MODE": "CODY_GATEWAY_MODE: differs from CODY_GATEWAY_OLD_MODE, its older name: unset that one"
    }


def test_a_fallback_is_read_where_the_name_is_not_set() -> None:
    """A variable of a wider meaning is only read instead of the setting's own, and may differ from it."""
    assert examine_environment(Root, {"ALL_SEATS": "3"}).settings.server.seats == 3
    reading = examine_environment(Root, {"ALL_SEATS": "x", "CODY_GATEWAY_SEATS": "2"})
    assert (reading.settings.server.seats, reading.problems) == (2, {})
    assert list(examine_environment(Root, {"ALL_SEATS": "x", "CODY_GATEWAY_SEATS": " "}).problems) == ["ALL_SEATS"]


def test_only_names_with_the_prefix_are_warned_about() -> None:
    """An unknown name with cgw's prefix gives a warning, with the most similar setting if there is one."""
    environ = {"PROT": "1", "CODY_GATEWAY_WORKER": "1", "CODY_GATEWAY_XYZZY": "1", "CODY_GATEWAY_WORKERS": "1"}
    assert find_unknown_variables(Root, environ) == [
        "CODY_GATEWAY_WORKER: is not a setting of this version, and is ignored: did you mean CODY_GATEWAY_WORKERS?",
        "CODY_GATEWAY_XYZZY: is not a setting of this version, and is ignored: "
        "correct or remove it; `cgw config` lists all settings",
    ]


def test_names_of_other_tools_lead_to_the_setting() -> None:
    """Another tool's name is pointed out while the setting is not set; one with cgw's prefix always."""
    environ = {"HTTP_PORT": "80", "CODY_GATEWAY_PORT": "80"}
    prefixed = "CODY_GATEWAY_PORT: is not read by cgw: set PORT instead"
    assert find_unknown_variables(Root, environ) == [prefixed, "HTTP_PORT: is not read by cgw: set PORT instead"]
    assert find_unknown_variables(Root, {**environ, "PORT": "80"}) == [prefixed]
    assert find_unknown_variables(Root, {"HTTP_PORT": " "}) == []
    not_here = {"CODY_GATEWAY_TELEX": "send letters"}
    (warning,) = find_unknown_variables(Root, {"CODY_GATEWAY_TELEX": "1"}, not_here)
    assert warning == "CODY_GATEWAY_TELEX: a setting of Cody Gateway that cgw does not have, ignored: send letters"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("CODY_GATEWAY_SHOP_KYE", "CODY_GATEWAY_SHOP_KEY"),
        ("CODY_GATEWAY_SHIP_KEY", None),
        ("CODY_GATEWAY_SHOPS_KEY", None),
        ("CODY_GATEWAY_OTHER_SHOP_KEY", None),
        ("CODY_GATEWAY_TANK_KEY", None),
    ],
)
def test_no_hint_leads_to_the_secret_of_another_service(name: str, hint: str | None) -> None:
    """A misspelt secret is recognised only if the name of its service is right."""
    (warning,) = find_unknown_variables(Root, {name: "k"})
    assert (f"did you mean {hint}?" in warning) is (hint is not None)
    assert ("did you mean" in warning) is (hint is not None)


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
        SettingRow("CODY_GATEWAY_SEATS", "(not set)", "(not set)", "The seats.", is_default=True),
        SettingRow("CODY_GATEWAY_SHOP_KEY", "****", "(not set)", "The key.", is_default=False),
        SettingRow("CODY_GATEWAY_BANK_KEY", "(not set)", "(not set)", "The key.", is_default=True),
    ]
    assert list(list_secrets(settings)) == ["CANARY"]


def test_a_template_makes_a_group_for_each_name() -> None:
    """Names are what the environment has; in the mapping they are in lower case, with hyphens."""
    environ = {
        "CODY_GATEWAY_STALL_NORTH_KEY": "CANARY",
        "CODY_GATEWAY_STALL_NORTH_SIZE": "7",
        "CODY_GATEWAY_STALL_FAR_SOUTH_2_SIZE": "8",
        "CODY_GATEWAY_STALL_EMPTY_KEY": " ",
        "CODY_GATEWAY_STALL__KEY": "k",
        "CODY_GATEWAY_STALL_low_KEY": "k",
    }
    stalls = examine_environment(Market, environ).settings.stalls
    assert list(stalls) == ["shop", "far-south-2", "north"]
    assert isinstance(stalls["north"], Stall)
    assert isinstance(stalls["far-south-2"], Stall)
    assert (stalls["north"].key, stalls["north"].size) == (Secret("CANARY"), 7)
    assert (stalls["far-south-2"].key, stalls["far-south-2"].size) == (None, 8)
    assert examine_environment(Market, environ).settings == examine_environment(Market, environ).settings


def test_a_templates_groups_are_described_by_their_own_variables() -> None:
    """Each group has its rows and its secrets; where there is none, the template's variables are shown."""
    settings = examine_environment(Market, {"CODY_GATEWAY_STALL_NORTH_KEY": "CANARY"}).settings
    names = [row.name for row in describe_settings(settings)]
    stalls = ["CODY_GATEWAY_STALL_NORTH_KEY", "CODY_GATEWAY_STALL_NORTH_SIZE"]
    assert names == ["CODY_GATEWAY_SHOP_KEY", *stalls]
    assert list(list_secrets(settings)) == ["CANARY"]
    assert "CANARY" not in repr(settings)
    stalls = ["CODY_GATEWAY_STALL_<NAME>_KEY", "CODY_GATEWAY_STALL_<NAME>_SIZE"]
    assert [row.name for row in describe_settings(Market())] == ["CODY_GATEWAY_SHOP_KEY", *stalls]
    assert list_group_classes(Market) == [Shop, Stall]


def test_problems_of_a_templates_groups_name_their_variables() -> None:
    """Wrong values and names that are taken are problems; misspelt variables are warned about."""
    environ = {
        "CODY_GATEWAY_STALL_NORTH_SIZE": "x",
        "CODY_GATEWAY_STALL_SHOP_SIZE": "7",
        "CODY_GATEWAY_STALL_V1_KEY": "k",
        "CODY_GATEWAY_STALL_NORTH_SIZES": "7",
    }
    assert examine_environment(Market, environ).problems == {
        "CODY_GATEWAY_STALL_NORTH_SIZE": "CODY_GATEWAY_STALL_NORTH_SIZE: must be a whole number, at least 1, not 'x': "
        "correct or unset it (default: 5)",
        "CODY_GATEWAY_STALL_SHOP_SIZE": "CODY_GATEWAY_STALL_SHOP_SIZE: the name shop is taken: choose another one",
        "CODY_GATEWAY_STALL_V1_KEY": "CODY_GATEWAY_STALL_V1_KEY: the name v1 is taken: choose another one",
    }
    (warning,) = find_unknown_variables(Market, environ)
    assert warning.startswith("CODY_GATEWAY_STALL_NORTH_SIZES: is not a setting of this version")
