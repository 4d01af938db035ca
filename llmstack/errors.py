"""The one exception that means "the input is wrong, not the program"."""


class BadInput(ValueError):
  """A sentence with the offending value and the fix.

  `main` prints it without a traceback and exits with status 78, which supervisors must not retry.
  """
