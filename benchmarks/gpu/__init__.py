"""Benchmarks of the scans on a GPU: `python -m benchmarks.gpu_scan`.

shapes.py    what is scanned: sequences, lengths, paths, and the bytes, operations and exponentials of it
variants.py  the ways to compute it: the operators, the definition, the chain of separate kernels, other libraries
chain.py     that chain, with chain_kernels.py and chain_backward_kernels.py
machine.py   which chip it is and what it can do at most; rate_kernel.py does exponentials for it
check.py     no variant is timed before its result has been held against float64
timing.py    replays of CUDA graphs with cold caches, by turns; eager calls apart
kernels.py   which kernels a call launches, and how long each takes
measure.py   one case from its inputs to its figures
block.py     the two mixers of one block of a denoiser, as a whole
report.py    what is recorded and printed
"""
