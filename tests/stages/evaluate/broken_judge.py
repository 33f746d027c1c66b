"""A judge that fails after some answers."""

asked = []


def judge(prompt, response, finished):
    asked.append(prompt)
    if len(asked) > 20:
        raise ValueError("no more")
    return {"score": len(response)}
