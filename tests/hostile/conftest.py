"""Counts what was tried. `pytest tests/hostile` prints it at the end, also when spread over processes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

TRIED = "hostile inputs tried"


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Counter[str]:
    """How many inputs a test has tried, by what became of them; reported with the test's result."""
    counts: Counter[str] = Counter()
    request.node.user_properties.append((TRIED, counts))
    return counts


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the sum over all tests."""
    reports = [report for found in terminalreporter.stats.values() for report in found if hasattr(report, "when")]
    calls = [report for report in reports if report.when == "call"]
    total: Counter[str] = Counter()
    for report in calls:
        total += sum((Counter(counts) for name, counts in report.user_properties if name == TRIED), Counter())
    if total:
        kinds = ", ".join(f"{count} {kind}" for kind, count in total.most_common())
        hostile = [report for report in calls if any(name == TRIED for name, _ in report.user_properties)]
        failed = sum(report.failed for report in hostile)
        terminalreporter.section("hostile inputs")
        terminalreporter.line(f"{total.total()} tried ({kinds}) in {len(hostile)} tests, {failed} of which failed")
