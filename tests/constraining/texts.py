"""Random constraints, and independent judges of whether a text satisfies them."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema

from trimtab import Constraint

NAMES = ("a", "id", "name", "list", "ok", "x y", "é")


def random_schema(draw: random.Random, depth: int = 2) -> dict[str, Any]:
    """A JSON schema in keywords that llguidance knows, whose values are short enough for a tiny model to end."""
    kinds = ["boolean", "null", "integer", "number", "string", "enum", "const"]
    kind = draw.choice(kinds + (["object", "array", "anyOf", "ref"] if depth else []))
    if kind == "enum":
        return {"enum": draw.sample([1, -2.5, "one", "z", True, None, [1], {"b": 2}], draw.randint(1, 4))}
    if kind == "const":
        return {"const": draw.choice([0, "c", False, {"k": [1, 2]}])}
    if kind == "integer":
        low = draw.randint(-50, 50)
        return {"type": "integer", "minimum": low, "maximum": low + draw.randint(0, 300)}
    if kind == "number":
        return {"type": "number", "minimum": -1, "exclusiveMaximum": draw.randint(1, 9)}
    if kind == "string":
        return draw.choice(
            [
                {"type": "string", "maxLength": draw.randint(0, 6)},
                {"type": "string", "minLength": 1, "maxLength": 3},
                {"type": "string", "pattern": "^[a-c]{1,3}[0-9]?$"},
                {"type": "string", "format": "ipv4"},
            ]
        )
    if kind == "anyOf":
        return {"anyOf": [random_schema(draw, depth - 1) for _ in range(draw.randint(1, 3))]}
    if kind == "ref":
        return {"$ref": "#/$defs/tree"}
    if kind == "array":
        least = draw.randint(0, 2)
        return {
            "type": "array",
            "items": random_schema(draw, depth - 1),
            "minItems": least,
            "maxItems": least + draw.randint(0, 2),
        }
    names = draw.sample(NAMES, draw.randint(1, 3))
    return {
        "type": "object",
        "properties": {name: random_schema(draw, depth - 1) for name in names},
        "required": draw.sample(names, draw.randint(0, len(names))),
        "additionalProperties": False,
    }


TREE = {
    "type": "object",
    "properties": {"v": {"type": "integer", "minimum": 0, "maximum": 9}, "next": {"$ref": "#/$defs/tree"}},
    "required": ["v"],
    "additionalProperties": False,
}


def random_regex(draw: random.Random, depth: int = 3) -> str:
    """An expression that Python and Rust read alike."""
    kind = draw.choice(["text", "class", "dot"] + (["either", "many", "maybe", "times", "both"] * 2 if depth else []))
    if kind == "text":
        return re.escape(draw.choice(["a", "ab", "yes", "é", "0", "x/y", "\\", '"', "."]))
    if kind == "class":
        return draw.choice(["[a-c]", "[^a-z]", "[0-9A-F]", r"[ \n]"])
    if kind == "dot":
        return "."
    if kind == "either":
        return f"({random_regex(draw, depth - 1)}|{random_regex(draw, depth - 1)})"
    if kind == "both":
        return random_regex(draw, depth - 1) + random_regex(draw, depth - 1)
    ending = {"many": "*", "maybe": "?", "times": f"{{{draw.randint(0, 2)},{draw.randint(2, 4)}}}"}[kind]
    return f"({random_regex(draw, depth - 1)}){ending}"


def random_constraint(seed: int) -> Constraint:
    """A schema, an expression or a choice."""
    draw = random.Random(seed)
    kind = draw.choice(["schema", "schema", "regex", "regex", "choice"])
    if kind == "schema":
        schema = random_schema(draw)
        return Constraint.json_schema({**schema, "$defs": {"tree": TREE}})
    if kind == "regex":
        return Constraint.regex(random_regex(draw))
    return Constraint.choice(draw.sample(["yes", "no", "", "yes!", "日本", "a\nb", 'say "x"'], draw.randint(1, 4)))


def accepts(constraint: Constraint, text: str) -> bool:
    """Whether a text satisfies a constraint, by judges that share nothing with what enforces it."""
    if constraint.kind == "regex":
        return re.fullmatch(constraint.text, text) is not None
    if constraint.kind == "choice":
        return text in constraint.value
    try:
        value = json.loads(text)
    except ValueError:
        return False
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    return jsonschema.Draft202012Validator(constraint.value, format_checker=checker).is_valid(value)
