"""Pictures: functions that take results and return matplotlib figures."""
