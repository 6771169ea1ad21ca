"""What can be asked for: our options, Ultralytics' arguments, and one checked object of both."""
