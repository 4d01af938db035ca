"""The exceptions that end a run with a sentence instead of a traceback, one without a type, and two common checks."""


class BadInput(ValueError):
  """A sentence with the offending value and the fix.

  `main` prints it without a traceback and exits with status 78, which supervisors must not retry.
  """


class Diverged(RuntimeError):
  """Loss or gradients stayed non-finite; names the step, the batch and where it was written. Status 1."""


class Missed(RuntimeError):
  """What was measured is below a limit that the config sets; names both. Status 1."""


class SaveFailed(RuntimeError):
  """What a run makes cannot be written; names the cause and what is whole. Status 1."""


class Stopped(RuntimeError):
  """The run was asked to stop and has: what it did is saved, and the same command goes on. Status 42."""


def exhausted(error):
  """Returns whether memory ran out: Python's, or XLA's under one of its names for it."""
  if isinstance(error, MemoryError):
    return True
  # The second is what XLA's matmuls on a CPU say where they get no scratch memory.
  signs = ('RESOURCE_EXHAUSTED', 'YNNPACK operation failed')
  return type(error).__name__ == 'JaxRuntimeError' and any(sign in str(error) for sign in signs)


def at_least(config, least, *keys):
  """Returns nothing; raises BadInput where one of the dotted keys is below `least`. None is let through."""
  for key in keys:
    value = config
    for part in key.split('.'):
      value = value[part]
    if value is not None and value < least:
      raise BadInput(f'{key} = {value} must be at least {least}')


def local(path, what):
  """Returns path; raises BadInput for a URL, which only sources of text may be today."""
  if '://' in path:
    raise BadInput(f'{what} = {path} is a URL: only data.sources may be remote yet, give a local or mounted folder')
  return path
