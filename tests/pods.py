"""Real processes of the command line, alone or several on loopback, each with its log."""

import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

from llmstack import metrics

ROOT = pathlib.Path(__file__).parent.parent
LIMIT = 120  # s; whoever takes longer hangs
HEARTBEAT = 10  # s

# A run of which every batch takes a tenth of a second, so that a signal meets it on the way; `at` is what a test adds.
SLOW = """
import os, sys, threading, time
from llmstack import main, runtime
from llmstack.data import pipeline

me = int(sys.argv[-1]) if '--process' in sys.argv else 0
real_batch, real_read = pipeline.Mixture.batch, pipeline.Rows.read

def say(words):
  print(words, file=sys.stderr, flush=True)

def at(step):
  pass

def evaluating():
  pass

def batch(self, step, *where):
  time.sleep(0.1)
  at(step)
  return real_batch(self, step, *where)

def read(self, rows):
  if threading.current_thread() is threading.main_thread():
    evaluating()
  return real_read(self, rows)

pipeline.Mixture.batch, pipeline.Rows.read = batch, read
"""


def text(folder):
  """Returns the path of a small text of five words."""
  path = folder / 'text.txt'
  if not path.exists():
    r = random.Random(0)
    path.write_text(' '.join(r.choice(('ant', 'bee', 'cow', 'dog', 'eel')) for _ in range(20_000)))
  return path


def training(folder, workdir, **settings):
  """Returns the arguments of a run on it; settings: config.key = value, with _ for a dot after the section."""
  settings = {
    'data.folder': folder / 'rows', 'data.sources.readme.files': repr((str(text(folder)),)), 'train.steps': 24,
    'checkpoint.every': 4, 'train.log_every': 1, 'train.tensorboard': False, 'eval.every': 8, 'eval.rows': 20,
    'eval.prompts': "('ant bee',)", 'eval.new_tokens': 8, 'tokenizer.vocab': 290, 'model.dropout': 0.1,
    'model.layers': 1, 'runtime.grace_s': 60.0,
  } | {k.replace('_', '.', 1): v for k, v in settings.items()}  # fmt: skip
  argv = ['--config', ROOT / 'configs/pretrain.py:tiny', '--workdir', folder / workdir]
  return argv + [f'--config.{k}={v}' for k, v in settings.items()]


def free_port():
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


class Pod:
  """The same command in `processes` processes of `devices` emulated devices each.

  folder: for logs, scripts and compiled programs. argv: after `llmstack`. fault: Python that follows SLOW in each
  process; None runs `python -m llmstack.main`. extra: {process: further arguments}.
  """

  def __init__(self, folder, argv, *, processes=1, devices=1, fault=None, extra=None, limit=LIMIT):
    self.began, self.limit, self.processes, self.logs = time.monotonic(), limit, [], []
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith('_proxy')}
    env |= {
      'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices), 'PYTHONPATH': str(ROOT),
      'JAX_DISABLE_MOST_OPTIMIZATIONS': '1', 'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }  # fmt: skip
    n = len(list(folder.glob('*.log')))
    run = ['-m', 'llmstack.main']
    if fault is not None:
      run = [folder / f'{n}.py']
      run[0].write_text(f'{SLOW}{fault}\nmain.cli()\n')
    where = ['--coordinator', f'127.0.0.1:{free_port()}', '--processes', processes, f'--heartbeat={HEARTBEAT}']
    for i in range(processes):
      full = [sys.executable, *run, *argv, *(extra or {}).get(i, [])]
      full += [*where, '--patience=60', '--process', i] if processes > 1 else []
      self.logs.append(folder / f'{n}-{i}.log')
      with open(self.logs[-1], 'w') as log:
        self.processes.append(subprocess.Popen([*map(str, full)], env=env, stdout=log, stderr=log, cwd=ROOT))

  def log(self, i=0):
    return self.logs[i].read_text()

  def tails(self):
    return '\n'.join(f'--- {log}\n{log.read_text()[-3000:]}' for log in self.logs)

  def until(self, holds, what):
    """Returns when holds() is true; fails where a process ends before, or at the limit."""
    while not holds():
      assert all(p.poll() is None for p in self.processes), f'ended before {what}\n{self.tails()}'
      self._tick(what)

  def until_said(self, words, i=0):
    self.until(lambda: words in self.log(i), repr(words))

  def until_step(self, workdir, step):
    self.until(lambda: max((r['step'] for r in metrics.read(workdir)), default=0) >= step, f'step {step}')

  def until_saving(self, workdir, step):
    self.until(lambda: list((workdir / 'checkpoints').glob(f'{step}*tmp*')), f'the save of step {step}')

  def _tick(self, what):
    if time.monotonic() > self.began + self.limit:
      self.kill()
      raise AssertionError(f'hung before {what}\n{self.tails()}')
    time.sleep(0.002)

  def send(self, number, i=None):
    for p in self.processes if i is None else [self.processes[i]]:
      p.send_signal(number)
    return self

  def kill(self):
    self.send(signal.SIGKILL)
    for p in self.processes:
      p.wait()

  def wait(self):
    """Returns the exit statuses, in order."""
    while any(p.poll() is None for p in self.processes):
      self._tick('its end')
    return [p.returncode for p in self.processes]

  def ends(self, *statuses):
    assert self.wait() == [*statuses], self.tails()
    return self
