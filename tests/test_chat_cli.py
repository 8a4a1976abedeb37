"""`pygpt chat`: what goes where, the commands, and what an interrupt ends."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time

import pytest
from conftest import plain_signals
from test_chat import dicts, parrot_keys


@pytest.fixture
def talker(parrot_model):
    """talker(reply=b"yes!", n_ctx=400): a model that answers every message so."""

    def make(*args, n_ctx=400, **settings):
        return parrot_model(*parrot_keys(*args, **settings), n_ctx)

    return make


@pytest.fixture
def said(pygpt, talker):
    """said("hello\\n/exit\\n", ...): what the command does with these lines from a pipe."""

    def run(lines, *arguments, path=None, **settings):
        lines = lines.encode() if isinstance(lines, str) else lines
        return pygpt("chat", path or talker(), *arguments, input=lines, **settings)

    return run


def told(done):
    """The lines on stderr, without who says them."""
    lines = done.stderr.decode().splitlines()
    assert all(line.startswith("pygpt: ") for line in lines), lines
    return [line.removeprefix("pygpt: ") for line in lines]


# ---- from a pipe


def test_answers_alone_go_to_stdout_a_line_each(said):
    done = said("hello\nand again\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"yes!\nyes!\n", b"")


def test_the_last_line_need_not_end_and_empty_lines_say_nothing(said):
    assert said("\n  \nhello\r\n\nagain").stdout == b"yes!\nyes!\n"
    assert said("").stdout == b""


def test_an_answer_that_ends_its_line_itself_gets_no_empty_one(said, talker):
    assert said("a\nb\n", path=talker(b"yes\t", style="nanochat")).stdout == b"yes\t\nyes\t\n"
    assert said("a\nb\n", path=talker(b"yes\n", style="nanochat")).stdout == b"yes\nyes\n"


def test_space_before_an_answer_is_not_shown(said, talker):
    assert said("a\n", path=talker(b" \nyes_it!", style="nanochat")).stdout == b"yes_it!\n"


def test_output_is_utf8_in_any_locale(said, talker):
    done = said("é\n", path=talker("é😀".encode()), env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert done.stdout.decode() == "é😀\n" and done.stderr == b""


def saved(said, tmp_path, lines, *arguments, **settings):
    """The conversation after these lines."""
    file = tmp_path / "saved.json"
    done = said(f"{lines}\n/save {file}\n", *arguments, **settings)
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text())


def test_a_line_that_ends_in_a_backslash_goes_on_in_the_next(said, tmp_path):
    found = saved(said, tmp_path, "one\\\ntwo \\\n/three\nfour")
    assert [m["content"] for m in found] == ["one\ntwo \n/three", "yes!", "four", "yes!"]
    assert said("one\\").stdout == b"yes!\n"


def test_two_slashes_send_one(said, tmp_path):
    assert saved(said, tmp_path, "//help\n// x")[0::2] == dicts([("user", "/help"), ("user", "/ x")])


def test_a_command_that_is_none_is_one_line_and_the_exit_status_1(said):
    done = said("/nothing at all\nhello\n")
    assert (done.returncode, done.stdout) == (1, b"yes!\n")
    (line,) = told(done)
    assert line.startswith("error: ") and "'/nothing'" in line and "/help" in line


def test_what_is_no_text_is_one_line(said):
    done = said(b"ab\xff\nhello\n")
    assert (done.returncode, done.stdout) == (1, b"yes!\n")
    assert "byte 2" in told(done)[0] and len(told(done)) == 1


def test_a_message_that_does_not_fit_is_one_line_with_both_numbers(said, talker):
    done = said("x" * 500 + "\nhello\n", path=talker(n_ctx=100))
    assert (done.returncode, done.stdout) == (1, b"yes!\n")
    assert re.fullmatch(r"error: .* 519 tokens.*context of 100 .*", told(done)[0]) and len(told(done)) == 1


def test_messages_that_the_context_has_no_room_for_are_told_once(said, talker):
    done = said("a message\n" * 7, path=talker(n_ctx=200))
    assert done.stdout == b"yes!\n" * 7
    notes = told(done)
    assert 0 < len(notes) < 5 and all(
        re.match("note: the context is full, .* oldest [0-9]+ messages", n) for n in notes
    )


def test_an_answer_that_is_cut_is_told(said, talker):
    done = said("a\n", "-n", 3)
    assert done.stdout == b"yes\n" and re.fullmatch("note: .* 3 tokens; -n .*", told(done)[0])
    done = said("a\n", path=talker(b"\nabc", end=False, n_ctx=60))
    assert len(done.stdout) > 30 and re.fullmatch("note: .* context is full.*", told(done)[0])


def test_stats_go_to_stderr(said):
    done = said("hello\nagain\n", "--stats", "--seed", 5)
    assert done.stdout == b"yes!\nyes!\n"
    first, second = told(done)
    assert re.fullmatch(r"read 23 tokens \(.* tokens/s\), 0 were read before; generated 4 .* by end; seed 5", first)
    assert "27 were read before" in second


def test_settings_reach_the_conversation(said, tmp_path, talker):
    found = saved(said, tmp_path, "hello", "--system", "be nice", "--temperature", 0, "--top-k", 3, "--top-p", 0.5)
    assert found == dicts([("system", "be nice"), ("user", "hello"), ("assistant", "yes!")])
    done = said("x" * 50 + "\n", "-c", 40)
    assert done.returncode == 1 and "context of 40" in told(done)[0]
    done = said("x\n", "-c", 4000)
    assert done.returncode == 1 and len(told(done)) == 1 and done.stdout == b""


# ---- commands


def test_reset_forgets_all_but_the_system_message(said, tmp_path):
    found = saved(said, tmp_path, "a\n/reset\nb", "--system", "be nice")
    assert found == dicts([("system", "be nice"), ("user", "b"), ("assistant", "yes!")])


def test_the_system_message_can_be_changed_and_taken_away(said, tmp_path):
    found = saved(said, tmp_path, "a\n/system  be nice \nb")
    assert found[0] == {"role": "system", "content": "be nice"} and len(found) == 5
    (tmp_path / "saved.json").unlink()
    assert len(saved(said, tmp_path, "a\n/system\nb", "--system", "be nice")) == 4


def test_help_names_every_command_on_stderr(said):
    from pygpt.chat_cli import COMMANDS

    done = said("/help\n")
    assert done.returncode == 0 and done.stdout == b""
    for command in (*COMMANDS, "backslash", "Ctrl-C"):
        assert any(command in line for line in told(done)), command


def test_exit_ends_it(said):
    done = said("hello\n/exit\nagain\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"yes!\n", b"")


def test_a_conversation_is_saved_and_taken_up_again(said, tmp_path):
    file = tmp_path / "talk é.json"
    done = said(f"/system be nice\nhello\n/save {file}\nagain\n/save {file}\n")
    assert done.returncode == 0 and [*map(str, tmp_path.glob("*.part"))] == []
    talk = dicts([("system", "be nice"), ("user", "hello"), ("assistant", "yes!"), ("user", "again")])
    assert json.loads(file.read_text()) == [*talk, {"role": "assistant", "content": "yes!"}]
    assert len(told(done)) == 2 and "5 messages" in told(done)[1]
    done = said(f"other\n/load {file}\nmore\n/save {file}\n")
    assert done.returncode == 0, done.stderr
    assert json.loads(file.read_text())[:4] == talk and len(json.loads(file.read_text())) == 7


def test_a_file_that_is_there_is_not_overwritten(said, tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("precious")
    done = said(f"hello\n/save {file}\nagain\n")
    assert (done.returncode, done.stdout) == (1, b"yes!\nyes!\n")
    assert len(told(done)) == 1 and "mine.txt" in told(done)[0]
    assert file.read_text() == "precious"


@pytest.mark.parametrize(
    "command", ["/save", "/load", "/save nowhere/x.json", "/load absent.json", "/load .", "/save ."]
)
def test_a_file_that_cannot_be_is_one_line(said, tmp_path, command):
    done = said(f"hello\n{command}\nagain\n", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"yes!\nyes!\n") and len(told(done)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["parrot.gguf"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="skipped: this system has no /dev/full")
def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    from pygpt import chat_cli
    from pygpt._lib import Error

    full = open("/dev/full", "w")  # noqa: SIM115
    monkeypatch.setattr("builtins.open", lambda path, *_, **__: (os.close(os.open(path, os.O_CREAT)), full)[1])
    with pytest.raises(Error, match="talk.json.*No space left"):
        chat_cli.save(str(tmp_path / "talk.json"), dicts([("user", "x")]), replace=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "data",
    [b"", b"no JSON", b"{}", b'[{"role": "robot", "content": "x"}]', b"\xff\xfe", b"[" * 100000, b'["x"]', b"[1e999]"],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_conversation_is_one_line_and_changes_nothing(said, tmp_path, data):
    (tmp_path / "talk.json").write_bytes(data)
    done = said(f"hello\n/load {tmp_path / 'talk.json'}\n/save {tmp_path / 'kept.json'}\n")
    assert done.returncode == 1 and done.stdout == b"yes!\n"
    assert "talk.json" in told(done)[0] and told(done)[0].startswith("error: ") and len(told(done)) == 2
    assert json.loads((tmp_path / "kept.json").read_text()) == dicts([("user", "hello"), ("assistant", "yes!")])


# ---- models and usage


def refused(done, status, *words):
    message = done.stderr.decode()
    assert (done.returncode, done.stdout) == (status, b"") and re.fullmatch(r"pygpt: error: .+\n", message), message
    assert all(word in message for word in words), message


def test_a_base_model_is_not_forced_into_a_chat(said, talker, parrot):
    refused(said("hello\n", path=talker(template="")), 1, "no chat template", "pygpt generate", "parrot.gguf")
    refused(said("hello\n", path=parrot("abc")), 1, "no chat template", "pygpt generate")


def test_the_bundled_model_is_a_base_model(said):
    import pygpt.model

    refused(said("hello\n", path=pygpt.model.BUNDLED), 1, "no chat template")


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3, "characters of text"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ raise_exception('never') }}", "'never'"),
    ],
)
def test_a_hostile_template_is_one_line(said, talker, template, word):
    done = said("hello\n", path=talker(template=template))
    assert (done.returncode, done.stdout) == (1, b"") and len(told(done)) == 1 and word in told(done)[0]


def test_a_template_that_is_none_is_one_line(said, talker):
    refused(said("hello\n", path=talker(template="{% for %}")), 1, "line 1", "parrot.gguf")


def test_without_jinja2_a_sentence_says_what_to_install(said, tmp_path):
    (tmp_path / "jinja2.py").write_text("raise ImportError")
    refused(said("hello\n", env={"PYTHONPATH": str(tmp_path)}), 1, "pip install 'pygpt[chat]'")


@pytest.mark.parametrize("arguments", [[], ["m", "-n", "0"], ["m", "--top-p", "2"], ["m", "--seed", "-1"], ["m", "n"]])
def test_wrong_usage_is_exit_status_2(pygpt, arguments):
    refused(pygpt("chat", *arguments), 2)


def test_a_missing_model_is_one_line(pygpt, tmp_path):
    refused(pygpt("chat", tmp_path / "absent.gguf"), 1, "absent.gguf")


# ---- interrupts


class Talk:
    """The command with pipes, or at a terminal of its own."""

    def __init__(self, path, *arguments, terminal=False, stdout=None):
        command = [sys.executable, "-m", "pygpt", "chat", str(path), *arguments]
        environment = {**os.environ, "TERM": "dumb", "INPUTRC": os.devnull}
        if terminal:
            self.near, far = pty.openpty()
            streams = {"stdin": far, "stdout": stdout or far, "stderr": far}
            self.process = subprocess.Popen(command, **streams, preexec_fn=self.own_terminal, env=environment)
            os.close(far)
        else:
            streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            self.process = subprocess.Popen(command, **streams, preexec_fn=plain_signals, bufsize=0, env=environment)
            self.near = self.process.stdout.fileno()
        self.shown = ""

    @staticmethod
    def own_terminal():
        plain_signals()
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def until(self, text, seconds=30):
        """Waits until this is shown, and returns what was shown before it."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            ready, _, _ = select.select([self.near], [], [], max(0, end - time.monotonic()))
            assert ready, f"{text!r} did not come: {self.shown[-500:]!r}"
            try:
                data = os.read(self.near, 4096)
            except OSError:  # the terminal is gone
                data = b""
            assert data, f"it ended before {text!r} came: {self.shown[-500:]!r}"
            self.shown += data.decode(errors="replace").replace("\r\n", "\n")
        before, _, self.shown = self.shown.partition(text)
        return before

    def type(self, text):
        os.write(self.near, text.encode())

    def send(self, text):
        self.process.stdin.write(text.encode())

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)


@pytest.fixture
def talk():
    """talk(path, ...): a Talk, ended when the test is."""
    talks = []

    def make(*args, **settings):
        talks.append(Talk(*args, **settings))
        return talks[-1]

    yield make
    for one in talks:
        one.process.kill()
        one.process.wait()
        for file in (one.process.stdin, one.process.stdout, one.process.stderr):
            if file:
                file.close()


@pytest.fixture
def endless(talker):
    """A model whose answers go on for a long time."""
    return talker(b"\nabcd", end=False, n_ctx=30000)


def test_an_interrupt_ends_the_answer_and_not_the_program(talk, endless, tmp_path):
    it = talk(endless, "-n", "2000000000")
    it.send("hello\n")
    it.until("abcd\nabcd")
    it.interrupt()
    it.send(f"/save {tmp_path / 'talk.json'}\nagain\n")
    deadline = time.monotonic() + 20
    while not (tmp_path / "talk.json").exists():
        assert time.monotonic() < deadline
        it.until("a")
    it.shown = ""
    it.until("abcd\nabcd")
    time.sleep(1.1)  # not at once after the first, which would end it
    it.interrupt()
    it.process.stdin.close()
    assert it.process.wait(timeout=20) == 0
    assert b"Traceback" not in it.process.stderr.read()
    user, answer = json.loads((tmp_path / "talk.json").read_text())
    assert user["content"] == "hello" and answer["content"].startswith("abcd\nabcd")


def test_two_interrupts_at_once_end_a_program_without_a_terminal(talk, endless):
    it = talk(endless, "-n", "2000000000")
    it.send("hello\n" * 50)
    it.until("abcd\nabcd")
    for _ in range(50):
        if it.process.poll() is not None:
            break
        it.interrupt()
        time.sleep(0.1)
    assert it.process.wait(timeout=20) == 130
    assert it.process.stderr.read() == b""


def test_a_reader_that_goes_away_ends_it_quietly(talk, endless):
    it = talk(endless, "-n", "2000000000")
    it.send("hello\n")
    it.until("abcd")
    it.process.stdout.close()
    assert it.process.stderr.read() == b"" and it.process.wait(timeout=20) == 0


# ---- at a terminal


def test_at_a_terminal_there_is_a_prompt_and_control_d_leaves(talk, talker):
    it = talk(talker(), terminal=True)
    assert "/help" in it.until("> ") and it.process.poll() is None
    it.type("hello\n")
    assert "yes!\n" in it.until("> ")
    it.type("two\\\n")
    it.until("... ")
    it.type("lines\n")
    assert "yes!\n" in it.until("> ")
    it.type("/nothing\n")
    assert "error: there is no command '/nothing'" in it.until("> ")
    it.type("\x04")
    assert it.process.wait(timeout=20) == 0


def test_control_c_at_the_prompt_gives_a_hint(talk, talker):
    it = talk(talker(), terminal=True)
    it.until("> ")
    time.sleep(0.2)
    it.type("\x03")
    assert "Ctrl-D leaves" in it.until("> ")
    it.type("hello\n")
    assert "yes!\n" in it.until("> ")
    it.type("/exit\n")
    assert it.process.wait(timeout=20) == 0


def test_control_c_stops_an_answer_at_a_terminal(talk, endless):
    it = talk(endless, "-n", "2000000000", terminal=True)
    for _ in range(3):  # however soon one after the other
        it.until("> ")
        it.type("hello\n")
        it.until("abcd\nabcd")
        it.type("\x03")
    it.until("\n> ")
    it.type("\x04")
    assert it.process.wait(timeout=20) == 0


def test_with_stdout_elsewhere_the_prompt_does_not_go_there(talk, talker, tmp_path):
    with open(tmp_path / "answers.txt", "wb") as file:
        it = talk(talker(), terminal=True, stdout=file)
        it.until("> ")
        it.type("hello\n")
        it.until("> ")
        it.type("\x04")
        assert it.process.wait(timeout=20) == 0
    assert (tmp_path / "answers.txt").read_bytes() == b"yes!\n"
