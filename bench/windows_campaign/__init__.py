"""What the windows' campaign writes, and what it expects to find in the end."""
