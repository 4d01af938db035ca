"""A DPO step beside TRL's, and packed beside padded rows of SFT, in paired rounds. See README.md.

    python experiments/009-assistant/run.py --torch TORCH_VENV/bin/python [--rounds 5]

One JSON line per run goes to results.jsonl, and a table of medians and of the median of the paired ratios to standard
output.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
BENCH = ['env', 'GLIBC_TUNABLES=glibc.malloc.hugetlb=1', sys.executable, '-m', 'llmstack.main', 'bench', 'prefer']


def commands(torch):
  """Yields (what, ours, theirs)."""
  for vocab in ('65', '4096'):
    for more in ([], ['--precomputed']):
      ours = [*BENCH, '--size', 'M', '--vocab', vocab, '--steps', '5', *more]
      theirs = [torch, str(HERE / 'peers/trl_dpo.py'), '--vocab', vocab, '--steps', '5', '--warm-up', '2', *more]
      yield ' '.join(['DPO, vocabulary', vocab, *(m[2:] for m in more)]), ours, theirs


def run(command):
  """Returns the JSON line of a command. Its standard error is shown where it fails."""
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    sys.exit(f'{" ".join(command)}\n{done.stderr[-3000:]}')
  return json.loads(done.stdout.splitlines()[-1])


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--torch', required=True, help='python with torch, transformers, trl and peft')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--only', default='', help='part of a name')
  args = parser.parse_args()
  for what, ours, theirs in commands(args.torch):
    if args.only not in what:
      continue
    found = []
    for i in range(args.rounds):
      found.append([run(command) for command in (ours, theirs)])
      with open(HERE / 'results.jsonl', 'a') as f:
        for name, row in zip(('llmstack', 'TRL'), found[-1]):
          f.write(json.dumps({'what': what, 'round': i, 'program': name, **row}) + '\n')
    speed = [a['tokens_per_s'] / b['tokens_per_s'] for a, b in found]
    memory = [a['peak_rss_mb'] / b['peak_rss_mb'] for a, b in found]
    median = lambda k, side, found=found: statistics.median(pair[side][k] for pair in found)  # noqa: E731
    print(
      f'{what:34} step {median("step_ms", 0):7.0f} ms, TRL {median("step_ms", 1):7.0f}: {statistics.median(speed):.2f} '
      f'({min(speed):.2f} to {max(speed):.2f}); memory {median("peak_rss_mb", 0):5.0f} MB, TRL '
      f'{median("peak_rss_mb", 1):5.0f}: {statistics.median(memory):.2f}',
      flush=True,
    )  # fmt: skip


if __name__ == '__main__':
  main()
