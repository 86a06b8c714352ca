"""Settings that cannot be, in every group: one message, exit code 2, and no store."""

from itertools import cycle

import pytest

from sapo.conf.load import GROUPS
from sapo.conf.schema import settings

COMMANDS = (
    ["plan"],
    ["train"],
    ["doctor"],
    ["show", "config"],
    ["reproduce", "table1"],
)


# Every setting with a range, just outside of it; every setting with names, with another.
def outside(metadata, kind):
    """Values just outside of a field's limits."""
    steps = {"least": -1, "most": 1, "above": 0, "below": 0}
    found = [limit + steps[name] for name, limit in metadata.items() if name in steps]
    found += [value for value in ("inf", "nan") if kind in (float, float | None)]
    return found + ["nonesuch" for name in ("choices",) if name in metadata]


RANGES = [
    (f"{key}=[1,{value}]" if f.type == list[float] else f"{key}={value}", key)
    for key, f in settings().items()
    for value in outside(f.metadata, f.type)
]
MEMBERS = [(f"{group}=nonesuch", f"Unknown {group} 'nonesuch'") for group in GROUPS]
UNKNOWN = [
    (f"{group}.nonesuch=1", f"Unknown setting {group}.nonesuch") for group in GROUPS if group != "experiment"
]

TYPES = [
    ("seed=many", "seed"),
    ("seed=1.5", "seed"),
    ("seed=null", "seed"),
    ("trainer.epochs=two", "trainer.epochs"),
    ("trainer.learning_rate=fast", "trainer.learning_rate"),
    ("trainer.shared_prefix=perhaps", "trainer.shared_prefix"),
    ("method.rank=[8]", "method.rank"),
    ("method.alpha={a:1}", "method.alpha"),
    ("scorer.examples=null", "scorer.examples"),
    ("scorer.include_original=2.5", "scorer.include_original"),
    ("evaluator.max_new_tokens=1e400", "evaluator.max_new_tokens"),
    ("model.lora_targets=q_proj", "model.lora_targets"),
    ("model.trust_remote_code=please", "model.trust_remote_code"),
    ("sequence.tasks=mini_city", "sequence.tasks"),
    ("sequence.tasks={a:b}", "sequence.tasks"),
    ("paraphrases.prices=[a,b]", "paraphrases.prices"),
]

GRAMMAR = [
    ("seed=range(2", "range(2"),
    ("seed=range(3,1)", "no values"),
    ("seed=glob(*)", "seed"),
    ("+seed=1", "neither added nor removed"),
    ("~seed", "neither added nor removed"),
    ("+trainer.extra=1", "Unknown setting"),
    ("=1", "Unknown setting"),
    ("trainer", "trainer"),
    ("trainer.epoch=1", "trainer.epochs"),
    ("policy=sappo", "Did you mean"),
    ("seed=${oc.env:NO_SUCH_VARIABLE}", "NO_SUCH_VARIABLE"),
    ("hydra.run.dir=elsewhere", "Unknown setting"),
]

MEANING = [
    ("sequence.tasks=[]", "no tasks"),
    ("sequence.tasks=[mini_city,mini_city]", "twice"),
    ("sequence.unseen=[mini_price]", "twice"),
    ("paraphrases=file", "paraphrases.file"),
    ("paraphrases.base_url=ftp://host", "base_url"),
    ("paraphrases.base_url=http://user:secret@host", "base_url"),
    ("paraphrases.key_variable=sk-123", "environment variable"),
    ("paraphrases.prices=[1]", "paraphrases.prices"),
]

ENGINE = [
    ("engine.address=foo", "engine.address=foo: must be auto or HOST:PORT"),
    ("engine.address=http://host:1", "must be auto or HOST:PORT"),
    ("engine.address=host", "must be auto or HOST:PORT"),
    ("engine.gpus=1.5", "engine.gpus=1.5: must be a part of one GPU"),
    ("engine.gpus=1", "are for engine=ray"),
    ("engine.workers=2", "are for engine=ray"),
    ("engine.address=auto", "are for engine=ray"),
]

# Settings that each can be, but not together.
TOGETHER = [
    ("policy=random policy.last_only=true", "policy.last_only=true with policy=random"),
    ("policy=static policy.last_only=true", "only policy=fixed"),
    ("method=inscl method.unit=instance", "needs tags of all training rows"),
    ("method=inscl method.unit=lexical method.tags=FILE", "only method.unit=instance"),
    ("scorer=race policy=sapp", "a race finds the lowest loss"),
    ("scorer=race scorer.reduction=batch", "rows are read in another order"),
    ("engine=ray engine.address=foo", "must be auto or HOST:PORT"),
    ("engine=ray engine.gpus=2.5", "must be a part of one GPU"),
    (f"sequence.name={'s' * 100} model.name={'m' * 100}", "the run's id is made of them"),
    ("sequence=mini_three sequence.unseen=[mini_topic]", "twice"),
]

# Names and sources that would lead out of their folder, or that no file can have.
PATHS = [
    ("sequence.name=../x", "sequence.name"),
    ("sequence.name=/etc/x", "sequence.name"),
    ("sequence.name=.hidden", "sequence.name"),
    ("sequence.name=''", "sequence.name"),
    ("model.name=a/b", "model.name"),
    ("model.name='a\\\\b'", "model.name"),
    (f"model.name={'x' * 300}", "longer than"),
    ("model.name=nul", "reserved"),
    ("model.name='a\x00b'", "control character"),
    ("paraphrases.name=../../pools", "paraphrases.name"),
    ("task=../../etc/passwd", "task="),
    ("task=/etc/passwd", "task="),
    ("sequence.tasks=[../mini_city]", "sequence.tasks"),
    ("sequence.unseen=['mini_city\n']", "sequence.unseen"),
    ("model.source=tiny:../../x", "model.source"),
    ("model.source=wheel:../x==1", "model.source"),
    ("model.source=hub:a/b/c", "model.source"),
    ("model.source=hub:", "model.source"),
    ("model.source=nothing", "model.source"),
]

# One message names all that validation finds, so ten of these stand in one command: composing takes its time.
ROUNDS = [
    [case for place, case in enumerate(RANGES) if [k for _, k in RANGES[:place]].count(case[1]) == n]
    for n in range(4)
]
TEN = [cases[start : start + 10] for cases in ROUNDS for start in range(0, len(cases), 10)]
ALONE = [*MEMBERS, *UNKNOWN, *TYPES, *GRAMMAR, *MEANING, *ENGINE, *PATHS]
CASES = [(*case, command) for case, command in zip(ALONE, cycle(COMMANDS))]
COUNT = len(RANGES) + len(CASES) + len(TOGETHER)


def refused(done, code=2):
    """One legible message and nothing else, but for a line on how many rows are taken."""
    assert (done.code, done.out) == (code, ""), done
    assert done.err.startswith("sapo: ")
    assert [" rows a task (" in line for line in done.err.split("sapo: ")[1:]].count(False) == 1
    assert "Traceback" not in done.err
    assert len(done.err) < 6000
    return done.err


@pytest.mark.parametrize(("override", "message", "command"), CASES, ids=lambda value: ascii(value)[:60])
def test_a_setting_that_cannot_be(sapo, tmp_path, override, message, command):
    assert message in refused(sapo(*command, override, "--json"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("overrides", "message"), TOGETHER, ids=lambda value: value[:60])
def test_settings_that_cannot_be_together(sapo, tmp_path, overrides, message):
    assert message in refused(sapo("train", *overrides.split(), "--json"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cases", TEN, ids=lambda cases: cases[0][1])
def test_values_out_of_range(sapo, tmp_path, cases):
    message = refused(sapo("plan", *(override for override, _ in cases), "--json"))
    assert [key for _, key in cases if f"- {key}=" not in message] == []
    assert list(tmp_path.iterdir()) == []


def test_all_that_is_wrong_is_said_at_once(sapo):
    wrong = ("trainer.epochs=0", "method.rank=0", "model.name=../x", "scorer.subset=last")
    message = refused(sapo("train", *wrong))
    assert all(override.split("=")[0] in message for override in wrong)


def test_a_secret_in_the_wrong_place_is_not_repeated(sapo):
    for override in ("paraphrases.base_url=http://user:secret@host", "paraphrases.key_variable=secret"):
        assert "secret" not in refused(sapo("plan", override))
