"""Flyte's run-level functions, here on warm kernels: run, map, group, trace, ctx."""

Run = ctx = group = map = run = trace = with_runcontext = None
