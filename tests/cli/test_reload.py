"""`headrace run --reload` as a user has it: a file is saved, and what answers changes, or does not."""

import json
import os
import signal
import threading
import urllib.request

import pytest
from terminals import PATIENCE_S

from headrace.cli.watch import Watcher, different, sources_in

APP = """
    from headrace import serve
    from words import WORD

    @serve.deployment
    class Greeter:
        def __init__(self):
            {constructor}

        async def __call__(self, request):
            return [WORD, {number}]

    app = Greeter.bind()
"""


@pytest.fixture
def editor(terminal):
    """An application that runs, and whose files are edited."""
    terminal.write("words.py", "WORD = 'hello'\n")
    save(terminal, 1)
    terminal.running = terminal.run("greeting:app", "--port", "0", "--reload")
    terminal.url = terminal.running.url()
    return terminal


def save(terminal, number, constructor="pass"):
    terminal.write("greeting.py", APP.format(number=number, constructor=constructor))


def answer(editor):
    with urllib.request.urlopen(editor.url, timeout=PATIENCE_S) as response:
        return json.load(response)


def seen(running):
    return len(running.lines)


def test_edits_are_served_and_broken_ones_are_told_and_are_not(editor):
    running = editor.running
    assert answer(editor) == ["hello", 1]

    save(editor, 2)
    running.wait_for(r"^changed: greeting\.py$")
    running.wait_for(r"ready in .* · revision 2  http")
    assert answer(editor) == ["hello", 2]

    # A module that it imports; of the same length, in the same second, so that stale bytecode would look fresh.
    editor.write("words.py", "WORD = 'salve'\n")
    running.wait_for(r"ready in .* · revision 3")
    assert answer(editor) == ["salve", 2]

    before = seen(running)
    editor.write("words.py", "WORD = (\n")
    running.wait_for("the code before goes on serving; waiting for a change", before)
    running.wait_for(r"SyntaxError: '\(' was never closed", before)
    assert answer(editor) == ["salve", 2]

    before = seen(running)
    editor.write("words.py", "WORD = 'salve'\n")
    save(editor, 3, "raise ValueError('the model is not there')")
    running.wait_for("the code before goes on serving; waiting for a change", before)
    told = "\n".join(running.lines[before:])
    assert told.count("Traceback (most recent call last)") == 1, told
    assert "ValueError: the model is not there" in told
    assert answer(editor) == ["salve", 2]

    before = seen(running)
    save(editor, 4)
    running.wait_for(r"ready in .* · revision \d", before)
    assert answer(editor) == ["salve", 4]

    # A module becomes a package: its file goes, another appears.
    before = seen(running)
    (editor.path / "words").mkdir()
    editor.write("words/__init__.py", "WORD = 'moved'\n")
    (editor.path / "words.py").unlink()
    running.wait_for(r"^changed: words", before)
    running.wait_for(r"ready in .* · revision \d", before)
    assert answer(editor) == ["moved", 4]

    os.kill(running.process.pid, signal.SIGINT)
    assert running.code() == 0
    assert running.lines[-1] == "stopped"


def test_an_edit_while_it_is_still_imported_takes_its_place(editor):
    running = editor.running
    editor.write("words.py", "import threading\nthreading.Event().wait(600)\n")
    running.wait_for("importing greeting:app", seen(running) - 1)
    before = seen(running)
    editor.write("words.py", "WORD = 'quick'\n")
    running.wait_for(r"ready in .* · revision 2", before)
    assert answer(editor) == ["quick", 1]


def test_what_is_broken_from_the_start_waits_for_its_first_good_edit(terminal):
    terminal.write("words.py", "1 / 0\n")
    save(terminal, 1)
    running = terminal.run("greeting:app", "--port", "0", "--reload")
    running.wait_for("^waiting for a change$")
    running.wait_for("ZeroDivisionError: division by zero")
    terminal.write("words.py", "WORD = 'well'\n")
    terminal.url = running.url()
    assert answer(terminal) == ["well", 1]


def test_a_busy_port_is_nothing_that_an_edit_mends(terminal, editor):
    port = editor.url.rpartition(":")[2].rstrip("/")
    running = terminal.run("greeting:app", "--port", port, "--reload", "--instance", "second")
    assert running.code() == 1
    running.wait_for(f"port {port} is taken")


class Folder:
    """A directory that is watched, and what was told of it."""

    def __init__(self, path):
        self.told = []
        self.changed = threading.Condition()
        self.watcher = Watcher(str(path), self.note)
        self.watcher.start()

    def note(self, paths):
        with self.changed:
            self.told += paths
            self.changed.notify_all()

    def wait_for(self, *names):
        with self.changed:
            assert self.changed.wait_for(
                lambda: {path.rpartition("/")[2] for path in self.told} >= set(names), PATIENCE_S
            ), self.told
            self.last = [path.rpartition("/")[2] for path in self.told]
            self.told.clear()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "a.py").write_text("1")
    folder = Folder(tmp_path / "inside")
    yield folder
    folder.watcher.stop()


def test_files_that_change_appear_go_and_are_replaced(tmp_path, folder):
    inside = tmp_path / "inside"
    (inside / "a.py").write_text("2")
    folder.wait_for("a.py")
    (inside / "deep" / "er").mkdir(parents=True)
    (inside / "deep" / "er" / "b.py").write_text("1")
    folder.wait_for("b.py")
    (inside / "new").write_text("3")
    (inside / "new").rename(inside / "a.py")
    folder.wait_for("a.py")
    (inside / "a.py").unlink()
    folder.wait_for("a.py")


def test_files_elsewhere_count_from_when_they_were_read(tmp_path, folder):
    elsewhere = tmp_path / "c.py"
    elsewhere.write_text("1")
    read_at = elsewhere.stat().st_mtime
    os.utime(elsewhere, (read_at + 5, read_at + 5))
    folder.watcher.add([str(elsewhere)], read_at)
    folder.wait_for("c.py")
    elsewhere.write_text("2")
    folder.wait_for("c.py")
    folder.watcher.add([str(elsewhere)], 0.0)  # once more, after another build
    elsewhere.unlink()
    folder.wait_for("c.py")
    folder.watcher.add([str(tmp_path / "never.py")], read_at)
    folder.wait_for("never.py")
    (tmp_path / "never.py").write_text("1")
    folder.wait_for("never.py")


def test_a_file_that_is_gone_is_told_once(tmp_path, folder):
    inside = tmp_path / "inside" / "a.py"
    folder.watcher.add([str(inside), str(tmp_path / "never.py")], inside.stat().st_mtime)
    folder.wait_for("never.py")
    inside.unlink()
    folder.wait_for("a.py")
    folder.watcher.add([str(inside)], 0.0)
    folder.wait_for("a.py")
    (tmp_path / "inside" / "b.py").write_text("1")
    folder.wait_for("b.py")
    assert set(folder.last) == {"b.py"}


def test_what_is_no_source_of_the_application_is_not_looked_at(tmp_path):
    for name in (".hidden", "__pycache__", "node_modules", "venv/lib", "site-packages"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x.py").write_text("")
    (tmp_path / "venv" / "pyvenv.cfg").write_text("")
    (tmp_path / "data.txt").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "dangling.py").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a.py").write_text("")
    assert [path.rpartition("/")[2] for path, _ in sources_in(str(tmp_path))] == ["a.py"]
    assert list(sources_in(str(tmp_path / "nowhere"))) == []


def test_differences():
    one, two = (1, 1, 1), (2, 1, 1)
    assert different({"a": one, "b": one, "c": one}, {"a": one, "b": two, "d": one}) == ["b", "c", "d"]
