"""What an operator sees and sets. Imports nothing of ours."""
