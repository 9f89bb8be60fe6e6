"""Which test cases run by default: a fixed sample of a large case space, or all of it under MEDSORA_TEST_FULL=1."""

import os
import random

FULL = os.environ.get("MEDSORA_TEST_FULL") == "1"


def sampled(cases, keep):
    """The whole of `cases` in a full run, else a sample of `keep` of them drawn with a fixed seed, in their order."""
    cases = list(cases)
    if FULL or len(cases) <= keep:
        return cases
    chosen = sorted(random.Random(20241103).sample(range(len(cases)), keep))
    return [cases[i] for i in chosen]
