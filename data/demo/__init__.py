"""The embedded default: a shop's helpdesk. Synthetic records, the rule that judges answers, and a tiny base model.

helpdesk.py    the world: cases, prompts, the sentences that answers are made of
rule.py        the rule that judges an answer 0-100
labelers.py    simulated people who write answers of mixed care
flaws.py       a copy of an answer with one more flaw
generator.py   all of it -> rows of demonstrations, comparisons and prompts
base_model.py  a tokenizer and an untrained Llama of 0.57 M parameters
materialize.py everything written into one directory
"""

# Raised by hand when the same seed gives other files. Here, so that asking for it generates nothing and imports nothing.
DEMO_VERSION = 4
