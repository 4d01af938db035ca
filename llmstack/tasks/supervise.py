"""Runs a command again and again, as long as its exit status says that this is worth while.

    llmstack supervise [--restarts N] [--backoff S] -- llmstack --config ... --workdir ...

Restarted are status 42 (stopped safely, or hung) and a death by signal (preemption, out of memory, a peer that died).
Not restarted are 0, 1, 78 and every other status, which a retry will not mend, and Ctrl-C.
"""

import argparse
import shlex
import signal
import subprocess
import sys
import threading
import time

from llmstack.errors import BadInput

GOOD = 600.0  # s; a run as long as this was no false start: counts and back-off begin anew
LONGEST = 300.0  # s between two starts


def worth_while(status):
  """Returns whether a command that ended so should run again. status: of Popen, or of a shell: 128 + signal."""
  killed = -status if status < 0 else status - 128
  return status == 42 or killed > 0 and killed != signal.SIGINT


def say(line):
  print(f'supervise: {line}', file=sys.stderr, flush=True)


def options(argv):
  """Returns (restarts, backoff, command). Raises: BadInput."""
  if '--' not in argv or argv[-1] == '--':
    raise BadInput('give the command after two dashes: llmstack supervise --restarts 10 -- COMMAND')
  own, command = argv[: argv.index('--')], argv[argv.index('--') + 1 :]
  parser = argparse.ArgumentParser(prog='llmstack supervise', exit_on_error=False, add_help=False)
  parser.add_argument('--restarts', type=int, default=10)
  parser.add_argument('--backoff', type=float, default=5.0)
  try:
    given, rest = parser.parse_known_args(own)
  except argparse.ArgumentError as e:
    raise BadInput(f'supervise: {e}') from None
  if rest or given.restarts < 0 or given.backoff < 0:
    raise BadInput(f'supervise {" ".join(own)}: give --restarts N and --backoff SECONDS, both 0 or more')
  return given.restarts, given.backoff, command


def command(argv):
  """Returns the last exit status of the command; SIGTERM and Ctrl-C go to it, and end the restarts."""
  restarts, backoff, line = options(argv)
  asked, child = threading.Event(), None

  def forward(number, _):
    asked.set()
    if child is not None and child.poll() is None:
      child.send_signal(number)

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, forward)
  tries = 0
  while True:
    begun = time.monotonic()
    # A group of its own: a terminal's Ctrl-C comes to us alone and is passed on once, a second one ends the child.
    child = subprocess.Popen(line, process_group=0)
    if asked.is_set():  # between two children
      child.send_signal(signal.SIGTERM)
    status = child.wait()
    lasted = time.monotonic() - begun
    if asked.is_set() or not worth_while(status):
      return status if status >= 0 else 128 - status
    tries = 1 if lasted > GOOD else tries + 1
    if tries > restarts:
      say(f'status {status} after {lasted:.0f} s, and {restarts} restarts were allowed: gave up on {shlex.join(line)}')
      return status if status >= 0 else 128 - status
    wait = min(backoff * 2 ** (tries - 1), LONGEST)
    say(f'status {status} after {lasted:.0f} s: restart {tries} of {restarts} in {wait:.0f} s')
    if asked.wait(wait):
      return status if status >= 0 else 128 - status
