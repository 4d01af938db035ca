"""The way in: flags -> config -> TASKS[config.task](config, workdir).

    llmstack --config configs/pretrain.py:tiny --workdir runs/tiny --config.optim.lr=3e-4

A verb in place of the flags runs VERBS[verb](arguments): `llmstack report runs/tiny`. `python -m llmstack.main` is
`llmstack`.

On several hosts, the same command on each: TPU hosts and tasks of SLURM find each other, others are told

    llmstack --coordinator HOST:PORT --processes 2 --process 0 --config ... --workdir SHARED

where HOST is that of process 0, and workdir and data.folder are storage that all of them see.

Exit status: 0 done; 42 stopped safely or hung, restart me; 1 a bug, or training diverged; 78 the configuration, data
or checkpoint is wrong, which no retry will mend; 130 interrupted. SIGTERM and Ctrl-C stop training at the next step,
save it, and end with 42; Ctrl-C twice ends at once. `llmstack supervise -- COMMAND` restarts what may be restarted.
"""

import importlib
import inspect
import os
import re
import runpy
import sys

from absl import flags
from ml_collections import config_flags

from llmstack import runtime
from llmstack.errors import BadInput

# llmstack/tasks/<name>.py, function run(config, workdir)
TRAINING = ('pretrain', 'sft', 'reward', 'prefer', 'distill', 'rl')  # tasks that stop safely
TASKS = (
  *TRAINING, 'sample', 'recall', 'world', 'convert', 'aot', 'prepare', 'classify', 'synthesize', 'evaluate',
  'assistant', 'judge', 'constitution',
)  # fmt: skip
PODS = (*(t for t in TRAINING if t != 'rl'), 'sample')  # of these, which run on several hosts
VERBS = (
  'adapter',
  'bench',
  'checkpoints',
  'compare',
  'inspect',
  'label',
  'report',
  'supervise',
)  # function command(argv) -> exit status or None


def load(path):
  """Returns the config of 'configs/NAME.py:SIZE', locked: unknown keys are errors."""
  path, _, size = path.partition(':')
  if not path.endswith('.py') or not os.path.isfile(path):
    raise BadInput(f'{path} is not a config file: give the path of one, for example configs/pretrain.py:tiny')
  # A config file imports its neighbours as `configs.NAME`, wherever llmstack is started from.
  sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(path))))
  get_config = runpy.run_path(path).get('get_config')
  if get_config is None:
    raise BadInput(f'{path} has no get_config(): it is not an experiment')
  if size and not inspect.signature(get_config).parameters:
    raise BadInput(f'{path} has no sizes: leave out :{size}')
  return (get_config(size) if size else get_config()).lock()


def parse(argv):
  """Returns (config, flags) from the command line. Raises: BadInput with a sentence for each mistake."""
  first, second = flags.FlagValues(), flags.FlagValues()
  flags.DEFINE_string('config', None, 'configs/NAME.py:SIZE', flag_values=first)
  flags.DEFINE_string('workdir', None, 'folder for everything that this run writes', flag_values=first)
  flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0', flag_values=first)
  flags.DEFINE_integer('processes', None, 'how many there are', flag_values=first)
  flags.DEFINE_integer('process', None, 'which one this is, from 0', flag_values=first)
  flags.DEFINE_float('patience', 1800.0, 'seconds that the other processes have to come', flag_values=first)
  flags.DEFINE_float('heartbeat', 60.0, 'seconds after which a silent process counts as dead', flag_values=first)
  try:
    rest = first(argv, known_only=True)
  except flags.Error as e:
    raise BadInput(' '.join(str(e).split())) from None
  if first.config is None or first.workdir is None:
    raise BadInput('two flags are needed: --config configs/NAME.py:SIZE --workdir DIR')
  config = load(first.config)
  try:
    config_flags.DEFINE_config_dict('config', config, flag_values=second, sys_argv=rest)
    rest = second(rest)[1:]
  except (AttributeError, KeyError) as e:
    key, near = (re.search(p, str(e)) for p in (r"'(\w+)", r'Did you mean "(\w+)"'))
    hint = f': did you mean {near[1]!r}?' if near else ''
    raise BadInput(f'the config has no setting {key[1] if key else e!r}{hint}') from None
  except (flags.Error, TypeError) as e:
    raise BadInput(' '.join(str(e).split())) from None
  if rest:
    raise BadInput(f'{" ".join(rest)} is not a flag: settings are written --config.a.b=value')
  return config, first


def cli(argv=None):
  """Runs one task or verb and exits with its status. argv: None for the process's own, which it may then end."""
  own = argv is None
  argv = sys.argv if own else argv
  with runtime.begin() as watch:
    if len(argv) > 1 and argv[1] in VERBS:
      sys.exit(importlib.import_module(f'llmstack.tasks.{argv[1]}').command(argv[2:]))
    config, given = parse(argv)
    if config.task not in TASKS:
      raise BadInput(f'config.task = {config.task!r}: choose one of {", ".join(TASKS)}')
    if own and config.task in TRAINING:
      watch.start()
    where = given.coordinator, given.processes, given.process
    watch.pod = runtime.Pod.join(*where, patience=given.patience, heartbeat=given.heartbeat)
    if own and watch.pod.count > 1 and config.task not in TRAINING:
      watch.start()
    if watch.pod.count > 1 and config.task not in PODS:
      raise BadInput(f'{config.task} runs in one process, and here are {watch.pod.count}: leave out --processes')
    facts = {'code': runtime.code(), 'workdir': given.workdir, 'config': config.to_dict()}
    watch.pod.agree('settings', facts)
    importlib.import_module(f'llmstack.tasks.{config.task}').run(config, given.workdir)


if __name__ == '__main__':
  cli()
