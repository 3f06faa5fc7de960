"""The stages of reconstruction, the arrays they compute, and the files they leave."""
