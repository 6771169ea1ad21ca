"""The bridge to Ultralytics: model, trainer, validator, criterion, options."""
