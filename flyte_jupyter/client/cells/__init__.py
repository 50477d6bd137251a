"""Cells that run on replicas: calls as those of tasks, with their leases, retries, limits, interrupts and errors."""
