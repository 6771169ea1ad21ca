"""Compare variants from Python: does mutual labelling help on these images?

    python examples/compare_variants.py mine.yaml yolo11n.pt

trains each variant with each seed. Run it again after an interruption: finished runs are not trained twice.
"""

from __future__ import annotations

import sys
from typing import Any

from mlc_yolo.compare import compare
from mlc_yolo.report import write_report


def main(data: str, weights: str, **arguments: Any) -> str:
    """Write a page beside the runs; return its path, and what can be said of AP, a line per variant."""
    asked = {"assigner": ["tal", "mlc"], "seed": [0, 1, 2], "nbs": 16, "epochs": 50, **arguments}
    comparison = compare(model=weights, data=data, **asked)
    page = write_report(comparison, comparison.folder / "report.html")
    rows = [row for row in comparison.differences if row["metric"] == "AP"]
    said = [f"{row['variant']}: AP {row['difference']:+.1f}, {row['verdict']}" for row in rows]
    return "\n".join([f"page: {page}", *said])


if __name__ == "__main__":
    print(main(*sys.argv[1:3]))
