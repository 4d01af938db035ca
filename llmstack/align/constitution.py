"""A constitution: principles that a person writes down, and the questions that they make of a reply.

    # what we ask of every reply
    critique: Does the answer help to do something bad?
    revision: Write a better answer.
    comparison: The better reply is less bad for other people.

    critique: Could someone be hurt by what the answer says?
    revision: Write the answer again,
      so that nobody is hurt.

Source: Constitutional AI, 2212.08073: critique and revision by a principle drawn at random, repeated (section 3.1), and
comparison of two replies by another (section 4.1). The paper's few-shot examples are left to the templates.
"""

import hashlib
import re
from typing import NamedTuple

from llmstack.errors import BadInput

FIELDS = ('critique', 'revision', 'comparison')
_KEY = re.compile(r'(\w+)\s*:\s*(.*)')


class Principle(NamedTuple):
  """What is asked of a reply: a critique, and after that a revision; and what makes one of two replies the better."""

  critique: str
  revision: str
  comparison: str = ''


def parse(text, path):
  """Returns [Principle] of a constitution, at least one.

  Principles are separated by blank lines. Each has the fields critique and revision, and may have comparison, in any
  order; a line that is indented goes on with the field above it. Lines that begin with # are comments, and separate
  nothing.

  path: names the file in the sentence. Raises: BadInput, with the line.
  """
  found, now, last = [], {}, None
  for number, line in enumerate([*text.split('\n'), ''], 1):
    where, bare = f'{path}, line {number}', line.strip()
    if bare.startswith('#'):
      continue
    if not bare:
      if now:
        found.append(_principle(now, where))
      now, last = {}, None
    elif line[0].isspace() and last:
      now[last] = f'{now[last]} {bare}'.strip()
    else:
      match = _KEY.fullmatch(bare)
      if match is None or match[1] not in FIELDS:
        raise BadInput(
          f'{where} is {bare!r:.80}: begin it with {", ".join(f"{f}:" for f in FIELDS)}, or indent it to go on'
        )
      last = match[1]
      if last in now:
        raise BadInput(f'{where} has a second {last}: leave a blank line between principles')
      now[last] = match[2]
  if not found:
    raise BadInput(f'{path} has no principles: write at least one, a line critique: ... and a line revision: ...')
  return found


def _principle(fields, where):
  for field in ('critique', 'revision', *fields):
    if not fields.get(field):
      raise BadInput(f'{where}: the principle that ends here has no {field}: write a line {field}: ...')
  return Principle(**fields)


def load(path):
  """Returns [Principle] of a file. Raises: BadInput where there is none, or no text in it, or as parse does."""
  try:
    with open(path, encoding='utf-8') as f:
      return parse(f.read(), path)
  except (OSError, UnicodeDecodeError) as e:
    raise BadInput(f'constitution = {path} cannot be read ({e}): give one, such as configs/constitution.txt') from None


def check_template(text, name, fields):
  """Returns the template; raises BadInput unless it has each of the {fields} and no other."""
  try:
    asked = set(re.findall(r'\{([^{}]*)\}', text))
    text.format(**dict.fromkeys(fields, ''))
  except (KeyError, ValueError, IndexError, AttributeError):
    asked = None
  if asked != set(fields):
    raise BadInput(f'{name} = {text!r:.120}: it must have {", ".join(f"{{{f}}}" for f in fields)} and no other field')
  return text


def drawn(principles, seed, row, round_):
  """Returns the number of the principle for a round of a row; the same on every machine, whatever else is drawn."""
  digest = hashlib.sha256(f'{seed}/{row}/{round_}'.encode()).digest()
  return int.from_bytes(digest[:8], 'big') % len(principles)


def request(messages):
  """Returns a conversation as the text of a request: that of its only message, or a transcript."""
  if len(messages) == 1:
    return messages[0]['content']
  return '\n'.join(f'{m["role"].capitalize()}: {m["content"]}' for m in messages)


def critique_prompt(template, principle, messages, draft):
  """Returns the messages that ask for a critique. template: with {request}, {draft} and {ask}."""
  text = template.format(request=request(messages), draft=draft, ask=principle.critique)
  return [{'role': 'user', 'content': text}]


def revision_prompt(template, principle, messages, draft, critique):
  """Returns the messages that ask for a revision. template: with {request}, {draft}, {critique} and {ask}."""
  text = template.format(request=request(messages), draft=draft, critique=critique, ask=principle.revision)
  return [{'role': 'user', 'content': text}]
