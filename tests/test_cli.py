"""The command line: what goes to stdout and what to stderr, exit statuses, and what bad input gets."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import character_keys, gpt2_keys, gpt2_tensors, plain_signals, shared, write_gguf

import pygpt as package
from pygpt._lib import cpu_count


def failed(done, status: int, *words: str) -> None:
    """One sentence on stderr that holds these words, nothing on stdout, and that exit status."""
    message = done.stderr.decode()
    assert done.returncode == status, message
    assert done.stdout == b""
    assert re.fullmatch(r"pygpt: error: .+\n", message), message
    for word in words:
        assert word in message, message


# ---- generate ----


def test_text_goes_to_stdout_and_nothing_else(pygpt, parrot):
    done = pygpt("generate", "a", "-m", parrot("abcde"), "-n", 7)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"bcdeabc", b"")


def test_the_command_says_what_the_python_api_says(pygpt, random_model):
    path = random_model()
    done = pygpt(
        "generate", "abc", "-m", path, "-n", 50, "--seed", 5, "--temperature", 1.2, "--top-k", 9, "--top-p", 0.9
    )
    with package.Model(path) as model:
        text = model.complete("abc", 50, seed=5, temperature=1.2, top_k=9, top_p=0.9)
    assert done.stdout.decode() == text and len(text) == 50


def test_the_same_seed_gives_the_same_bytes_with_1_2_and_3_threads(pygpt, random_model):
    path = random_model()
    texts = {pygpt("generate", "a", "-m", path, "-n", 80, "--seed", 3, "-t", t).stdout for t in (1, 2, 3)}
    assert len(texts) == 1 and len(texts.pop()) == 80


def test_the_prompt_may_come_from_stdin(pygpt, parrot):
    assert pygpt("generate", "-", "-m", parrot("abcde"), "-n", 3, input=b"abc").stdout == b"dea"


def test_stdin_that_is_no_text_is_an_error(pygpt, parrot):
    failed(pygpt("generate", "-", "-m", parrot("abcde"), input=b"ab\xff"), 1, "stdin", "byte 2")


def test_an_empty_prompt_starts_from_a_newline(pygpt, parrot):
    assert pygpt("generate", "-m", parrot("ab\ncd"), "-n", 3).stdout == b"cda"


def test_output_is_utf8_in_any_locale_and_never_half_a_character(pygpt, byte_parrot):
    path = byte_parrot("xé😀".encode())
    for n, expected in [(2, "é"), (4, "é\ufffd"), (9, "é😀")]:
        done = pygpt("generate", "x", "-m", path, "-n", n, env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
        assert done.stdout.decode() == expected


def test_samples_are_separated_by_a_line_and_differ(pygpt, random_model):
    path = random_model()
    done = pygpt("generate", "a", "-m", path, "-n", 20, "--num-samples", 3, "--seed", 1)
    samples = done.stdout.decode().split("\n---------------\n")
    assert len(set(samples)) == 3 and all(len(s) == 20 for s in samples)
    assert samples[0] == pygpt("generate", "a", "-m", path, "-n", 20, "--seed", 1).stdout.decode()


def test_stop_texts_may_be_several(pygpt, parrot):
    assert pygpt("generate", "a", "-m", parrot("abcde"), "--stop", "zz", "--stop", "ea").stdout == b"bcd"


def test_on_full_stop_ends_and_the_others_go_on(pygpt, parrot):
    path = parrot("abcde", n_ctx=8)
    assert pygpt("generate", "a", "-m", path, "--on-full", "stop").stdout == b"bcdeabcd"
    for mode in ("exact", "jump"):
        assert len(pygpt("generate", "a", "-m", path, "--on-full", mode, "-n", 40).stdout) == 40


def test_stats_go_to_stderr_and_name_the_seed(pygpt, parrot):
    done = pygpt("generate", "a", "-m", parrot("abcde"), "-n", 5, "--stats")
    assert done.stdout == b"bcdea"
    for word in ("seed", "load", "prompt", "generation", "tokens/s", "memory", "GB/s"):
        assert word in done.stderr.decode()


def test_an_unknown_character_is_named_and_may_be_skipped(pygpt, parrot):
    path = parrot("abcde")
    failed(pygpt("generate", "abQ", "-m", path), 1, "'Q'", "character 2", "--unknown skip")
    assert pygpt("generate", "abQ", "-m", path, "-n", 3, "--unknown", "skip").stdout == b"cde"


def test_a_prompt_beyond_the_context_is_an_error_with_both_numbers(pygpt, parrot):
    failed(pygpt("generate", "a" * 9, "-m", parrot("abcde", n_ctx=8)), 1, "9", "8")


def test_more_threads_than_cores_work_with_a_note(pygpt, parrot):
    done = pygpt("generate", "a", "-m", parrot("abcde"), "-n", 3, "-t", cpu_count() + 1)
    assert (done.returncode, done.stdout) == (0, b"bcd")
    assert re.fullmatch(r"pygpt: note: .*threads.*\n", done.stderr.decode())


@pytest.mark.parametrize(
    "arguments",
    [
        ["-n", "0"],
        ["-n", "-3"],
        ["-n", "many"],
        ["-n", "9" * 30],
        ["--temperature", "-1"],
        ["--temperature", "nan"],
        ["--temperature", "hot"],
        ["--top-k", "-1"],
        ["--top-k", "1.5"],
        ["--top-p", "0"],
        ["--top-p", "2"],
        ["--min-p", "-1"],
        ["--repeat-penalty", "0"],
        ["--seed", "-1"],
        ["--seed", "18446744073709551616"],
        ["--num-samples", "0"],
        ["--stop", ""],
        ["--on-full", "slide"],
        ["--unknown", "guess"],
        ["-t", "0"],
        ["-t", "257"],
        ["--no-such-option"],
        ["two", "prompts"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_sentence_and_exit_status_2(arguments, capfd):
    from pygpt.cli import main

    with pytest.raises(SystemExit) as exit:
        main(["generate", *arguments])
    out, err = capfd.readouterr()
    assert exit.value.code == 2 and out == ""
    assert re.fullmatch(r"pygpt: error: .+ \(see pygpt.* --help\)\n", err), err


@pytest.mark.parametrize(
    "arguments", [[], ["frobnicate"], ["info"], ["bench"], ["perplexity", "m"], ["quantize", "a", "b"]]
)
def test_a_command_line_that_is_none_is_exit_status_2(pygpt, arguments):
    failed(pygpt(*arguments), 2)


def test_interrupting_ends_cleanly_with_130(parrot):
    command = [sys.executable, "-m", "pygpt", "generate", "a", "-m", parrot("abcde"), "-n", "2000000000"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=plain_signals, bufsize=0
    ) as process:
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest, message = process.communicate(timeout=20)
        assert process.returncode == 130 and message == b""
        text = (first + rest).decode()
        assert text == ("bcdea" * (len(text) // 5 + 1))[: len(text)]


def test_a_reader_that_goes_away_ends_it_quietly(parrot):
    command = [sys.executable, "-m", "pygpt", "generate", "a", "-m", parrot("abcde"), "-n", "2000000000"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=plain_signals, bufsize=0
    ) as process:
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait(timeout=20) == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="skipped: this system has no /dev/full")
def test_a_full_disk_is_an_error(pygpt, parrot):
    with open("/dev/full", "wb") as full:
        done = pygpt("generate", "a", "-m", parrot("abcde"), "-n", 5, stdout=full)
    assert done.returncode == 1
    assert re.fullmatch(rb"pygpt: error: .*No space left.*\n", done.stderr)


def test_a_closed_stdout_is_no_crash(parrot):
    shell = f'"{sys.executable}" -m pygpt generate a -m "{parrot("abcde")}" -n 5 >&-'
    done = subprocess.run(["sh", "-c", shell], stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_bundled_model_speaks(pygpt):
    done = pygpt("generate", "ROMEO:", "-n", 40)
    assert done.returncode == 0 and len(done.stdout.decode()) == 40


# ---- files that are no models ----


@pytest.mark.parametrize("command", ["generate", "info", "bench", "perplexity", "quantize"])
def test_a_missing_model_is_one_sentence(pygpt, tmp_path, command):
    path = tmp_path / "absent.gguf"
    (tmp_path / "t.txt").write_text("text")
    rest = {
        "generate": ["-m", path],
        "perplexity": [path, tmp_path / "t.txt"],
        "quantize": [path, tmp_path / "out.gguf", "--type", "q8_0"],
    }
    failed(pygpt(command, *rest.get(command, [path])), 1, "absent.gguf")


def test_a_folder_and_an_empty_file_are_no_models(pygpt, tmp_path):
    (tmp_path / "empty.gguf").touch()
    failed(pygpt("generate", "-m", tmp_path), 1, str(tmp_path))
    failed(pygpt("generate", "-m", tmp_path / "empty.gguf"), 1, "empty.gguf")


@pytest.mark.skipif(os.geteuid() == 0, reason="skipped: root may read everything")
def test_a_model_without_permission_is_one_sentence(pygpt, parrot):
    path = parrot("abc")
    path.chmod(0)
    failed(pygpt("generate", "-m", path), 1, "ermission")


def test_a_model_that_cannot_be_opened_is_one_sentence(pygpt, tmp_path):
    """For another reason than permission, so that it is tried by root too."""
    (tmp_path / "loop.gguf").symlink_to(tmp_path / "loop.gguf")
    failed(pygpt("generate", "-m", tmp_path / "loop.gguf"), 1, "loop.gguf", "cannot be opened")


def test_a_truncated_model_is_one_sentence(pygpt, random_model):
    path = random_model()
    data = path.read_bytes()
    for n in (10, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:n])
        failed(pygpt("generate", "-m", path), 1, "random.gguf")


def test_an_unknown_architecture_and_an_unknown_tokenizer_are_named(pygpt, tmp_path):
    keys = gpt2_keys(8, 32, 1) | {"general.architecture": "mamba9"}
    path = write_gguf(tmp_path / "m.gguf", gpt2_tensors(32, 8, 32, 1, None), keys)
    failed(pygpt("generate", "-m", path), 1, "mamba9")
    keys = gpt2_keys(8, 32, 1) | {"tokenizer.ggml.model": "unigram"}
    path = write_gguf(tmp_path / "t.gguf", gpt2_tensors(32, 8, 32, 1, None), keys)
    failed(pygpt("generate", "-m", path), 1, "unigram")


def test_a_model_without_vocabulary_is_one_sentence(pygpt, random_model):
    failed(pygpt("generate", "a", "-m", random_model(n_vocab=32, keys={})), 1, "no vocabulary")


def test_an_instruction_set_that_is_not_known_is_named(pygpt, parrot):
    done = pygpt("generate", "a", "-m", parrot("abc"), env={"PYGPT_ISA": "mmx"})
    failed(done, 1, "mmx")


def test_every_available_instruction_set_can_be_forced(pygpt, parrot):
    from pygpt._lib import isas

    for name, available in isas().items():
        done = pygpt("generate", "a", "-m", parrot("abc"), "-n", 4, env={"PYGPT_ISA": name})
        assert (done.stdout == b"bcab") if available else (done.returncode == 1 and name in done.stderr.decode())


# ---- the other commands ----


def test_info_shows_the_model_and_the_kernels(pygpt, random_model):
    done = pygpt("info", random_model())
    assert (done.returncode, done.stderr) == (0, b"")
    for word in (
        "gpt2",
        "2 layers",
        "64 wide",
        "context 16",
        "q8_0",
        "28 ids",
        "scalar",
        "used",
        "blk.1.ffn_down.weight",
    ):
        assert word in done.stdout.decode(), word


def test_info_shows_a_file_that_cannot_run_and_says_why(pygpt, tmp_path):
    keys = gpt2_keys(8, 32, 1) | {"general.architecture": "mamba9"}
    done = pygpt("info", write_gguf(tmp_path / "m.gguf", gpt2_tensors(32, 8, 32, 1, None), keys))
    assert done.returncode == 1 and b"mamba9" in done.stdout
    assert re.fullmatch(rb"pygpt: error: .*mamba9.*\n", done.stderr)


def test_bench_prints_json_with_results_and_limits(pygpt, random_model):
    done = pygpt("bench", random_model(n_ctx=64), "-p", 8, "-n", 4, "-r", 2, "-t", 1, "--json")
    found = json.loads(done.stdout)
    assert [r["test"] for r in found["results"]] == ["pp8", "tg4"]
    assert all(r["tokens_per_second"] > 0 for r in found["results"])
    machine = found["machine"]
    assert machine["threads"] == 1 and machine["isa"]
    assert machine["read_gb_per_second"] > 0 and machine["int8_gmac_per_second"] > 0


def test_bench_without_json_is_a_table_and_is_cut_to_the_context(pygpt, random_model):
    done = pygpt("bench", random_model(n_ctx=16), "-r", 1)
    assert b"pp16 " in done.stdout and b"tg16 " in done.stdout and b"context of 16" in done.stderr
    assert b"pp" not in pygpt("bench", random_model(n_ctx=16), "-r", 1, "-p", 0, "-n", 2).stdout


def test_perplexity_gives_nats_perplexity_and_bits_per_byte(pygpt, random_model, tmp_path):
    (tmp_path / "t.txt").write_text("the quick brown fox jumps over the lazy dog")
    done = pygpt("perplexity", random_model(), tmp_path / "t.txt")
    values = dict(
        re.findall(r"^(nats per token|perplexity|bits per byte) +([\d.]+)$", done.stdout.decode(), re.MULTILINE)
    )
    nats, perplexity, bits = map(float, values.values())
    assert perplexity == pytest.approx(2.718281828**nats, rel=1e-3) and bits == pytest.approx(
        nats / 0.6931472, rel=1e-3
    )


def test_perplexity_of_what_is_no_text_is_one_sentence(pygpt, random_model, tmp_path):
    (tmp_path / "t.txt").write_bytes(b"ab\xff")
    failed(pygpt("perplexity", random_model(), tmp_path / "t.txt"), 1, "t.txt", "byte 2")
    (tmp_path / "t.txt").write_bytes(b"a")
    failed(pygpt("perplexity", random_model(), tmp_path / "t.txt"), 1, "at least 2")
    failed(pygpt("perplexity", random_model(), tmp_path / "absent.txt"), 1, "absent.txt")


def test_perplexity_of_a_real_model_is_what_nanogpt_measured(pygpt, tmp_path):
    import numpy as np

    expected = np.load(shared("nanogpt-shakespeare/expected.npz"))
    text = shared("nanogpt-shakespeare/data/shakespeare_char/input.txt").read_text()
    (tmp_path / "val.txt").write_text(text[int(len(text) * 0.9) :])
    windows = int(expected["val_windows"])
    for type, tolerance in (("f32", 0.0005), ("q8_0", 0.003), ("q4_0", 0.03)):
        out = tmp_path / f"{type}.gguf"
        source = shared("nanogpt-shakespeare/out/ckpt.pt")
        assert pygpt("convert", source, "-o", out, "--type", type).returncode == 0
        done = pygpt("perplexity", out, tmp_path / "val.txt", "--windows", windows)
        nats = float(re.search(r"nats per token +([\d.]+)", done.stdout.decode())[1])
        assert nats == pytest.approx(float(expected["val_loss"]), rel=tolerance)


def test_quantize_writes_the_model_in_another_type(pygpt, random_model, tmp_path):
    out = tmp_path / "out.gguf"
    source = random_model(type="f32")
    done = pygpt("quantize", source, out, "--type", "q8_0")
    assert (done.returncode, done.stderr) == (0, b""), done.stderr
    assert out.stat().st_size < source.stat().st_size / 2
    with package.Model(source) as before, package.Model(out) as after:
        assert before.tokenizer.encode("abc") == after.tokenizer.encode("abc")
        assert abs(before.logits([1, 2, 3]) - after.logits([1, 2, 3])).max() < 0.5
        keys = before.file().keys
        assert {name: keys[name] for name in keys}.items() <= {
            n: after.file().keys[n] for n in after.file().keys
        }.items()


def test_quantize_leaves_nothing_behind_when_it_fails(pygpt, random_model, tmp_path):
    source = random_model(type="f32")
    (tmp_path / "folder").mkdir()
    failed(pygpt("quantize", source, tmp_path / "folder", "--type", "q8_0"), 1, "folder")
    failed(pygpt("quantize", source, tmp_path / "nowhere" / "x.gguf", "--type", "q8_0"), 1, "nowhere")
    failed(pygpt("quantize", source, tmp_path / "x.gguf", "--type", "q9"), 2, "q9", "q8_0")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "random.gguf"]


def test_convert_refuses_what_is_no_checkpoint(pygpt, tmp_path):
    (tmp_path / "ckpt.pt").write_bytes(b"no checkpoint at all")
    failed(pygpt("convert", tmp_path / "ckpt.pt"), 1, "ckpt.pt")
    failed(pygpt("convert", tmp_path / "absent.pt"), 1, "absent.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt.pt"]


def test_version_and_help_go_to_stdout(pygpt):
    assert pygpt("--version").stdout.decode() == f"pygpt {package.__version__}\n" == pygpt("-V").stdout.decode()
    for command in ("convert", "generate", "info", "bench", "perplexity", "quantize"):
        assert command in pygpt("--help").stdout.decode()
        assert pygpt(command, "--help").returncode == 0


def test_the_command_is_installed_and_is_the_same_as_python_m(pygpt):
    command = Path(sys.executable).with_name("pygpt")
    if not command.exists():
        pytest.skip("skipped: pygpt is not installed beside this Python")
    done = subprocess.run([command, "--version"], stdout=subprocess.PIPE, timeout=60)
    assert done.stdout == pygpt("--version").stdout


@pytest.mark.parametrize("arguments", [["-t", "9"], ["--stats"], ["-m", "missing.gguf"]])
def test_with_stderr_closed_nothing_but_text_goes_to_stdout(parrot, arguments):
    model = [] if "-m" in arguments else ["-m", str(parrot("abc"))]
    command = [sys.executable, "-m", "pygpt", "generate", "a", "-n", "5", *model, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, preexec_fn=lambda: os.close(2), timeout=60)
    assert done.stdout == (b"" if "-m" in arguments else b"bcabc")


def test_perplexity_of_a_damaged_model_is_one_sentence(pygpt, tmp_path):
    tensors = gpt2_tensors(3, 16, 32, 1, None)
    tensors["token_embd.weight"][:] = np.nan
    path = write_gguf(tmp_path / "nan.gguf", tensors, gpt2_keys(16, 32, 1) | character_keys("abc"))
    (tmp_path / "text.txt").write_text("abcabc")
    failed(pygpt("perplexity", path, tmp_path / "text.txt"), 1, "nan.gguf", "not numbers")


def test_perplexity_may_skip_what_the_vocabulary_lacks(pygpt, parrot, tmp_path):
    (tmp_path / "text.txt").write_text("abcXabc")
    failed(pygpt("perplexity", parrot("abc"), tmp_path / "text.txt"), 1, "'X'", "--unknown skip")
    assert pygpt("perplexity", parrot("abc"), tmp_path / "text.txt", "--unknown", "skip").returncode == 0


def test_info_does_not_obey_what_a_file_says_to_terminals(pygpt, tmp_path):
    keys = gpt2_keys(16, 32, 1) | character_keys("abc") | {"general.name": "evil\x1b[2J\nvocabulary 99"}
    path = write_gguf(tmp_path / "evil.gguf", gpt2_tensors(3, 16, 32, 1, None), keys)
    shown = pygpt("info", path).stdout
    assert b"\x1b" not in shown and b"\nvocabulary 99" not in shown
