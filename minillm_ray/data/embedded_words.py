"""The small lexicon of the embedded data, and the draws made from it.

Few and short words, so that a tokenizer of 512 tokens knows most of them whole. Draws use `Random.random` alone:
Python promises its numbers for a seed, but not those of `choice` or `sample`, and the data must never change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

Item = TypeVar("Item")

ANIMALS = ("cat", "dog", "fox", "bear", "frog", "duck", "horse", "owl", "mouse", "wolf")
COLOURS = ("red", "blue", "green", "black", "white", "brown", "yellow", "pink", "grey", "gold")
FRUITS = ("apple", "pear", "plum", "fig", "lemon", "grape", "melon", "peach", "cherry", "banana")
FOODS = ("bread", "soup", "rice", "cheese", "cake", "pie", "beans", "honey", "milk", "fish")
PLACES = ("river", "hill", "barn", "garden", "forest", "road", "lake", "bridge", "farm", "beach")
TOOLS = ("rope", "spoon", "knife", "lamp", "key", "ladder", "brush", "cup", "net", "bell")
ADJECTIVES = ("old", "small", "happy", "wild", "quiet", "clever", "young", "lazy", "brave", "proud")
NAMES = ("Anna", "Ben", "Clara", "Dan", "Eva", "Finn", "Lucy", "Max")

CATEGORIES = {
    "animal": ANIMALS,
    "colour": COLOURS,
    "fruit": FRUITS,
    "food": FOODS,
    "place": PLACES,
    "tool": TOOLS,
    "quality": ADJECTIVES,
    "name": NAMES,
}


@dataclass(frozen=True)
class Weighted:
    """A choice and how often it is made, relative to the others beside it."""

    weight: float
    text: str


def pick(draws: Random, items: Sequence[Item]) -> Item:
    """One item, each as likely as any other."""
    return items[int(draws.random() * len(items))]


def pick_distinct(draws: Random, items: Sequence[Item], count: int) -> list[Item]:
    """So many different items, in random order, each order as likely as any other."""
    left = list(items)
    return [left.pop(int(draws.random() * len(left))) for _ in range(count)]


def pick_weighted(draws: Random, choices: Sequence[Weighted]) -> str:
    """One text, in proportion to its weight."""
    point = draws.random() * sum(choice.weight for choice in choices)
    for choice in choices:
        point -= choice.weight
        if point < 0:
            return choice.text
    return choices[-1].text


def pick_number(draws: Random, low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    return low + int(draws.random() * (high - low + 1))


def with_article(words: str) -> str:
    """The words with `a` or `an` in front."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
