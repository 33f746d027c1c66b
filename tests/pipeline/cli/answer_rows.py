"""Rows of samples.jsonl, for tests."""

import json

ESCAPE = "\x1b]0;owned\x07\x1b[31m"


def write_rows(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def make_rows():
    """Eight answers of two ways; the score and the judge order them otherwise."""
    return [
        {
            "way": way,
            "prompt": f"question {number}",
            "response": f"answer {number} {ESCAPE}",
            "score": float(number),
            "kl": 1.5,
            "finished": number != 2,
            "judge_score": 10.0 * (7 - number),
        }
        for number, way in enumerate(["sampled"] * 4 + ["greedy"] * 4)
    ]
