"""Files of records -> prompts to learn from by reward, and the order in which they come.

The form of a record is the first of these whose fields are all there; a field that is null is not there:
  messages | conversations     up to the last turn of a user or a tool
  prompt                       text, messages, or a transcript that ends in 'Assistant:'
  Body, Question, Answer       SVAMP
  question, options, correct   AQuA: the options go below the question, the answer is a letter
  question | problem           GSM8K and others
  context, continuation        simple arithmetic: the continuation is the answer
  text, test_list              MBPP
  chosen, rejected             preference pairs: what both begin with
All other fields are the prompt's info. Its 'answer' is text: of GSM8K's what follows '####', of 51.0 it is '51'.
"""

import collections
import hashlib
import json
from typing import NamedTuple

import numpy as np

from llmstack.data import packing, records, sources
from llmstack.data.chat import check
from llmstack.data.sources import Bad
from llmstack.errors import BadInput

FORMS = (
  'messages', 'conversations', 'prompt', 'Body Question Answer', 'question options correct', 'question', 'problem',
  'context continuation', 'text test_list', 'chosen rejected',
)  # fmt: skip
ANSWERS = ('Answer', 'correct', 'continuation')  # fields of a form that are the answer
KEPT = ('test_list',)  # fields of a form that are info


class Prompt(NamedTuple):
  """One prompt.

  ids: list of int to generate from, the header of the assistant's turn included.
  messages: the conversation, which ends with a user or a tool.
  info: {field: value}, what a reward may want to know.
  """

  ids: list
  messages: list
  info: dict


def prompts(source, template, *, limit, instruction='', too_long='drop', counts=None):
  """Returns [Prompt] of all records, in the order of the files.

  source: sources.Source; its `on_error` 'skip' leaves bad records out. template: chat.Template.
  limit: tokens of the longest prompt: the model's window less the tokens to generate.
  instruction: text appended to the last message, such as '\\nAnswer with the number only.'.
  too_long: 'drop' = leave longer prompts out, 'refuse'.
  counts: collections.Counter of what was left out, by kind.

  Raises:
    BadInput: a record of no such form, with an empty prompt, or too long; no prompt left.
  """
  if too_long not in ('drop', 'refuse'):
    raise BadInput(f"too_long = {too_long!r}: choose 'drop' or 'refuse'")
  if limit < 1:
    raise BadInput(f'{limit} tokens are left for the prompt: generate fewer or take a model with a longer window')
  counts, out = collections.Counter() if counts is None else counts, []
  for where, record in sources.rows(source, counts):
    try:
      messages, info = _parts(where, {k: v for k, v in record.items() if v is not None})
      check(messages, where, prompt=True)
      if not messages[-1]['content'].strip():
        raise Bad('empty prompt', f'{where}: the prompt is empty: fill it or leave the record out')
    except Bad as bad:
      if source.on_error == 'raise':
        raise
      counts[bad.kind] += 1
      continue
    messages = [*messages[:-1], messages[-1] | {'content': messages[-1]['content'] + instruction}]
    ids = template.prompt(messages)
    if len(ids) <= limit:
      out.append(Prompt(ids, messages, info))
    elif too_long == 'refuse':
      raise BadInput(f'{where}: the prompt has {len(ids)} tokens, and {limit} fit: shorten it or drop such prompts')
    else:
      counts['too long'] += 1
  if not out:
    raise BadInput(f'no prompt is left of {", ".join(source.files)}; left out: {dict(counts)}')
  return out


def fingerprint(listed):
  """Returns 32 hex characters that change with any prompt, its info, or their order."""
  digest = hashlib.blake2b(digest_size=16)
  for prompt in listed:
    digest.update(f'{json.dumps(prompt, sort_keys=True, default=str)}\n'.encode())
  return digest.hexdigest()


def order(n, seed):
  """Returns the function: positions int[k] -> int64[k] in range(n), the prompt that each position of the stream has.

  Every n positions are another permutation of all. A pure function of n and seed: to resume is to go on counting.
  """
  key = packing.seed_key('prompts', seed)

  def index(positions):
    positions = np.asarray(positions, np.uint64).reshape(-1)
    keys = packing.scramble(key + positions // np.uint64(n) * np.uint64(0x9E3779B97F4A7C15))
    return packing.permute(positions % np.uint64(n), n, keys)

  return index


def _parts(where, record):
  """Returns (messages, info) of one record. Raises: Bad."""
  fields = next((fields for form in FORMS if set(fields := form.split()) <= set(record)), None)
  if fields is None:
    wanted = ', or '.join('+'.join(form.split()) for form in FORMS)
    raise Bad('missing field', f'{where} has fields {sorted(record)}, where {wanted} are needed: rename them')
  info = {k: v for k, v in record.items() if k not in fields or k in KEPT}
  answer = next((record[name] for name in (*ANSWERS, 'answer') if name in fields or name in info), None)
  if answer is not None:
    info['answer'] = _answer(answer, where)
  text = lambda name: sources.checked(record[name], where, name)  # noqa: E731
  if fields[0] == 'chosen':
    return records.compared(where, record).prompt, info
  if fields[0] in ('messages', 'conversations'):
    messages = records.messages_of(record[fields[0]], where)
    while messages and messages[-1]['role'] == 'assistant':
      messages.pop()
    return messages, info
  if fields[0] == 'prompt':
    return records.prompt_of(record['prompt'], where), info
  said = text(fields[0])
  if fields[0] == 'Body':
    said = f'{said.rstrip()}{"" if said.rstrip()[-1:] in ".,!?" else ","} {text("Question")}'
  elif 'options' in fields:
    if not isinstance(record['options'], list):
      raise Bad('field not a list', f'{where}: options is {record["options"]!r:.80}: give a list of texts')
    said = '\n'.join([said, *(sources.checked(option, where, 'options') for option in record['options'])])
  return [{'role': 'user', 'content': said}], info


def _answer(value, where):
  """Returns str of a reference answer, a text or a number."""
  if isinstance(value, float) and value.is_integer():
    value = int(value)
  if isinstance(value, bool) or not isinstance(value, str | int | float):
    raise Bad('bad answer', f'{where}: the answer is {value!r:.80}: give a text or a number')
  text = sources.checked(str(value), where, 'answer').strip()
  last = text.rpartition('\n')[2]
  text = last[4:].strip() if last.startswith('####') else text
  if not text:
    raise Bad('bad answer', f'{where}: the answer is empty: fill it or leave the record out')
  return text
