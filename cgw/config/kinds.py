"""The kinds of value that a setting can have, each with its notation in environment variables."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from attrs import field, frozen

from cgw.durations import format_duration, parse_duration, quote_value
from cgw.errors import explain_os_error

T = TypeVar("T")

MASK = "****"

KIB = 1024
MIB = 1024 * KIB
MINUTE = 60.0
HOUR = 60 * MINUTE


@frozen(repr=False)
class Secret:
    """A value that must not be shown. ``repr`` and ``str`` give ``shown``; only ``reveal()`` gives the value."""

    _value: str
    # Two secrets are equal if their values are, however they are shown.
    shown: str = field(default=MASK, eq=False)

    def reveal(self) -> str:
        """Return the value itself."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({self.shown})"

    def __str__(self) -> str:
        return self.shown


@frozen
class Kind(Generic[T]):
    """One kind of value.

    ``parse`` takes stripped, non-empty text. It raises :exc:`ValueError` with a text that follows the variable's name
    (``must be …``), and that does not repeat a value that may be a secret. ``show`` is the inverse,
    ``parse(show(x)) == x``, except for secrets. ``is_secret`` marks values that belong to one service only.
    """

    parse: Callable[[str], T]
    show: Callable[[T], str] = str
    is_secret: bool = False


# --- durations -----------------------------------------------------------------------------------------------------


def duration(*, least: float = 0.001, most: float = 24 * 3600.0) -> Kind[float]:
    """Return the kind of a duration in seconds, from ``least`` to ``most``."""

    def parse(text: str) -> float:
        seconds = parse_duration(text)
        if not least <= seconds <= most:
            raise ValueError(
                f"must be from {format_duration(least)} to {format_duration(most)}, not {quote_value(text)}"
            )
        return seconds

    return Kind(parse, format_duration)


def duration_ms(*, least: float, most: float) -> Kind[int]:
    """Return the kind of a duration in whole milliseconds; ``least`` and ``most`` are in seconds."""
    seconds = duration(least=least, most=most)
    return Kind(lambda text: round(seconds.parse(text) * 1000), lambda value: format_duration(value / 1000))


# --- numbers ---------------------------------------------------------------------------------------------------------

_BYTES_PER_UNIT = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
# At most 15 digits, so that int() has little to do for a text of any length.
_SIZE = re.compile(r"([0-9]{1,15}) *([A-Za-z]*)")


def parse_size(text: str) -> int:
    """Return the bytes of a size with or without a unit: ``33554432``, ``32MiB``, ``64 KiB``, ``1MB`` (10⁶).

    Raises :exc:`ValueError` for anything else.
    """
    match = _SIZE.fullmatch(text)
    if match is None or match[2].lower() not in _BYTES_PER_UNIT:
        raise ValueError(f"must be a size such as 32MiB, 64KiB or 1048576, not {quote_value(text)}")
    return int(match[1]) * _BYTES_PER_UNIT[match[2].lower()]


def format_size(size_bytes: int) -> str:
    """Return a size as a whole number of the largest possible binary unit: ``32MiB``, ``65537``."""
    for unit in ("GiB", "MiB", "KiB"):
        count, rest = divmod(size_bytes, _BYTES_PER_UNIT[unit.lower()])
        if count and not rest:
            return f"{count}{unit}"
    return str(size_bytes)


def size(*, least: int, most: int) -> Kind[int]:
    """Return the kind of a number of bytes, from ``least`` to ``most``."""

    def parse(text: str) -> int:
        size_bytes = parse_size(text)
        if not least <= size_bytes <= most:
            raise ValueError(f"must be from {format_size(least)} to {format_size(most)}, not {quote_value(text)}")
        return size_bytes

    return Kind(parse, format_size)


def integer(*, least: int, most: int | float = math.inf) -> Kind[int]:
    """Return the kind of a whole number in decimal, from ``least`` to ``most``."""
    allowed = f"from {least} to {most}" if most != math.inf else f"at least {least}"

    def parse(text: str) -> int:
        # int() alone would also take "1_000", digits of other scripts, and texts of any length.
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text) or not least <= int(text) <= most:
            raise ValueError(f"must be a whole number, {allowed}, not {quote_value(text)}")
        return int(text)

    return Kind(parse)


# --- choices, text ---------------------------------------------------------------------------------------------------

# In lower case. With "t" and "f", as the reference reads them by Go's strconv.ParseBool.
_TRUE = ("true", "t", "1", "yes", "on")
_TRUTH = {**dict.fromkeys(_TRUE, True), **dict.fromkeys(("false", "f", "0", "no", "off"), False)}


def _parse_boolean(text: str) -> bool:
    try:
        return _TRUTH[text.lower()]
    except KeyError:
        raise ValueError(f"must be true or false, not {quote_value(text)}") from None


BOOLEAN: Kind[bool] = Kind(_parse_boolean, lambda value: str(value).lower())


def choice(*names: str) -> Kind[str]:
    """Return the kind of a choice among ``names``, in any case; the value is written as here."""
    # The name as declared is the value, so that code can compare it.
    by_folded = {name.casefold(): name for name in names}

    def parse(text: str) -> str:
        try:
            return by_folded[text.casefold()]
        except KeyError:
            raise ValueError(f"must be one of {', '.join(names)}, not {quote_value(text)}") from None

    return Kind(parse)


def _parse_names(text: str) -> tuple[str, ...]:
    # dict.fromkeys keeps the order and drops repetitions.
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ValueError("must name at least one, separated by commas")
    return names


NAMES: Kind[tuple[str, ...]] = Kind(_parse_names, ",".join)
"""A comma-separated list, without blanks around names and without repetitions (the reference does not trim)."""


MAX_PHRASES = 1000
MAX_PHRASE_CHARACTERS = 256
"""With :data:`MAX_PHRASES` it bounds the time that searching a part of a text takes."""


def _parse_phrases(text: str) -> tuple[str, ...]:
    phrases = text.split(",")
    if not all(phrase.strip() for phrase in phrases):
        # The reference takes it for a phrase, which every text contains.
        raise ValueError("must be phrases separated by commas; one of them is empty")
    if len(phrases) > MAX_PHRASES or max(map(len, phrases)) > MAX_PHRASE_CHARACTERS:
        raise ValueError(f"must be at most {MAX_PHRASES} phrases of at most {MAX_PHRASE_CHARACTERS} characters")
    return tuple(dict.fromkeys(phrases))


PHRASES: Kind[tuple[str, ...]] = Kind(_parse_phrases, ",".join)
"""A comma-separated list of phrases, in which blanks count, as in the reference; none of them is empty."""


def _parse_thresholds(text: str) -> tuple[int, ...]:
    if text.casefold() == "off":
        return ()
    parts = [part.strip().removesuffix("%") for part in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,3}", part) and 1 <= int(part) <= 100 for part in parts):
        raise ValueError(f"must be percentages from 1 to 100, separated by commas, or off, not {quote_value(text)}")
    # Ascending and without repetitions, as LimiterOptions expects them.
    return tuple(sorted({int(part) for part in parts}))


THRESHOLDS: Kind[tuple[int, ...]] = Kind(_parse_thresholds, lambda values: ",".join(map(str, values)) or "off")
"""Percentages in ascending order; ``off`` for none."""


def _parse_host(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.:_%-]+", text):
        raise ValueError(f"must be a host name or an IP address, without brackets or port, not {quote_value(text)}")
    return text


HOST: Kind[str] = Kind(_parse_host)


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _parse_networks(text: str) -> tuple[Network, ...]:
    networks = []
    for part in (part.strip() for part in text.split(",")):
        if not part:
            continue
        try:
            networks.append(ipaddress.ip_network(part))
        except ValueError:
            # Without `strict=False` on purpose: 10.1.2.3/8 is more often a slip than meant as 10.0.0.0/8.
            raise ValueError(
                "must be IP addresses or networks such as 10.0.0.0/8, separated by commas, without host bits; "
                f"wrong is {quote_value(part)}"
            ) from None
    if not networks:
        raise ValueError("must name at least one address or network, separated by commas")
    return tuple(dict.fromkeys(networks))


NETWORKS: Kind[tuple[Network, ...]] = Kind(_parse_networks, lambda networks: ",".join(map(str, networks)) or "(none)")
"""Comma-separated networks; a single address is a network of one."""


# --- secrets, URLs, files: what is wrong is said without repeating the value -----------------------------------------


def _parse_visible(text: str) -> str:
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise ValueError("must consist of visible ASCII characters, without spaces or line breaks")
    return text


VISIBLE_TEXT: Kind[str] = Kind(_parse_visible)
"""Text that can be the value of a header field."""

SECRET: Kind[Secret] = Kind(lambda text: Secret(_parse_visible(text)), str, is_secret=True)


def check_url(text: str, schemes: Sequence[str]) -> str:
    """Return ``text`` if it is a URL of one of ``schemes`` with a host and a valid port.

    Raises :exc:`ValueError`, without repeating ``text``, otherwise. A ``unix`` URL needs no host.
    """
    try:
        parts = urlsplit(text)  # raises for brackets that do not match; .port raises for a port above 65535
        is_valid = parts.scheme in schemes and parts.port != 0 and bool(parts.hostname or parts.scheme == "unix")
        # What DNS cannot carry, as an empty label or one of 64 letters, would only fail when it is connected to.
        (parts.hostname or "").encode("idna")
    except ValueError:
        is_valid = False
    if not is_valid or not text.isprintable() or " " in text:
        raise ValueError(
            f"must be a URL that begins with {' or '.join(f'{scheme}://' for scheme in schemes)} and a host"
        )
    return text


def _parse_api_url(text: str) -> str:
    parts = urlsplit(check_url(text, ("https", "http")))
    # A login in this URL would not be masked: keys have settings of their own. Paths of the API are appended, so
    # nothing may follow the path.
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("must have no user, query or fragment")
    return text.rstrip("/")


API_URL: Kind[str] = Kind(_parse_api_url)
"""An http(s) URL with a host, without a trailing slash."""


def _parse_webhook_url(text: str) -> Secret:
    parts = urlsplit(check_url(text, ("https", "http")))
    # The host alone: `netloc` could contain a login.
    return Secret(text, f"{parts.scheme}://{parts.hostname}/{MASK}")


WEBHOOK_URL: Kind[Secret] = Kind(_parse_webhook_url, str, is_secret=True)
"""An http(s) URL whose path is secret; only its host is shown."""


def _parse_path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError("must be a path; its ~ names no known home directory") from None


PATH: Kind[Path] = Kind(_parse_path)


def _parse_ca_file(text: str) -> Path:
    path = _parse_path(text)
    import ssl  # here, because it takes 10 ms and most installations do not set this

    try:
        ssl.create_default_context(cafile=str(path))
    except ssl.SSLError:
        raise ValueError(f"must name a file of certificates in PEM form; {text} has none that can be read") from None
    except OSError as error:
        reason = explain_os_error(error)
        raise ValueError(f"must name a file of certificates in PEM form; {text}: {reason}") from None
    return path


CA_FILE: Kind[Path] = Kind(_parse_ca_file)
