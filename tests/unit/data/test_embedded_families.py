"""Closed families have the one right answer; open families have many, and each agrees with its prompt and itself."""

import math
from collections import Counter
from random import Random

import pytest

from minillm_ray.data.embedded import FAMILIES
from minillm_ray.data.embedded_families import CLOSED_FAMILIES, WORDS
from minillm_ray.data.embedded_open_families import OPEN_FAMILIES
from minillm_ray.data.embedded_words import ANIMALS, CATEGORIES, Weighted, pick_distinct, pick_weighted, with_article

BY_NAME = {family.name: family for family in FAMILIES}
RIGHT = {
    "copy_words": lambda text: text,
    "reverse_words": lambda text: " ".join(text.split()[::-1]),
    "upper_case": str.upper,
    "sort_numbers": lambda text: " ".join(sorted(text.split(), key=int)),
    "add_numbers": lambda text: f"{text} = {sum(map(int, text.split(' + ')))}",
}


def tasks_of(family, count=300):
    draws = Random(0)
    return [family.draw(draws) for _ in range(count)]


@pytest.mark.parametrize("family", CLOSED_FAMILIES, ids=lambda family: family.name)
def test_a_closed_family_gives_its_right_answer_and_no_other(family):
    for task in tasks_of(family):
        assert task.answer(Random(1)) == task.answer(Random(2)) == RIGHT[family.name](task.input)


@pytest.mark.parametrize("family", OPEN_FAMILIES, ids=lambda family: family.name)
def test_an_open_family_has_an_answer_law_of_at_least_two_nats(family):
    """Entropy estimated from 2000 answers to each of ten prompts: no single answer is worth memorising."""
    entropies = []
    for task in tasks_of(family, 10):
        draws = Random(0)
        counts = Counter(task.answer(draws) for _ in range(2000))
        entropies.append(-sum(n / 2000 * math.log(n / 2000) for n in counts.values()))
    assert sum(entropies) / 10 > 2


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_equal_draws_give_equal_tasks_and_answers(family):
    first, second = (family.draw(Random(5)) for _ in range(2))
    assert (first.instruction, first.input) == (second.instruction, second.input)
    assert first.answer(Random(6)) == second.answer(Random(6))


def test_a_list_has_as_many_members_as_asked_for_all_of_the_category_and_none_excluded():
    counts = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4, "five": 5}
    plurals = {(f"{name}s" if name != "quality" else "qualities"): name for name in CATEGORIES}
    for task in tasks_of(BY_NAME["list_members"]):
        request, _, excluded = task.instruction.rstrip(".").partition(", but not ")
        _, count, category = request.split()
        members = task.answer(Random(0)).replace(" and ", ", ").split(", ")
        assert len(set(members)) == len(members) == counts[count]
        assert set(members) <= set(CATEGORIES[plurals.get(category, category)]) - {excluded}


def test_a_sentence_is_about_what_was_asked_for():
    for task in tasks_of(BY_NAME["sentence"]):
        subject, _, place = task.instruction.removeprefix("Write a sentence about a").rstrip(".").partition(" at the ")
        answer = task.answer(Random(0))
        assert subject.removeprefix("n").strip() in answer
        assert place in answer


def test_an_animal_does_only_what_its_kind_does():
    habits = {"barks": "dog", "howls": "wolf", "fishes": "bear", "drinks": "horse", "listens": "mouse"}
    for task in tasks_of(BY_NAME["sentence"]):
        animal = next(animal for animal in ANIMALS if f" {animal}" in task.instruction)
        answer = task.answer(Random(0))
        assert all(animal == owner for habit, owner in habits.items() if f" {habit}" in answer)


def test_a_scene_keeps_to_one_weather():
    """Snow and a blue sky never meet: a model that blurs the modes is seen to."""
    signs = {
        "sun": ("bright", "warm", "golden", "The sky is blue", "The sun is high", "Light falls"),
        "snow": ("white", "frozen", "Snow covers", "The trees are white", "Ice shines", "in the snow"),
    }
    for task in tasks_of(BY_NAME["scene"]):
        answer = task.answer(Random(len(task.instruction)))
        seen = {weather for weather, words in signs.items() if any(word in answer for word in words)}
        assert len(seen) <= 1, answer
        assert not ("summer" in task.instruction and "snow" in seen)
        assert not ("winter" in task.instruction and "sun" in seen)


def test_a_story_helps_with_the_trouble_and_ends_as_asked():
    helps = {"hungry": "gives it", "lost": "home|road", "cold": "fire|coat", "tired": "sings|bed"}
    for task in tasks_of(BY_NAME["story"]):
        _, trouble, help, ending, _ = task.answer(Random(task.instruction)).split(".")
        assert any(word in help for word in helps[trouble.split()[-1]].split("|"))
        good = any(word in ending for word in ("friends", "follows", "happy again"))
        assert good == task.instruction.endswith("well.")


def test_weighted_choices_are_made_in_proportion():
    draws = Random(0)
    counts = Counter(pick_weighted(draws, (Weighted(3, "often"), Weighted(1, "seldom"))) for _ in range(4000))
    assert abs(counts["often"] / 4000 - 0.75) < 0.03


def test_distinct_picks_are_distinct():
    draws = Random(0)
    for count in range(len(WORDS) + 1):
        assert len(set(pick_distinct(draws, WORDS, count))) == count


@pytest.mark.parametrize(("words", "phrase"), [("owl", "an owl"), ("cat", "a cat"), ("old cat", "an old cat")])
def test_the_article_fits_the_word(words, phrase):
    assert with_article(words) == phrase
