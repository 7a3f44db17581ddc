"""Questions about numbers. As in questions.py: (question, answer, short answer)."""

from grammar import capital, render
from words import POOLS

NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
).split()


def number_text(rng, number, words):
    return NUMBER_WORDS[number] if words and number <= 20 else str(number)


def arithmetic(rng):
    kind = rng.random()
    limit = rng.choices((20, 99, 999), (45, 40, 15))[0]
    if kind < 0.5:
        left, right = rng.randint(0, limit), rng.randint(0, limit)
        result, sign, word = left + right, "+", "plus"
    elif kind < 0.75:
        left = rng.randint(1, limit)
        right = rng.randint(0, left)
        result, sign, word = left - right, "-", "minus"
    elif kind < 0.92:
        left, right = rng.randint(0, 12), rng.randint(0, 12)
        result, sign, word = left * right, "x", "times"
    else:
        right, result = rng.randint(1, 12), rng.randint(0, 12)
        left, sign, word = right * result, "/", "divided by"
    words = rng.random() < 0.1
    left, right, total = (number_text(rng, number, words) for number in (left, right, result))
    sign = rng.choice("x*") if sign == "x" else sign
    operator = word if words or rng.random() < 0.6 else sign
    space = "" if operator != word and rng.random() < 0.3 else " "
    asked = (
        "[What is|What's|How much is|Calculate|Can you work out|]"
        f" {left}{space}{operator}{space}{right}[?|?| =|]"
    )
    question = render(rng, asked).strip()
    if words:
        return question, f"{capital(left)} {word} {right} is {total}.", capital(total)
    if operator == word:
        return question, f"{left} {word} {right} is {total}.", total
    return question, f"{left} {operator} {right} = {total}.", total


def word_problem(rng):
    name, thing = rng.choice(POOLS["name"]), rng.choice(
        ("apples", "books", "coins", "marbles", "pencils", "shells", "cakes")
    )
    other = rng.choice([n for n in POOLS["name"] if n != name])
    left, right = rng.randint(1, 20), rng.randint(1, 12)
    if rng.random() < 0.5 or right >= left:
        question = (
            f"{name} has {left} {thing}. {other} gives {name} {right} more. How many {thing} does"
            f" {name} have?"
        )
        return (
            question,
            f"{left} plus {right} is {left + right}, so {name} has {left + right} {thing}.",
            str(left + right),
        )
    question = f"{name} has {left} {thing} and gives {right} to {other}. How many {thing} are left?"
    return (
        question,
        f"{left} minus {right} is {left - right}, so {left - right} {thing} are left.",
        str(left - right),
    )


def parity(rng):
    number = rng.randint(1, 100)
    kind = "even" if number % 2 == 0 else "odd"
    return (
        f"Is {number} odd or even?",
        f"{number} is {'an even' if kind == 'even' else 'an odd'} number.",
        capital(kind),
    )


def counting(rng):
    start = 1 if rng.random() < 0.6 else rng.randint(1, 15)
    end = start + rng.randint(3, 9)
    words = end <= 20 and rng.random() < 0.4
    series = ", ".join(number_text(rng, number, words) for number in range(start, end + 1))
    if start == 1 and rng.random() < 0.6:
        return f"Count to {number_text(rng, end, words)}.", capital(series) + ".", series
    return (
        f"Count from {number_text(rng, start, words)} to {number_text(rng, end, words)}.",
        capital(series) + ".",
        series,
    )
