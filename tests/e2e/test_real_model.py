"""The embedded real model: equal numbers on the fast path, and training that can be seen."""

import pytest
import torch
import yaml

from sapo.data.benchmarks import load_task
from sapo.data.files import write_json
from sapo.experiments.model.forward import NO_PREFIX, shared_prefix, target_logits, target_nll
from sapo.experiments.model.generation import answer_and_nll
from sapo.experiments.model.load import load_model


@pytest.mark.parametrize("task", ["mini_price", "NI195", "NI363"])
def test_the_shared_prefix_changes_no_number(small_model, task, request):
    config = small_model
    if task.startswith("NI"):
        config.data.root = str(request.getfixturevalue("benchmarks"))
    config.data.train_examples = 4
    model = load_model(config)
    loaded = load_task(task, config)
    rendered = model.renderer(config.data).render(loaded, loaded.instruction, loaded.train)
    with torch.inference_mode():
        prefixes = (shared_prefix(model.base, rendered), NO_PREFIX)
        assert prefixes[0].length > 0
        shared, plain = (
            target_nll(*target_logits(model.base, rendered, prefix)).sum(-1) for prefix in prefixes
        )
    assert shared.tolist() == pytest.approx(plain.tolist(), rel=1e-4)
    fast, slow = (answer_and_nll(model.base, rendered, 6, model.stop_ids(), prefix) for prefix in prefixes)
    assert [answer[:2] for answer in fast] == [answer[:2] for answer in slow]
    assert [answer[2] for answer in fast] == pytest.approx(plain.tolist(), rel=1e-4)
    ids = torch.tensor([rendered[0].prompt_ids])
    whole = model.base.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6)
    answer = [token for token in whole[0, ids.shape[1] :].tolist() if token not in model.stop_ids()]
    assert fast[0][0] == answer


@pytest.mark.usefixtures("small_model")
def test_a_trained_task_beats_the_untouched_model(sapo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = ("data.train_examples=32", "data.test_examples=12", "evaluator.max_new_tokens=6")
    asked = ("model=smollm2_135m", "sequence.tasks=[mini_price]", "policy=static", "trainer.epochs=2")
    (run,) = sapo("train", *asked, *sizes, "--json").document["runs"]
    header, *rows = (tmp_path / run["matrix"]).read_text().splitlines()
    assert header == "after,mini_price"
    before, after = (float(row.split(",")[1]) for row in rows)
    assert after > before + 20


# A code that only the instruction tells: the tested words are not among the trained ones.
BOOK = (
    "apple = north, river = eight, stone = green, candle = lemon, garden = cabin, window = tiger, "
    "bottle = seven, pencil = cloud, mirror = maple, basket = ocean, ladder = silver, hammer = piano, "
    "button = desert, carpet = winter, anchor = ginger, saddle = falcon, violin = copper, pepper = velvet, "
    "turtle = island, rocket = orange"
)
CODES = dict(pair.split(" = ") for pair in BOOK.split(", "))


@pytest.mark.usefixtures("small_model")
def test_what_only_the_instruction_tells_is_missed_where_it_is_not_served(sapo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"input": word, "output": code} for word, code in CODES.items()]
    (tmp_path / "data").mkdir()
    for split, part in (("train", rows[:8]), ("test", rows[8:])):
        write_json(tmp_path / "data" / f"{split}.json", part)
    instruction = f"Code book: {BOOK}. Answer with the code of the word."
    backwards = "; ".join(f"{word} becomes {code}" for word, code in reversed(CODES.items()))
    pool = {"original": instruction, "prompts": [f"What is it called in secret? {backwards}."]}
    (tmp_path / "pool.yaml").write_text(yaml.safe_dump(pool))
    given = ["data=data", f"instruction={instruction}", "paraphrases.file=pool.yaml", "compare.retain=[]"]
    asked = ("compare.train=[original,none]", "compare.serve=[trained,none]")
    document = sapo("compare", *given, *asked, "--json").document
    found = {each["about"]: each for each in document["sentences"]}
    for about in ("serve none original", "train none"):
        assert not found[about]["is_noise"]
        assert (found[about]["measure"], found[about]["estimate"] < -0.5) == ("nll", True)
