"""A DPO step beside TRL's, and packed beside padded rows of SFT, in paired rounds. See README.md.

    python experiments/009-assistant/run.py dpo --torch TORCH_VENV/bin/python [--vocab 65] [--rounds 5]
    LLMSTACK_DATA=DIR python experiments/009-assistant/run.py sft --base runs/books [--rounds 5]

One JSON line per run goes to results.jsonl, and medians, with the median of the paired ratios, to standard output.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy as np

HERE = pathlib.Path(__file__).parent
OURS = ['env', 'GLIBC_TUNABLES=glibc.malloc.hugetlb=1', sys.executable, '-m', 'llmstack.main']


def run(command):
  """Returns the standard output of a command. Its standard error is shown where it fails."""
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    sys.exit(f'{" ".join(map(str, command))}\n{done.stderr[-3000:]}')
  return done.stdout


def rounds(programs, n):
  """Returns {name: [figures]} of n rounds of all programs by turns; programs: {name: () -> figures}."""
  found = {name: [] for name in programs}
  for i in range(n):
    for name, program in programs.items():
      found[name].append(program())
      with open(HERE / 'results.jsonl', 'a') as f:
        f.write(json.dumps({'what': name, 'round': i} | found[name][-1]) + '\n')
  return found


def ratio(found, a, b, key):
  """Returns 'median (least to most)' of the paired ratios a / b."""
  of = [x[key] / y[key] for x, y in zip(found[a], found[b])]
  return f'{statistics.median(of):.2f} ({min(of):.2f} to {max(of):.2f})'


def dpo(args):
  """Prints a DPO step of ours beside TRL's, with a frozen and with a stored reference."""
  programs = {}
  for more in ([], ['--precomputed']):
    how = ['--vocab', args.vocab, '--steps', '5', *more]
    ours = [*OURS, 'bench', 'prefer', '--size', 'M', *how]
    theirs = [args.torch, HERE / 'peers/trl_dpo.py', '--warm-up', '2', *how]
    for name, command in (('llmstack', ours), ('TRL', theirs)):
      programs[' '.join([name, *(m[2:] for m in more)])] = lambda c=command: json.loads(run(c).splitlines()[-1])
  found = rounds(programs, args.rounds)
  for name, rows in found.items():
    median = {k: statistics.median(r[k] for r in rows) for k in ('step_ms', 'peak_rss_mb')}
    print(f'{name:22} step {median["step_ms"]:6.0f} ms, {median["peak_rss_mb"]:5.0f} MB')
  pairs = [('llmstack', 'TRL'), ('llmstack precomputed', 'TRL precomputed'), ('llmstack precomputed', 'TRL')]
  for a, b in pairs:
    speed, memory = ratio(found, b, a, 'step_ms'), ratio(found, a, b, 'peak_rss_mb')
    print(f'{a} beside {b}: {speed} times as fast, in {memory} of the memory')


def longest(folder, batch, seed=0):
  """Returns real tokens per computed one where rows of one conversation are padded to the longest of their batch."""
  from llmstack.data import pipeline

  rows = pipeline.Rows(folder)
  real = (rows.read(range(len(rows)))['segments'] > 0).sum(1)
  real = np.random.default_rng(seed).permutation(real)[: len(real) // batch * batch].reshape(-1, batch)
  return real.sum() / (real.max(1).sum() * batch)


def sft(args):
  """Prints real tokens per second of SFT in packed rows beside padded ones."""
  with tempfile.TemporaryDirectory() as folder:

    def program(packing):
      workdir = f'{folder}/{packing}'
      run(['rm', '-rf', workdir])
      run([
        *OURS, '--config', HERE / 'instructions.py', '--workdir', workdir, f'--config.data.packing={packing}',
        f'--config.checkpoint.init_from={os.path.abspath(args.base)}', f'--config.data.folder={folder}/rows-{packing}',
      ])  # fmt: skip
      with open(f'{workdir}/metrics.jsonl') as f:
        speeds = [r['tokens_per_s'] for line in f if (r := json.loads(line))['kind'] == 'train' and r['step'] > 1]
      (rows,) = pathlib.Path(folder, f'rows-{packing}').iterdir()
      fill = json.loads((rows / 'manifest.json').read_text())['fill']
      columns = statistics.median(speeds)
      more = {'longest': longest(rows, 8)} if packing == 'padded' else {}
      return {'columns_per_s': columns, 'fill': fill, 'tokens_per_s': columns * fill} | more

    found = rounds({p: lambda p=p: program(p) for p in ('best_fit', 'padded')}, args.rounds)
  for name, rows in found.items():
    median = {k: statistics.median(r[k] for r in rows) for k in rows[0]}
    print(f'{name:10}', ', '.join(f'{k} {v:,.3f}' if v < 10 else f'{k} {v:,.0f}' for k, v in median.items()))
  print('real tokens per second, packed / padded:', ratio(found, 'best_fit', 'padded', 'tokens_per_s'))


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('what', choices=('dpo', 'sft'))
  parser.add_argument('--torch', help='of dpo: python with torch, transformers, trl and peft')
  parser.add_argument('--vocab', default='65', choices=('65', '4096'))
  parser.add_argument('--base', default='runs/books', help='of sft: workdir of the model to tune')
  parser.add_argument('--rounds', type=int, default=5)
  args = parser.parse_args()
  {'dpo': dpo, 'sft': sft}[args.what](args)


if __name__ == '__main__':
  main()
