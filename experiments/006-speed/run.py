"""Training and decoding against nanoGPT, nanodo, transformers and llama.cpp, in paired rounds. See README.md.

    python experiments/006-speed/run.py --torch TORCH_VENV/bin/python --peers FOLDER [--only M] [--rounds 5] [--gpu]

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
# Ours run with huge pages, as the project advises; the peers as they come (README.md has what it gives them).
BENCH = ['env', 'GLIBC_TUNABLES=glibc.malloc.hugetlb=1', sys.executable, '-m', 'llmstack.main', 'bench']


def train(name, python, size, n, *more):
  return [python, str(HERE / f'peers/{name}_train.py'), '--size', size, '--steps', n, *more]


def on_cpu(torch):
  """Yields (what, {name: command}): commands of one `what` are run one after the other in each round."""
  for size, steps in (('S', '60'), ('M', '3'), ('L', '2')):
    commands = {'llmstack': [*BENCH, 'train', '--size', size, '--steps', steps]}
    commands['nanoGPT'] = train('nanogpt', torch, size, steps)
    if size == 'S':
      commands['llmstack, 2 devices'] = ['env', 'JAX_NUM_CPU_DEVICES=2', *commands['llmstack'], '--microbatches', '1']
    if size == 'M':
      commands['nanodo'] = train('nanodo', sys.executable, size, steps)
    yield f'train {size}', commands
  for batch, steps in (('1', '3'), ('16', '1')):
    peers = {'transformers': 'hf', 'llama.cpp': 'llamacpp'}
    infer = [[torch, str(HERE / f'peers/{p}_decode.py'), '--batch', batch, '--steps', steps] for p in peers.values()]
    ours = [*BENCH, 'decode', '--batch', batch, '--steps', steps]
    yield f'decode {batch}', {'llmstack': ours} | dict(zip(peers, infer))


def on_gpu(torch):
  """Yields the same: bfloat16, against compiled torch, and decoding against the bandwidth of the memory."""
  for size in ('125M', '1B'):
    ours = [*BENCH, 'train', '--size', size, '--steps', '20', '--model', '{"attention": "cudnn"}']
    yield f'train {size}', {'llmstack': ours, 'nanoGPT': train('nanogpt', torch, size, '20', '--device', 'cuda')}
  billion = dict(layers=24, width=2048, heads=16, kv_heads=16, head_width=128, ff=5504)
  for batch in ('1', '16'):
    ours = [*BENCH, 'decode', '--batch', batch, '--steps', '3', '--model', json.dumps(billion)]
    yield f'decode {batch}', {'llmstack': ours}


def run(command, env):
  """Returns the JSON line of a command. Its standard error is shown where it fails."""
  done = subprocess.run(command, env=env, capture_output=True, text=True)
  if done.returncode:
    sys.exit(f'{" ".join(command)}\n{done.stderr[-3000:]}')
  return json.loads(done.stdout.splitlines()[-1])


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--torch', required=True, help='a Python with torch, transformers, llama-cpp-python and gguf')
  parser.add_argument('--peers', required=True, help='a folder with checkouts of nanoGPT and nanodo')
  parser.add_argument('--only', nargs='+', help="of 'train S', 'train M', 'train L', 'decode 1', 'decode 16', ...")
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--gpu', action='store_true', help='the plan for one GPU')
  args = parser.parse_args()
  env = dict(os.environ, PEERS=args.peers) | ({} if args.gpu else {'JAX_PLATFORMS': 'cpu'})
  for what, commands in (on_gpu if args.gpu else on_cpu)(args.torch):
    if args.only and what not in args.only:
      continue
    rows = {name: [] for name in commands}
    for i in range(args.rounds):
      for name, command in commands.items():
        rows[name].append(run(command, env))
        with open(HERE / 'results.jsonl', 'a') as f:
          f.write(json.dumps({'what': what, 'round': i, 'name': name} | rows[name][-1]) + '\n')
    ours = [r['tokens_per_s'] for r in rows['llmstack']]
    for name, own in rows.items():
      speed = [r['tokens_per_s'] for r in own]
      memory = statistics.median(r['peak_rss_mb'] for r in own)
      ratios = [a / b for a, b in zip(ours, speed)]
      print(
        f'{what:10s} {name:19s} {statistics.median(speed):9.1f} tokens/s, {memory:.0f} MB, first step or call '
        f'{statistics.median(r.get("first_step_s") or r["first_call_s"] for r in own):.1f} s'
        f'; llmstack is {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) times as fast',
        flush=True,
      )


if __name__ == '__main__':
  main()
