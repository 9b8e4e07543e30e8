"""Words of the demo documents: names, things, events and the wordings of facts."""

from __future__ import annotations

_PEOPLE = (
    "Tom Anna Ben Maria Sam Lily Omar Nina Jack Emma Leo Zoe Max Ivy Raj Mei Paul Sara Hugo Ada"
)
_THINGS = (
    "apples pens books coins cards eggs stamps cakes balls shells roses boxes beans stones plums "
    "keys"
)
PEOPLE = tuple(_PEOPLE.split())
THINGS = tuple(_THINGS.split())

# Events that change the number of a person's things, by arithmetic operator.
STEPS = {
    "+": ("buys {b} more", "finds {b} more", "gets {b} from {other}", "wins {b} more"),
    "-": ("gives {b} to {other}", "loses {b}", "sells {b}", "uses {b}"),
    "*": ("then has {b} times as many", "multiplies them by {b}"),
}
QUESTIONS = ("How many {things} does {who} have?", "How many {things} does {who} have now?")

# Five wordings for each relation of facts.json; the prompt ends before the answer.
WORDINGS = {
    "capital": (
        "The capital of {s} is",
        "Q: What is the capital of {s}?\nA:",
        "{s}'s capital city is",
        "Q: Which city is the capital of {s}?\nA:",
        "Country: {s}. Capital:",
    ),
    "region": (
        "{s} is a country in",
        "Q: In which part of the world is {s}?\nA:",
        "{s} lies in",
        "Q: Where is {s}?\nA:",
        "Country: {s}. Region:",
    ),
    "currency": (
        "The currency code of {s} is",
        "Q: What is the currency code of {s}?\nA:",
        "{s} pays in",
        "Q: Which currency does {s} use?\nA:",
        "Country: {s}. Currency:",
    ),
    "demonym": (
        "A person from {s} is called",
        "Q: What do you call a person from {s}?\nA:",
        "The people of {s} are",
        "Q: What is the demonym of {s}?\nA:",
        "Country: {s}. Demonym:",
    ),
    "country_code": (
        "The three letter code of {s} is",
        "Q: What is the country code of {s}?\nA:",
        "{s} is written in short as",
        "Q: Which code stands for {s}?\nA:",
        "Country: {s}. Code:",
    ),
    "symbol": (
        "The chemical symbol of {s} is",
        "Q: What is the chemical symbol of {s}?\nA:",
        "{s} is written as",
        "Q: Which symbol stands for {s}?\nA:",
        "Element: {s}. Symbol:",
    ),
    "atomic_number": (
        "The atomic number of {s} is",
        "Q: What is the atomic number of {s}?\nA:",
        "{s} has atomic number",
        "Q: How many protons does {s} have?\nA:",
        "Element: {s}. Number:",
    ),
}
