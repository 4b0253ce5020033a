"""How good the assistant is, measured: evaluation on data with known answers."""
