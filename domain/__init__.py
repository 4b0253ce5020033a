"""How we think: plain Python on the standard library; time, ids and randomness come in as arguments."""
