"""Many machines: plan, run-task, finalize."""
