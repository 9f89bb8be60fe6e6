"""How cases are measured, so that figures compare.

case.py         what is measured: an operator, layer or step at a shape, and the variants that compute it
work.py         the bytes, operations and exponentials no implementation does without
limits.py       what this machine can do at most, and the floor that follows for a piece of work
correctness.py  no variant is timed before its result has been held against float64
interleaved.py  the timing itself; device.py: on a GPU by replays of graphs, with cold caches
memory.py       freed memory stays with the process; the peak of a call
measure.py      one case from its inputs to its figures
record.py       tables and JSON; environment.py: where and of what something was measured
playback.py     measured times as pytest-benchmark takes them
checkouts.py    where two revisions run side by side
"""
