"""What is timed, and weighed: every file prints ratios that `docs/performance.md` quotes."""
