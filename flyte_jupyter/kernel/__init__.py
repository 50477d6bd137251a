"""A replica: a complete Jupyter kernel that also answers calls on a task channel. Started as a program."""
