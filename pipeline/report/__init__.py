"""Pictures, the report page and viewer states."""
