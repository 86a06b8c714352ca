"""What O-LoRA and EWC add to the loss, what they keep for it, and what they are where it is nothing."""

import asyncio
import math
import shutil

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from trainings import learn, method_for, plain_nll, rows_of, same

from sapo.conf.errors import WorkError
from sapo.conf.schema import MethodConfig
from sapo.data.benchmarks import load_tasks
from sapo.data.prompts import Prompt
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.store import Store
from sapo.experiments.methods.ewc import ANCHOR, FISHER, add_task, distance, fisher_information
from sapo.experiments.methods.method import KEPT
from sapo.experiments.model.adapters import FOLDER, WEIGHTS, adapter_tensors, plain, trained_weights
from sapo.experiments.model.rows import TrainingTask
from sapo.experiments.stages import BASE, Train

FAST = (
    "trainer.epochs=2", "trainer.global_batch=4", "trainer.learning_rate=1e-2", "data.max_input_tokens=512",
)  # fmt: skip
EWC_ADAPTER = ("method.rank=40", "method.alpha=160")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """What several tests need is trained once."""
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def states(tiny_config, store):
    """`states("method=ewc", …)` trains two tasks through the engine: the stored trainings."""

    def run(*overrides, n_tasks=2):
        config = tiny_config(*FAST, *overrides)
        tasks, _ = load_tasks(config)
        engine = LocalEngine(store)
        state, stored = BASE, []
        for position, task in enumerate(tasks[:n_tasks]):
            learned = (TrainingTask(task, (Prompt(task.instruction),)),)
            stored.append(asyncio.run(engine.run(Train(config, state, position, learned))))
            state = stored[-1].key
        return stored

    return run


def adapter(stored):
    return load_file(stored.folder / FOLDER / WEIGHTS)


@pytest.fixture
def method(tiny_config):
    """A method before its training at `position`, after the state in the folder `previous`."""
    return lambda previous, position, *overrides: method_for(
        tiny_config(*FAST, *overrides), position, previous
    )


@pytest.fixture
def started(method):
    """A method and its model before the training at `position`."""
    with plain(method(None, 0).context.language_model.base):
        yield lambda *args: (made := method(*args), made.start())


@pytest.fixture
def changed(states, tmp_path):
    """`changed(name, file, change)`: the folder of a method's first state with another content of a file."""

    def copy(name, file, change):
        (first,) = states(f"method={name}", n_tasks=1)
        folder = shutil.copytree(first.folder, tmp_path / "state")
        save_file({key: change(value) for key, value in load_file(folder / file).items()}, folder / file)
        return folder

    return copy


# --- O-LoRA ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", ["method.weight=0", "method.penalty_factor=0"])
def test_olora_of_weight_zero_is_lorainc_to_the_bit(states, nothing):
    plainly = states("method=lorainc")
    olora = states("method=olora", nothing)
    assert olora[0].key == plainly[0].key  # the first training is one
    assert olora[1].key != plainly[1].key
    assert same(adapter(olora[1]), adapter(plainly[1]))
    assert olora[1].result.penalties == ()


def test_olora_changes_the_second_task_and_logs_its_penalty(states):
    first, second = states("method=olora")
    assert first.result.penalties == ()
    assert len(second.result.penalties) == second.result.steps == 4
    a = {k: v for k, v in adapter(second).items() if "lora_A" in k}
    assert all(math.isfinite(penalty) and penalty > 0 for penalty in second.result.penalties)
    assert not same(adapter(second), adapter(states("method=lorainc")[1]))
    # The last logged one is the penalty before the last step: near that of the weights that were left.
    left = 0.5 * sum((v[:8].double() @ v[8:].double().T).abs().sum().item() for v in a.values())
    assert second.result.penalties[-1] == pytest.approx(left, rel=0.2)


def test_overlap_by_hand_and_its_gradient(started, states):
    """Earlier rows (1,0,2) and (0,-1,1), new rows (1,1,1) and (-2,0,1): |3| + |0| + |0| + |1| a module."""
    (first,) = states("method=olora", "method.rank=2", n_tasks=1)
    olora, model = started(first.folder, 1, "method=olora", "method.rank=2", "method.weight=1")
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    by_hand = {"earlier": [[1.0, 0, 2], [0, -1, 1]], "current": [[1.0, 1, 1], [-2, 0, 1]]}
    with torch.no_grad():
        for layer in layers:
            for name, rows in by_hand.items():
                layer.lora_A[name].weight.zero_()
                layer.lora_A[name].weight[:, :3] = torch.tensor(rows)
    found = olora.penalty(model)
    assert found.item() == 4 * len(layers) == 16
    found.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {n for n, _ in model.named_parameters() if "lora_A.current" in n}
    # d/dnew row 0 of |3| + |0| (sign 0): (1,0,2); row 1 of |0| + |1|: (0,-1,1).
    gradient = layers[0].lora_A["current"].weight.grad
    assert gradient[:, :3].tolist() == [[1, 0, 2], [0, -1, 1]]
    assert gradient[:, 3:].abs().sum() == 0


def test_overlap_sums_over_all_earlier_tasks(started, states):
    _, second = states("method=olora")
    olora, model = started(second.folder, 2, "method=olora", "method.penalty_factor=8")
    new = {key: value for key, value in adapter_tensors(model, "current").items() if "lora_A" in key}
    old = {key: adapter(second)[key] for key in new}
    assert {len(value) for value in old.values()} == {16}
    pairs = [(earlier, row) for key, rows in new.items() for row in rows for earlier in old[key]]
    expected = sum(abs(float(earlier.double() @ row.double())) for earlier, row in pairs)
    assert olora.penalty(model).item() == pytest.approx(8 * 0.5 * expected, rel=1e-5)


def test_olora_whose_earlier_adapters_are_zero_is_an_error(started, changed):
    olora, model = started(changed("olora", f"{FOLDER}/{WEIGHTS}", torch.zeros_like), 1, "method=olora")
    with pytest.raises(WorkError, match="olora: the adapters of earlier tasks"):
        olora.penalty(model)


# --- EWC against sequential --------------------------------------------------------------------------------


def test_ewc_of_weight_zero_is_sequential_to_the_bit_and_so_is_its_first_task(states):
    plainly = states("method=sequential", *EWC_ADAPTER)
    off = states("method=ewc", "method.weight=0")
    on = states("method=ewc")
    for stored, plain_one in zip(off, plainly, strict=True):
        assert stored.result.penalties == ()
        assert same(adapter(stored), adapter(plain_one))
    assert same(adapter(on[0]), adapter(plainly[0]))
    assert not same(adapter(on[1]), adapter(plainly[1]))
    assert len({off[0].key, on[0].key, plainly[0].key}) == 3  # what is kept differs
    # The weights are the anchor until a step has moved them, and the first step's rate is 0.
    assert on[1].result.penalties[:2] == (0, 0)
    assert min(on[1].result.penalties[2:]) > 0
    assert on[1].result.losses[0] == off[1].result.losses[0]


def test_what_ewc_keeps_is_of_the_size_of_its_adapter(states):
    _, second = states("method=ewc")
    kept = second.result.kept
    files = [f"adapter/adapter_{name}" for name in ("config.json", "model.safetensors")]
    assert [*kept] == [*files, "kept/anchor.safetensors", "kept/fisher.safetensors"]
    assert kept["kept/fisher.safetensors"] == kept["kept/anchor.safetensors"]
    assert same(load_file(second.folder / KEPT / ANCHOR), adapter(second))
    fisher = load_file(second.folder / KEPT / FISHER)
    assert {k: v.shape for k, v in fisher.items()} == {k: v.shape for k, v in adapter(second).items()}


def test_ewc_without_its_memory_or_with_another_s_is_an_error(started, changed):
    folder = changed("ewc", f"{KEPT}/{FISHER}", lambda value: value[:1].clone())
    with pytest.raises(WorkError, match="other weights"):
        started(folder, 1, "method=ewc")
    (folder / KEPT / ANCHOR).unlink()
    with pytest.raises(WorkError, match=rf"{ANCHOR}.* to train that task again"):
        started(folder, 1, "method=ewc")


@pytest.mark.parametrize("name", ["olora", "ewc"])
def test_a_killed_training_goes_on_with_its_penalty(method, states, tmp_path, killed, name):
    (first,) = states(f"method={name}", n_tasks=1)
    second = (first.folder, 1, f"method={name}", "trainer.checkpoint_steps=1")
    expected, weights = learn(method(*second), tmp_path / "undisturbed")
    killed(2, method(*second), tmp_path / "killed")
    resumed, other = learn(method(*second), tmp_path / "killed")
    assert len(expected["penalties"]) == 4
    assert expected["penalties"][-1] > 0
    assert resumed.pop("earlier_seconds") > 0
    assert resumed == expected
    assert same(other, weights)


def test_a_huge_weight_holds_what_has_fisher_information_and_nothing_else(method, changed, tmp_path):
    def every_other(value):
        return (torch.arange(value.numel()) % 2).float().view(value.shape)

    folder = changed("ewc", f"{KEPT}/{FISHER}", every_other)
    fisher, anchor = (load_file(folder / KEPT / name) for name in (FISHER, ANCHOR))
    ways = {weight: ("method=ewc", f"method.weight={weight}", "trainer.epochs=8") for weight in ("1e6", "0")}
    held, loose = (learn(method(folder, 1, *way), tmp_path / weight)[1] for weight, way in ways.items())

    def travelled(weights, has_fisher):
        return torch.cat([(weights[k] - anchor[k])[fisher[k] == has_fisher].abs() for k in fisher]).mean()

    assert travelled(held, 1) < 0.1 * travelled(held, 0)
    assert travelled(held, 1) < 0.1 * travelled(loose, 1)


# --- Fisher information ------------------------------------------------------------------------------------


def test_fisher_information_is_the_mean_of_squared_gradients_of_single_examples(started, states):
    (first,) = states("method=ewc", n_tasks=1)
    ewc, model = started(first.folder, 1, "method=ewc")
    model.train()  # dropout on: it must not count
    rendered = [row.rendered[0] for row in rows_of(ewc)][:3]
    found = fisher_information(model, rendered)
    assert all(parameter.grad is None for parameter in model.parameters())
    expected = {}
    for example in rendered:
        model.zero_grad()
        (plain_nll(model, example) / len(example.target_ids)).backward()
        for key, weight in trained_weights(model).items():
            expected[key] = expected.get(key, 0) + weight.grad**2 / len(rendered)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == torch.float32
        assert torch.allclose(found[key], value, rtol=1e-3, atol=1e-6 * value.max().item())
        assert value.max() > 0


def test_fisher_information_is_taken_at_the_final_weights_of_a_seeded_sample(method, states, tmp_path):
    (first,) = states("method=ewc", n_tasks=1)
    kept = {}
    for name, n in (("three", 3), ("again", 3), ("all", 200)):
        ewc = method(first.folder, 1, "method=ewc", f"method.fisher_examples={n}", "method.fisher=last")
        with plain(ewc.context.language_model.base):
            ewc.save(ewc.start(), tmp_path / name)
        kept[name] = load_file(tmp_path / name / KEPT / FISHER)
    assert same(kept["three"], kept["again"])
    assert not same(kept["three"], kept["all"])
    # Before training B is 0 and no gradient reaches A; what was kept is of the weights after it.
    assert all(value.max() > 0 for value in load_file(first.folder / KEPT / FISHER).values())


# --- Adding tasks up ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fisher", "total"),
    [
        ("half", [3.0, 1.25, 0.0]),  # ½ (½ (4,1,0) + ½ (0,2,0)) + ½ (4,1,0)
        ("last", [4.0, 1.0, 0.0]),
        ("online", [5.0, 2.25, 0.0]),  # ½ (½ (4,1,0) + (0,2,0)) + (4,1,0)
    ],
)
def test_three_tasks_by_hand(fisher, total):
    anchors = [[1.0, 1.0, 1.0], [3.0, 3.0, 3.0], [5.0, 7.0, 9.0]]
    config, kept = MethodConfig("ewc", fisher=fisher, fisher_decay=0.5), []
    for own, anchor in zip([[4.0, 1.0, 0.0], [0.0, 2.0, 0.0], [4.0, 1.0, 0.0]], anchors, strict=True):
        task = {FISHER: {"w": torch.tensor(own)}, ANCHOR: {"w": torch.tensor(anchor)}}
        kept.append(add_task(config, kept[-1] if kept else {}, task))
    assert [memory[ANCHOR]["w"].tolist() for memory in kept] == anchors
    assert kept[0][FISHER]["w"].tolist() == [4.0, 1.0, 0.0]
    assert kept[2][FISHER]["w"].tolist() == total
    by_hand = sum(f * (t - a) ** 2 for f, t, a in zip(total, [0, 1, 2], anchors[2], strict=True))
    assert distance(kept[2], {"w": torch.tensor([0.0, 1.0, 2.0])}).item() == pytest.approx(by_hand)
