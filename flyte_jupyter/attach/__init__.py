"""The kernel of a front end that is a guest in a warm one: a program, `python -m flyte_jupyter.attach`."""
