"""Compares the log-likelihoods that lm-evaluation-harness logged with those of `samara score --json`.

compare.py SAMPLES.jsonl SCORES.jsonl: every continuation has to have the same sum, to the last bit, and the same answer to
whether it is the greedy one: both sum the same 24-bit numbers in 53 bits. Prints how many were compared.
"""

import json
import sys


def lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def main():
    samples = {sample["doc"]["id"]: sample["resps"] for sample in lines(sys.argv[1])}
    scores = {line["id"]: line["continuations"] for line in lines(sys.argv[2]) if "id" in line}
    assert samples.keys() == scores.keys(), (samples.keys(), scores.keys())
    count = 0
    for name, answers in samples.items():
        assert len(answers) == len(scores[name]), name
        for [[likelihood, greedy]], score in zip(answers, scores[name]):
            assert float(likelihood) == score["log_likelihood"], f"{name}: {likelihood} is not {score['log_likelihood']}"
            assert str(greedy) == str(score["is_greedy"]), f"{name}: greedy {greedy}, {score}"
            count += 1
    assert count > 0
    print(f"{count} log-likelihoods agree to the last bit")


main()
