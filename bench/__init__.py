"""What Headrace costs and how fast it is, each measured beside something plain, in one interleaved run."""
