"""The process of the user: a notebook, a script, or a replica whose task calls another task."""
