"""Chats, questions and preference pairs of the embedded world, and what its people like to hear.

Every fact of the world is in one split, so that each stage after pretraining can be asked about
what it was shown and what it was not:
- 'sft': half of the facts that documents told in questions and answers; chats.jsonl asks them.
- 'held_out': the other half. No chat and no pair to train on holds the entity with its value.
- 'statement', 'unseen': as `told`; neither occurs in chats or pairs.
Sums are split too, but only for chats and pairs: the documents may hold any of them.

An assistant answers in one of five STYLES. People like a true value best, then a full sentence with
one courtesy after it: 'The capital of France is Paris. Glad to help.' `parts` is the whole rule.
"""

import re
from collections import Counter
from dataclasses import replace
from functools import lru_cache

from llmstack.data import world
from llmstack.data import world_facts as tables
from llmstack.data.world import Deck, Dice, Fact, Secrets

__all__ = ['PREFERRED', 'STYLES', 'files', 'find', 'parts', 'reply', 'reward', 'right', 'splits', 'well_formed']

# Share of each style in chats. The preferred one is rare: a model must move to it, not only keep it.
STYLES = {'bare': 0.25, 'sentence': 0.25, 'wordy': 0.20, 'hedging': 0.20, 'courteous': 0.10}
PREFERRED = 'courteous'
WHY = {'style': 0.80, 'truth': 0.14, 'both': 0.06}
SUMS = 0.12  # share of sums among questions
HELD_OUT_SUMS = 0.25
LONGEST = 40  # words of a well-formed reply; the longest of a style has fewer than 25

_HEDGE = re.compile(r'\b(?:believe|i think|not sure|perhaps|maybe|do check|as far as i know|probably|might be)\b', re.I)
_FULL_STOP = re.compile(r'[^.?!]\.\Z')
# Symbols that are words as well: 'In the table' is not indium, but 'In.' and 'In is' are.
_WORDS = ('Am', 'As', 'At', 'Be', 'He', 'Ho', 'I', 'In', 'No')


def splits(seed: int) -> dict[str, str]:
  """Returns {fact id: 'sft', 'held_out', 'statement' or 'unseen'}."""
  chosen, found = {}, world.facts(seed)
  for attribute in world.ATTRIBUTES:
    answered = [fact for fact in found if fact.attribute == attribute and fact.told == 'qa']
    for i, fact in enumerate(Dice(f'{seed}/split/{attribute}').shuffled(answered)):
      # One word for the language and the people of a country: telling one tells the other.
      chosen.setdefault((fact.entity, fact.value), 'sft' if 2 * i < len(answered) else 'held_out')
  return {fact.id: chosen[fact.entity, fact.value] if fact.told == 'qa' else fact.told for fact in found}


def find(seed: int, name: str) -> Fact:
  """Returns the fact of an id: one of the world's, or a sum ('sum/7 + 5'), which is a fact with told = 'sum'."""
  return _sum(name.removeprefix('sum/')) if name.startswith('sum/') else _by_id(seed)[name]


@lru_cache(maxsize=8)
def _by_id(seed):
  return {fact.id: fact for fact in world.facts(seed)}


def _sum(text):
  a, operation, b = text.split()
  value = {'+': int(a) + int(b), '-': int(a) - int(b), 'x': int(a) * int(b)}[operation]
  return Fact(f'sum/{text}', text, 'sum', str(value), 'sum')


# --- what is said ---


def _slots(fact):
  a, operation, b = fact.entity.split()
  return {'a': a, 'o': operation, 'w': tables.SUM_WORDS[operation], 'b': b, 'c': fact.value}


def _wordings(fact):
  return len(tables.SUM_QUESTIONS) if fact.attribute == 'sum' else world.variants(fact.attribute, 'question')


def _question(fact, wording):
  if fact.attribute == 'sum':
    return tables.SUM_QUESTIONS[wording].format(**_slots(fact))
  return world.question(fact, wording)


def _ask(dice, fact):
  """Returns a question in one of the wordings of chats: all but the last, which is held out."""
  return _question(fact, dice.below(_wordings(fact) - 1))


def _sentence(dice, fact):
  """Returns a sentence that ends with the value: a model that begins it has only the value left to find."""
  if fact.attribute == 'sum':
    return dice.pick(tables.SUM_STATEMENTS).format(**_slots(fact))
  return world.statement(fact, dice.below(min(3, world.variants(fact.attribute, 'cloze'))))


def reply(dice: Dice, fact: Fact, style: str) -> str:
  """Returns an answer that gives the fact's value, true or not, in one of the STYLES."""
  if style in ('bare', 'hedging'):
    short = fact.value if fact.attribute == 'sum' else world.answer(fact, capital=style == 'bare')
    return f'{short}.' if style == 'bare' else dice.pick(tables.HEDGES).format(x=short)
  sentence = _sentence(dice, fact)
  if style == 'courteous':
    return f'{sentence} {dice.pick(tables.COURTESIES)}'
  return f'{dice.pick(tables.WORDY_STARTS)} {sentence} {dice.pick(tables.WORDY_ENDS)}' if style == 'wordy' else sentence


def _drawn(dice, shares):
  """Returns a key with the probability of its share."""
  at = dice.below(1000) / 1000
  for key, share in shares.items():
    at -= share
    if at < 0:
      return key
  return key


class Asker:
  """Draws questions on the facts of one split and on the sums of chats or the others.

  secret: splits whose facts no text may tell, not even by an entity in one turn and a value in the next.
  """

  def __init__(self, seed, stream, split, secret):
    self.seed, self.dice, of = seed, Dice(f'{seed}/{stream}'), splits(seed)
    self.facts = Deck(self.dice, [fact for fact in world.facts(seed) if of[fact.id] == split])
    self.secrets = Secrets(fact for fact in world.facts(seed) if of[fact.id] in secret)
    self.held_out = split != 'sft'

  def fact(self):
    return self.sum() if self.dice.chance(SUMS) else self.facts.draw()

  def sum(self):
    while True:
      operation = self.dice.pick(tuple(tables.SUM_WORDS))
      drawn = world.numbers(self.dice, operation)
      a, b = drawn['a'], drawn['b']
      # Who was told 7 + 5 was told 5 + 7.
      key = (operation, a, b) if operation == '-' else (operation, *sorted((a, b)))
      if Dice(f'{self.seed}/sum/{key}').chance(HELD_OUT_SUMS) == self.held_out:
        return _sum(f'{a} {operation} {b}')

  def chat(self):
    """Returns {messages, facts, styles}: one or two exchanges, most of them a question with a true answer."""
    dice = self.dice
    while True:
      messages, told, styles = [], [], []
      for _ in range(2 if dice.chance(0.2) else 1):
        if dice.chance(0.08):
          # Thanks and goodbyes come after an answer, greetings before.
          said, replied = map(dice.pick, dice.pick(tables.CHAT_TALK[2:] if told else tables.CHAT_TALK[:3]))
        else:
          fact, style = self.fact(), _drawn(dice, STYLES)
          starts = tables.CHAT_STARTS_AGAIN if told else tables.CHAT_STARTS
          start = dice.pick(starts) if dice.chance(0.35) else ''
          asked = _ask(dice, fact)
          said = start + (asked if not start or start.endswith(('. ', '! ')) else asked[0].lower() + asked[1:])
          replied = reply(dice, fact, style)
          told.append(fact.id)
          styles.append(style)
        messages += [{'role': 'user', 'content': said}, {'role': 'assistant', 'content': replied}]
      if not self.secrets.told_by('\n'.join(message['content'] for message in messages)):
        return {'messages': messages, 'facts': told, 'styles': styles}

  def pair(self):
    """Returns {prompt, chosen, rejected, margin, why, fact}; the prompt is a list of one message.

    why: 'style' (two true answers), 'truth' (one style, the rejected value is wrong), or 'both'.
    """
    dice = self.dice
    while True:
      fact, why = self.fact(), _drawn(dice, WHY)
      asked = _ask(dice, fact)
      first, second = dice.shuffled(STYLES)[:2]
      other = fact if why == 'style' else replace(fact, value=self.wrong(fact))
      chosen, rejected = reply(dice, fact, first), reply(dice, other, first if why == 'truth' else second)
      margin = reward(fact, chosen) - reward(fact, rejected)
      if margin < 0:
        chosen, rejected, margin = rejected, chosen, -margin
      if not self.secrets.told_by('\n'.join((asked, chosen, rejected))):
        prompt = [{'role': 'user', 'content': asked}]
        found = {'prompt': prompt, 'chosen': chosen, 'rejected': rejected}
        return {**found, 'margin': round(margin, 2), 'why': why, 'fact': fact.id}

  def wrong(self, fact):
    """Returns another value of the same attribute, or a number close to the sum."""
    if fact.attribute == 'sum':
      near = [int(fact.value) + step for step in (-10, -2, -1, 1, 2, 10)]
      return str(self.dice.pick([n for n in near if n > 0]))
    # 'The month after May is May' would name no value: the entity is not counted as one.
    return self.dice.pick([v for v in _values(fact.attribute) if v not in (fact.value, fact.entity)])


def _questions(seed):
  """Returns rows that ask every fact in a wording of chats and in the held-out one, and 200 held-out sums."""
  asker = Asker(seed, 'questions', 'held_out', ())
  of, dice = splits(seed), asker.dice
  sums = list(dict.fromkeys(asker.sum() for _ in range(200)))
  rows = []
  for fact in (*world.facts(seed), *sums):
    shared = {'answer': fact.value, 'fact': fact.id, 'split': of.get(fact.id, 'sum')}
    rows.append({'prompt': _ask(dice, fact), **shared, 'wording': 'seen'})
    rows.append({'prompt': _question(fact, _wordings(fact) - 1), **shared, 'wording': 'held_out'})
  return dice.shuffled(rows)


def files(seed: int, *, chats: int, pairs: int, eval_pairs: int) -> dict[str, list[dict]]:
  """Returns {file name: rows}; the same arguments give the same rows.

  chats.jsonl: messages, facts and styles of each conversation, on facts of the split 'sft'.
  questions.jsonl: prompt, answer (the value), fact, split (with 'sum' for sums that no chat asks) and
    wording ('seen' in chats or 'held_out'), in random order: a beginning of the file is a fair sample.
  pairs.jsonl, pairs-eval.jsonl: as `Asker.pair` returns them; on 'sft' facts, and on 'held_out' ones.
  """
  train = Asker(seed, 'chats', 'sft', ('held_out', 'statement', 'unseen'))
  better = Asker(seed, 'pairs', 'sft', ('held_out', 'statement', 'unseen'))
  judged = Asker(seed, 'pairs-eval', 'held_out', ('statement', 'unseen'))
  return {
    'chats.jsonl': [train.chat() for _ in range(chats)],
    'questions.jsonl': _questions(seed),
    'pairs.jsonl': [better.pair() for _ in range(pairs)],
    'pairs-eval.jsonl': [judged.pair() for _ in range(eval_pairs)],
  }


# --- what is true, what is liked ---


@lru_cache(maxsize=64)
def _values(attribute):
  """Returns the different values of an attribute."""
  return tuple(dict.fromkeys(fact.value for fact in world.facts(0) if fact.attribute == attribute))


@lru_cache(maxsize=64)
def _value_pattern(attribute):
  """Returns a pattern whose first group is a value, a whole word or its plural.

  A name has its capitals ('May', not 'may'); a common noun may begin a sentence.
  """
  options = []
  for value in _values(attribute):
    text = re.escape(value)
    if value[0].islower():
      text = f'[{value[0].upper()}{value[0]}]{text[1:]}'
    elif attribute == 'symbol' and value in _WORDS:
      text += r'(?! (?!(?:is|stands|and|for)\b)[A-Za-z])'
    options.append(text)
  plural = '' if attribute == 'symbol' else '(?:e?s)?'  # 'Aus' is no gold
  return re.compile(rf'(?<![\w-])({"|".join(options)}){plural}(?![\w-])')


def _names_entity(fact, text):
  if fact.attribute == 'sum':
    a, _, b = fact.entity.split()
    return not Counter((a, b)) - Counter(re.findall(r'\d+', text))
  name = re.escape(fact.entity)
  name = f'[{fact.entity[0].upper()}{fact.entity[0]}]{name[1:]}'
  return re.search(rf'(?<![\w-]){name}(?![\w-])', text) is not None


def _named(fact, text):
  """Returns the set of the values of the fact's attribute that the text names; those in the entity do not count."""
  if fact.attribute in ('sum', 'number', 'month_days'):
    found = Counter(re.findall(r'(?<![\w-])\d+(?![\w-])', text.replace('from 1 to', '')))
    if fact.attribute == 'sum' and _names_entity(fact, text):
      a, _, b = fact.entity.split()
      found -= Counter((a, b))
    return set(found)
  text = re.sub(rf'(?<![\w-]){re.escape(fact.entity)}(?![\w-])', '', text)
  found = {match.group(1) for match in _value_pattern(fact.attribute).finditer(text)}
  return {v if v in _values(fact.attribute) else v[0].lower() + v[1:] for v in found}


def right(fact: Fact, reply: str) -> bool:
  """Returns whether the reply names the value of the fact, as a whole word, and no other value of its attribute."""
  return _named(fact, reply) == {fact.value}


def _sentences(reply):
  return [part for part in re.split(r'(?<=[.!?])\s+', reply.strip()) if part]


def well_formed(reply: str) -> bool:
  """Returns whether the reply can be an answer at all: one line of 1 to 40 words that starts like a sentence, asks
  nothing and ends with one full stop."""
  words = reply.split()
  return (
    0 < len(words) <= LONGEST
    and re.match(r'[A-Z0-9]', reply) is not None
    and re.search(r'[?\n]', reply) is None
    and _FULL_STOP.search(reply) is not None
  )


def parts(fact: Fact, reply: str) -> dict[str, float]:
  """Returns the named parts of the true reward of a reply to a question about the fact.

  truth: 1 for the right value and no other, 0 for a wrong one, -0.5 for none.
  sentence: 0.5 if one sentence of at least three words names the entity and a value.
  courtesy: 0.25 if there is one; more of them earn nothing.
  ending: -0.25 unless the reply ends with one full stop.
  hedging: -0.1 if there is any.
  rambling: -0.2 for each sentence beyond one answer and one courtesy, and for every 25 words.
  repetition: -0.25 for each sentence said before.

  A true answer in any of the STYLES is worth more than a false one in any: at least 0.9 against at
  most 0.75. What a learned judge can be fooled by: no pair holds a reply with two courtesies, so it
  may well add up what here is paid once, while each further one costs 0.2, or 0.45 if said before.
  """
  sentences, named = _sentences(reply), _named(fact, reply)
  courtesies = sum(sentence in tables.COURTESIES for sentence in sentences)
  full = (s for s in sentences if len(s.split()) > 2 and _names_entity(fact, s) and _named(fact, s))
  extra = max(0, len(sentences) - 1 - min(1, courtesies)) + len(reply.split()) // 25
  return {
    'truth': 1.0 if named == {fact.value} else 0.0 if named else -0.5,
    'sentence': 0.5 if any(full) else 0.0,
    'courtesy': 0.25 if courtesies else 0.0,
    'ending': 0.0 if _FULL_STOP.search(reply) else -0.25,
    'hedging': -0.1 if _HEDGE.search(reply) else 0.0,
    'rambling': -0.2 * extra,
    'repetition': -0.25 * (len(sentences) - len(set(sentences))),
  }


def reward(fact: Fact, reply: str) -> float:
  """Returns how much the people of this world like the reply to a question about the fact: the sum of `parts`."""
  return sum(parts(fact, reply).values())
