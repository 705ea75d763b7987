"""Settings of the log."""

from __future__ import annotations

from attrs import frozen

from cgw.config.declare import setting
from cgw.config.kinds import VISIBLE_TEXT, choice


@frozen
class LogSettings:
    """The log, which goes to standard error."""

    level: str = setting(
        "CODY_GATEWAY_LOG_LEVEL",
        choice("DEBUG", "INFO", "WARNING", "ERROR"),
        "INFO",
        "The least severe lines to log.",
        other_names=("LOG_LEVEL", "SRC_LOG_LEVEL", "LITELLM_LOG"),
    )
    format: str = setting(
        "CODY_GATEWAY_LOG_FORMAT",
        choice("auto", "text", "json"),
        "auto",
        "text for people, json for machines; auto is text on a terminal and json elsewhere.",
        other_names=("LOG_FORMAT", "SRC_LOG_FORMAT"),
    )
    no_color: str | None = setting(
        "NO_COLOR", VISIBLE_TEXT, None, "Set to anything, no colours are used on a terminal (no-color.org)."
    )
