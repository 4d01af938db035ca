"""Training and decoding against nanoGPT, nanodo, transformers and llama.cpp, in paired rounds. See README.md.

    python experiments/006-speed/run.py --torch TORCH_VENV/bin/python --peers FOLDER [--only M] [--rounds 5]

FOLDER holds checkouts named nanoGPT and nanodo, and gets the GGUF file. One JSON line per run goes to results.jsonl,
and a table of medians and of the median of the paired ratios to standard output.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
BENCH = [sys.executable, '-m', 'llmstack.main', 'bench']


def plan(torch, sizes):
  """Yields (what, {name: command}): commands of one `what` are run one after the other in each round."""
  train = lambda name, python, size, n: [python, str(HERE / f'peers/{name}_train.py'), '--size', size, '--steps', n]  # noqa: E731
  infer = lambda name, batch: [torch, str(HERE / f'peers/{name}_decode.py'), '--batch', batch, '--steps', '1']  # noqa: E731
  for size, steps in (('S', '60'), ('M', '3'), ('L', '2')):
    if size in sizes:
      commands = {'llmstack': [*BENCH, 'train', '--size', size, '--steps', steps]}
      commands['nanoGPT'] = train('nanogpt', torch, size, steps)
      if size == 'M':
        commands['nanodo'] = train('nanodo', sys.executable, size, steps)
      yield f'train {size}', commands
  for batch in ('1', '16'):
    if f'decode{batch}' in sizes:
      yield (
        f'decode, batch {batch}',
        {
          'llmstack': [*BENCH, 'decode', '--batch', batch, '--steps', '2'],
          'transformers': infer('hf', batch),
          'llama.cpp': infer('llamacpp', batch),
        },
      )


def run(command, peers):
  """Returns the JSON line of a command. Its standard error is shown where it fails."""
  env = dict(os.environ, PEERS=peers, JAX_PLATFORMS='cpu')
  done = subprocess.run(command, env=env, capture_output=True, text=True)
  if done.returncode:
    sys.exit(f'{" ".join(command)}\n{done.stderr[-3000:]}')
  return json.loads(done.stdout.splitlines()[-1])


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--torch', required=True, help='a Python with torch, transformers, llama-cpp-python and gguf')
  parser.add_argument('--peers', required=True, help='a folder with checkouts of nanoGPT and nanodo')
  parser.add_argument('--only', nargs='+', default=['S', 'M', 'L', 'decode1', 'decode16'])
  parser.add_argument('--rounds', type=int, default=5)
  args = parser.parse_args()
  for what, commands in plan(args.torch, args.only):
    rows = {name: [] for name in commands}
    for i in range(args.rounds):
      for name, command in commands.items():
        rows[name].append(run(command, args.peers))
        with open(HERE / 'results.jsonl', 'a') as f:
          f.write(json.dumps({'what': what, 'round': i, 'name': name} | rows[name][-1]) + '\n')
    ours = [r['tokens_per_s'] for r in rows['llmstack']]
    for name, own in rows.items():
      speed = [r['tokens_per_s'] for r in own]
      memory = statistics.median(r['peak_rss_mb'] for r in own)
      ratios = [a / b for a, b in zip(ours, speed)]
      print(
        f'{what:16s} {name:13s} {statistics.median(speed):9.1f} tokens/s, {memory:.0f} MB'
        f'; llmstack is {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) times as fast',
        flush=True,
      )


if __name__ == '__main__':
  main()
