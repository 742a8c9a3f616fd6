"""The loop and what it stands on: optimisers, schedules, checkpoints, processes, meters."""

from onereel.training.checkpoint import (
    CheckpointError,
    is_checkpoint,
    is_done,
    latest_valid,
    list_checkpoints,
    load_checkpoint,
    resume_state,
)
from onereel.training.distributed import (
    World,
    all_reduce_sum,
    distributed,
    gather_objects,
    is_main,
    pick_device,
    rank,
    run_on_main,
    world_size,
)
from onereel.training.interrupt import RunInterrupted
from onereel.training.loop import FitResult, fit
from onereel.training.optim import create_optimizer
from onereel.training.peak import measure_peak_flops
from onereel.training.plan import StepPlan, on_devices, plan_steps
from onereel.training.run_folder import (
    FIRST,
    create_run,
    holds_run,
    read_config,
    run_lock,
    versions,
)
from onereel.training.schedule import create_schedule
from onereel.training.step import NonFiniteError, compute_dtype, sees_twice

__all__ = [
    "FIRST",
    "CheckpointError",
    "FitResult",
    "NonFiniteError",
    "RunInterrupted",
    "StepPlan",
    "World",
    "all_reduce_sum",
    "compute_dtype",
    "create_optimizer",
    "create_run",
    "create_schedule",
    "distributed",
    "fit",
    "gather_objects",
    "holds_run",
    "is_checkpoint",
    "is_done",
    "is_main",
    "latest_valid",
    "list_checkpoints",
    "load_checkpoint",
    "measure_peak_flops",
    "on_devices",
    "pick_device",
    "plan_steps",
    "rank",
    "read_config",
    "resume_state",
    "run_lock",
    "run_on_main",
    "sees_twice",
    "versions",
    "world_size",
]
