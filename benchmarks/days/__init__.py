"""The ``days`` command: agents on a platform whose items come and go, day by day."""
