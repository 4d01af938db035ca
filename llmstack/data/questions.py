"""Files of questions with known answers, recognised by their fields, as (context, continuation) to be scored or asked.

  query, choices, gold                       ARC, PIQA, COPA, OpenBookQA, SIQA, CommonsenseQA, BoolQ
  activity_label, ctx_a, ctx_b, endings, label     HellaSwag
  context_options, continuation, gold        WinoGrande: the context differs, and what follows is scored
  sentence_good, sentence_bad                BLiMP: whole sentences, the good one should be likelier
  context, continuation                      LAMBADA: one continuation, which greedy decoding must give
  prompt, answer | question, answer | input, target     to be answered by generation

Contexts and continuations are those of lm-evaluation-harness (doc_to_text, doc_to_choice, the space between them) and
of llm-foundry's in-context tasks; `join` is what stands between a query and a choice.
"""

import re
from typing import NamedTuple

from llmstack.data import sources
from llmstack.errors import BadInput

CHOICES = (
  ('query', 'choices', 'gold'), ('activity_label', 'ctx_a', 'ctx_b', 'endings', 'label'),
  ('context_options', 'continuation', 'gold'), ('sentence_good', 'sentence_bad'), ('context', 'continuation'),
)  # fmt: skip
ASKED = (('prompt', 'answer'), ('question', 'answer'), ('input', 'target'))


class Question(NamedTuple):
  where: str  # file and line
  pairs: tuple[tuple[str, str], ...]  # (context, continuation) of each choice; the space is the continuation's
  gold: int  # which of them is right
  sizes: tuple[int, ...]  # UTF-8 bytes of each continuation without what joins it to the context


class Asked(NamedTuple):
  where: str
  prompt: str
  answer: str


def kind(record, where, known):
  """Returns the first of `known` whose fields the record has. Raises: BadInput that names them all."""
  for fields in known:
    if all(f in record for f in fields):
      return fields
  wanted = '; '.join(' + '.join(fields) for fields in known)
  raise BadInput(f'{where} has the fields {sorted(record)}, and none of these sets is among them: {wanted}')


def split_space(context, continuation):
  """Returns both with white space moved from the end of the context to the continuation, as the harness does."""
  bare = context.rstrip()
  return bare, context[len(bare) :] + continuation


def plain(text):
  """Returns HellaSwag's text without the marks of WikiHow: '[title]' ends a sentence, others go."""
  return re.sub(r'\[.*?\]', '', text.strip().replace(' [title]', '. ')).replace('  ', ' ')


def question(record, where, fields, join):
  """Returns the Question of one record. Raises: BadInput for an empty continuation or a gold outside the choices."""
  for field in fields:
    several, value = field in ('choices', 'endings', 'context_options'), record[field]
    if field not in ('gold', 'label') and not (
      isinstance(value, list) and all(isinstance(v, str) for v in value) if several else isinstance(value, str)
    ):
      raise BadInput(f'{where}: {field} is {value!r}, not {"a list of texts" if several else "text"}: correct the line')
  if fields == CHOICES[3]:
    contexts, choices, gold, join = ['', ''], [record[f] for f in fields], 0, ''
  elif fields == CHOICES[4]:
    contexts, choices, gold = [record['context']], [record['continuation']], 0
  elif fields == CHOICES[2]:
    contexts, gold = record['context_options'], record['gold']
    choices = [record['continuation']] * len(contexts)
  elif fields == CHOICES[1]:
    a, b = record['ctx_a'], record['ctx_b']
    context = plain(f'{record["activity_label"]}: {a} {b[:1].upper()}{b[1:].lower()}')
    choices, gold = [plain(e) for e in record['endings']], record['label']
    contexts = [context] * len(choices)
  else:
    choices, gold = record['choices'], record['gold']
    contexts = [record['query']] * len(choices)
  gold = int(gold) if isinstance(gold, str) and gold.isdecimal() else gold
  if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(choices):
    raise BadInput(
      f'{where}: the right answer is {gold!r}, and there are {len(choices)} choices, counted from 0: correct it'
    )
  if len(choices) < 2 and fields != CHOICES[4]:
    raise BadInput(f'{where} has {len(choices)} choices: there is nothing to choose')
  if empty := [i for i, c in enumerate(choices) if not c.strip()]:
    raise BadInput(f'{where}: choice {empty[0]} is empty, and every context is likelier than none: leave the line out')
  # A choice that brings its space keeps it.
  pairs = (split_space(a + ('' if b[0].isspace() else join), b) for a, b in zip(contexts, choices))
  return Question(where, tuple(pairs), gold, tuple(len(c.strip().encode()) for c in choices))


def spread(items, limit):
  """Returns at most `limit` of the items, evenly spaced, because files are sorted by what they test; None for all."""
  n = len(items)
  return items if limit is None or n <= limit else [items[i * n // limit] for i in range(limit)]


def questions(files, *, join=' ', limit=None):
  """Returns ([Question], the fields by which they were recognised, those of the first line).

  files: paths or globs of .jsonl, compressed or not. Raises: BadInput, with the file and the line.
  """
  out, fields = [], None
  for where, record in spread(records(files), limit):
    fields = fields or kind(record, where, CHOICES)
    kind(record, where, (fields,))
    out.append(question(record, where, fields, join))
  return out, fields


def asked(files, *, limit=None):
  """Returns [Asked]. Raises: BadInput, with the file and the line."""
  out = []
  for where, record in spread(records(files), limit):
    values = [record[f] for f in kind(record, where, ASKED)]
    if not all(isinstance(v, str) and v.strip() for v in values):
      raise BadInput(f'{where}: {values!r} must be two texts, neither empty: correct the line')
    out.append(Asked(where, *values))
  return out


def records(files):
  """Returns [(where, record)] of every line. Raises: BadInput for none."""
  files = (files,) if isinstance(files, str) else tuple(files)
  found = list(sources.objects(sources.Source(files=files)))
  if not found:
    raise BadInput(f'{", ".join(files)} has no question: give a .jsonl file with some')
  return found
