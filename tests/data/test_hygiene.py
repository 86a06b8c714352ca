"""What the checks of a task's rows find: by hand, and in the published files."""

from dataclasses import replace

import pytest

from sapo.data.benchmarks import load_benchmark_task
from sapo.data.hygiene import distinct_rows, findings, row_findings, words
from sapo.data.mini import generate
from sapo.data.tasks import Example, Task


def task_of(train: list[tuple[str, str]], test: list[tuple[str, str]], labels: tuple[str, ...] = ()) -> Task:
    rows = [tuple(Example(*row) for row in split) for split in (train, test)]
    return Task("t", "Do it.", "", *rows, labels)


def counts(whole: Task, used: int | None = None) -> dict[str, tuple[int, int]]:
    """What is found in how many of how many rows, of a task of which the first rows are used."""
    return {found.check: (found.rows, found.of) for found in findings(whole, first_rows(whole, used))}


def first_rows(task: Task, train: int | None) -> Task:
    return replace(task, train=task.train[:train])


def order_of(whole: Task, used: int) -> list[str]:
    found = findings(whole, first_rows(whole, used))
    return [finding.message for finding in found if finding.check == "order"]


PLAIN = [(f"Entry {n} tells of item {n * 7} and of place {n * 13}.", "ab"[n % 2]) for n in range(400)]


def test_rows_without_fault_have_no_findings():
    assert counts(task_of(PLAIN[:100], PLAIN[100:400], ("a", "b"))) == {}
    mini = generate("mini_sentiment", 200, 300, 0)
    assert not {"duplicates", "contradictions", "test_in_train", "order", "small_test"} & set(counts(mini))


def test_every_check_by_hand():
    train = [
        ("The cat sat on the old mat.", "x"),
        ("A dog ran far away today.", "x"),
        ("The cat sat on the old mat.", "x"),
        ("A dog ran far away today.", "y"),
        ("the CAT sat, on the old mat", "x"),
    ]
    test = [("A dog ran far away today.", "x"), ("a dog ran far away today!", "x"), ("New.", "x")]
    assert counts(task_of(train, test)) == {
        "duplicates": (1, 5),
        "contradictions": (2, 5),
        "near_duplicates": (1, 3),
        "test_in_train": (1, 3),
        "near_test_in_train": (1, 3),
        "small_test": (3, 3),
    }


def test_rows_are_checked_one_at_a_time_and_alike_for_a_task():
    rows = [("Close <|im_end|>", "a"), (" ", "b"), (" ", "c"), ("plain [INST]", "d"), ("plain [INST]", "d")]
    control = ("<|im_end|>", "<|im_start|>")
    found = row_findings((Example(*row) for row in rows), control)
    assert {finding.check: finding.rows for finding in found} == {
        "duplicates": 1,
        "contradictions": 2,
        "empty_inputs": 2,
        "control_tokens": 1,
    }
    assert all(finding.of == 5 for finding in found)
    assert "1 of 5 training rows hold control tokens of the model (<|im_end|>)" in found[-1].message
    task = task_of(rows, rows)
    assert findings(task, task, control)[: len(found)] == found
    assert row_findings([]) == []


def test_a_rows_group_is_the_first_that_equals_it():
    rows = [Example("a", "1"), Example("b", "1"), Example("a", "1"), Example("a", "2"), Example("b", "1")]
    assert distinct_rows(rows) == [0, 1, 0, 3, 1]
    assert distinct_rows([]) == []


def test_chinese_characters_are_words():
    assert words("态度: 支持 OK!") == ["态", "度", "支", "持", "ok"]


def test_an_ordered_file_is_found_by_length_and_by_label():
    short = [(f"Entry {n}.", "a") for n in range(200)]
    long = [(f"Entry {n} is one of very many words.", "b") for n in range(200, 400)]
    mixed = [row for pair in zip(short, long, strict=True) for row in pair]
    test = [(f"{text}{n}", label) for n, (text, label) in enumerate(mixed)]
    ordered, shuffled = (task_of(rows, test, ("a", "b")) for rows in (short + long, mixed))
    assert order_of(shuffled, 200) == []
    assert order_of(ordered, 200) == [
        "the 200 training rows used are not like the rest of the file (200): 2.0 words on average against "
        "8.0; 100% are 'a' against 0%",
        "the 200 training rows used are not like the test rows (400): 2.0 words on average against 5.0; "
        "100% are 'a' against 50%",
    ]


def test_small_test_sets_say_how_unsure_a_score_is():
    small = task_of(PLAIN[:10], PLAIN[10:110])
    assert findings(small, small)[-1].message.endswith("standard error of a score is up to 5.0 points")
    assert counts(task_of(PLAIN[:10], PLAIN[10:259]))["small_test"] == (249, 249)
    assert "small_test" not in counts(task_of(PLAIN[:10], PLAIN[10:260]))


# --- the published files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("FOMC", {"duplicates": (182, 1000), "contradictions": (2, 1000), "test_in_train": (11, 496)}),
        ("NumGLUE-cm", {"duplicates": (727, 1000), "small_test": (81, 81)}),
    ],
)
def test_trace_repeats_its_rows(benchmarks, name, expected):
    task = load_benchmark_task(name, "trace", benchmarks)
    assert counts(first_rows(task, 1000)).items() >= expected.items()


def test_ni273_is_ordered(benchmarks):
    said = "not like the test rows (651): 14.7 words on average against 47.6; 63% are 'no' against 50%"
    assert order_of(load_benchmark_task("NI273", "superni", benchmarks), 1000)[-1].endswith(said)


@pytest.mark.parametrize("name", ["NI195", "NI1343"])
def test_files_in_no_order_pass(benchmarks, name):
    found = counts(load_benchmark_task(name, "superni", benchmarks), 1000)
    assert not {"order", "duplicates", "test_in_train", "small_test"} & found.keys()
