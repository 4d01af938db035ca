"""A page on which a person says which of two replies is better, and how far several persons agree.

    llmstack label PAIRS.jsonl --out labels.jsonl --rater NAME [--port N] [--host H --token-file F]
    llmstack label --agreement labels-a.jsonl labels-b.jsonl ...

PAIRS: {prompt, completions: [a, b]}, {prompt, a, b} or {prompt, chosen, rejected}, with an `id` or without. What a
rater says is in --out before the next pair is shown, for configs/reward.py and configs/prefer.py to read; the same
command goes on where it stopped. The page is for this machine alone; with --token-file, whose text the browser must
give once, --host may be another one. It speaks plain HTTP: between machines, put a tunnel around it.
"""

import argparse
import collections
import contextlib
import itertools
import math
import os
import sys

from llmstack.errors import BadInput
from llmstack.serve import agreement, label


class Parser(argparse.ArgumentParser):
  def error(self, message):
    raise BadInput(f'{message}: llmstack label PAIRS.jsonl --out FILE --rater NAME, or --agreement FILE FILE ...')


def flags(argv):
  """Returns the flags. Raises: BadInput."""
  parser = Parser(prog='llmstack label', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('pairs', nargs='?', help='JSON lines of a prompt and two replies')
  parser.add_argument('--out', help='JSON lines to write; OUT.journal beside it also holds skips and undos')
  parser.add_argument('--rater', help='whose verdicts these are')
  parser.add_argument('--seed', type=int, default=0, help='of the order of the two replies, and of the intervals')
  parser.add_argument('--on-error', choices=('raise', 'skip'), default='raise', help='skip leaves bad pairs out')
  parser.add_argument('--host', default='127.0.0.1', help='address to listen at; another one needs --token-file')
  parser.add_argument('--port', type=int, default=8642, help='0 for any that is free')
  parser.add_argument('--token-file', help=f'file with at least {label.TOKEN} characters that the browser must give')
  parser.add_argument('--agreement', nargs='+', metavar='FILE', help='files of several raters to compare')
  given = parser.parse_args(argv)
  if (given.agreement is None) == (given.pairs is None):
    parser.error('give either pairs to judge or --agreement')
  if given.pairs is not None:
    if given.out is None or not (given.rater or '').strip():
      parser.error('--out and --rater are needed')
    if os.path.realpath(given.out) == os.path.realpath(given.pairs):
      raise BadInput(f'--out {given.out} is the file of the pairs: give another name')
  return given


def token(path):
  """Returns the text of the file, or None without one."""
  if path is None:
    return None
  with open(path, encoding='utf-8', errors='replace') as f:
    return f.read().strip()


def serve(given):
  """Serves the page until Ctrl-C."""
  left_out = collections.Counter()
  items = label.read(given.pairs, given.on_error, left_out)
  labels = label.Labels(items, given.out, given.rater.strip(), given.seed)
  with contextlib.closing(labels), label.Server(labels, given.host, given.port, token(given.token_file)) as server:
    if left_out:
      print(f'{given.pairs}: left out ' + ', '.join(f'{n} ({kind})' for kind, n in sorted(left_out.items())))
    for note in labels.notes:
      print(note, file=sys.stderr)
    with contextlib.suppress(KeyboardInterrupt):
      state = labels.state()
      print(f'{labels.rater}: {state["k"]} of {state["n"]} pairs judged; Ctrl-C ends it')
      print(
        server.address + ('?token=TOKEN, once, with the token in place of TOKEN' if server.token else ''), flush=True
      )
      server.serve_forever()
    state = labels.state()
    print(f'\n{state["k"]} of {state["n"]} pairs judged, {state["skipped"]} of them skipped: {given.out}')


def spell(estimate, percent=False):
  """Returns 'value (low to high)'."""
  if estimate is None or math.isnan(estimate.value):
    return 'not defined'
  form = '{:.1%}' if percent else '{:.3f}'
  value, low, high = map(form.format, estimate)
  return f'{value} ({low} to {high})'


def compare(paths, seed):
  """Yields the lines of what raters have in common. Raises: BadInput for fewer than two."""
  raters = {}
  for path in paths:
    for rater, said in agreement.read(path).items():
      if again := raters.setdefault(rater, {}).keys() & said.keys():
        raise BadInput(f'{path}: {rater} judged {len(again)} pairs that an earlier file has too: give each file once')
      raters[rater] |= said
  if len(raters) < 2:
    raise BadInput(f'{", ".join(paths)}: verdicts of {len(raters)} rater, where at least two are needed')
  for name, said in raters.items():
    sides = [verdict == left for verdict, left in said.values() if left is not None]
    ties = sum(verdict == agreement.TIE for verdict, _ in said.values())
    yield f'{name}: {len(said)} judged, {ties} ties' + (f', {sum(sides)} of {len(sides)} to the left' if sides else '')
  found = agreement.agreement(agreement.table(raters.values()), seed)
  yield f'{found["units"]} pairs judged by at least two, {found["verdicts"]} verdicts; a tie agrees with a tie only'
  if not found['units']:
    return
  yield f'raw agreement       {spell(found["raw"], True)}'
  yield f'  without ties      {spell(found["decided"], True)}'
  if found['kappa']:
    yield f"Cohen's kappa       {spell(found['kappa'])}"
  yield f"Krippendorff's alpha {spell(found['alpha'])}"
  if len(raters) > 2:
    for a, b in itertools.combinations(raters, 2):
      two = agreement.agreement(agreement.table([raters[a], raters[b]]), seed)
      line = f'{spell(two["raw"], True)}, kappa {spell(two["kappa"])}' if two['units'] else 'none in common'
      yield f'  {a} and {b}: {two["units"]} pairs, {line}'
  yield 'in brackets 95 % intervals, by drawing the pairs anew'


def command(argv):
  """Serves the page until Ctrl-C, or prints the agreement; returns 0."""
  given = flags(argv)
  if given.agreement is None:
    serve(given)
  else:
    for line in compare(given.agreement, given.seed):
      print(line)
  return 0
