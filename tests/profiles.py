"""Hypothesis profiles: `default` runs 200 examples that never change, `thorough` 10,000.

HYPOTHESIS_PROFILE=thorough python -m pytest tests/test_evaluation.py
"""

import os

from hypothesis import HealthCheck, settings

settings.register_profile("default", derandomize=True, max_examples=200, deadline=None)
settings.register_profile(
    "thorough", derandomize=False, max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
