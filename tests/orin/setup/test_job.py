"""Steps on this machine: what is done once, what a stop leaves, what an undo proves, and where the state lies."""

import json

import pytest

from orin.errors import OrinError
from orin.setup.job import Desk, Job
from orin.setup.place import RemoteStore
from orin.setup.shell import Call, SystemShell, read, with_variable
from orin.setup.step import Feed, Need, Step, holds
from orin.steps import FileStore

HOSTILE = "a 'b' \"c\" $(touch pwned) `touch pwned`; touch pwned\n\\ %s é\n*"


def file_step(**changes):
    values = {
        "name": "file",
        "title": "write it",
        "read": "cat file",
        "wanted": ("new",),
        "change": "echo new >file",
        "undo": 'printf %s "$BEFORE" >file',
        "as_root": False,
    }
    return Step(**{**values, **changes})


def job(folder, *steps, say=lambda _: None):
    return Job(steps, SystemShell("here", folder=folder), Desk(FileStore(folder / "state.json"), folder / "log", say))


def test_a_value_reaches_a_script_whatever_it_holds(tmp_path):
    shell = SystemShell("here", folder=tmp_path)
    call = with_variable(Call('printf %s "$VALUE"'), "VALUE", HOSTILE)
    assert shell.run(call).text == HOSTILE
    (tmp_path / "file").write_text(HOSTILE)
    job(tmp_path, file_step()).run()
    job(tmp_path).undo()
    assert (tmp_path / "file").read_text() == HOSTILE.strip() and not (tmp_path / "pwned").exists()


def test_what_was_wanted_all_along_is_neither_changed_nor_undone(tmp_path):
    (tmp_path / "file").write_text("new")
    assert [entry.status for entry in job(tmp_path, file_step(change="exit 1")).run()] == ["done"]
    assert job(tmp_path).undo() == [] and not (tmp_path / "state.json").exists()


def test_a_change_that_does_not_change_is_an_error(tmp_path):
    with pytest.raises(OrinError, match="file: ended well, yet it is nothing, expected new; log: "):
        job(tmp_path, file_step(change="true")).run()


def test_an_undo_that_does_not_undo_is_an_error_and_can_be_repeated(tmp_path):
    (tmp_path / "file").write_text("old")
    job(tmp_path, file_step(undo='[ -e ready ] && printf %s "$BEFORE" >file; true')).run()
    with pytest.raises(OrinError, match="file is not undone: it is new, expected old"):
        job(tmp_path).undo()
    (tmp_path / "ready").write_text("")
    assert [entry.result for entry in job(tmp_path).undo()] == ["old"]


def test_without_a_reading_done_is_what_once_ended_well(tmp_path):
    step = Step("count", "count", "echo x >>count", as_root=False, lasting="it stays")
    assert [entry.status for entry in job(tmp_path, step).run() + job(tmp_path, step).run()] == ["changed", "done"]
    other = Step("count", "count", "echo y >>count", as_root=False, lasting="it stays")
    assert job(tmp_path, other).run()[0].status == "changed"
    assert [entry.status for entry in job(tmp_path).undo()] == ["stays: it stays"]
    assert (tmp_path / "count").read_text() == "x\ny\n"


def test_checks_run_each_time_and_are_not_kept(tmp_path):
    step = Step("check", "check", "echo first; echo last", as_root=False, check=True)
    for _ in range(2):
        assert [(entry.status, entry.result) for entry in job(tmp_path, step).run()] == [("passed", "last")]
    assert not (tmp_path / "state.json").exists()


def test_needs_stop_a_step_before_it_begins(tmp_path):
    needs = (holds("a cable", "test -e cable", "plug the cable in"), Need("a person", lambda _: "nobody is there"))
    for says in ("file: plug the cable in", "file: nobody is there"):
        with pytest.raises(OrinError, match=says):
            job(tmp_path, file_step(needs=needs)).run()
        (tmp_path / "cable").write_text("")
    assert not (tmp_path / "state.json").exists() and not (tmp_path / "file").exists()


def test_what_is_fed_is_asked_for_late_and_kept_nowhere(tmp_path):
    asked = []
    feed = Feed("a secret", lambda: asked.append(1) or b"very secret")
    step = file_step(change="sha256sum - >digest; echo new >file", feed=feed)
    made = job(tmp_path, step)
    made.survey()
    assert asked == []
    made.run()
    assert asked == [1] and "very secret" not in (tmp_path / "log").read_text() + (tmp_path / "state.json").read_text()


def test_the_log_has_scripts_and_what_they_print(tmp_path):
    with pytest.raises(OrinError, match="did not end within 1 s"):
        job(tmp_path, file_step(change="echo begun; exit 124", limit_s=1.0)).run()
    text = (tmp_path / "log").read_text()
    assert "echo begun; exit 124" in text and "\nbegun\n" in text and "file: time is up" in text


def test_a_state_on_another_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    store = RemoteStore(SystemShell("there"), "deep er/state.json")
    assert store.read() is None
    store.write(json.dumps({"version": 1, "steps": {}}))
    assert json.loads(store.read())["steps"] == {} and [p.name for p in (tmp_path / "deep er").iterdir()] == [
        "state.json"
    ]
    store.write("{")
    with pytest.raises(OrinError, match="~/deep er/state.json on there is damaged .*delete it"):
        Job((), SystemShell("there"), Desk(store, tmp_path / "log", print))
    (tmp_path / "file").write_text("")
    with pytest.raises(OrinError, match="~/file/state.json on there cannot be written"):
        RemoteStore(SystemShell("there"), "file/state.json").write("x")


def test_reading_says_what_is_printed_and_nothing_of_errors():
    assert read(SystemShell("here"), "echo seen; echo trouble >&2; exit 3") == "seen"
    with pytest.raises(OrinError, match="no-such-program cannot be run here"):
        SystemShell("there", door=("no-such-program",)).run(Call("true"))
