"""Families of the embedded data with many right answers, drawn from small grammars.

The law of the answers has a few modes (a sentence shape, the weather of a scene, what ails the animal of a story) and
inside each mode words that agree with it. A model too small for the whole law must leave out modes (mode seeking, what
reverse KL rewards) or blur them into text that contradicts itself (what forward KL leaves).
"""

from random import Random

from minillm_ray.data.embedded_families import Family, Task
from minillm_ray.data.embedded_words import (
    ADJECTIVES,
    ANIMALS,
    CATEGORIES,
    FOODS,
    FRUITS,
    NAMES,
    PLACES,
    Weighted,
    pick,
    pick_distinct,
    pick_number,
    pick_weighted,
    with_article,
)

_COUNTS = ("", "two", "three", "four", "five")
_PLURALS = {"quality": "qualities"}
_HABITS = {
    "cat": ("sleeps", "hunts", "climbs", "plays"),
    "dog": ("barks", "runs", "digs", "waits"),
    "fox": ("hides", "hunts", "digs", "runs"),
    "bear": ("eats", "sleeps", "fishes", "climbs"),
    "frog": ("jumps", "swims", "sings", "hides"),
    "duck": ("swims", "flies", "eats", "waits"),
    "horse": ("runs", "jumps", "drinks", "rests"),
    "owl": ("flies", "hunts", "watches", "sings"),
    "mouse": ("hides", "eats", "climbs", "listens"),
    "wolf": ("howls", "hunts", "watches", "rests"),
}
_NEAR = ("near", "behind", "by", "beyond")
_MANNERS = ("all day", "alone", "every night", "with a friend", "for hours")
_SEASONS = ("spring", "summer", "autumn", "winter")


def _list_members(draws: Random) -> Task:
    """Members of a category, the ones listed first in the lexicon the likelier; perhaps without a named one."""
    category = pick(draws, tuple(CATEGORIES))
    count = pick_number(draws, 1, len(_COUNTS))
    excluded = pick(draws, CATEGORIES[category]) if draws.random() < 0.9 else None
    plural = _PLURALS.get(category, f"{category}s")
    request = f"Name {with_article(category)}" if count == 1 else f"List {_COUNTS[count - 1]} {plural}"
    instruction = f"{request}, but not {excluded}." if excluded else f"{request}."

    def answer(draws: Random) -> str:
        left = [member for member in CATEGORIES[category] if member != excluded]
        members = []
        for _ in range(count):
            ranked = [Weighted(1 / rank, member) for rank, member in enumerate(left, start=1)]
            members.append(pick_weighted(draws, ranked))
            left.remove(members[-1])
        return members[0] if count == 1 else f"{', '.join(members[:-1])} and {members[-1]}"

    return Task(instruction, "", answer)


def _sentence(draws: Random) -> Task:
    """A sentence in one of four shapes about what an animal of some quality does, perhaps at a place."""
    animal = pick(draws, ANIMALS)
    subject = f"{pick(draws, ADJECTIVES)} {animal}"
    wanted_place = pick(draws, PLACES) if draws.random() < 0.9 else None
    where = f" at the {wanted_place}" if wanted_place else ""

    def answer(draws: Random) -> str:
        place = wanted_place or pick(draws, PLACES)
        shape = pick_weighted(
            draws, [Weighted(4, "plain"), Weighted(3, "place"), Weighted(2, "seen"), Weighted(1, "day")]
        )
        if shape == "plain":
            return f"The {subject} {pick(draws, _HABITS[animal])} {pick(draws, _NEAR)} the {place}."
        if shape == "place":
            return f"At the {place}, {with_article(subject)} {pick(draws, _HABITS[animal])} {pick(draws, _MANNERS)}."
        if shape == "seen":
            return f"{pick(draws, NAMES)} sees {with_article(subject)} {pick(draws, _NEAR)} the {place} and smiles."
        first, second = pick_distinct(draws, _HABITS[animal], 2)
        return f"Every day the {subject} {first} and {second} {pick(draws, _NEAR)} the {place}."

    return Task(f"Write a sentence about {with_article(subject)}{where}.", "", answer)


_WEATHER = {
    "spring": (Weighted(5, "sun"), Weighted(5, "rain")),
    "summer": (Weighted(8, "sun"), Weighted(2, "rain")),
    "autumn": (Weighted(5, "wind"), Weighted(4, "rain"), Weighted(1, "sun")),
    "winter": (Weighted(7, "snow"), Weighted(3, "wind")),
}
_LOOKS = {
    "sun": ("bright", "warm", "golden"),
    "rain": ("wet", "dark", "grey"),
    "snow": ("white", "cold", "frozen"),
    "wind": ("loud", "empty", "cold"),
}
_SKIES = {
    "sun": ("The sky is blue", "The sun is high", "Light falls on the grass"),
    "rain": ("Rain falls on the road", "The clouds are low", "The grass is wet"),
    "snow": ("Snow covers the road", "The trees are white", "Ice shines on the water"),
    "wind": ("Leaves fly over the road", "The trees bend", "The clouds race"),
}
_DEEDS = {
    "sun": ("sleeps in the grass", "drinks from the water", "plays in the light"),
    "rain": ("hides under a tree", "waits for the sun", "shakes its wet coat"),
    "snow": ("leaves tracks behind", "looks for food", "digs in the snow"),
    "wind": ("runs for the trees", "holds on to a branch", "listens to the storm"),
}


def _scene(draws: Random) -> Task:
    """Three clauses about a place in a season; the season draws the weather and every clause agrees with it."""
    place, season = pick(draws, PLACES), pick(draws, _SEASONS)
    wanted_animal = pick(draws, ANIMALS) if draws.random() < 0.9 else None
    beside = f" with {with_article(wanted_animal)}" if wanted_animal else ""

    def answer(draws: Random) -> str:
        weather = pick_weighted(draws, _WEATHER[season])
        animal = wanted_animal or pick(draws, ANIMALS)
        look, sky, deed = (pick(draws, clauses[weather]) for clauses in (_LOOKS, _SKIES, _DEEDS))
        return f"The {place} is {look}. {sky}. {with_article(animal).capitalize()} {deed}."

    return Task(f"Describe the {place} in {season}{beside}.", "", answer)


_TROUBLES = (Weighted(4, "hungry"), Weighted(3, "lost"), Weighted(2, "cold"), Weighted(1, "tired"))
_HELP = {
    "lost": ("shows it the road", "walks it home"),
    "cold": ("lights a fire", "gives it a coat"),
    "tired": ("sings to it", "makes it a bed"),
}
_ENDINGS = {
    "well": ("They become friends", "It follows {name} home", "It is happy again"),
    "badly": ("It runs away", "{name} goes home alone", "It bites {name}"),
}


def _story(draws: Random) -> Task:
    """An animal in trouble, a help that fits the trouble, and an ending of the mood that was asked for."""
    name, animal = pick(draws, NAMES), pick(draws, ANIMALS)
    mood = pick(draws, tuple(_ENDINGS))
    wanted_place = pick(draws, PLACES) if draws.random() < 0.9 else None
    where = f" at the {wanted_place}" if wanted_place else ""

    def answer(draws: Random) -> str:
        place = wanted_place or pick(draws, PLACES)
        trouble = pick_weighted(draws, _TROUBLES)
        foods = tuple(f"gives it {food}" for food in (*FOODS[:4], with_article(FRUITS[0])))
        help = pick(draws, foods if trouble == "hungry" else _HELP[trouble])
        ending = pick(draws, _ENDINGS[mood]).format(name=name)
        return f"{name} finds {with_article(animal)} at the {place}. It is {trouble}. {name} {help}. {ending}."

    return Task(f"Tell a story about {name} and {with_article(animal)}{where} that ends {mood}.", "", answer)


OPEN_FAMILIES = (
    Family("list_members", _list_members),
    Family("sentence", _sentence),
    Family("scene", _scene),
    Family("story", _story),
)
