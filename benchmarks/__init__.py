"""Benchmarks of operators, layers and whole models, and the harness that makes them comparable.

cases/    what is timed: operators, layers and models, each beside what would otherwise do its work
harness/  how: checked against float64, timed in turns, held against what the machine can do at most, recorded
reports/  records read back, as tables and pictures
gpu/      what is other on a GPU; results/ holds the records

pytest times cases: test_operators.py, test_layers.py and test_models.py, as conftest.py sets it up. The rest here are
commands, `python -m benchmarks.NAME --help`:

operators  gpu_scan, the scans on a GPU
models     train_step by each backend and without scans; breakdown, where a step's time goes; short_runs of `make train`
records    report, a page of pictures; against_attention, a table; revisions, what got slower from one to another
method     ablations; compensation of the video VAE; sampler_quality; phantom_classes
"""
