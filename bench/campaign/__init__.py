"""The fault campaign: real processes, a seeded schedule of faults, and a verifier of its own."""
