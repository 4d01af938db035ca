"""Files of records -> conversations, preference pairs and rated replies, under the field names that people have.

The names are detected record by record; `fields` says otherwise, {name here: name in the file}, such as
{'prompt': 'query', 'response': 'gold'}, and then nothing else of the record is looked at. A field that is null is a
field that is not there. Roles may be called human or prompter, gpt, model or bot.

What is wrong with a record is a BadInput that names the place; with source.on_error 'skip' it is counted by kind.
"""

import collections
import functools
import itertools
import re
from typing import NamedTuple

from llmstack.data import sources
from llmstack.data.chat import check
from llmstack.data.sources import Bad
from llmstack.errors import BadInput

NAMES = {
  'user': 'human prompter', 'assistant': 'gpt chatgpt model bot', 'tool': 'function observation ipython',
}  # fmt: skip
CALLED = {name: role for role, names in NAMES.items() for name in names.split()}
# The first whose fields are all there is the form of a record; what is in brackets may be missing.
CONVERSATIONS = (
  'messages', 'conversations', 'prompt completion', 'prompt response', 'instruction output [input]',
  'instruction response [context] [input]', 'question answer [rationale]',
)  # fmt: skip
PAIRS = (
  'chosen rejected [prompt]', 'messages replies',
  'instruction response1 response2 annotator1 annotator2 annotator3 [input]',
  'question answer_matching_behavior answer_not_matching_behavior', 'question predictions preference [passages]',
)  # fmt: skip
RATED = ('prompt completion label', 'prompt response label', 'chosen rejected [prompt]')
LARGEST = 3e38  # about that of float32, as which it is stored
SPEAKER = re.compile(r'\n\n(Human|Assistant):')


class Pair(NamedTuple):
  """One comparison of two replies.

  prompt: messages up to a user's or a tool's.
  chosen, rejected: messages that go on from there, from the assistant's to the assistant's.
  margin: how much better chosen is, 0 where the file does not say.
  label: probability that chosen is the better one, 1 where the file does not say.
  """

  prompt: list
  chosen: list
  rejected: list
  margin: float = 0.0
  label: float = 1.0


def conversations(source, counts=None, fields=None):
  """Yields (where, messages), each a whole conversation as `chat.check` wants it.

  Records:
    {messages} or {conversations}: [{role, content}] or [{from, value}].
    {prompt, completion} or {prompt, response}: text or messages each.
    {instruction, output, input?}, {instruction, response, context?}: input or context goes below the instruction,
      after an empty line.
    {question, answer, rationale?}: the reply is the rationale, an empty line and 'Answer: ' with the answer, so that
      what is thought comes before what is concluded, and the answer can be found.
  counts: collections.Counter for the bad records that source.on_error 'skip' leaves out, by kind.

  Raises:
    BadInput: a record of none of these forms, or no conversation.
  """
  yield from _each(source, counts, fields, CONVERSATIONS, _conversation)


def pairs(source, counts=None, fields=None, ranks='all'):
  """Yields (where, Pair).

  Records:
    {chosen, rejected, prompt?}: with a prompt, text or messages each. Whole conversations, as messages or as
      transcripts "\\n\\nHuman: ...\\n\\nAssistant: ...": what they share at the start is the prompt.
    {messages, replies}: replies from best to worst. ranks = 'all' pairs of them, or 'adjacent' ones.
    PandaLM, {instruction, input?, response1, response2, annotator1..3}: two of three annotators decide.
    QA-Feedback, {question, passages?, predictions, preference}: all pairs of predictions, with a label for each.
    Persona, {question, answer_matching_behavior, answer_not_matching_behavior}: matching is chosen.
    Ties of PandaLM and QA-Feedback are no pairs and counted as 'tie'.
  Beside them: label; margin, or score_chosen and score_rejected, whose difference it is.

  Raises:
    BadInput: as `conversations`; equal replies, different prompts, a margin that is not finite, a label outside 0..1.
  """
  if ranks not in ('all', 'adjacent'):
    raise BadInput(f"ranks = {ranks!r}: choose 'all' or 'adjacent'")
  counts = collections.Counter() if counts is None else counts

  def made(where, row, form):
    if 'replies' in form:
      yield from _ranked(where, row, ranks)
    elif 'chosen' in form:
      yield where, lambda: compared(where, row)
    else:
      yield from _judged(where, row, form, counts)

  yield from _each(source, counts, fields, PAIRS, made, 'margin label score_chosen score_rejected'.split())


def rated(source, counts=None, fields=None):
  """Yields (where, prompt messages, completion messages, desirable bool) of {prompt, completion | response, label}.

  A record of `pairs` {chosen, rejected, prompt?} is two: the chosen reply is desirable, the rejected one is not.

  Raises:
    BadInput: as `conversations`; a label that is not true or false (0 and 1 do).
  """

  def made(where, row, form):
    if 'chosen' in form:
      if 'label' in row and row['label'] == 0.5:  # a tie: neither is desirable
        if counts is not None:
          counts['tie'] += 1
        return
      pair = functools.cache(lambda: compared(where, row))
      yield where, lambda: (pair().prompt, pair().chosen, True)
      yield where, lambda: (pair().prompt, pair().rejected, False)
      return

    def one():
      if row['label'] not in (True, False):
        raise Bad('bad label', f'{where}: label is {row["label"]!r}: write true for a desirable reply or false')
      prompt, completion = prompt_of(row['prompt'], where), _reply(row[form[1]], where)
      check([*prompt, *completion], where)
      return prompt, completion, bool(row['label'])

    yield where, one

  for where, example in _each(source, counts, fields, RATED, made):
    yield where, *example


def _each(source, counts, fields, forms, made, extra=()):
  """Yields (where, example); made(where, row, form) yields (where, function that returns the example or raises Bad)."""
  counts = collections.Counter() if counts is None else counts
  forms = [form.replace('[', '').split() for form in forms]
  needs = [[name for name in form if not name.endswith(']')] for form in forms]
  known = {name.strip(']') for form in forms for name in form} | set(extra)
  if fields and (odd := set(fields) - known):
    raise BadInput(f'fields has {sorted(odd)}: choose from {sorted(known)}')

  def examples(where, row):
    row = {k: v for k, v in row.items() if v is not None}
    if fields:
      row = {name: row[there] for name, there in fields.items() if there in row}
    form = next((need for need in needs if set(need) <= set(row)), None)
    if form is None:
      wanted = ', or '.join('+'.join(need) for need in needs)
      raise Bad('missing field', f'{where} has fields {sorted(row)}, where {wanted} are needed: rename them')
    yield from made(where, row, form)

  for where, row in sources.rows(source, counts):
    found = examples(where, row)
    while True:
      # A bad example of a record leaves its others alive.
      try:
        here, make = next(found)
        example = make()
      except StopIteration:
        break
      except Bad as bad:
        if source.on_error == 'raise':
          raise Bad(bad.kind, f'{bad}; or have such records left out and counted with data.on_error=skip') from None
        counts[bad.kind] += 1
      else:
        yield here, example


def messages_of(value, where):
  """Returns [{role, content, ...}] of a list of messages in any of the spellings."""
  if not isinstance(value, list | tuple):
    raise Bad('field not messages', f'{where}: {value!r:.80} is no list of messages')
  out = []
  for message in value:
    if not isinstance(message, dict):
      raise Bad('field not messages', f'{where}: message {message!r:.80} is no object with role and content')
    message = {k: v for k, v in message.items() if v is not None}
    role, content = (message.pop(a, message.pop(b, None)) for a, b in (('role', 'from'), ('content', 'value')))
    if isinstance(role, str):
      role = CALLED.get(role.lower(), role.lower())
    out.append({'role': role, 'content': content, **message})
  return out


def _said(role, content):
  return [{'role': role, 'content': content}]


def prompt_of(value, where):
  """Returns messages of a prompt: a user's text, a transcript that ends in 'Assistant:', or messages."""
  if not isinstance(value, str):
    return messages_of(value, where)
  if SPEAKER.match(value):
    messages = _transcript(value)
    return messages[:-1] if messages[-1]['role'] == 'assistant' and not messages[-1]['content'] else messages
  return _said('user', value)


def _reply(value, where):
  return _said('assistant', value) if isinstance(value, str) else messages_of(value, where)


def _transcript(text):
  """Returns messages of Anthropic's "\\n\\nHuman: ...\\n\\nAssistant: ...", each without the space around it."""
  parts = SPEAKER.split(text)[1:]
  roles = {'Human': 'user', 'Assistant': 'assistant'}
  return [{'role': roles[who], 'content': said.strip()} for who, said in zip(parts[::2], parts[1::2])]


def _text(row, where, *names):
  """Returns the texts of these fields, as far as there are any, with an empty line between."""
  found = [sources.checked(row[name], where, name) for name in names if name in row]
  return '\n\n'.join(text for text in found if text.strip())


def _conversation(where, row, form):
  def one():
    if len(form) == 1:
      messages = messages_of(row[form[0]], where)
    elif form[0] == 'prompt':
      messages = prompt_of(row['prompt'], where) + _reply(row[form[1]], where)
    else:
      answer = _text(row, where, form[1])
      if 'answer' in form and _text(row, where, 'rationale'):
        answer = f'{_text(row, where, "rationale")}\n\nAnswer: {answer}'
      messages = _said('user', _text(row, where, form[0], 'context', 'input')) + _said('assistant', answer)
    check(messages, where)
    return messages

  yield where, one


def _pair(where, prompt, chosen, rejected, row):
  """Returns Pair, checked; label and margin are the row's."""
  for reply in (chosen, rejected):
    check([*prompt, *reply], where)
  check(prompt, where, prompt=True)
  if chosen == rejected:
    raise Bad('equal replies', f'{where}: chosen and rejected are the same: drop the pair')
  scores = [_number(row, name, where) for name in ('score_chosen', 'score_rejected') if name in row]
  if len(scores) == 1:
    raise Bad('bad score', f'{where} has one of score_chosen and score_rejected: give both or none')
  margin = _number(row, 'margin', where) if 'margin' in row else scores[0] - scores[1] if len(scores) == 2 else 0.0
  label = _number(row, 'label', where) if 'label' in row else 1.0
  if not 0 <= label <= 1:
    raise Bad('bad label', f'{where}: label is {label}: give the probability that chosen is better, 0 to 1')
  return Pair(prompt, chosen, rejected, margin, label)


def _number(row, name, where):
  value = row[name]
  if not isinstance(value, int | float) or not abs(value) < LARGEST:
    raise Bad(f'bad {name.split("_")[0]}', f'{where}: {name} is {value!r:.80}: give a finite number')
  return float(value)


def compared(where, row):
  """Returns the Pair of chosen and rejected, replies to `prompt` or whole conversations."""
  chosen, rejected = (
    _transcript(side) if isinstance(side, str) and SPEAKER.match(side) else _reply(side, where)
    for side in (row['chosen'], row['rejected'])
  )
  prompt = prompt_of(row['prompt'], where) if 'prompt' in row else []
  whole = [bool(side) and side[0]['role'] != 'assistant' for side in (chosen, rejected)]
  if not any(whole):
    if not prompt:
      raise Bad('missing field', f'{where}: chosen and rejected are replies without their prompt: add the field prompt')
    return _pair(where, prompt, chosen, rejected, row)
  if chosen == rejected:
    raise Bad('equal replies', f'{where}: chosen and rejected are the same: drop the pair')
  shared = sum(1 for _ in itertools.takewhile(lambda both: both[0] == both[1], zip(chosen, rejected)))
  rest = [side[shared:] for side in (chosen, rejected)]
  if not shared or not all(side and side[0]['role'] == 'assistant' for side in rest):
    raise Bad('prompts differ', f'{where}: chosen and rejected part before a reply, at message {shared}: drop the pair')
  # Beside whole conversations, data sets repeat the last question, or all of it, as the prompt.
  if prompt and prompt not in (chosen[:shared], chosen[shared - 1 : shared]):
    raise Bad('prompts differ', f'{where}: prompt is not what chosen and rejected begin with: drop one of the two')
  return _pair(where, chosen[:shared], *rest, row)


def _ranked(where, row, ranks):
  prompt, replies = messages_of(row['messages'], where), row['replies']
  if not isinstance(replies, list) or len(replies) < 2:
    raise Bad('too few replies', f'{where}: replies is {replies!r:.80}: give at least two, the best first')
  for i, j in itertools.combinations(range(len(replies)), 2):
    if ranks == 'all' or j == i + 1:
      here = f'{where}, replies {i} and {j}'
      yield here, lambda b=replies[i], w=replies[j], h=here: _pair(h, prompt, _reply(b, h), _reply(w, h), row)


def _judged(where, row, form, counts):
  """Yields the pairs of records whose sets have their own way to say which is better."""
  if 'annotator1' in form:
    prompt, replies = _text(row, where, 'instruction', 'input'), (row['response1'], row['response2'])
    votes = [row[f'annotator{i}'] for i in (1, 2, 3)]
    verdicts = [next((vote for vote in votes if votes.count(vote) > 1), 0)]
  elif 'preference' in form:
    for name in ('passages', 'predictions', 'preference'):
      if not isinstance(row.get(name, []), list):
        raise Bad('field not a list', f'{where}: {name} is {row[name]!r:.80}: give a list')
    passages = row.get('passages', [])
    prompt = '\n\n'.join([*(sources.checked(p, where, 'passages') for p in passages), _text(row, where, 'question')])
    replies, verdicts = row['predictions'], row['preference']
  else:
    prompt, verdicts = _text(row, where, 'question'), [1]
    replies = [_text(row, where, name).strip() for name in form[1:]]
  couples = list(itertools.combinations(replies, 2))
  if len(couples) != len(verdicts) or not all(verdict in (0, 1, 2) for verdict in verdicts):
    raise Bad('bad label', f'{where}: {verdicts} do not say of {len(couples)} pairs which is better, 1 or 2, or 0')
  for number, (two, verdict) in enumerate(zip(couples, verdicts)):
    here = where if len(couples) == 1 else f'{where}, pair {number}'
    if verdict == 0:
      counts['tie'] += 1
      continue
    best, worst = two if verdict == 1 else two[::-1]
    yield here, lambda b=best, w=worst, h=here: _pair(h, _said('user', prompt), _reply(b, h), _reply(w, h), row)
