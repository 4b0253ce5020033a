"""How Headrace is run: `make up` on one machine, and what a container engine or a cluster needs."""
