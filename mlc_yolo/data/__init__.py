"""Data sets: the generated demo set and how a `data=` argument becomes a YAML that Ultralytics reads."""
