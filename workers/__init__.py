"""How a stage's blocks are run: runner, retries, executors."""
