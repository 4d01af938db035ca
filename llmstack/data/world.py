"""The embedded world: a seeded generator of a small textual world with known truth.

A laptop without a network can run the whole life of a language model on it and check every stage:
the facts are real, each one is known to be told, told without questions, or never told, and every
kind of noise that a filter should find carries a label.

`told` is drawn per attribute and entity:
- 'qa': in statements and in questions with answers;
- 'statement': in statements only; a question about it never meets its answer in one document;
- 'unseen': no document holds both the entity and the value, so a model can only guess.
Attributes of fewer than 20 entities (planets, calendar) have no unseen facts: the days of the week
cannot be told in order with a hole in them.

`currency` is told in four wordings on purpose, every other attribute in twelve or more.
"""

import hashlib
import json
import os
import random
import re
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

from llmstack.data import world_facts as tables
from llmstack.data.world_facts import TOXIC_WORDS
from llmstack.errors import BadInput

__all__ = [
  'ATTRIBUTES',
  'TOXIC_WORDS',
  'Fact',
  'answer',
  'cloze',
  'facts',
  'generate',
  'numbers',
  'question',
  'statement',
  'variants',
]

# Part of the manifest's arguments: raise it when the same arguments give other bytes.
VERSION = 2
UNSEEN, STATEMENT = 0.10, 0.35
SMALL = 20
SHORTEST, LONGEST = 100, 900
CLEAN = {'article': 38, 'qa': 18, 'dialogue': 14, 'story': 14, 'arithmetic': 10, 'quiz': 6}
NOISE = {
  'exact_duplicate': 25,
  'near_duplicate': 25,
  'boilerplate': 20,
  'spam': 15,
  'toxic': 15,
}
EDIT_RATES = (0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Fact:
  """One true fact: `id` is 'attribute/entity', `told` one of 'qa', 'statement', 'unseen'."""

  id: str
  entity: str
  attribute: str
  value: str
  told: str


@dataclass(frozen=True)
class Attribute:
  """How facts of one kind are told; `statements` that end with the value come first."""

  kind: str
  label: str
  answer: str
  statements: tuple[str, ...]
  questions: tuple[str, ...]
  clozes: int


def _attributes():
  """Returns {name: Attribute} in the order of the tables."""
  found = {}
  for kind, (_, names) in tables.TABLES.items():
    for name in names:
      told = tables.WORDINGS[name]
      last = [w for w in told['statements'] if w.endswith('v}.')]
      rest = [w for w in told['statements'] if not w.endswith('v}.')]
      found[name] = Attribute(kind, told['label'], told['answer'], (*last, *rest), told['questions'], len(last))
  return found


ATTRIBUTES = _attributes()


class Dice:
  """Random choices that are the same on every Python.

  Only `random.random()` is promised to stay the same over versions for the same seed, so every
  choice is made from it. A text seed goes through SHA-512, not through `hash`.
  """

  def __init__(self, seed: str):
    self._random = random.Random(seed)

  def chance(self, share):
    return self._random.random() < share

  def below(self, n):
    return int(self._random.random() * n)

  def between(self, low, high):
    return low + self.below(high - low + 1)

  def pick(self, items):
    return items[self.below(len(items))]

  def shuffled(self, items):
    items = list(items)
    for i in range(len(items) - 1, 0, -1):
      j = self.below(i + 1)
      items[i], items[j] = items[j], items[i]
    return items


class Deck:
  """Items dealt in random order and shuffled again when all are out: even counts, not just fair."""

  def __init__(self, dice, items):
    self._dice, self._items, self._left = dice, tuple(items), []

  def draw(self):
    if not self._left:
      self._left = self._dice.shuffled(self._items)
    return self._left.pop()

  def several(self, n):
    """Returns up to n different items."""
    return list(dict.fromkeys(self.draw() for _ in range(n)))


def _rows(kind):
  """Returns the rows of one table as lists of cells."""
  lines = tables.TABLES[kind][0].strip().splitlines()
  return [[cell.strip() for cell in line.split('|')] for line in lines]


def _bare(name):
  return name.removeprefix('the ')


# entity -> as it stands in a sentence: 'the Netherlands'
_IN_SENTENCE = {_bare(row[0]): row[0] for kind in tables.TABLES for row in _rows(kind)}
_KIND = {_bare(row[0]): kind for kind in tables.TABLES for row in _rows(kind)}


def facts(seed: int) -> list[Fact]:
  """Returns all facts in the order of the tables; only `told` depends on the seed."""
  return list(_facts(seed))


@lru_cache(maxsize=8)
def _facts(seed):
  found, told = [], {}
  for kind, (_, attributes) in tables.TABLES.items():
    rows = _rows(kind)
    for column, attribute in enumerate(attributes, start=1):
      pairs = [(_bare(row[0]), row[column]) for row in rows if row[column] != '-']
      order = Dice(f'{seed}/told/{attribute}').shuffled(pairs)
      unseen = round(UNSEEN * len(order)) if len(order) >= SMALL else 0
      statement_only = round(STATEMENT * len(order))
      for i, pair in enumerate(order):
        # The language and the people of a country often share a word: telling one tells the
        # other, so the class drawn first stays.
        told.setdefault(pair, 'unseen' if i < unseen else 'statement' if i < unseen + statement_only else 'qa')
      found += [Fact(f'{attribute}/{e}', e, attribute, v, told[e, v]) for e, v in pairs]
  return tuple(found)


def variants(attribute: str, form: str = 'statement') -> int:
  """Returns how many variants `statement`, `question` or `cloze` (the form) has for an attribute.

  The first `variants(attribute, 'cloze')` statements are those that end with the value:
  `cloze(fact, i)` and `statement(fact, i)` are the same sentence.
  """
  how = ATTRIBUTES[attribute]
  counts = {'statement': len(how.statements), 'question': len(how.questions), 'cloze': how.clozes}
  return counts[form]


def statement(fact: Fact, variant: int) -> str:
  """Returns a complete sentence that tells the fact."""
  return _capital(_wording(fact, 'statement', variant))


def question(fact: Fact, variant: int) -> str:
  """Returns a question whose answer is the value of the fact."""
  return _capital(_wording(fact, 'question', variant))


def answer(fact: Fact, capital: bool = True) -> str:
  """Returns the short answer, without a full stop: 'Paris', 'The yen', 'A noble gas'."""
  short = ATTRIBUTES[fact.attribute].answer.format(**_slots(fact))
  return _capital(short) if capital else short


def cloze(fact: Fact, variant: int) -> tuple[str, str]:
  """Returns (prompt, continuation): ('The capital of France is', ' Paris')."""
  sentence = _capital(_wording(fact, 'cloze', variant))
  continuation = f' {fact.value}'
  return sentence.removesuffix(f'{continuation}.'), continuation


def _wording(fact, form, variant):
  """Returns the sentence as it stands after a comma, not yet capitalised."""
  n = variants(fact.attribute, form)
  if not 0 <= variant < n:
    raise ValueError(f'{fact.attribute} has the {form} variants 0 to {n - 1}, not {variant}')
  how = ATTRIBUTES[fact.attribute]
  return (how.questions if form == 'question' else how.statements)[variant].format(**_slots(fact))


@lru_cache(maxsize=4096)
def _slots(fact):
  e, v = _IN_SENTENCE[fact.entity], fact.value
  return {'e': e, 'es': e + ("'" if e.endswith('s') else "'s"), 'v': v, 'av': _with_article(v)}


def _with_article(noun):
  return f'{"an" if noun[0] in "aeiou" else "a"} {noun}'


def _capital(text):
  return text[:1].upper() + text[1:]


def _lower(text):
  return text[:1].lower() + text[1:]


def _listed(words):
  """Returns 'a, b and c'."""
  return f'{", ".join(words[:-1])} and {words[-1]}' if len(words) > 1 else words[0]


@lru_cache(maxsize=4096)
def _whole(word, exact):
  """Returns a pattern for the word, also in the plural, not inside another word."""
  return re.compile(rf'(?<![\w-]){re.escape(word)}(?:e?s)?(?![\w-])', 0 if exact else re.IGNORECASE)


def _holds(text, fact):
  """Returns whether the text holds the value; 'He' is a symbol and 'he' is not."""
  return _whole(fact.value, fact.attribute == 'symbol').search(text) is not None


class Secrets:
  """Facts that a text must not tell."""

  def __init__(self, hidden):
    self._by_word = {}
    for fact in hidden:
      self._by_word.setdefault(fact.entity.split()[0].lower(), []).append(fact)

  def told_by(self, text):
    """Returns whether the text holds the entity and the value of one of them."""
    for word in dict.fromkeys(re.findall(r'\w+', text.lower())):
      for fact in self._by_word.get(word, ()):
        if _holds(text, fact) and _whole(fact.entity, False).search(text):
          return True
    return False


def numbers(dice: Dice, operation: str, least: int = 1) -> dict:
  """Returns {a, b, c}: a operation b = c, or for '>' a > b; the result is at least `least`."""
  if operation == 'x':
    a, b = dice.between(2, 10), dice.between(2, 10)
    return {'a': a, 'b': b, 'c': a * b}
  top = dice.pick((10, 20, 100))
  b, c = dice.between(least, top // 2), dice.between(least, top // 2)
  if operation == '+':
    return {'a': b, 'b': c, 'c': b + c}
  return {'a': b + c, 'b': b, 'c': c}


@dataclass
class Draft:
  """A text with what is known about it."""

  text: str
  told: list[Fact] = field(default_factory=list)
  asked: list[Fact] = field(default_factory=list)
  base: str | None = None
  source: int | None = None  # of a duplicate: the index of the original among the clean ones
  edits: int = 0
  edit_rate: float = 0.0
  toxic_words: int = 0
  boilerplate: list[list[int]] = field(default_factory=list)  # [start, end) in characters


class Writer:
  """Writes documents of one world. Every method named after a kind returns a Draft."""

  def __init__(self, seed):
    dice = self.dice = Dice(f'{seed}/documents')
    self.facts = facts(seed)
    open_facts = [fact for fact in self.facts if fact.told != 'unseen']
    answered = [fact for fact in open_facts if fact.told == 'qa']

    def by_attribute(chosen):
      return {a: Deck(dice, [f for f in chosen if f.attribute == a]) for a in ATTRIBUTES}

    self.open_by_entity = {entity: [] for entity in _KIND}
    for fact in open_facts:
      self.open_by_entity[fact.entity].append(fact)
    self.by_group = {}
    for fact in open_facts:
      if fact.attribute in tables.GROUPS:
        self.by_group.setdefault((fact.attribute, fact.value), []).append(fact)
    self.by_group = {key: group for key, group in self.by_group.items() if len(group) > 1}
    self.never_told = Secrets(f for f in self.facts if f.told == 'unseen')
    self.never_answered = Secrets(f for f in self.facts if f.told != 'qa')
    self.entities = Deck(dice, [e for e in _KIND if self.open_by_entity[e]])
    self.open = Deck(dice, open_facts)
    self.answered = Deck(dice, answered)
    self.open_of = by_attribute(open_facts)
    self.answered_of = by_attribute(answered)
    self.groups = Deck(dice, self.by_group)
    self.plots = Deck(dice, tables.PLOTS)
    self.topics = Deck(dice, tables.SMALL_TALK)
    self.seen = set()

  def clean(self, kind):
    """Returns a new draft of a clean kind: of good length, new, and leaking nothing."""
    secrets = self.never_answered if kind in ('qa', 'dialogue') else self.never_told
    while True:
      draft = getattr(self, kind)()
      length = len(draft.text)
      if not SHORTEST <= length <= LONGEST or draft.text in self.seen:
        continue
      if secrets.told_by(draft.text):
        continue
      self.seen.add(draft.text)
      return draft

  # --- facts in prose ---

  def tell(self, fact, connective=''):
    wording = _wording(fact, 'statement', self.dice.below(variants(fact.attribute)))
    return _capital(connective + wording)

  def ask(self, fact):
    return question(fact, self.dice.below(variants(fact.attribute, 'question')))

  def article(self):
    if self.dice.chance(0.05):
      return self.sequence()
    profile, several = self.profile, self.several
    return self.dice.pick((profile, profile, profile, several, several, self.sheet, self.group))()

  def profile(self):
    """One or two entities, all that may be told about them."""
    first = self.entities.draw()
    subjects = [first]
    if len(self.open_by_entity[first]) < 3 or self.dice.chance(0.25):
      others = [e for e in _KIND if _KIND[e] == _KIND[first] and self.open_by_entity[e]]
      subjects = list(dict.fromkeys((first, self.dice.pick(others))))
    told, paragraphs = [], []
    for entity in subjects:
      kind, dice = _KIND[entity], self.dice
      chosen = dice.shuffled(self.open_by_entity[entity])
      sentences = [_capital(dice.pick(tables.OPENERS[kind]).format(e=_IN_SENTENCE[entity]))]
      aside = dice.below(2 * len(chosen))
      for i, fact in enumerate(chosen):
        sentences.append(self.tell(fact, dice.pick(tables.CONNECTIVES) if i else ''))
        if i == aside:
          sentences.append(dice.pick(tables.ASIDES[kind]))
      if dice.chance(0.5):
        sentences.append(self.tell(dice.pick(chosen), dice.pick(tables.REPEATS)))
      told += chosen
      paragraphs.append(' '.join(sentences))
    if self.dice.chance(0.3):
      paragraphs[-1] += f' {self.dice.pick(tables.CLOSERS)}'
    return Draft('\n\n'.join(paragraphs), told)

  def several(self):
    """One attribute of several entities, each in another wording."""
    dice = self.dice
    attribute = self.open.draw().attribute
    told = self.open_of[attribute].several(dice.between(3, 7))
    kind = ATTRIBUTES[attribute].kind
    style = dice.pick(('prose', 'prose', 'lines', 'bullets'))
    if style == 'prose':
      sentences = [self.tell(told[0])]
      sentences += [self.tell(fact, dice.pick(tables.CONNECTIVES)) for fact in told[1:]]
      if dice.chance(0.4):
        sentences.append(dice.pick(tables.CLOSERS))
      text = ' '.join(sentences)
    else:
      text = '\n'.join(('- ' if style == 'bullets' else '') + self.tell(fact) for fact in told)
    if style != 'prose' or dice.chance(0.5):
      text = f'{dice.pick(tables.TITLES[kind])}\n\n{text}'
    return Draft(text, told)

  def sheet(self):
    """Facts as 'Capital: Paris' lines under the name of the entity."""
    first = self.entities.draw()
    others = [e for e in _KIND if _KIND[e] == _KIND[first] and self.open_by_entity[e]]
    subjects = list(dict.fromkeys([first, *self.dice.shuffled(others)]))
    told, blocks = [], []
    for entity in subjects[: self.dice.between(2, 4)]:
      chosen = self.open_by_entity[entity]
      told += chosen
      lines = [f'{ATTRIBUTES[fact.attribute].label}: {fact.value}' for fact in chosen]
      blocks.append('\n'.join((_capital(entity), *lines)))
    return Draft('\n\n'.join(blocks), told)

  def group(self):
    """Entities with the same value in one sentence, then some of them one by one."""
    told, paragraphs = [], []
    for key in self.groups.several(self.dice.between(1, 2)):
      attribute, value = key
      chosen = self.dice.shuffled(self.by_group[key])[: self.dice.between(2, 5)]
      slots = {'all': _listed([_IN_SENTENCE[fact.entity] for fact in chosen]), 'v': value}
      slots['vs'] = value + ('es' if value.endswith('s') else 's')
      sentences = [_capital(self.dice.pick(tables.GROUPS[attribute]).format(**slots))]
      for fact in chosen[: self.dice.between(1, 3)]:
        extra = self.dice.pick(self.open_by_entity[fact.entity])
        sentences.append(self.tell(extra, self.dice.pick(tables.CONNECTIVES)))
        chosen = list(dict.fromkeys([*chosen, extra]))
      told += chosen
      paragraphs.append(' '.join(sentences))
    return Draft('\n\n'.join(paragraphs), list(dict.fromkeys(told)))

  def sequence(self):
    """Days, months or planets in their order, and a few facts about them."""
    kind = self.dice.pick(tuple(tables.LISTS))
    names = _listed([entity for entity in _KIND if _KIND[entity] == kind])
    chosen = self.dice.shuffled(self.open_facts_of(kind))[: self.dice.between(2, 6)]
    sentences = [self.tell(fact, self.dice.pick(tables.CONNECTIVES)) for fact in chosen]
    whole = self.dice.pick(tables.LISTS[kind]).format(all=names)
    sentences.insert(self.dice.pick((0, len(sentences))), whole)
    return Draft(f'{self.dice.pick(tables.TITLES[kind])}\n\n{" ".join(sentences)}', chosen)

  def open_facts_of(self, kind):
    return [fact for e, k in _KIND.items() if k == kind for fact in self.open_by_entity[e]]

  # --- questions ---

  def quiz(self):
    """Questions only, so that a base model goes on with the next question."""
    dice = self.dice
    asked = self.open.several(dice.between(3, 9))
    if dice.chance(0.4):
      asked = self.open_of[asked[0].attribute].several(dice.between(3, 8))
    lines = [self.ask(fact) for fact in asked]
    if dice.chance(0.2):
      lines.append(f'What is {dice.between(2, 20)} + {dice.between(2, 20)}?')
    style = dice.pick(('{q}', '{q}', '{i}. {q}', '{i}) {q}', '- {q}', 'Q: {q}', '[{i}] {q}'))
    text = '\n'.join(style.format(i=i, q=q) for i, q in enumerate(lines, start=1))
    title = dice.pick(tables.QUIZ_TITLES)
    return Draft(f'{title}\n\n{text}' if title else text, asked=asked)

  def qa(self):
    """Questions with their answers, in one format per page."""
    dice = self.dice
    told = self.answered.several(dice.between(2, 7))
    if dice.chance(0.4):
      told = self.answered_of[told[0].attribute].several(dice.between(2, 7))
    title = dice.pick(tables.QA_TITLES)
    style, gap = dice.pick(
      (
        ('Q: {q}\nA: {a}', '\n'),
        ('Q: {q}\nA: {a}', '\n\n'),
        ('Question: {q}\nAnswer: {a}', '\n\n'),
        ('Question: {q}\nAnswer: {a}', '\n'),
        ('{q}\n{a}', '\n\n'),
        ('{i}. {q}\n{a}', '\n'),
        ('{q} {a}', '\n'),
      )
    )
    if style == '{q}\n{a}':
      title = dice.pick(tables.FAQ_TITLES)
    reply = dice.pick(('{x}', '{x}.', '{x}.', '{t}', 'mixed'))
    pairs = []
    for i, fact in enumerate(told, start=1):
      form = dice.pick(('{x}.', '{t}')) if reply == 'mixed' else reply
      replied = form.format(x=answer(fact), t=self.tell(fact))
      pairs.append(style.format(i=i, q=self.ask(fact), a=replied))
    text = gap.join(pairs)
    return Draft(f'{title}\n\n{text}' if title else text, told)

  def dialogue(self):
    """Two people talk; what they ask about is told as 'qa'."""
    dice = self.dice
    names = dice.shuffled((*tables.WOMEN, *tables.MEN))[:2]
    turns, told = [], []

    def say(speaker, text):
      if turns and turns[-1][0] == speaker:
        turns[-1][1] += f' {text}'
      else:
        turns.append([speaker, text])

    def exchange(first, wordings):
      slots = {'A': names[first], 'B': names[1 - first], **self.things()}
      for i, choice in enumerate(wordings):
        say((first + i) % 2, dice.pick(choice).format(**slots))

    if dice.chance(0.8):
      exchange(0, dice.pick(tables.GREETINGS))
    talk, questions = dice.pick(((1, 0), (2, 0), (0, 1), (0, 2), (0, 3), (1, 1), (1, 2)))
    for _ in range(talk):
      exchange(dice.below(2), self.topics.draw())
    asker = dice.below(2)
    for i in range(questions):
      fact = self.answered.draw()
      told.append(fact)
      start = dice.pick(tables.ASKS_AGAIN if i else tables.ASKS)
      asked = self.ask(fact)
      say(asker, start + (asked if not start or start.endswith('. ') else _lower(asked)))
      say(1 - asker, dice.pick(tables.REPLIES).format(x=answer(fact), t=self.tell(fact)))
    if dice.chance(0.7):
      exchange(asker, dice.pick(tables.FAREWELLS))
    return Draft('\n'.join(f'{names[speaker]}: {text}' for speaker, text in turns), told)

  # --- arithmetic and stories ---

  def arithmetic(self):
    """A page of correct sums, comparisons or word problems in small numbers."""
    dice = self.dice
    wanted = dice.between(SHORTEST, 500)
    style = dice.pick(('one', 'same', 'mixed', 'problems', 'problems'))
    operation = dice.pick(tuple(tables.SUMS))
    wording = dice.below(5)
    lines, size = [], 0
    while size < wanted:
      if style == 'problems':
        line = self.problem()
      else:
        if style == 'mixed':
          operation = dice.pick(tuple(tables.SUMS))
        choice = wording if style == 'one' else dice.below(len(tables.SUMS[operation]))
        line = tables.SUMS[operation][choice].format(**numbers(dice, operation))
      lines.append(line)
      size += len(line) + 1
    title = dice.pick(tables.ARITHMETIC_TITLES)
    text = '\n'.join(lines)
    return Draft(f'{title}\n\n{text}' if title else text)

  def problem(self):
    dice = self.dice
    operation = dice.pick(tuple(tables.PROBLEMS))
    slots = {**self.people(), **numbers(dice, operation, least=2), 'k': dice.pick(tables.COUNTED)}
    return dice.pick(tables.PROBLEMS[operation]).format(**slots)

  def people(self):
    """Returns the slots of a hero and a friend."""
    n, m = self.dice.shuffled((*tables.WOMEN, *tables.MEN))[:2]
    he, him, his = ('she', 'her', 'her') if n in tables.WOMEN else ('he', 'him', 'his')
    slots = {
      'n': n,
      'm': m,
      'he': he,
      'him': him,
      'his': his,
      'He': _capital(he),
      'His': _capital(his),
    }
    return {**slots, 'himself': f'{him}self'}

  def things(self, objects=tables.OBJECTS, places=tables.PLACES, foods=tables.FOODS):
    """Returns the slots of things; 'ao' and 'aa' carry their article."""
    dice = self.dice
    thing = dice.pick(objects)
    animal, animal2 = dice.shuffled(tables.ANIMALS)[:2]
    food, food2 = dice.shuffled(foods)[:2]
    coloured = _with_article(f'{dice.pick(tables.COLOURS)} {thing}')
    return {
      'o': thing, 'co': coloured, 'ao': coloured, 'a': animal, 'aa': _with_article(animal),
      'aa2': _with_article(animal2), 'f': food, 'f2': food2, 'F': _capital(food),
      'p': dice.pick(places), 's': dice.pick(tables.SPOTS), 'h': dice.pick(tables.HELPERS),
      'i': dice.pick(tables.MISSING), 'fear': dice.pick(tables.FEARS),
    }  # fmt: skip

  def story(self):
    """A problem and its end; names, thing and place stay the same throughout."""
    plot = self.plots.draw()
    objects, steps = tables.PLOTS[plot]
    foods = tables.BAKED if plot == 'cooking' else tables.FOODS
    slots = {**self.people(), **self.things(objects, tables.OUTDOORS, foods)}
    chosen = [self.dice.pick(step).format(**slots) for step in steps]
    return Draft(' '.join(sentence for sentence in chosen if sentence))

  # --- noise ---

  def noise(self, kind, originals):
    """Returns a new draft of a noise kind; `originals` are the clean (kind, Draft) to copy."""
    while True:
      if kind.endswith('_duplicate'):
        source = self.dice.below(len(originals))
        base, original = originals[source]
        draft = getattr(self, kind)(original)
        draft.base, draft.source = base, source
      else:
        draft = getattr(self, kind)()
      # Only what is labelled as a copy may be one: a filter is measured against the labels.
      if kind == 'exact_duplicate':
        return draft
      if SHORTEST <= len(draft.text) <= LONGEST and draft.text not in self.seen:
        self.seen.add(draft.text)
        return draft

  def boilerplate(self):
    """Menus, banners and footers, mostly around a good text."""
    dice = self.dice
    slots = {'y': dice.between(2005, 2024), 'site': dice.pick(tables.SITES)}
    menus, banners, footers = (
      [line.format(**slots) for line in dice.shuffled(lines)]
      for lines in (tables.MENUS, tables.BANNERS, tables.FOOTERS)
    )
    before = '\n'.join([*menus[: dice.between(1, 2)], *banners[: dice.between(0, 2)]])
    after = '\n'.join([*footers[: dice.between(1, 3)], *menus[2 : dice.between(2, 3)]])
    if dice.chance(0.3):
      text = '\n'.join((before, *banners[2:4], after))
      return Draft(text, boilerplate=[[0, len(text)]])
    base = dice.pick(('article', 'story', 'qa'))
    good = self.clean(base)
    start = len(before) + 2
    end = start + len(good.text)
    text = f'{before}\n\n{good.text}\n\n{after}'
    return Draft(text, good.told, base=base, boilerplate=[[0, start], [end, len(text)]])

  def spam(self):
    """Keywords, shouting and repetition."""
    dice = self.dice
    goods = dice.shuffled(tables.GOODS)[: dice.between(1, 2)]
    lines = []
    for _ in range(dice.between(6, 16)):
      thing = dice.pick(goods)
      lines += [dice.pick(tables.SPAM).format(g=thing, G=thing.upper())] * dice.pick((1, 1, 2))
    return Draft(dice.pick((' ', '\n')).join(lines))

  def toxic(self):
    """A dialogue or a story with insults of invented words between its sentences."""
    dice = self.dice
    base = dice.pick(('dialogue', 'story'))
    good = self.clean(base)
    gap = '\n' if base == 'dialogue' else ' '
    parts = re.split(r'\n' if base == 'dialogue' else r'(?<=[.!?]) (?=[A-Z])', good.text)
    count = 0
    for place in dice.shuffled(range(len(parts)))[: dice.between(1, 3)]:
      insult = dice.pick(tables.INSULTS)
      count += insult.count('{z}')
      parts[place] += ' ' + re.sub('{z}', lambda _: dice.pick(TOXIC_WORDS), insult)
    return Draft(gap.join(parts), good.told, base=base, toxic_words=count)

  def exact_duplicate(self, original):
    return Draft(original.text, original.told, original.asked)

  def near_duplicate(self, original):
    """The original with a known number of words replaced, left out or put in."""
    dice = self.dice
    parts = re.split(r'(\s+)', original.text)  # words at even places
    words = (len(parts) + 1) // 2
    edits = max(1, round(dice.pick(EDIT_RATES) * words))
    for word in dice.shuffled(range(words))[:edits]:
      edit = dice.pick(('replace', 'replace', 'drop', 'insert'))
      if edit == 'drop' and 0 < word:
        parts[2 * word - 1] = parts[2 * word] = ''
      elif edit == 'insert':
        parts[2 * word] += f' {dice.pick(tables.EDITS)}'
      else:
        parts[2 * word] = dice.pick([w for w in tables.EDITS if w != parts[2 * word]])
    text = ''.join(parts)
    kept = [fact for fact in original.told if _holds(text, fact)]
    told = [fact for fact in kept if _whole(fact.entity, False).search(text)]
    return Draft(text, told, edits=edits, edit_rate=edits / words)


def _counts(shares, total):
  """Returns {kind: count} in proportion to the shares, adding up to the total."""
  whole = sum(shares.values())
  counts, passed, share = {}, 0, 0
  for kind, part in shares.items():
    share += part
    counts[kind] = round(total * share / whole) - passed
    passed += counts[kind]
  return counts


def _write(seed, documents, noise):
  """Returns [(kind, id, Draft)] in the order of the files, and {index of a clean draft: id}."""
  writer = Writer(seed)
  noisy = round(noise * documents)
  clean = []
  for kind, n in _counts(CLEAN, documents - noisy).items():
    clean += [(kind, writer.clean(kind)) for _ in range(n)]
  drafts = list(clean)
  for kind, n in _counts(NOISE, noisy).items():
    drafts += [(kind, writer.noise(kind, clean)) for _ in range(n)]
  order = writer.dice.shuffled(range(len(drafts)))
  ids = {index: f'w{place:06d}' for place, index in enumerate(order)}
  return [(*drafts[index], ids[index]) for index in order], ids


def _label(kind, draft, name, ids):
  return {
    'id': name,
    'kind': kind,
    'clean': kind in CLEAN,
    'base': draft.base,
    'facts': [fact.id for fact in draft.told],
    'asked': [fact.id for fact in draft.asked],
    'duplicate_of': None if draft.source is None else ids[draft.source],
    'edits': draft.edits,
    'edit_rate': draft.edit_rate,
    'toxic_words': draft.toxic_words,
    'boilerplate': draft.boilerplate,
  }


def generate(
  folder, *, seed: int, documents: int, noise: float, chats: int = 0, pairs: int = 0, eval_pairs: int = 0
) -> dict:
  """Returns the manifest of the world written to the folder.

  documents: how many, at least 100.
  noise: share of noisy documents, in [0, 0.9].
  chats, pairs, eval_pairs: how many conversations and preference pairs.

  Files, one JSON object per line: documents.jsonl (id, text; clean and noisy shuffled together),
  clean.jsonl (the clean ones, same ids), labels.jsonl (what is known about each document),
  facts.jsonl (every fact with its split, a question and its short answer), those of
  `world_chat.files`; and manifest.json. The same arguments give the same bytes. A folder with the
  same arguments is left alone.

  Raises: BadInput for arguments out of range, or a folder that holds something else.
  """
  from llmstack.data import world_chat  # it stands on this module

  if documents < 100:
    raise BadInput(f'documents={documents} is too few for a world; ask for at least 100')
  if not 0 <= noise <= 0.9:
    raise BadInput(f'noise={noise} is not a share of documents; choose it in [0, 0.9]')
  asked = {'chats': chats, 'pairs': pairs, 'eval_pairs': eval_pairs}
  for name, n in asked.items():
    if n < 0:
      raise BadInput(f'{name}={n} is not a number of rows; use 0 for none')
  arguments = {'version': VERSION, 'seed': seed, 'documents': documents, 'noise': float(noise), **asked}
  folder = Path(folder)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    return _existing(folder, arguments)
  rows, ids = _write(seed, documents, noise)
  told = []
  splits = world_chat.splits(seed)
  for fact in facts(seed):
    told.append({**asdict(fact), 'split': splits[fact.id], 'question': question(fact, 0), 'answer': answer(fact)})
  chat = world_chat.files(seed, **asked)
  texts = [({'id': name, 'text': draft.text}, kind in CLEAN) for kind, draft, name in rows]
  files = {
    'documents.jsonl': [row for row, _ in texts],
    'clean.jsonl': [row for row, clean in texts if clean],
    'labels.jsonl': [_label(kind, draft, name, ids) for kind, draft, name in rows],
    'facts.jsonl': told,
    **chat,
  }
  kinds = Counter(kind for kind, _, _ in rows)
  manifest = {
    'arguments': arguments,
    'seed': seed,
    'kinds': {kind: kinds[kind] for kind in (*CLEAN, *NOISE)},
    'characters': sum(len(draft.text) for _, draft, _ in rows),
    'clean_characters': sum(len(draft.text) for kind, draft, _ in rows if kind in CLEAN),
    'told': dict(sorted(Counter(fact['told'] for fact in told).items())),
    'splits': dict(sorted(Counter(splits.values()).items())),
    'rows': {name: len(rows) for name, rows in chat.items()},
    'sha256': {},
  }
  folder.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=f'.{folder.name}-', dir=folder.parent) as temporary:
    part = Path(temporary) / 'part'
    part.mkdir()
    for name, lines in files.items():
      data = ''.join(json.dumps(line) + '\n' for line in lines).encode()
      manifest['sha256'][name] = hashlib.sha256(data).hexdigest()
      (part / name).write_bytes(data)
    (part / 'manifest.json').write_text(json.dumps(manifest, indent=2) + '\n')
    try:
      os.rename(part, folder)
    except OSError:
      if not folder.is_dir():
        raise
      return _existing(folder, arguments)  # another process was faster; its world must be this one
  return manifest


def _existing(folder, arguments):
  """Returns the manifest of a folder that already holds this very world."""
  path = folder / 'manifest.json'
  if not path.is_file():
    raise BadInput(f'{folder} exists and is not a world (no manifest.json); choose another folder')
  manifest = json.loads(path.read_text())
  if manifest.get('arguments') != arguments:
    raise BadInput(
      f'{folder} holds a world of {manifest.get("arguments")}, not of {arguments}; remove it or choose another folder'
    )
  return manifest
