"""An archive of runs arrives whole on another machine, or not at all, and can write nowhere else."""

import errno
import gzip
import io
import json
import os
import shutil
import tarfile
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from made_up import seal
from making import RUN, add_run, add_stage, record

from sapo.conf.errors import UserError, WorkError
from sapo.data.records import MANIFEST, StageResult, write_record
from sapo.data.tasks import digest
from sapo.experiments.engine import archive
from sapo.experiments.engine.archive import INDEX, Archived, export_runs, import_archive
from sapo.experiments.engine.garbage import collect, leftovers, verify
from sapo.experiments.engine.store import Store

KINDS = ("score", "train", "evaluate")


@pytest.fixture
def store(tmp_path):
    """One run of three stages, and a stage that is none of its."""
    store = Store(tmp_path / "here")
    add_run(store, RUN, [add_stage(store, kind) for kind in KINDS])  # with metrics.json, which stays behind
    add_stage(store, "train", seed=1)
    return store


@pytest.fixture
def file(store, tmp_path):
    path = tmp_path / "runs.tar.gz"
    export_runs([store.run_folder(RUN)], path)
    return path


@pytest.fixture
def there(tmp_path):
    """The store of another machine."""
    return Store(tmp_path / "there")


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for part in ("stages", "runs")
        for path in sorted((root / part).rglob("*"))
        if path.is_file()
    }


def assert_untouched(there: Store) -> None:
    assert contents(there.root) == {}
    assert not list(there.root.glob("building/*"))


def test_a_run_arrives_with_all_its_stages_and_nothing_else(store, file, there):
    done = import_archive(file, there)
    assert done == Archived([RUN], [], 3, 0, done.bytes)
    own = {name: content for name, content in contents(store.root).items() if "metrics.json" not in name}
    stranger = add_stage(store, "train", seed=1)["key"]
    assert contents(there.root) == {name: content for name, content in own.items() if stranger not in name}
    assert done.bytes == sum(map(len, contents(there.root).values()))
    assert verify(there) == []
    assert not list(there.root.glob("building/*"))
    for kind in KINDS:
        assert there.find(kind, digest({"kind": kind, "state": "base", "seed": 0}))


def test_imported_files_are_as_open_as_the_umask_says(file, there):
    before = os.umask(0o002)
    try:
        import_archive(file, there)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in there.root.glob("[sr]*/**/*") if path.is_file()}
    assert modes == {0o664}


def test_what_is_there_already_stays_and_what_only_took_another_time_is_the_same(file, there):
    stage = add_stage(there, "evaluate")
    folder = there.root / "stages" / "evaluate" / stage["key"]
    write_record(folder / "result.json", StageResult(task="t", model="m", seconds=2.0, tokens=3))
    seal(folder)
    before = folder.stat().st_ino
    assert [import_archive(file, there).kept for _ in range(2)] == [1, 3]
    assert folder.stat().st_ino == before


def test_another_result_under_the_same_key_is_refused(store, file, there):
    add_stage(there, "evaluate", content=b"other numbers")
    before = contents(there.root)
    with pytest.raises(UserError, match=r"evaluate/.* with another result: .* --root"):
        import_archive(file, there)
    assert contents(there.root) == before


def test_an_archive_is_an_ordinary_tar_and_the_same_every_time(store, file, tmp_path):
    export_runs([store.run_folder(RUN)], tmp_path / "again.tar.gz")
    assert gzip.decompress(file.read_bytes()) == gzip.decompress((tmp_path / "again.tar.gz").read_bytes())
    with tarfile.open(file) as tar:
        assert all(member.isreg() for member in tar)


def test_export_names_what_it_lacks(store, file, tmp_path):
    run, target = store.run_folder(RUN), tmp_path / "new.tar.gz"
    with pytest.raises(UserError, match="exists already"):
        export_runs([run], file)
    path = next(store.root.glob("stages/train/*/adapter/*"))
    for damage, error, message in (
        (lambda: path.write_bytes(b"numberz"), WorkError, "Damaged: .*adapter_model"),
        (lambda: shutil.rmtree(path.parents[1].parent), UserError, "Stage train/.* is not in"),
        (lambda: (run / "predictions.parquet").write_bytes(b"x"), WorkError, "Damaged: .*predictions"),
        (lambda: (run / MANIFEST).unlink(), WorkError, "has no manifest.json: .*sapo train"),
    ):
        damage()
        with pytest.raises(error, match=message):
            export_runs([run], target)
        assert not target.exists()


# --- archives that somebody has made up ---------------------------------------------------------------------


def pack(path: Path, files: dict[str, bytes], index: Any, kind: bytes = tarfile.REGTYPE) -> Path:
    """An archive of an index and arbitrary members."""
    with tarfile.open(path, "w:gz", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in {INDEX: json.dumps(index).encode(), **files}.items():
            info = tarfile.TarInfo(name)
            if name != INDEX and kind != tarfile.REGTYPE:
                info.type, info.linkname, data = kind, "/etc/hostname", b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


KEY = "a" * 64
FILE = f"stages/train/{KEY}/result.json"
NAMES = [
    "../outside.json", "/outside.json", f"stages/train/{KEY}/../../../../outside.json",
    f"stages/train/{KEY}/adapter/../../x.json", f"stages/train/{KEY}/.hidden.json", f"stages/train/{KEY}/",
    f"stages/train/{KEY}/weights.pt", f"stages/train/{KEY}/a\nb.json", f"stages/other/{KEY}/result.json",
    f"stages/train/{KEY.upper()}/result.json", "runs/../run.json", "runs/.hidden/run.json", "locks/a.lock",
    "runs/a/metrics.json", "runs/a\x1b[2J/run.json", "runs/a[1]/run.json", INDEX,
]  # fmt: skip
INDEXES = [
    ({"format": 2, "files": {}}, "format 1"),
    ([], "format 1"),
    ({"format": 1}, "no whole archive"),
    ({"format": 1, "files": []}, "format 1"),
    ({"format": 1, "files": {}}, "not as its index"),
    ({"format": 1, "files": {FILE: 3}}, "not as its index"),
    ({"format": 1, "files": {FILE: -1}}, "or has no size"),
    ({"format": 1, "files": {FILE: "2"}}, "or has no size"),
    ({"format": 1, "files": {FILE: True}}, "or has no size"),
    ({"format": 1, "files": {FILE: 2, "runs/a/config.yaml": 2}}, "config.yaml is missing"),
    ({"format": 1, "files": {FILE: 2, "runs/a/config.yaml": 10**15}}, "are free"),
]
TYPES = [
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.CHRTYPE,
    tarfile.FIFOTYPE,
    tarfile.DIRTYPE,
    b"S",
    b"L",
    b"x",
]


@pytest.mark.parametrize(
    ("message", "name", "index", "kind"),
    [
        *(("no whole archive|is not as its index", name, None, tarfile.REGTYPE) for name in NAMES),
        *((message, FILE, index, tarfile.REGTYPE) for index, message in INDEXES),
        *(("is not a plain file", FILE, None, kind) for kind in TYPES),
    ],
)
def test_what_is_no_plain_file_of_the_layout_as_the_index_says_is_refused(
    there, tmp_path, message, name, index, kind
):
    index = {"format": 1, "files": {name: 2}} if index is None else index
    file = pack(tmp_path / "bad.tar.gz", {name: b"{}"} if name != INDEX else {}, index, kind)
    with pytest.raises(UserError, match=message):
        import_archive(file, there)
    assert_untouched(there)
    assert not (tmp_path / "outside.json").exists()


@pytest.mark.parametrize("share", [0, 20, 90, 99])
def test_a_cut_archive_is_refused(file, there, share):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * share // 100])
    with pytest.raises(UserError, match=r"no whole archive|is not whole"):
        import_archive(file, there)
    assert_untouched(there)


def test_what_is_no_archive_is_refused(there, tmp_path):
    below = tarfile.TarInfo(INDEX)
    below.size = -1
    of_no_size = below.tobuf(tarfile.GNU_FORMAT) + b"{}" * 1000
    for content in (b"", b"text", gzip.compress(b"text" * 1000), gzip.compress(of_no_size)):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(UserError, match="no whole archive"):
            import_archive(tmp_path / "bad", there)
    with pytest.raises(UserError, match="no whole archive"):
        import_archive(tmp_path / "absent", there)
    assert not there.root.exists()


def forged(store: Store, path: Path, part: str, name: str, content: Any, fits: bool) -> Path:
    """The store's run as an archive in which somebody has changed a file of the run or of its training.

    Without content the file is taken out, or is only named by the manifest; `fits`: the manifest fits it.
    """
    files = {name: data for name, data in contents(store.root).items() if "metrics.json" not in name}
    key = next(name.split("/")[2] for name in files if name.startswith("stages/train"))
    folder = f"runs/{RUN}" if part == "run" else f"stages/train/{key}"
    data = json.dumps(content).encode() if isinstance(content, dict | list) else content
    if data is not None:
        files[f"{folder}/{name}"] = data
    elif not fits:
        files = {file: data for file, data in files.items() if not file.startswith(f"{folder}/{name}")}
    if fits:
        manifest = json.loads(files[f"{folder}/{MANIFEST}"])
        facts = {"sha256": sha256(data).hexdigest() if data else "0" * 64, "bytes": len(data or b"")}
        files[f"{folder}/{MANIFEST}"] = json.dumps(manifest | {name: facts}).encode()
    return pack(path, files, {"format": 1, "files": {name: len(data) for name, data in files.items()}})


# Settings that are few lines, and nine to the power of thirty values.
BOMB = "a0: &a0 [x]" + "".join(f"\na{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 31))
SETTINGS = [
    "data: [{root: 'a${oc.env:HOME}'}]",
    "{task: oc.env, data: {root: '${${task}:HOME}'}}",
    "{task: oc, data: {root: '${${task}.env:HOME}'}}",
    "{task: '${oc', seed: '${task}.env:HOME}'}",
    "{seed: 1, data: {root: '${seed}'}}",
    "{paraphrases: {folder: '${store.root}/pools/${oc.env:HOME}'}}",
]
FORGED = [
    ("run.json: sequence: Field required", "run", "run.json", {"id": RUN}, True),
    ("run.json: stages.0.kind: ", "run", "run.json", record(RUN, [{"kind": "../.."}]), True),
    ("run.json: stages.0.key: ", "run", "run.json", record(RUN, [{"key": "/" + "a" * 63}]), True),
    ("Run .* lacks train .*is gone", "run", "run.json", record(RUN, [{}]), True),
    ("holds another run than its name says", "run", "run.json", record("b", []), True),
    ("Damaged: runs/.*run.json", "run", "run.json", {}, False),
    ("/dev/zero, which does not lie in", "run", "/dev/zero", None, True),
    (r"\.\./\.\./x, which does not lie in", "run", "../../x", None, True),
    ("/x, which does not lie in", "stage", "adapter/../../x", None, True),
    ("cannot read .*null", "stage", "a\0b", None, True),
    ("result.json: seconds: ", "stage", "result.json", {"task": "t", "model": "m", "seconds": None}, True),
    ("holds another stage than its name says", "stage", "identity.json", {"kind": "train", "seed": 7}, True),
    (
        "stages/train/.*adapter_model.* is not what was stored",
        "stage",
        "adapter/adapter_model.safetensors",
        b"numberz",
        False,
    ),
    ("manifest.json is gone", "stage", MANIFEST, None, False),
    ("is not in its stage's manifest", "stage", "more.json", {}, False),
    ("losses.csv is not in its run's manifest", "run", "losses.csv", b"", False),
    ("Run .* lacks train .*is gone", "stage", "", None, False),
    ("while scanning a quoted", "stage", "config.yaml", b"a: 'b", True),
    ("an alias", "stage", "config.yaml", BOMB.encode(), True),
    ("runs code of a model's", "stage", "config.yaml", b"model: {trust_remote_code: true}", True),
    *(("read this machine's environment", "run", "config.yaml", text.encode(), True) for text in SETTINGS),
]


@pytest.mark.parametrize(("message", "part", "name", "content", "fits"), FORGED)
def test_forged_archives_are_refused(store, there, tmp_path, message, part, name, content, fits):
    file = forged(store, tmp_path / "bad.tar.gz", part, name, content, fits)
    with pytest.raises(UserError, match=message):
        import_archive(file, there)
    assert_untouched(there)


def test_an_import_that_is_killed_leaves_no_run_without_its_stages(file, there, monkeypatch):
    put_record = archive.put_record
    monkeypatch.setattr(archive, "put_record", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        import_archive(file, there)
    assert not list(there.runs())
    assert verify(there) == []
    monkeypatch.setattr(archive, "put_record", put_record)
    assert import_archive(file, there).kept == 3
    assert [run.name for run in there.runs()] == [RUN]


def test_a_disk_that_fills_up_is_not_the_archive_s_fault(file, there, monkeypatch):
    monkeypatch.setattr(tarfile.TarFile, "extract", Mock(side_effect=OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(WorkError, match=r"Cannot write to the store .*Make room"):
        import_archive(file, there)
    assert_untouched(there)


def test_a_stage_that_a_run_computes_meanwhile_stays(file, there, monkeypatch):
    """After the archive was compared with the store, and before its stages are moved in."""
    has_already, asked, computed = archive._has_already, [], []

    def late(store, stage):
        asked.append(stage)
        if stage.parent.name == "evaluate" and asked.count(stage) == 2:
            add_stage(store, "evaluate")
            computed.append((store.root / "stages" / "evaluate" / stage.name).stat().st_ino)
        return has_already(store, stage)

    monkeypatch.setattr(archive, "_has_already", late)
    assert import_archive(file, there).kept == 1
    assert [path.stat().st_ino for path in there.root.glob("stages/evaluate/*")] == computed


def test_whoever_imports_keeps_collections_away_and_what_they_have_listed_stays(file, there, monkeypatch):
    """Its stages are in place and its run is not, when another command lists and deletes."""
    put_record, found = archive.put_record, []

    def beside(*arguments):
        found.extend(leftovers(Store(there.root)))
        with pytest.raises(UserError, match="At work"):
            collect(Store(there.root), found)
        put_record(*arguments)

    monkeypatch.setattr(archive, "put_record", beside)
    import_archive(file, there)
    assert {item.path.name for item in found if item.is_of_no_run} == {s.key for _, s in there.stages()}
    collect(Store(there.root), found)
    assert verify(there) == []
    assert len(list(there.stages())) == 3


def test_whoever_exports_keeps_collections_away(store, tmp_path, monkeypatch):
    pack, refused = archive._pack, []

    def during(*parts):
        with pytest.raises(UserError, match="At work"):
            collect(Store(store.root), leftovers(Store(store.root)))
        refused.append(True)
        return pack(*parts)

    monkeypatch.setattr(archive, "_pack", during)
    export_runs([store.run_folder(RUN)], tmp_path / "new.tar.gz")
    assert refused


def test_an_export_beside_a_stage_that_is_computed_again_is_refused(store, tmp_path, monkeypatch):
    pack = archive._pack

    def after_it_is_replaced(*arguments):
        add_stage(store, "evaluate", content=b"other numbers")
        return pack(*arguments)

    monkeypatch.setattr(archive, "_pack", after_it_is_replaced)
    with pytest.raises(WorkError, match=r"evaluate/.* is written again by another command"):
        export_runs([store.run_folder(RUN)], tmp_path / "new.tar.gz")
    assert not (tmp_path / "new.tar.gz").exists()
