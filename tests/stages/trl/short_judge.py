"""A judge that likes short answers: a model that has learnt to end comes to please it less as it breaks."""


def judge(prompt, response, finished):
    return -len(response)
