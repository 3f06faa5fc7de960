"""Pure functions of arrays: no files, no workers, no torch."""
