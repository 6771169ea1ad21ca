"""Options: ours, Ultralytics' arguments, and one checked object of both."""
