"""Benchmarks of operators, layers and whole models, and the harness that makes them comparable.

case.py          what is measured: an operator, layer or step at a shape, and the variants that compute it
*_cases.py       the cases of each; test_operators.py, test_layers.py and test_models.py hand them to pytest
attention.py     what would take the mixers' place: full, factorised and windowed attention
work.py          the bytes, operations and exponentials no implementation does without
limits.py        what this machine can do at most, and the floor that follows for a piece of work
correctness.py   no variant is timed before its result has been held against float64
interleaved.py   the timing itself; device.py: on a GPU by replays of graphs, with cold caches
memory.py        freed memory stays with the process; the peak of a call
measure.py       one case from its inputs to its figures
record.py        tables and JSON
scaling.py       powers of the tokens fitted to layers, and where they cross
environment.py   where and of what something was measured
conftest.py      how all this stands in pytest-benchmark, with playback.py

records.py       records of every kind read back into rows
pictures.py      bars of times, floors, memory and parts; curves.py: growth over tokens
report.py        a page of all that: `python -m benchmarks.report`
against_attention.py   mixers over attention, as a table in Markdown
revisions.py     two revisions by turns, what got slower: `python -m benchmarks.revisions`; checkouts.py: where they run

train_step.py times a training step of the denoiser by each backend and without scans, breakdown.py tells where the time
of a step goes, short_runs.py times the stages of short training runs by turns;
compensation.py compares structures of the video VAE. gpu_scan.py times the scans on a GPU; gpu/ has what it is made of.
"""
