"""llmstack report WORKDIR [WORKDIR ...] [--out FILE]: runs, or a preparation, as one self-contained HTML page."""

import argparse
import os

from llmstack import report
from llmstack.errors import BadInput


class Parser(argparse.ArgumentParser):
  def error(self, message):
    raise BadInput(f'{message}: llmstack report WORKDIR [WORKDIR ...] [--out FILE]')


def command(argv):
  """Writes the page, prints its path and returns 0."""
  parser = Parser(prog='llmstack report', description='Runs, or a preparation, as one self-contained HTML page.')
  parser.add_argument('workdir', nargs='+', help='the --workdir of a training run or of a preparation')
  parser.add_argument('--out', help='the page; report.html in the first workdir by default')
  flags = parser.parse_args(argv)
  # A folder may hold both: a run that was started where its text was prepared.
  has = lambda path, name: os.path.isfile(os.path.join(path, name))  # noqa: E731
  if prepared := [w for w in flags.workdir if has(w, 'report.json') and not has(w, 'metrics.jsonl')]:
    if len(flags.workdir) > 1:
      raise BadInput(f'{prepared[0]} is a preparation, whose page shows one workdir at a time: give it alone')
    text = report.prepared(report.read_prepared(prepared[0]))
  else:
    text = report.page(report.collect(flags.workdir))
  out = flags.out or os.path.join(flags.workdir[0], 'report.html')
  if os.path.isdir(out):
    raise BadInput(f'--out {out} is a folder: give the name of a file')
  with open(f'{out}.new', 'w', encoding='utf-8') as f:
    f.write(text)
  os.replace(f'{out}.new', out)
  what = 'a preparation' if prepared else f'{len(flags.workdir)} run{"s" * (len(flags.workdir) > 1)}'
  print(f'{out}: {what}, {len(text) / 1e3:.0f} kB')
  return 0
