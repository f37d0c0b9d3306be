"""What we take from inside vLLM, compared with the sources of each release that we say we support.

The suite runs on the CPU's wheel alone, of one release. Here the wheels for GPUs are read: their .py files, without
what they depend on, and without a GPU. `python -m tests.vllm_surface --help` has more.
"""
