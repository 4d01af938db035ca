"""The checkpoints of a run, each verified now: `llmstack checkpoints WORKDIR`."""

import os
import time

from llmstack import lease
from llmstack.checkpoint import listing
from llmstack.errors import BadInput


def ago(seconds):
  """Returns an age: '12 s', '3 min', '5 h' or '9 d'."""
  for unit, size in (('d', 86400), ('h', 3600), ('min', 60)):
    if seconds >= 2 * size:
      return f'{seconds // size:.0f} {unit}'
  return f'{seconds:.0f} s'


def command(argv):
  """Returns the exit status: 0 if every checkpoint holds, 78 if one does not; prints a table. Changes nothing."""
  if len(argv) != 1 or argv[0].startswith('-'):
    raise BadInput('checkpoints takes one workdir: llmstack checkpoints runs/tiny')
  folder = os.path.join(argv[0], 'checkpoints')
  if not os.path.isdir(folder):
    raise BadInput(f'there are no checkpoints in {folder}: give the workdir of a run that has saved one')
  found = listing(folder)
  print(f'{"step":>8}  {"saved":19}  {"ago":>7}  {"MB":>9}  {"kept as":24}  state')
  for s in found:
    when = time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(s.time)) if s.time else ''
    since = ago(max(time.time() - s.time, 0)) if s.time else ''
    metrics = ''.join(f'  {k} {v:.4f}' for k, v in s.metrics.items())
    print(f'{s.step:>8}  {when:19}  {since:>7}  {s.bytes / 1e6:>9.2f}  {s.why:24}  {s.state}{metrics}')
  held = lease.read(folder)
  if held is None:
    print('no run is writing here')
  else:
    over = lease.ended(folder, held)
    print(f'{"left by" if over else "being written by"} {lease.describe(held)}' + (f': {over}' if over else ''))
  bad = sum(s.state not in ('verified', 'set aside') for s in found)
  print(f'{len(found)} checkpoints, ' + (f'{bad} of them not as written' if bad else 'as written'))
  return 78 if bad else 0
