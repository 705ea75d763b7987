"""The findings of checks of a configuration: a variable, what is wrong with what it names, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum

from attrs import frozen

from cgw.errors import ConfigError, explain_os_error


class Severity(Enum):
    """The consequence of a finding for ``cgw serve``; for ``cgw check`` only a warning is no failure."""

    ERROR = "it does not start"
    OUTAGE = "it starts, and goes on when what is away now is back"
    WARNING = "it starts, and probably does not do what its operator wants"


@frozen
class Finding:
    """One thing to correct. ``str()`` is its line: ``variable: what is wrong: what to do``."""

    variable: str
    wrong: str
    remedy: str
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        return f"{self.variable}: {self.wrong}: {self.remedy}"


def parse_finding(line: str, severity: Severity = Severity.ERROR) -> Finding:
    """Return the finding whose line is ``line``; what to do is what follows its last colon."""
    variable, _, rest = line.partition(": ")
    wrong, _, remedy = rest.rpartition(": ")
    return Finding(variable, wrong, remedy, severity)


def explain_problems(variable: str, error: ConfigError, remedy: str) -> list[Finding]:
    """Return a finding for each problem of ``error``, in what ``variable`` names."""
    return [Finding(variable, problem.removeprefix(f"{variable}: "), remedy) for problem in error.problems]


def explain_listening(variable: str, host_variable: str, host: str, port: int, error: OSError) -> Finding:
    """Return the finding that ``host`` and ``port`` cannot be listened on, under the variable that helps."""
    reason = explain_os_error(error)
    wrong = f"cannot listen on {f'[{host}]' if ':' in host else host}:{port}: {reason}"
    if isinstance(error, PermissionError):
        return Finding(variable, wrong, "take a port from 1024 on, or give cgw CAP_NET_BIND_SERVICE")
    if "in use" in reason:
        return Finding(variable, wrong, f"end the process that uses it, or set another {variable}")
    return Finding(host_variable, wrong, "set it to an address of this machine, or 0.0.0.0 or :: for all")


def list_problems(findings: Iterable[Finding]) -> list[str]:
    """Return the lines of all findings that are more than warnings."""
    return [str(finding) for finding in findings if finding.severity is not Severity.WARNING]


def list_warnings(findings: Iterable[Finding]) -> list[str]:
    """Return the lines of the findings that are warnings."""
    return [str(finding) for finding in findings if finding.severity is Severity.WARNING]


def merge(problems: Iterable[str], findings: Iterable[Finding]) -> list[str]:
    """Return the lines of ``findings``, behind those ``problems`` of a failed start that none of them explains."""
    found = [finding for finding in findings if finding.severity is not Severity.WARNING]

    def is_explained(problem: str) -> bool:
        return any(
            problem in str(finding) or re.search(rf"\b{re.escape(finding.variable)}\b", problem) for finding in found
        )

    return [problem for problem in problems if not is_explained(problem)] + list_problems(found)
