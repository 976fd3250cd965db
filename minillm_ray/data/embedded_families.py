"""What a task of the embedded data is, and its families with one right answer.

These need the model to copy, look up, order and count; the families with many right answers stand in
`embedded_open_families`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from minillm_ray.data.embedded_words import ANIMALS, FRUITS, pick_distinct, pick_number

# Twenty words: copying is learnt in minutes on a CPU, while a prompt of five of them is still one in two million.
WORDS = (*ANIMALS, *FRUITS)


@dataclass(frozen=True)
class Task:
    """One prompt, and the law that its answers follow."""

    instruction: str
    input: str
    answer: Callable[[Random], str]
    """Draws one right answer; always the same one where only one is right."""


@dataclass(frozen=True)
class Family:
    """Tasks of one kind."""

    name: str
    draw: Callable[[Random], Task]
    """Draws a task; the same random numbers give the same task."""


def _certain(instruction: str, input: str, answer: str) -> Task:
    return Task(instruction, input, lambda draws: answer)


def _words(draws: Random, low: int, high: int) -> list[str]:
    return pick_distinct(draws, WORDS, pick_number(draws, low, high))


def _copy_words(draws: Random) -> Task:
    words = " ".join(_words(draws, 2, 5))
    return _certain("Repeat the words.", words, words)


def _reverse_words(draws: Random) -> Task:
    words = _words(draws, 2, 5)
    return _certain("Reverse the words.", " ".join(words), " ".join(reversed(words)))


def _upper_case(draws: Random) -> Task:
    words = " ".join(_words(draws, 1, 3))
    return _certain("Write in capital letters.", words, words.upper())


def _sort_numbers(draws: Random) -> Task:
    numbers = pick_distinct(draws, range(10), pick_number(draws, 4, 7))
    return _certain("Sort the numbers.", " ".join(map(str, numbers)), " ".join(map(str, sorted(numbers))))


def _add_numbers(draws: Random) -> Task:
    first, second = pick_number(draws, 0, 49), pick_number(draws, 1, 6)
    return _certain("Add the numbers.", f"{first} + {second}", f"{first} + {second} = {first + second}")


CLOSED_FAMILIES = (
    Family("copy_words", _copy_words),
    Family("reverse_words", _reverse_words),
    Family("upper_case", _upper_case),
    Family("sort_numbers", _sort_numbers),
    Family("add_numbers", _add_numbers),
)
