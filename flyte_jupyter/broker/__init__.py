"""The daemon: one per user. It grants leases and runs replicas; it never sees a payload. Started as a program."""
