"""Throughput and memory of a whole preparation, its process tree sampled, at one size and ten times that.

    LLMSTACK_DATA=DIR python experiments/008-prepare/scale.py SCRATCH [50 500]

The corpus is books, docs and stories again and again, with 3 of 10 words replaced by others of the corpus, so that few
of its documents are near-duplicates. Without megabytes, configs/prepare.py:shared itself.
"""

import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
import zstandard

from llmstack.data import sources

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def perturbed(folder, megabytes):
  """Writes files of 25 MB of JSON lines; documents of about 4 kB, so that ten times the text is ten times as many."""
  data, r = os.environ['LLMSTACK_DATA'], np.random.RandomState(0)
  files = [f'{data}/books/classic_books-0000{i}-of-00002.jsonl.zst' for i in (0, 1)]
  files += [f'{data}/docs/eips_ercs.jsonl.zst', f'{data}/text/tinystories_val.jsonl.gz']
  texts = [d.text for d in sources.documents(sources.Source(tuple(files)))]
  pieces = [t[i : i + 4000] for t in texts for i in range(0, len(t), 4000)]
  vocabulary = np.array(' '.join(pieces[::50]).split(' '), object)
  os.makedirs(folder)
  size = part = n = 0
  file = None
  while size < megabytes * 1e6:
    for piece in (pieces[i] for i in r.permutation(len(pieces))):
      words = np.array(piece.split(' '), object)
      swap = r.rand(len(words)) < 0.3
      words[swap] = vocabulary[r.randint(0, len(vocabulary), swap.sum())]
      line = json.dumps({'id': str(n), 'text': ' '.join(words)}, ensure_ascii=False).encode()
      if file is None or part > 25e6:
        if file:
          file.close()
        file, part = zstandard.open(f'{folder}/{size // 1000000:05d}.jsonl.zst', 'wb'), 0
      file.write(line + b'\n')
      size, part, n = size + len(line), part + len(line), n + 1
      if size >= megabytes * 1e6:
        break
  file.close()


def tree(pid):
  """Returns bytes resident of a process and all below it; what they share counts each time."""
  total, page = 0, os.sysconf('SC_PAGE_SIZE')
  try:
    with open(f'/proc/{pid}/statm') as f:
      total = int(f.read().split()[1]) * page
    with open(f'/proc/{pid}/task/{pid}/children') as f:
      for child in f.read().split():
        total += tree(int(child))
    for task in os.listdir(f'/proc/{pid}/task'):
      if task != str(pid):
        with open(f'/proc/{pid}/task/{task}/children') as f:
          total += sum(map(tree, map(int, f.read().split())))
  except (FileNotFoundError, ProcessLookupError):
    pass
  return total


def run(*arguments):
  """Returns (seconds, CPU seconds, peak bytes of the tree, what it said)."""
  begun = time.monotonic()
  process = subprocess.Popen(
    [sys.executable, '-m', 'llmstack.main', *arguments],
    stderr=subprocess.PIPE,
    stdout=subprocess.DEVNULL,
    text=True,
    cwd=ROOT,
  )
  peak, ended = [0], threading.Event()

  def watch():
    while not ended.wait(0.1):
      peak[0] = max(peak[0], tree(process.pid))

  thread = threading.Thread(target=watch)
  thread.start()
  said = process.communicate()[1]
  ended.set()
  thread.join()
  assert process.returncode == 0, said
  return time.monotonic() - begun, peak[0], said


def main(scratch, *sizes):
  for megabytes in sizes or ['']:
    extra = []
    if megabytes:
      perturbed(f'{scratch}/text-{megabytes}', int(megabytes))
      extra = [
        f"--config.sources.books.files=('{scratch}/text-{megabytes}/*.zst',)",
        '--config.sources.books.holdout_by=document',
      ]
      extra += [
        f"--config.sources.{s}.files=('{os.environ['LLMSTACK_DATA']}/text/tinyshakespeare.txt',)"
        for s in ('docs', 'stories', 'text', 'web', 'code')
      ]
    before = os.times()
    seconds, peak, said = run(
      '--config', 'configs/prepare.py:shared', '--workdir', f'{scratch}/run-{megabytes or "shared"}', *extra
    )
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    with open(f'{scratch}/run-{megabytes or "shared"}/report.json') as f:
      report = json.load(f)
    size = report['raw_bytes'] / 1e6
    row = {
      'raw_mb': round(size, 1),
      'seconds': round(seconds, 1),
      'mb_per_s': round(size / seconds, 2),
      'cpu_s': round(cpu, 1),
    }
    row |= {'peak_tree_mb': round(peak / 1e6), 'stages_s': report['seconds']}
    print(json.dumps(row | {'kept': {s: d['funnel'][-1][1:] for s, d in report['sources'].items()}}), flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
