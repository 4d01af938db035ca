"""A worker process: `python -m llmstack.rewards.worker MODULE:FUNCTION SECONDS`.

It says `ready`; then each line of stdin is JSON [prompt, completion, info], and each answer a number as JSON. Where the
function raises, the answer is a sentence as JSON, and the process ends: what it left behind is unknown. What the
function prints goes to stderr.
"""

import importlib
import json
import math
import os
import signal
import sys


def main(name, seconds):
  answers = os.fdopen(os.dup(1), 'w', buffering=1)
  os.dup2(2, 1)

  def raised(kind, error, trace):
    del trace
    print(json.dumps(f'{kind.__name__}: {error}'[:1000]), file=answers)

  sys.excepthook = raised
  module, _, function = name.partition(':')
  function = getattr(importlib.import_module(module), function)
  print('ready', file=answers)
  for line in sys.stdin:
    # If whoever asks is killed while the function hangs, nobody else would end this process.
    signal.alarm(math.ceil(2 * seconds) + 1)
    value = function(*json.loads(line))
    signal.alarm(0)
    print(json.dumps(float(value)), file=answers)


if __name__ == '__main__':
  main(sys.argv[1], float(sys.argv[2]))
