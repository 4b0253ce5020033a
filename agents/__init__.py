"""What happens: one agent a file, its docstring an arrow."""
