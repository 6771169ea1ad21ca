"""Files and options that are wrong in every way we could think of."""
