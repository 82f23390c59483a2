"""llama.cpp's server on a free loopback port: prints its address and serves until its standard input ends.

A process of its own: its log goes nowhere, and stopping it cannot hang the tests.
"""

import sys

import xllamacpp


def main(gguf: str) -> None:
    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.model_alias = {"smollm2"}
    params.n_ctx, params.n_parallel, params.warmup, params.port = 1024, 2, False, 0
    params.cpuparams.n_threads = 1  # two of them wait for each other where the tests have the cores
    server = xllamacpp.Server(params)
    print(f"address={server.listening_address}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
