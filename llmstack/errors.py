"""The exceptions that end a run with a sentence instead of a traceback, and one that lacks a type of its own."""


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


def exhausted(error):
  """Returns whether memory ran out: Python's, or XLA's under one of its names for it."""
  if isinstance(error, MemoryError):
    return True
  # The second is what XLA's matmuls on a CPU say where they get no scratch memory.
  signs = ('RESOURCE_EXHAUSTED', 'YNNPACK operation failed')
  return type(error).__name__ == 'JaxRuntimeError' and any(sign in str(error) for sign in signs)
