"""`sapo check` against the real `transformers serve` of an exported model."""

from servers import serving
from tiny import LARGE_STEPS, read_json

from sapo.conf.load import load_one
from sapo.experiments.model.fetch import model_folder


def test_a_served_export_passes_and_what_is_wrong_is_named(sapo, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = [word for word in small if word != "trainer.epochs=1"]
    (run,) = sapo("train", *few, *LARGE_STEPS, "policy=static", "--json").document["runs"]
    assert sapo("export", run["id"], "--to", tmp_path / "merged", "--merge").code == 0
    (tmp_path / "sent.json").write_text('{"messages": [{"role": "user", "content": "{input}"}]}')
    with serving(tmp_path) as url:

        def checked(model, *options):
            done = sapo("check", f"serve={url}", run["id"], "--model", model, *options, "--json")
            document = read_json(done.out)
            assert done.code == (not document["served"])
            return {each["name"]: each for each in document["checks"]}

        right = checked(tmp_path / "merged")
        assert right["tokens"]["ok"]
        assert "as many tokens as in training" in right["tokens"]["detail"]
        assert "4 of 4 are the run's" in right["answers"]["detail"]
        assert (right["weights"]["ok"], right["weights"]["required"]) == (False, False)
        lost = checked(tmp_path / "merged", "--request", "sent.json")
        assert not lost["tokens"]["ok"]
        assert "the layout is missing" in lost["tokens"]["detail"]
        base = checked(model_folder(load_one(["model=tiny_llama"]).model))
        assert base["tokens"]["ok"]
        assert "They are the untouched base model's: 4 of 4" in base["answers"]["detail"]
        absent = sapo("check", f"serve={url}", run["id"], "--model", "no/model")
        assert "chat/completions answered " in absent.err
