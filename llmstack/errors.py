"""The exceptions that end a run with a sentence instead of a traceback."""


class BadInput(ValueError):
  """A sentence with the offending value and the fix.

  `main` prints it without a traceback and exits with status 78, which supervisors must not retry.
  """


class Diverged(RuntimeError):
  """Loss or gradients stayed non-finite; names the step, the batch and where it was written. Status 1."""


class SaveFailed(RuntimeError):
  """Checkpoints cannot be written; names the step, the cause and the newest one that is whole. Status 1."""


class Stopped(RuntimeError):
  """The run was asked to stop and has: what it did is saved, and the same command goes on. Status 42."""
