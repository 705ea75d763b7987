"""The page of faults is true: every fault is played again, on every route."""

from __future__ import annotations

from cgw.providers.registry import PROVIDERS
from docs.generate_faults import PAGE, build_page
from tests.support.fault_table import observe_all


async def test_the_page_of_faults_is_up_to_date() -> None:
    """``docs/upstream-faults.md`` is what clients see; ``python -m docs.generate_faults`` rewrites it."""
    table = await observe_all()
    assert PAGE.read_text("utf-8") == build_page(table), "run: python -m docs.generate_faults"
    assert all(any(provider.name in path for path in table) for provider in PROVIDERS)
    assert all(len(rows) >= 16 for rows in table.values())
