"""What runs, in which order: the command line and the Prefect flow."""
