"""What O-LoRA and EWC add to the loss, what they keep for it, and what they are where it is nothing."""

import asyncio
import json
import math
import shutil

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from sapo.conf.errors import WorkError
from sapo.conf.schema import MethodConfig
from sapo.data.benchmarks import load_tasks
from sapo.data.prompts import Prompt
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.engine.store import Store
from sapo.experiments.methods import Context, method_of
from sapo.experiments.methods.ewc import (
    ANCHOR,
    FISHER,
    Memory,
    add_task,
    distance,
    fisher_information,
)
from sapo.experiments.methods.method import KEPT
from sapo.experiments.methods.olora import overlap
from sapo.experiments.model import training
from sapo.experiments.model.adapters import FOLDER, WEIGHTS, adapter_tensors, plain
from sapo.experiments.model.load import load_model
from sapo.experiments.model.rows import Draws, TrainingTask, training_rows
from sapo.experiments.model.training import train
from sapo.experiments.stages import BASE, Train

FAST = (
    "trainer.epochs=2",
    "trainer.global_batch=4",
    "trainer.learning_rate=1e-2",
    "data.max_input_tokens=512",
)
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


def same(first, second):
    """Whether two states have equal adapters, to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def method(tiny_config):
    """A method before its training at `position`, after the state in the folder `previous`."""

    def build(previous, position, *overrides):
        config = tiny_config(*FAST, *overrides)
        tasks, _ = load_tasks(config)
        learned = TrainingTask(tasks[position], (Prompt(tasks[position].instruction),))
        return method_of(Context(config, load_model(config), (learned,), previous, position, 7))

    return build


def learn(method, scratch):
    """Trains as a stage does; facts and trained weights."""
    context = method.context
    with plain(context.language_model.base):
        rows = training_rows(context.renderer, context.tasks)
        torch.manual_seed(context.seed)
        model = method.start()
        facts = train(
            model,
            rows,
            context.config.trainer,
            draws=Draws(context.seed, 1),
            scratch=scratch,
            what="t",
            penalty=method.penalty,
        )
        return facts, {key: value.clone() for key, value in adapter_tensors(model, "current").items()}


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


def test_penalty_factor_multiplies_the_penalty(method, states):
    (first,) = states("method=olora", n_tasks=1)
    values = []
    for factor in (1, 8):
        with plain(load_model(method(None, 0).context.config).base):
            olora = method(first.folder, 1, "method=olora", f"method.penalty_factor={factor}")
            torch.manual_seed(0)
            values.append(olora.penalty(olora.start()).item())
    assert values[1] == pytest.approx(8 * values[0])


def test_overlap_by_hand_and_its_gradient(method, states):
    """Earlier rows (1,0,2) and (0,-1,1), new rows (1,1,1) and (-2,0,1): |3| + |0| + |0| + |1| a module."""
    (first,) = states("method=olora", "method.rank=2", n_tasks=1)
    with plain(load_model(method(None, 0).context.config).base):
        model = method(first.folder, 1, "method=olora", "method.rank=2").start()
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        with torch.no_grad():
            for layer in layers:
                for name, rows in (
                    ("earlier", [[1, 0, 2], [0, -1, 1]]),
                    ("current", [[1, 1, 1], [-2, 0, 1]]),
                ):
                    layer.lora_A[name].weight.zero_()
                    layer.lora_A[name].weight[:, :3] = torch.tensor(rows).float()
        found = overlap(model)
        assert found.item() == 4 * len(layers) == 16
        found.backward()
        with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
        assert with_gradient == {n for n, _ in model.named_parameters() if "lora_A.current" in n}
        # d/dnew row 0 of |3| + |0| (sign 0): (1,0,2); row 1 of |0| + |1|: (0,-1,1).
        gradient = layers[0].lora_A["current"].weight.grad
        assert gradient[:, :3].tolist() == [[1, 0, 2], [0, -1, 1]]
        assert gradient[:, 3:].abs().sum() == 0


def test_overlap_sums_over_all_earlier_tasks(method, states):
    first, second = states("method=olora")
    with plain(load_model(method(None, 0).context.config).base):
        olora = method(second.folder, 2, "method=olora")
        model = olora.start()
        old, new = adapter(second), adapter_tensors(model, "current")
        expected = 0.0
        for key, value in new.items():
            if "lora_A" in key:
                for task in (old[key][:8], old[key][8:]):
                    for earlier in task:
                        expected += sum(abs(float(earlier.double() @ row.double())) for row in value)
        assert olora.penalty(model).item() == pytest.approx(0.5 * expected, rel=1e-5)
    assert all(v.shape[0] == 16 for k, v in old.items() if "lora_A" in k)
    assert first.key != second.key


def test_olora_whose_earlier_adapters_are_zero_is_an_error(method, states, tmp_path):
    (first,) = states("method=olora", n_tasks=1)
    folder = tmp_path / "zero"
    shutil.copytree(first.folder, folder)
    path = folder / FOLDER / WEIGHTS
    save_file({key: torch.zeros_like(value) for key, value in load_file(path).items()}, path)
    with plain(load_model(method(None, 0).context.config).base):
        olora = method(folder, 1, "method=olora")
        model = olora.start()
        with pytest.raises(WorkError, match="olora: the adapters of earlier tasks"):
            olora.penalty(model)


# --- EWC against sequential --------------------------------------------------------------------------------


def test_ewc_of_weight_zero_is_sequential_to_the_bit_and_so_is_its_first_task(states):
    plainly = states("method=sequential", *EWC_ADAPTER)
    off = states("method=ewc", "method.weight=0")
    on = states("method=ewc")
    fewer = states("method=ewc", "method.weight=0", "method.fisher_examples=1")
    assert same(adapter(fewer[1]), adapter(off[1]))
    for stored in (off[0], off[1]):
        assert stored.result.penalties == ()
    assert same(adapter(off[0]), adapter(plainly[0]))
    assert same(adapter(off[1]), adapter(plainly[1]))
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
    assert set(kept) == {
        "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
        "kept/anchor.safetensors", "kept/fisher.json", "kept/fisher.safetensors",
    }  # fmt: skip
    assert kept["kept/fisher.safetensors"] == kept["kept/anchor.safetensors"]
    assert same(load_file(second.folder / KEPT / ANCHOR), adapter(second))
    fisher = load_file(second.folder / KEPT / FISHER)
    assert {k: v.shape for k, v in fisher.items()} == {k: v.shape for k, v in adapter(second).items()}
    facts = json.loads((second.folder / KEPT / "fisher.json").read_text())
    assert facts["examples"] == 8  # 200 were asked for: all there are
    b = torch.cat([value.flatten() for key, value in fisher.items() if "lora_B" in key])
    assert facts["kept"]["lora_B"] == {
        "min": b.min().item(),
        "median": b.median().item(),
        "max": b.max().item(),
    }


@pytest.mark.parametrize("name", [FISHER, ANCHOR])
def test_ewc_without_its_memory_is_an_error(method, states, tmp_path, name):
    (first,) = states("method=ewc", n_tasks=1)
    folder = tmp_path / "state"
    shutil.copytree(first.folder, folder)
    (folder / KEPT / name).unlink()
    with plain(load_model(method(None, 0).context.config).base), pytest.raises(WorkError, match=name):
        method(folder, 1, "method=ewc").start()


def test_a_memory_of_other_weights_is_an_error(method, states, tmp_path):
    (first,) = states("method=ewc", n_tasks=1)
    folder = tmp_path / "state"
    shutil.copytree(first.folder, folder)
    path = folder / KEPT / FISHER
    save_file({key: value[:1].clone() for key, value in load_file(path).items()}, path)
    with (
        plain(load_model(method(None, 0).context.config).base),
        pytest.raises(WorkError, match="other weights"),
    ):
        method(folder, 1, "method=ewc").start()


class KillError(Exception):
    """In the place of a kill."""


@pytest.mark.parametrize("name", ["olora", "ewc"])
def test_a_killed_training_goes_on_with_its_penalty(method, states, tmp_path, monkeypatch, name):
    (first,) = states(f"method={name}", n_tasks=1)
    second = (first.folder, 1, f"method={name}", "trainer.checkpoint_steps=1")
    expected, weights = learn(method(*second), tmp_path / "undisturbed")

    def dies_in_the_third_step(rows, config, draws, step, batch=training.global_batch):
        if step == 2:
            raise KillError
        return batch(rows, config, draws, step)

    with monkeypatch.context() as patch:
        patch.setattr(training, "global_batch", dies_in_the_third_step)
        with pytest.raises(KillError):
            learn(method(*second), tmp_path / "killed")
    assert (tmp_path / "killed" / "checkpoint-2").is_dir()
    resumed, other = learn(method(*second), tmp_path / "killed")
    assert len(expected["penalties"]) == 4
    assert expected["penalties"][-1] > 0
    assert resumed["penalties"] == expected["penalties"]
    assert resumed["losses"] == expected["losses"]
    assert same(other, weights)


def test_a_huge_weight_freezes_what_has_fisher_information_and_nothing_else(method, states, tmp_path):
    """The minimum of ½|θ - (θ* + 1)|² + penalty: θ* where F > 0, θ* + 1 where F = 0."""
    (first,) = states("method=ewc", n_tasks=1)
    folder = tmp_path / "state"
    shutil.copytree(first.folder, folder)
    path = folder / KEPT / FISHER
    generator = torch.Generator().manual_seed(0)
    free = {k: torch.rand(v.shape, generator=generator) < 0.5 for k, v in load_file(path).items()}
    save_file({k: (~mask).float() for k, mask in free.items()}, path)
    with plain(load_model(method(None, 0).context.config).base):
        ewc = method(folder, 1, "method=ewc", "method.weight=1e9")
        model = ewc.start()
        anchor = {k: v.clone() for k, v in adapter_tensors(model, "current").items()}
        parameters = [p for p in model.parameters() if p.requires_grad]
        goal = [p.detach() + 1 for p in parameters]
        with torch.no_grad():
            for parameter in parameters:
                parameter += 0.3  # from somewhere
        pulls = zip(parameters, goal, strict=True)
        loss = sum(0.5 * (p - there).square().sum() for p, there in pulls) + ewc.penalty(model)
        slopes = torch.autograd.grad(loss, parameters, create_graph=True)
        curvatures = torch.autograd.grad(sum(slope.sum() for slope in slopes), parameters)
        with torch.no_grad():  # one Newton step is exact: the loss is quadratic, each weight by itself
            for parameter, slope, curvature in zip(parameters, slopes, curvatures, strict=True):
                parameter -= slope / curvature
        moved = {k: v - anchor[k] for k, v in adapter_tensors(model, "current").items()}
    for key, mask in free.items():
        assert moved[key][~mask].abs().max() < 1e-6
        assert (moved[key][mask] - 1).abs().max() < 1e-6


def test_in_training_a_huge_weight_holds_what_has_fisher_information(method, states, tmp_path):
    (first,) = states("method=ewc", n_tasks=1)
    folder = tmp_path / "state"
    shutil.copytree(first.folder, folder)
    path = folder / KEPT / FISHER
    fisher = {key: (torch.arange(v.numel()) % 2).float().view(v.shape) for key, v in load_file(path).items()}
    save_file(fisher, path)
    anchor = load_file(folder / KEPT / ANCHOR)
    held, loose = (
        learn(
            method(folder, 1, "method=ewc", f"method.weight={weight}", "trainer.epochs=8"), tmp_path / weight
        )[1]
        for weight in ("1e6", "0")
    )

    def travelled(weights, has_fisher):
        moves = [(weights[k] - anchor[k])[fisher[k] == has_fisher].abs() for k in fisher]
        return torch.cat(moves).mean().item()

    assert travelled(held, 1) < 0.1 * travelled(held, 0)
    assert travelled(held, 1) < 0.1 * travelled(loose, 1)


# --- Fisher information ------------------------------------------------------------------------------------


def test_fisher_information_is_the_mean_of_squared_gradients_of_single_examples(method, states):
    (first,) = states("method=ewc", n_tasks=1)
    context = method(None, 0, "method=ewc").context
    rendered = [row.rendered[0] for row in training_rows(context.renderer, context.tasks)][:3]
    with plain(context.language_model.base):
        model = method(first.folder, 1, "method=ewc").start().train()  # dropout on: it must not count
        found = fisher_information(model, rendered)
        assert all(parameter.grad is None for parameter in model.parameters())
        expected = {}
        for example in rendered:
            labels = torch.tensor([example.input_ids])
            labels[:, : example.target_start] = -100
            model.zero_grad()
            model(input_ids=torch.tensor([example.input_ids]), labels=labels).loss.backward()
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    key = name.replace(".current", "")
                    expected[key] = expected.get(key, 0) + parameter.grad**2 / len(rendered)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == torch.float32
        assert torch.allclose(found[key], value, rtol=1e-3, atol=1e-6 * value.max().item())
        assert value.max() > 0


def test_fisher_information_is_taken_at_the_final_weights_of_a_seeded_sample(method, states, tmp_path):
    (first,) = states("method=ewc", n_tasks=1)
    kept = {}
    for name, overrides in (
        ("three", ("method.fisher_examples=3",)),
        ("again", ("method.fisher_examples=3",)),
        ("all", ()),
    ):
        ewc = method(first.folder, 1, "method=ewc", *overrides, "method.fisher=last")
        with plain(ewc.context.language_model.base):
            ewc.save(ewc.start(), tmp_path / name)
        kept[name] = load_file(tmp_path / name / KEPT / FISHER)
    assert same(kept["three"], kept["again"])
    assert not same(kept["three"], kept["all"])
    assert json.loads((tmp_path / "three" / KEPT / "fisher.json").read_text())["examples"] == 3
    # Before training B is 0 and no gradient reaches A; what was kept is of the weights after it.
    assert all(value.max() > 0 for value in load_file(first.folder / KEPT / FISHER).values())


# --- Adding tasks up ---------------------------------------------------------------------------------------


def memory(fisher, anchor):
    return Memory({"w": torch.tensor(fisher)}, {"w": torch.tensor(anchor)})


def after(fisher, *tasks):
    config, kept = MethodConfig("ewc", fisher=fisher, fisher_decay=0.5), None
    for task in tasks:
        kept = add_task(config, kept, task)
    return kept


@pytest.mark.parametrize(
    ("fisher", "total", "anchor"),
    [
        ("half", [3.0, 1.25, 0.0], [5.0, 7.0, 9.0]),  # ½ (½ (4,1,0) + ½ (0,2,0)) + ½ (4,1,0)
        ("last", [4.0, 1.0, 0.0], [5.0, 7.0, 9.0]),
        ("online", [5.0, 2.25, 0.0], [5.0, 7.0, 9.0]),  # ½ (½ (4,1,0) + (0,2,0)) + (4,1,0)
    ],
)
def test_three_tasks_by_hand(fisher, total, anchor):
    tasks = (
        memory([4.0, 1.0, 0.0], [1.0, 1.0, 1.0]),
        memory([0.0, 2.0, 0.0], [3.0, 3.0, 3.0]),
        memory([4.0, 1.0, 0.0], [5.0, 7.0, 9.0]),
    )
    kept = after(fisher, *tasks)
    assert kept.fisher["w"].tolist() == total
    assert kept.anchor["w"].tolist() == pytest.approx(anchor)
    first = after(fisher, tasks[0])
    assert (first.fisher["w"].tolist(), first.anchor["w"].tolist()) == ([4.0, 1.0, 0.0], [1.0, 1.0, 1.0])
    theta = {"w": torch.tensor([0.0, 1.0, 2.0])}
    by_hand = sum(f * (t - a) ** 2 for f, t, a in zip(total, [0, 1, 2], anchor, strict=True))
    assert distance(kept, theta).item() == pytest.approx(by_hand)
