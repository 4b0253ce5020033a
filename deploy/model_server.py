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
WINDOW_TOKENS: Final = 8192
"""What the model was trained to take in, shared by the slots: a long question may have what the others leave."""
PROMPT_TOKENS: Final = 1024
"""One core reads about 200 a second, and a person waits for it. Four prompts and answers have to fit the window."""
ANSWER_TOKENS: Final = 768
PASSAGES: Final = 2
"""A model of this size mixes up what more of them say."""


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
    params.n_ctx = WINDOW_TOKENS
    params.kv_unified = True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads(os.cpu_count() or 1)
    # A waiting request occupies one, and /v1/models must not wait behind the answers.
    params.n_threads_http = 32
    # Old prompts kept for reuse: llama.cpp's own limit is 8 GB.
    params.cache_ram_mib = 256
    # Keys and values stay at 16 bits: at 8, a prompt of 2,800 tokens is read at 65 tokens/s instead of 150.
    # For requests that say nothing else. At llama.cpp's own values so small a model wanders off, or falls into a loop.
    params.sampling.temp = 0.3
    params.sampling.penalty_repeat = 1.1
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
