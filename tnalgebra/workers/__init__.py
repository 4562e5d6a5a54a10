"""Tasks spread over worker processes of this machine or of a Dask cluster."""

from .cluster import Scheduler, check_scheduler, connected
from .run import TIME_LIMIT, run_tasks

__all__ = ["TIME_LIMIT", "Scheduler", "check_scheduler", "connected", "run_tasks"]
