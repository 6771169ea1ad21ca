"""Counts what was tried. `pytest tests/hostile` prints it at the end, also when spread over processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

TRIED = "hostile inputs tried"


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Iterator[Counter[str]]:
    """How many inputs a test has tried, by what became of them; reported as the test is torn down."""
    counts: Counter[str] = Counter()
    yield counts
    request.node.user_properties.append((TRIED, dict(counts)))  # processes exchange plain types only


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the sum over all tests."""
    reports = [report for found in terminalreporter.stats.values() for report in found if hasattr(report, "when")]
    counted = [report for report in reports if report.when == "teardown"]
    total: Counter[str] = Counter()
    for report in counted:
        total += sum((Counter(counts) for name, counts in report.user_properties if name == TRIED), Counter())
    if total:
        kinds = ", ".join(f"{count} {kind}" for kind, count in total.most_common())
        hostile = {report.nodeid for report in counted if any(name == TRIED for name, _ in report.user_properties)}
        failed = sum(report.failed and report.nodeid in hostile for report in reports if report.when == "call")
        terminalreporter.section("hostile inputs")
        terminalreporter.line(f"{total.total()} tried ({kinds}) in {len(hostile)} tests, {failed} of which failed")
