"""Choosing a wording for objects that a caller has: the ranking, its statistics, and an untouched model."""

import math
import random
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from scipy import stats
from tiny import refusal

import sapo.experiments
from sapo.conf.errors import UserError
from sapo.conf.load import load_one
from sapo.data.prompts import Prompt
from sapo.data.tasks import Example
from sapo.experiments.model.adapters import plain
from sapo.experiments.model.load import load_model
from sapo.experiments.select import Difference, Selection, select_prompt, with_adapter

CANDIDATES = ["Is it odd?", "Say whether the number is odd.", "Odd or even? Tell.", "Look at the last digit."]
PAIRS = [(f"number {i}", "yes, odd" if i % 2 else "no") for i in range(12)]


@pytest.fixture(scope="module")
def language_model():
    return load_model(load_one(["model=tiny_llama", "engine.device=cpu"]))


@pytest.fixture(scope="module")
def select(language_model):
    def call(examples=PAIRS, candidates=CANDIDATES, **options) -> Selection:
        return select_prompt(language_model.base, language_model.tokenizer, examples, candidates, **options)

    return call


@pytest.fixture(scope="module")
def usual(select):
    """What comes of the pairs and candidates above."""
    return select()


def plain_losses(model, tokenizer, text: str) -> list[tuple[float, int]]:
    """Summed target loss and number of target tokens of each pair, one by one."""
    found = []
    for given, target in PAIRS:
        user = {"role": "user", "content": f"{text}\n\nText:\n{given}"}
        start = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(
            [user, {"role": "assistant", "content": target}], tokenize=False
        )
        ids = torch.tensor([tokenizer(whole, add_special_tokens=False)["input_ids"]])
        n = len(tokenizer(start, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            log_p = model(ids).logits[0, n - 1 : -1].log_softmax(-1)
        found.append((-log_p.gather(1, ids[0, n:, None]).sum().item(), ids.shape[1] - n))
    return found


# --- the ranking -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["token", "example"])
def test_losses_are_those_of_a_plain_loop(select, language_model, reduction):
    selection = select(reduction=reduction)
    order, ranking = selection.ranking["index"].tolist(), selection.ranking.set_index("index")
    assert ranking["loss"].is_monotonic_increasing
    assert ranking["rank"].tolist() == [1, 2, 3, 4]
    assert [selection.chosen.index, selection.runner_up.index] == order[:2]
    assert not ranking.isna().any().any()
    for index, text in enumerate(CANDIDATES, start=-1):
        found = plain_losses(language_model.base, language_model.tokenizer, text)
        if reduction == "token":
            expected = sum(nll for nll, _ in found) / sum(n for _, n in found)
        else:
            expected = sum(nll / n for nll, n in found) / len(found)
        assert ranking.loc[index, "loss"] == pytest.approx(expected, rel=1e-5)
        assert ranking.loc[index, "text"] == text
        assert ranking.loc[index, "n_tokens"] == sum(n for _, n in found)
        assert ranking.loc[index, "prompt_tokens"] == len(text)  # the tiny tokenizer has a token a byte


def test_by_example_the_test_is_scipys_paired_t_test_with_bonferroni(select):
    selection = select(reduction="example")
    means = selection.losses.assign(mean=lambda t: t["nll"] / t["n_tokens"]).pivot(
        index="example", columns="prompt", values="mean"
    )
    for row in selection.ranking.itertuples():
        own = stats.t.interval(0.95, 11, means[row.index].mean(), stats.sem(means[row.index]))
        assert (row.loss_low, row.loss_high) == pytest.approx(own)
        if row.index == -1:
            assert (row.difference, row.difference_low, row.difference_high, row.p) == (0, 0, 0, 1)
            continue
        test = stats.ttest_rel(means[row.index], means[-1])
        assert row.p == pytest.approx(min(1, 3 * test.pvalue))
        together = test.confidence_interval(1 - 0.05 / 3)
        assert (row.difference_low, row.difference_high) == pytest.approx((together.low, together.high))
    lead = stats.ttest_rel(means[selection.chosen.index], means[selection.runner_up.index])
    comparisons = 3 if -1 in (selection.chosen.index, selection.runner_up.index) else 1
    gap = (means[selection.chosen.index] - means[selection.runner_up.index]).mean()
    assert selection.lead.estimate == pytest.approx(gap)
    assert selection.lead.p == pytest.approx(min(1, comparisons * lead.pvalue))


def test_by_token_the_error_is_that_of_a_ratio(usual):
    for row in usual.ranking.itertuples():
        table = usual.losses[usual.losses["prompt"] == row.index]
        residuals = (table["nll"] - row.loss * table["n_tokens"]) / table["n_tokens"].mean()
        error = math.sqrt((residuals**2).sum() / len(table) / (len(table) - 1))
        assert row.loss_high - row.loss == pytest.approx(stats.t.ppf(0.975, len(table) - 1) * error)


def test_a_row_that_is_repeated_is_one_observation(select, usual):
    once, often = usual, select(examples=[pair for pair in PAIRS for _ in range(5)])
    assert often.n_distinct == once.n_distinct == 12
    for name in ("loss", "loss_low", "loss_high", "difference", "difference_low", "difference_high", "p"):
        assert often.ranking[name].tolist() == pytest.approx(once.ranking[name].tolist(), rel=1e-4, abs=1e-6)
    with pytest.raises(UserError, match="1 of 9 examples would be scored, repetitions counted once"):
        select(examples=[("number 1", "yes")] * 9)


def test_the_same_wording_twice_has_no_difference(select):
    selection = select(candidates=["Is it odd?", "Is it odd?"])
    assert selection.chosen.index == -1
    assert selection.ranking["difference"].abs().max() < 1e-6
    assert "Keep the original" in selection.verdict[0]
    assert "within noise" in selection.verdict[1]


def test_verdicts_name_what_is_noise(usual):
    clear, noise = Difference(-0.2, -0.3, -0.1, 0.001), Difference(-0.2, -0.5, 0.1, 0.3)
    assert not clear.is_noise
    assert noise.is_noise
    assert str(Difference(-0.0001, -0.3, 0.3, 0.00001)) == "+0.000 [-0.300, +0.300], p < 0.0001"
    paraphrase = replace(usual, chosen=Prompt("b", 0), gain=clear)
    assert "by more than noise: -0.200 [-0.300, -0.100]" in paraphrase.verdict[0]
    assert "Bonferroni over 3 paraphrases" in paraphrase.verdict[0]
    assert "within noise on 12 distinct examples" in replace(paraphrase, gain=noise).verdict[0]
    # Of its difference to the original there is one test, also where the original is second.
    before_original = replace(paraphrase, gain=noise, lead=clear, runner_up=Prompt("a"))
    assert len(before_original.verdict) == 1


def test_the_original_can_be_left_out_of_the_choice(select):
    candidates = ["Is it odd?", "Say whether the number is odd."]
    losses = select(candidates=candidates).ranking.set_index("index")["loss"]
    best_first = candidates if losses[-1] < losses[0] else candidates[::-1]
    selection = select(candidates=best_first, include_original=False)
    assert selection.chosen.index == 0
    assert selection.gain.estimate > 0
    assert len(selection.ranking) == 2
    # There is nothing else to choose, which a choice could lead.
    assert (selection.runner_up, selection.lead, len(selection.verdict)) == (None, None, 1)


# --- examples ----------------------------------------------------------------------------------------------


def test_the_original_can_be_said_apart(select, usual):
    examples = [Example(*pair) for pair in PAIRS]
    apart = select(examples=examples, candidates=CANDIDATES[1:], original=CANDIDATES[0])
    assert apart.ranking.equals(usual.ranking)
    few = select(examples=examples[:3]).ranking  # fewer rows than prompts
    assert not few.isna().any().any()


def test_columns_by_name_and_rendering(select):
    rows, options = [{"asked": q, "said": a} for q, a in PAIRS], {"enable_thinking": False}
    frame = {"suffix": "Answer:", "separator": "Number:", "template_options": options}
    selection = select(examples=rows, columns=("asked", "said"), **frame)
    turn = f"{selection.chosen.text}\n\nNumber:\nnumber 1\n\nAnswer:"
    row = {
        "prompt": [{"role": "user", "content": turn}],
        "completion": [{"role": "assistant", "content": "yes, odd"}],
        "chat_template_kwargs": options,
        "input": "number 1",  # which could not be told under a separator of the user's
    }
    assert selection.render(rows[1:2]) == [row]
    assert selection.render(rows[1:2], index=1)[0]["prompt"][0]["content"].startswith(CANDIDATES[2])
    with pytest.raises(UserError, match="No candidate 9"):
        selection.render(rows, index=9)


def test_long_inputs_are_cut_and_counted(select):
    selection = select(examples=[("x" * 500, "yes"), *PAIRS], max_input_tokens=200)
    assert selection.n_shortened == 1


@pytest.mark.parametrize(
    ("examples", "options", "message"),
    [
        (PAIRS[:1], {}, "1 of 1 examples"),
        (PAIRS, {"candidates": "Is it odd?"}, "one text"),
        (PAIRS, {"candidates": ["Is it odd?"]}, "at least two prompts"),
        (PAIRS, {"candidates": ["Is it odd?", " "]}, "candidate 1 is empty"),
        (PAIRS, {"reduction": "mean"}, "token"),
        (PAIRS, {"max_input_tokens": 16}, "take"),
    ],
)
def test_what_is_refused(select, examples, options, message):
    assert message in refusal(select, examples=examples, **options)


def test_a_tokenizer_whose_template_cannot_be_used_is_refused(select, language_model, monkeypatch):
    short = "{% for message in messages %}{{ message['content'][-9:] }}{% endfor %}"
    for template, message in ((None, "no chat template"), (short, "leaves out the instruction")):
        monkeypatch.setattr(language_model.tokenizer, "chat_template", template)
        with pytest.raises(UserError, match=message):
            select()


# --- the model ---------------------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was_found(tiny_config):
    found = load_model(tiny_config("model=tiny_qwen3"))
    model = get_peft_model(found.base, LoraConfig(target_modules=["q_proj"], lora_dropout=0.5))
    try:
        model.train()
        model.base_model.model.model.layers[0].eval()
        parameters = dict(model.named_parameters())
        some = next(p for p in parameters.values() if p.requires_grad)
        some.grad = torch.ones_like(some)
        before = {name: p.detach().clone() for name, p in parameters.items()}
        modes = [module.training for module in model.modules()]
        grads = [p.requires_grad for p in parameters.values()]
        torch.manual_seed(5)
        random.seed(5)
        state, python_state = torch.get_rng_state(), random.getstate()
        first = select_prompt(model, found.tokenizer, PAIRS, CANDIDATES)
        assert [module.training for module in model.modules()] == modes
        assert [p.requires_grad for p in parameters.values()] == grads
        assert torch.equal(some.grad, torch.ones_like(some))
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
        assert torch.equal(torch.get_rng_state(), state)
        assert random.getstate() == python_state
        # Dropout was off: the same again.
        assert select_prompt(model, found.tokenizer, PAIRS, CANDIDATES).ranking.equals(first.ranking)
    finally:
        model.unload()


def test_an_adapter_is_the_models_present_state(tiny_config, tmp_path):
    found = load_model(tiny_config("model=tiny_qwen3"))
    torch.manual_seed(0)
    trained = get_peft_model(
        found.base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False), adapter_name="default"
    )
    expected = select_prompt(trained, found.tokenizer, PAIRS, CANDIDATES).ranking
    trained.save_pretrained(tmp_path)
    base = trained.unload()
    base.__dict__.pop("peft_config", None)
    with with_adapter(base, tmp_path) as model:
        ranking = select_prompt(model, found.tokenizer, PAIRS, CANDIDATES).ranking
    assert ranking["loss"].tolist() == pytest.approx(expected["loss"].tolist(), rel=1e-6)
    with with_adapter(base, None) as model:
        untouched = select_prompt(model, found.tokenizer, PAIRS, CANDIDATES).ranking
    assert untouched["loss"].tolist() != pytest.approx(expected["loss"].tolist(), rel=1e-3)


def test_adapters_that_put_learned_tokens_before_prompts_are_refused(language_model):
    learned = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with plain(language_model.base):
        model = get_peft_model(language_model.base, learned)
        with pytest.raises(UserError, match="puts learned tokens before every prompt"):
            select_prompt(model, language_model.tokenizer, PAIRS, CANDIDATES)


def test_adapters_that_do_not_fit(language_model, tmp_path):
    def refused(message):
        with pytest.raises(UserError, match=message), with_adapter(language_model.base, tmp_path):
            pass

    refused(r"no adapter_config\.json")
    lora = '{"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": ["no_such_layer"]}'
    (tmp_path / "adapter_config.json").write_text(lora)
    refused("no weights there")
    (tmp_path / "adapter_model.bin").touch()  # a pickle
    refused("no weights there")
    (tmp_path / "adapter_model.safetensors").touch()
    refused("does not fit this model")


def test_the_package_offers_it():
    assert sapo.experiments.select_prompt is select_prompt
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        sapo.experiments.other  # noqa: B018
