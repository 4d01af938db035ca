"""An iteration of GRPO beside TRL's, in paired rounds.

    python experiments/010-reward/run.py grpo --torch TORCH_VENV/bin/python [--vocab 65] [--rounds 5]

One JSON line per run goes to results.jsonl, and medians, with the median of the paired ratios, to standard output.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

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


def grpo(args):
  """Prints an iteration of ours beside TRL's."""
  how = ['--vocab', args.vocab, '--steps', str(args.steps)]
  commands = {
    'llmstack GRPO': [*OURS, 'bench', 'rl', '--size', 'M', *how],
    'TRL GRPO': [args.torch, HERE / 'peers/trl_grpo.py', *how],
  }
  found = rounds({k: lambda c=c: json.loads(run(c).splitlines()[-1]) for k, c in commands.items()}, args.rounds)
  ours, theirs = found
  for name, rows in found.items():
    step, rollout, rss = (statistics.median(r[k] for r in rows) for k in ('step_ms', 'rollout_ms', 'peak_rss_mb'))
    print(f'{name:14} iteration {step:6.0f} ms, of it rollout {rollout:6.0f} ms, {rss:5.0f} MB')
  print('iteration:', ratio(found, theirs, ours, 'step_ms'), 'times as fast')
  print('rollout:  ', ratio(found, theirs, ours, 'rollout_ms'), 'times as fast')
  print('memory:   ', ratio(found, ours, theirs, 'peak_rss_mb'), 'of theirs')


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('what', choices=('grpo',))
  parser.add_argument('--torch', help='python with torch, transformers and trl', required=True)
  parser.add_argument('--vocab', default='65', choices=('65', '4096'))
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--steps', type=int, default=5, help='timed steps of a run')
  args = parser.parse_args()
  {'grpo': grpo}[args.what](args)


if __name__ == '__main__':
  main()
