"""report.json of a preparation -> one self-contained page, on which a person judges each rule."""

import json
import math
import os

from llmstack.errors import BadInput
from llmstack.report.build import fill


def read_prepared(workdir):
  """Returns the object in report.json, which a preparation writes. Raises: BadInput where it is not one."""
  path = os.path.join(workdir, 'report.json')
  with open(path, encoding='utf-8', errors='replace') as f:
    try:
      data = json.load(f)
    except json.JSONDecodeError as e:
      raise BadInput(f'{path} is not JSON ({e}): prepare the text again') from None
  if not isinstance(data, dict) or data.get('kind') != 'prepare' or not isinstance(data.get('sources'), dict):
    raise BadInput(f'{path} is not the report of a preparation: give the --workdir of one')
  return data


def finite(value, other):
  """Returns the JSON value with other(x) for each number that is not finite: JSON has none."""
  if isinstance(value, dict):
    return {k: finite(v, other) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [finite(v, other) for v in value]
  return other(value) if isinstance(value, float) and not math.isfinite(value) else value


def prepared(data):
  """Returns the HTML of a preparation.

  data: {'made': unix seconds, 'name', 'config': {..}, 'seconds': {stage: s}, 'raw_bytes', 'sources': {name: {'funnel':
    [[step, documents, bytes]], 'synthetic': bool}}}, where steps are 'read', 'cleaned', '- <rule>' with what it took
    away as negative numbers, 'kept'; and any of 'examples', 'edits', 'histograms', 'clusters', 'curve', 'languages',
    'leaks', 'leaked', 'mixture', 'tokenizer', 'skipped', 'shards'.
  """
  # A limit of infinity is none; in the configuration it keeps its name.
  return fill('prepared', data['name'], finite(data | {'config': finite(data['config'], str)}, lambda _: None))
