"""The embedded model server: llama.cpp with a small model, speaking OpenAI's chat completions on loopback.

    python -m deploy.model_server WEIGHTS PORT

For trying Headrace out: SmolLM2-135M is small enough for any laptop, and therefore often wrong.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Final

NAME: Final = "smollm2-135m-instruct"
SLOTS: Final = 4
"""Answers written at the same time. More wait in the server's own queue."""
SLOT_TOKENS: Final = 4096
"""A prompt of HEADRACE_CONTEXT_TOKENS and an answer of HEADRACE_ANSWER_TOKENS, at their defaults."""


def threads(cores: int) -> int:
    """Return how many threads compute: all cores but one, which is left to the worker and the broker.

    On 2 cores that costs a fifth of the model's speed (120 for 145 tokens/s). With 8 answers being written, the
    worker answers other requests in 1 ms (p50) and 9 (p99).
    """
    return max(1, cores - 1)


def serve(weights: Path, port: int) -> None:
    """Serve until a signal ends the process; nothing has to be saved."""
    import xllamacpp  # noqa: PLC0415 - a library of 100 MB, for this process only

    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.model_alias = {NAME}
    params.port = port
    # Otherwise any web page that is open on this machine may read our answers.
    params.cors_origins = f"http://127.0.0.1:{port}"
    params.cors_origins_explicit = True
    params.ui = False
    params.endpoint_slots = False
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * SLOT_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads(os.cpu_count() or 1)
    # A waiting request occupies one, and /v1/models must not wait behind the answers.
    params.n_threads_http = 32
    # Old prompts kept for reuse: llama.cpp's own limit is 8 GB.
    params.cache_ram_mib = 256
    # Half the memory of the default (16 bits); 170 MB less here, at the same speed.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_Q8_0
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
